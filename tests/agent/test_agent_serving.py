"""Answering: one row and many, switching under load, and faults of candidates and callers."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edgefleet_agent.errors import InferenceError, NotServingError
from edgefleet_agent.inference.challenger import QUEUE_CALLS
from edgefleet_agent.inference.serving import Challenger, Model, Served
from edgefleet_agent.inference.sketching import ClosedWindow, Recorder
from edgefleet_agent.inference.watch import RUN_CALLS, Watch
from edgefleet_agent.runtimes import Given, Outputs, Scores
from edgefleet_protocol import sketch
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import SUMMARIES, Signature, Tensor
from edgefleet_protocol.messages import Health, Slot
from edgefleet_protocol.rows import Tensors
from edgefleet_protocol.sketch import Feature, ReferenceProfile

COLUMNS = ["a", "b"]
CLASSES = ["no", "yes"]


class Scripted:
    """A session that gives what a function says."""

    provider = "script"

    def __init__(self, answer: Callable[[Tensors], Any]) -> None:
        self.answer = answer
        self.resets = 0
        self.closed = False

    def run(self, tensors: Given) -> Scores:
        return np.asarray(self.answer(dict(tensors)), np.float32)

    def run_all(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        return dict.fromkeys(outputs, self.run(tensors))

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closed = True


def sure(value: float) -> Scripted:
    """Give `value` to the second class, for any number of rows."""
    return Scripted(lambda t: [[1 - value, value]] * len(next(iter(t.values()))))


def watch(rows: int = 10, **budget: int) -> Watch:
    return Watch(rows, lambda _: None, **budget)


def failing(tensors: Tensors) -> Any:
    raise InferenceError("the runtime raised")


class Place:
    """A model with what its engine would hear."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.faults: list[tuple[int, str]] = []
        self.windows: list[ClosedWindow] = []
        self.model = Model("m", lambda slot, why: self.faults.append((slot.release, why)), rng)

    def served(
        self,
        session: Scripted,
        release: int = 1,
        *,
        inputs: list[Tensor] | None = None,
        task: Any = "classification",
    ) -> Served:
        inputs = inputs or [Tensor("x", "float32", [None, 2], COLUMNS)]
        classes = CLASSES if task == "classification" else []
        features = [
            Feature(name, "categorical", vocabulary=["p", "q"])
            if tensor.dtype == "string"
            else Feature(name, edges=[0.0, 1.0])
            for tensor in inputs
            for name in tensor.columns or [f"{tensor.name}.{word}" for word in SUMMARIES]
        ]
        nothing = np.zeros((0, len(features)))
        profile = ReferenceProfile(
            0,
            features,
            sketch.pack_counts(sketch.count_rows(features, nothing), features),
            sketch.pack_moments(sketch.moments_of(nothing)),
            classes,
            [0] * len(classes),
            [0] * 16,
        )
        slot = Slot("m", f"v{release}", release, "x", f"{release:064d}")
        recorder = Recorder(
            slot,
            profile=profile,
            reference="1" * 64,
            classes=classes,
            window_rows=1000,
            recent_bytes=1 << 20,
            clock=lambda: 0.0,
            on_window=self.windows.append,
        )
        signature = Signature(
            task, inputs, [Tensor("p", "float32", [None, 2])], "p", classes=classes
        )
        return Served(slot, signature, profile, session, recorder)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.model.challenge(None)  # a shadow has a thread


def test_one_row_is_answered_with_its_best_class(place: Place) -> None:
    place.model.serve(place.served(sure(0.75)))
    answer = place.model.predict([0.1, 0.2])
    assert (answer.label, answer.score, answer.scores) == ("yes", 0.75, [0.25, 0.75])
    assert (answer.model, answer.version, answer.release) == ("m", "v1", 1)


def test_a_batch_is_answered_row_by_row(place: Place) -> None:
    place.model.serve(
        place.served(Scripted(lambda t: np.stack([1 - t["x"][:, 0], t["x"][:, 0]], 1)))
    )
    answers = place.model.predict_batch(np.array([[0.25, 0], [0.75, 0], [1.0, 0]]))
    assert [answer.label for answer in answers] == ["no", "yes", "yes"]
    assert len({answer.id for answer in answers}) == 3
    assert place.model.predict_batch(np.zeros((0, 2))) == []


