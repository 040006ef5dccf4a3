"""Answering: one row and many, switching under load, and faults of candidates and callers."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgefleet_agent.errors import InferenceError, NotServingError
from edgefleet_agent.runtimes import Scores
from edgefleet_agent.serving import Model, Proof, Served
from edgefleet_agent.sketching import ClosedWindow, Recorder
from edgefleet_protocol import sketch
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Slot
from edgefleet_protocol.rows import Tensors
from edgefleet_protocol.sketch import Feature, ReferenceProfile

COLUMNS = ["a", "b"]
CLASSES = ["no", "yes"]


class Scripted:
    """A session that gives what a function says."""

    def __init__(self, answer: Callable[[Tensors], Any]) -> None:
        self.answer = answer

    def run(self, tensors: Tensors) -> Scores:
        return np.asarray(self.answer(tensors), np.float32)


def sure(value: float) -> Scripted:
    """Give `value` to the second class, for any number of rows."""
    return Scripted(lambda t: [[1 - value, value]] * len(next(iter(t.values()))))


def failing(tensors: Tensors) -> Any:
    raise InferenceError("the runtime raised")


class Place:
    """A model with what its engine would hear."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str]] = []
        self.windows: list[ClosedWindow] = []
        self.model = Model("m", lambda slot, why: self.faults.append((slot.release, why)))

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
            for name in tensor.columns
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
def place() -> Place:
    return Place()


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
    assert place.windows[0].totals.counts[1, [1, 2, 65]].tolist() == [1, 1, 1]


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
    place.model.serve(place.served(sure(1.0)), None, Proof(10, lambda: None))
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
    place.model.serve(place.served(candidate, 2), old, Proof(10, lambda: None))
    if batch:
        assert [a.release for a in place.model.predict_batch(np.zeros((3, 2)))] == [1, 1, 1]
    else:
        assert place.model.predict([0.0, 0.0]).release == 1
    assert [release for release, _ in place.faults] == [2]
    assert place.windows[0].totals.errors == (3 if batch else 1)
    assert place.model.slot == old.slot


def test_a_failing_first_release_raises_and_stops_serving(place: Place) -> None:
    place.model.serve(place.served(Scripted(failing)), None, Proof(10, lambda: None))
    with pytest.raises(InferenceError, match="m release 1: the runtime raised"):
        place.model.predict([0.0, 0.0])
    assert place.model.slot is None
    assert place.faults == [(1, "the runtime raised")]


def test_rows_that_are_not_finite_are_not_the_candidates_fault(place: Place) -> None:
    old, new = place.served(sure(0.5)), place.served(Scripted(lambda t: t["x"] * 1.0), 2)
    place.model.serve(new, old, Proof(10, lambda: None))
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
    place.model.serve(place.served(sure(0.5)), None, Proof(3, lambda: proofs.append("proven")))
    for index, rows in enumerate(batches):
        assert proofs == ([] if sum(batches[:index]) < 3 else ["proven"])
        place.model.predict_batch(np.zeros((rows, 2)))
    place.model.predict([0.0, 0.0])
    assert proofs == ["proven"]


def test_switching_under_load_fails_no_call_and_loses_no_row(place: Place) -> None:
    model = place.model
    releases = [place.served(sure(0.5), release) for release in range(1, 21)]
    model.serve(releases[0])
    stop, failures, answers = threading.Event(), [], []

    def call() -> None:
        count = 0
        while not stop.is_set():
            try:
                model.predict([0.0, 0.0])
                count += 1
            except Exception as error:
                failures.append(error)
        answers.append(count)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for release in releases[1:]:
        before = release.recorder
        model.serve(release)
        while before._next < 5:  # each release answers some rows before the next one comes
            assert not failures
    stop.set()
    for thread in threads:
        thread.join()
    model.finish()
    for release in releases:
        release.recorder.finish()  # rows of calls that were under way at the switch
    assert failures == []
    assert sum(window.totals.rows for window in place.windows) == sum(answers)


def test_a_waiting_caller_is_woken_by_the_first_release(place: Place) -> None:
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(place.model.wait(30.0)))
    thread.start()
    place.model.serve(place.served(sure(0.5)))
    thread.join()
    assert woken == [True]