def test_rows_by_column_name_reach_text_inputs(place: Place) -> None:
    seen: list[Any] = []

    def answer(tensors: Tensors) -> Any:
        seen.append({name: tensor.tolist() for name, tensor in tensors.items()})
        return [[0.5, 0.5]] * len(tensors["n"])

    inputs = [Tensor("n", "float32", [None, 1], ["a"]), Tensor("s", "string", [None, 1], ["b"])]
    place.model.serve(place.served(Scripted(answer), inputs=inputs))
    place.model.predict({"a": 1.5, "b": "q"})
    place.model.predict_batch({"a": [1, 2], "b": ["p", "other"]})
    assert seen == [
        {"n": [[1.5]], "s": [["q"]]},
        {"n": [[1.0], [2.0]], "s": [["p"], ["other"]]},
    ]
    place.model.finish()
    assert place.windows[0].counts[1, [1, 2, 65]].tolist() == [1, 1, 1]


def test_a_regression_answers_with_its_value(place: Place) -> None:
    place.model.serve(place.served(Scripted(lambda t: [[3.5]]), task="regression"))
    answer = place.model.predict([0.0, 0.0])
    assert (answer.label, answer.score, answer.scores) == (None, 3.5, [3.5])


def test_nothing_is_answered_where_nothing_serves(place: Place) -> None:
    with pytest.raises(NotServingError, match="this device serves no model 'm'"):
        place.model.predict([0.0, 0.0])
    assert place.model.feedback(1, "yes") is False
    assert place.model.wait(0.0) is False


@pytest.mark.parametrize("row", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], {"a": 1.0}])
def test_rows_that_do_not_fit_are_the_callers_fault(place: Place, row: Any) -> None:
    place.model.serve(place.served(sure(1.0)), None, watch())
    with pytest.raises(MalformedError):
        place.model.predict(row)
    assert place.faults == []


def test_feedback_counts_accuracy_and_is_compared_as_text(place: Place) -> None:
    place.model.serve(place.served(sure(1.0)))
    for label in ("yes", "no"):
        assert place.model.feedback(place.model.predict([0.0, 0.0]).id, label)
    place.model.serve(None)
    totals = place.windows[0].totals
    assert (totals.labelled, totals.correct) == (2, 1)


@pytest.mark.parametrize(
    "candidate",
    [Scripted(failing), sure(np.nan), sure(np.inf)],
    ids=["raises", "nan", "infinite"],
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_failing_candidate_is_replaced_within_the_same_call(
    place: Place, candidate: Scripted, batch: bool
) -> None:
    old = place.served(sure(0.75))
    place.model.serve(old)
    place.model.serve(place.served(candidate, 2), old, watch())
    if batch:
        assert [a.release for a in place.model.predict_batch(np.zeros((3, 2)))] == [1, 1, 1]
    else:
        assert place.model.predict([0.0, 0.0]).release == 1
    assert [release for release, _ in place.faults] == [2]
    assert place.windows[0].totals.errors == (3 if batch else 1)
    assert place.model.slot == old.slot


def test_a_failing_first_release_raises_and_stops_serving(place: Place) -> None:
    place.model.serve(place.served(Scripted(failing)), None, watch())
    with pytest.raises(InferenceError, match="m release 1: the runtime raised"):
        place.model.predict([0.0, 0.0])
    assert place.model.slot is None
    assert place.faults == [(1, "the runtime raised")]


def test_rows_that_are_not_finite_are_not_the_candidates_fault(place: Place) -> None:
    old, new = place.served(sure(0.5)), place.served(Scripted(lambda t: t["x"] * 1.0), 2)
    place.model.serve(new, old, watch())
    with pytest.raises(InferenceError, match="scores are not finite"):
        place.model.predict([np.nan, 0.0])
    assert place.faults == []
    assert place.model.slot == new.slot


def test_a_confirmed_release_that_fails_stays(place: Place) -> None:
    place.model.serve(place.served(Scripted(failing)))
    with pytest.raises(InferenceError):
        place.model.predict([0.0, 0.0])
    assert place.faults == []
    assert place.model.slot is not None


@pytest.mark.parametrize("batches", [[1, 1, 1], [2, 1], [5]])
def test_a_proof_is_reported_once_when_its_rows_are_there(place: Place, batches: list[int]) -> None:
    proofs: list[str] = []
    place.model.serve(place.served(sure(0.5)), None, Watch(3, lambda _: proofs.append("proven")))
    for index, rows in enumerate(batches):
        assert proofs == ([] if sum(batches[:index]) < 3 else ["proven"])
        place.model.predict_batch(np.zeros((rows, 2)))
    place.model.predict([0.0, 0.0])
    assert proofs == ["proven"]


class Counted(Scripted):
    """A session that knows how many calls are in it, and whether one came after its end."""

    def __init__(self) -> None:
        super().__init__(lambda t: [[0.5, 0.5]] * len(t["x"]))
        self.late = 0
        self.closed_during_calls = 0
        self._inside = 0
        self._lock = threading.Lock()

    def run(self, tensors: Given) -> Scores:
        with self._lock:
            self._inside += 1
            self.late += self.closed
        try:
            return super().run(tensors)
        finally:
            with self._lock:
                self._inside -= 1

    def close(self) -> None:
        with self._lock:
            self.closed_during_calls += self._inside
            self.closed = True


def test_hundreds_of_switches_under_load_fail_no_call_and_lose_no_row(place: Place) -> None:
    model, sessions = place.model, [Counted() for _ in range(300)]
    model.serve(place.served(sessions[0], 0))
    stop, failures, answers = threading.Event(), [], []
    answered = threading.Semaphore(0)

    def call(ask: Callable[[], object], rows: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                ask()
                count += rows
            except Exception as error:
                failures.append(error)
            answered.release()
        answers.append(count)

    batch, tensors = np.zeros((3, 2)), {"x": np.zeros((2, 2), np.float32)}
    threads = [
        threading.Thread(target=call, args=arguments)
        for arguments in (
            (lambda: model.predict([0.0, 0.0]), 1),
            (lambda: model.predict({"a": 0.0, "b": 0.0}), 1),
            (lambda: model.predict_batch(batch), 3),
            (lambda: model.infer(tensors), 2),
        )
    ]
    for thread in threads:
        thread.start()
    for release, session in enumerate(sessions[1:], 1):
        model.serve(place.served(session, release))
        for _ in range(4):  # some calls between two switches, at whatever point each is
            assert answered.acquire(timeout=30)
    stop.set()
    for thread in threads:
        thread.join()
    model.serve(None)
    assert failures == []
    assert sum(window.totals.rows for window in place.windows) == sum(answers)
    assert all(session.closed for session in sessions)
    assert sum(session.late + session.closed_during_calls for session in sessions) == 0


def test_a_waiting_caller_is_woken_by_the_first_release(place: Place) -> None:
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(place.model.wait(30.0)))
    thread.start()
    place.model.serve(place.served(sure(0.5)))
    thread.join()
    assert woken == [True]


def test_a_release_is_closed_only_after_its_last_call(place: Place) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(tensors: Tensors) -> Any:
        entered.set()
        assert leave.wait(30)
        return [[0.25, 0.75]]

    session, answers = Scripted(slow), []
    place.model.serve(place.served(session, 1))
    thread = threading.Thread(target=lambda: answers.append(place.model.predict([0.0, 0.0])))
    thread.start()
    assert entered.wait(30)
    place.model.serve(place.served(sure(0.5), 2))
    assert place.model.predict([0.0, 0.0]).release == 2
    assert not session.closed
    leave.set()
    thread.join()
    assert [answer.release for answer in answers] == [1]
    assert session.closed
    assert [(w.slot.release, w.totals.rows) for w in place.windows] == [(1, 1)]


def test_tensors_are_answered_with_the_outputs_that_are_wanted(place: Place) -> None:
    place.model.serve(place.served(sure(0.75)))
    answer = place.model.infer({"x": np.zeros((2, 2), np.float32)})
    assert (answer.labels, answer.version, answer.release) == (["yes", "yes"], "v1", 1)
    assert answer.outputs["p"].tolist() == [[0.25, 0.75]] * 2
    assert len(set(answer.ids)) == 2
    nothing = place.model.infer({"x": np.zeros((1, 2), np.float32)}, outputs=[])
    assert (nothing.outputs, nothing.labels) == ({}, ["yes"])
    assert all(place.model.feedback(number, "yes") for number in answer.ids)
    place.model.serve(None)
    totals = place.windows[0].totals
    assert (totals.rows, totals.labelled, totals.correct) == (3, 2, 2)


@pytest.mark.parametrize(
    ("tensors", "outputs", "text"),
    [
        ({}, None, r"inputs \[\]: the model takes \['x'\]"),
        ({"x": np.zeros((1, 3), np.float32)}, None, r"shape \(1, 3\); expected \[-1, 2\]"),
        ({"x": np.zeros(2, np.float32)}, None, r"shape \(2,\); expected \[-1, 2\]"),
        ({"x": np.array([["a", "b"]])}, None, "holds <U1; expected float32"),
        ({"x": np.zeros((1, 2), np.complex64)}, None, "holds complex64; expected float32"),
        ({"x": np.zeros((1, 2), np.float32)}, ["q"], r"no outputs \['q'\]; it has \['p'\]"),
    ],
)
def test_tensors_that_do_not_fit_are_the_callers_fault(
    place: Place, tensors: Any, outputs: Any, text: str
) -> None:
    place.model.serve(place.served(sure(1.0)), None, watch())
    with pytest.raises(MalformedError, match=text):
        place.model.infer(tensors, outputs)
    assert place.faults == []


def test_a_failing_candidate_is_replaced_within_the_same_inference(place: Place) -> None:
    old = place.served(sure(0.75))
    place.model.serve(place.served(sure(np.nan), 2), old, watch())
    assert place.model.infer({"x": np.zeros((2, 2), np.float32)}).release == 1
    assert place.faults == [(2, "scores of 2 of 2 rows are not finite")]


def test_a_model_of_pictures_takes_tensors_and_counts_their_summaries(place: Place) -> None:
    picture = [Tensor("x", "uint8", [None, 4, 4])]
    place.model.serve(place.served(sure(0.75), inputs=picture))
    place.model.infer({"x": np.full((2, 4, 4), 3, np.uint8)})
    with pytest.raises(MalformedError, match=r"takes the tensors \['x'\], not rows: use infer"):
        place.model.predict([0.0])
    place.model.serve(None)
    window = place.windows[0].pack(Health())
    moments = sketch.unpack_moments(window.moments, 4)
    assert moments[:, 1].tolist() == [3.0, 0.0, 3.0, 3.0]  # mean, std, min, max


def test_a_candidate_over_its_latency_budget_is_replaced_within_the_same_call(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100_000))
    monkeypatch.setattr(
        "edgefleet_agent.inference.served.time.perf_counter", lambda: next(now) / 1e3
    )
    old = place.served(sure(0.75))
    # Each call takes one tick: 1000 µs.
    place.model.serve(place.served(sure(0.5), 2), old, watch(10_000, max_latency_us=999))
    releases = [place.model.predict([0.0, 0.0]).release for _ in range(2 * RUN_CALLS + 1)]
    assert releases == [2] * (2 * RUN_CALLS - 1) + [1, 1]
    assert [release for release, _ in place.faults] == [2]
    assert "over the budget of 999 µs a row; the last took 1000 µs" in place.faults[0][1]


# -- challengers -----------------------------------------------------------------------------------


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, with a deadline."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def rows_of(served: Served) -> int:
    return served.recorder._next - served.recorder._first


def test_a_shadow_runs_the_same_rows_and_answers_nobody(place: Place) -> None:
    seen: list[Any] = []

    def answer(tensors: Tensors) -> Any:
        seen.append(tensors["x"].tolist())
        return [[0.9, 0.1]] * len(tensors["x"])

    primary, shadow = place.served(sure(0.75), 1), place.served(Scripted(answer), 2)
    place.model.serve(primary)
    place.model.challenge(Challenger(shadow, "shadow"))
    assert place.model.challenger_slot == shadow.slot
    row, batch = np.array([1.0, 2.0]), np.array([[3.0, 4.0], [5.0, 6.0]])
    given = {"x": np.array([[7.0, 8.0]], np.float32)}
    answers = [place.model.predict(row), *place.model.predict_batch(batch)]
    answers.append(place.model.predict({"a": 9.0, "b": 10.0}))
    releases = {answer.release for answer in answers} | {place.model.infer(given).release}
    row[:] = batch[:] = given["x"][:] = -1.0  # the caller's arrays are its own again
    assert releases == {1}
    until(lambda: rows_of(shadow) == 5)
    assert seen == [[[1, 2]], [[3, 4], [5, 6]], [[9, 10]], [[7, 8]]]
    place.model.challenge(None)
    assert place.model.challenger_slot is None
    assert [(w.slot.release, w.totals.rows) for w in place.windows] == [(2, 5)]


def test_labels_reach_the_shadows_row_by_the_id_of_the_answer(place: Place) -> None:
    shadow = place.served(sure(0.1), 2)
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(shadow, "shadow"))
    for label in ("yes", "no", "no"):
        assert place.model.feedback(place.model.predict([0.0, 0.0]).id, label)
    assert not place.model.feedback(5, "yes")
    until(lambda: shadow.recorder._totals.labelled == 3)
    place.model.serve(None)
    place.model.challenge(None)
    totals = {w.slot.release: w.totals for w in place.windows}
    assert (totals[1].labelled, totals[1].correct) == (3, 1)
    assert (totals[2].labelled, totals[2].correct) == (3, 2)


def test_a_busy_shadow_drops_calls_and_never_delays_one(place: Place) -> None:
    entered, leave = threading.Event(), threading.Event()

    def stuck(tensors: Tensors) -> Any:
        entered.set()
        assert leave.wait(30)
        return [[0.5, 0.5]]

    shadow = place.served(Scripted(stuck), 2)
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(shadow, "shadow"))
    place.model.predict([0.0, 0.0])
    assert entered.wait(30)  # the queue is empty, and nothing comes out of it now
    for _ in range(QUEUE_CALLS + 7):
        place.model.predict([0.0, 0.0])
    assert place.model.shadow_dropped == 7
    leave.set()
    until(lambda: rows_of(shadow) == QUEUE_CALLS + 1)
    place.model.challenge(None)


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (Scripted(failing), "the runtime raised"),
        (sure(np.nan), "scores are not finite: [nan, nan]"),
        (Scripted(lambda t: 1 / 0), "internal error: ZeroDivisionError('division by zero')"),
    ],
    ids=["raises", "nan", "defect"],
)
def test_a_failing_shadow_is_ended_and_nobody_notices(
    place: Place, session: Scripted, reason: str
) -> None:
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(place.served(session, 2), "shadow", watch=watch()))
    for _ in range(3):
        assert place.model.predict([0.0, 0.0]).release == 1
    until(lambda: place.model.challenger_slot is None)
    until(lambda: bool(place.faults))
    assert place.faults == [(2, reason)]
    assert place.model.slot is not None


def test_a_shadows_latency_is_not_judged_and_its_rows_prove_it(place: Place) -> None:
    proven: list[int] = []
    slow = Watch(3 * RUN_CALLS, lambda slot: proven.append(slot.release), max_latency_us=1)
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(place.served(sure(0.5), 2), "shadow", watch=slow))
    for _ in range(3 * RUN_CALLS):
        place.model.predict([0.0, 0.0])
    until(lambda: proven == [2])
    assert place.faults == []
    place.model.challenge(None)


@pytest.mark.parametrize("share", [1, 30, 99])
def test_a_split_answers_exactly_its_share_of_each_hundred_calls(place: Place, share: int) -> None:
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(place.served(sure(0.5), 2), "split", share))
    for _ in range(3):
        releases = [place.model.predict([0.0, 0.0]).release for _ in range(100)]
        assert releases.count(2) == share
    place.model.finish()
    assert {w.slot.release: w.totals.rows for w in place.windows} == {
        1: 300 - 3 * share,
        2: 3 * share,
    }


def test_a_split_deals_the_same_calls_for_the_same_seed_and_others_for_another() -> None:
    def deal(seed: int) -> list[int]:
        place = Place(random.Random(seed))
        place.model.serve(place.served(sure(0.75), 1))
        place.model.challenge(Challenger(place.served(sure(0.5), 2), "split", 50))
        return [place.model.predict([0.0, 0.0]).release for _ in range(200)]

    assert deal(1) == deal(1)
    assert deal(1) != deal(2)
    assert deal(1)[:100] != deal(1)[100:]


def test_feedback_reaches_whichever_release_of_a_split_answered(place: Place) -> None:
    place.model.serve(place.served(sure(0.75), 1))
    place.model.challenge(Challenger(place.served(sure(0.1), 2), "split", 40))
    for _ in range(100):
        assert place.model.feedback(place.model.predict([0.0, 0.0]).id, "yes")
    place.model.finish()
    totals = {w.slot.release: (w.totals.labelled, w.totals.correct) for w in place.windows}
    assert totals == {1: (60, 60), 2: (40, 0)}


@pytest.mark.parametrize("ask", ["predict", "batch", "infer"])
def test_a_failing_split_is_ended_and_the_primary_answers_that_call(place: Place, ask: str) -> None:
    place.model.serve(place.served(sure(0.75), 1))
    challenger = Challenger(place.served(Scripted(failing), 2), "split", 99, watch())
    place.model.challenge(challenger)
    call: Callable[[], int] = {
        "predict": lambda: place.model.predict([0.0, 0.0]).release,
        "batch": lambda: place.model.predict_batch(np.zeros((1, 2)))[0].release,
        "infer": lambda: place.model.infer({"x": np.zeros((1, 2), np.float32)}).release,
    }[ask]
    assert [call() for _ in range(5)] == [1] * 5
    assert place.faults == [(2, "the runtime raised")]
    assert place.model.challenger_slot is None


def test_a_challenger_that_takes_other_rows_is_ended_and_wrong_rows_do_not_end_one(
    place: Place,
) -> None:
    place.model.serve(place.served(sure(0.75), 1))
    wide = [Tensor("x", "float32", [None, 3], ["a", "b", "c"])]
    place.model.challenge(Challenger(place.served(sure(0.5), 2, inputs=wide), "split", 99))
    with pytest.raises(MalformedError):
        place.model.predict([0.0])
    assert place.model.challenger_slot is not None
    assert [place.model.predict([0.0, 0.0]).release for _ in range(5)] == [1] * 5
    assert [release for release, _ in place.faults] == [2]


def test_a_challenger_outlives_switches_of_the_primary_and_may_become_it(place: Place) -> None:
    session = sure(0.5)
    challenger = place.served(session, 2)
    place.model.challenge(Challenger(challenger, "split", 99))
    assert place.model.slot is None
    place.model.serve(place.served(sure(0.75), 1))
    place.model.serve(place.served(sure(0.75), 3))
    assert place.model.loaded(challenger.slot) is challenger
    assert 2 in {place.model.predict([0.0, 0.0]).release for _ in range(100)}
    place.model.challenge(None)
    place.model.serve(challenger)
    assert place.model.predict([0.0, 0.0]).release == 2
    assert not session.closed


def test_a_candidates_fault_leaves_the_challenger_standing(place: Place) -> None:
    place.model.challenge(Challenger(place.served(sure(0.5), 3), "shadow"))
    old = place.served(sure(0.75), 1)
    place.model.serve(place.served(Scripted(failing), 2), old, watch())
    assert place.model.predict([0.0, 0.0]).release == 1
    assert place.model.challenger_slot is not None
    place.model.challenge(None)
