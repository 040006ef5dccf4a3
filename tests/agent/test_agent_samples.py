"""Which labelled rows are kept, what redaction and the quota let through, and how they travel."""

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet_agent.config import Config, SampleConsent
from edgefleet_agent.errors import ConfigError, StoreError
from edgefleet_agent.inference.samples import (
    DAY_S,
    MAX_WINDOWS_AT_ONCE,
    QUOTA_NAME,
    Chosen,
    DailyQuota,
    Redact,
    Sample,
    SampleDesk,
    SampleKeeper,
    load_redaction,
)
from edgefleet_agent.testing import CLASSES, COLUMNS, Bundle, Clock, HubDouble, Rig
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol.messages import Samples, Slot
from edgefleet_protocol.sketch import Feature
from edgefleet_protocol.trust import SamplePolicy

SLOT = Slot("m", "v1", 1, "x", "0" * 64)
FEATURES = [Feature("n", edges=[0.0, 1.0]), Feature("c", "categorical", vocabulary=["a", "b"])]


def policy(per_window: int = 100, strategy: Any = "reservoir", per_day: int = 0) -> SamplePolicy:
    return SamplePolicy("retraining", per_window, strategy, per_day)


def keeper(per_window: int, strategy: str = "reservoir") -> SampleKeeper:
    return SampleKeeper(policy(per_window, strategy), random.Random(5))


def taken(made: SampleKeeper) -> list[float]:
    """Return the first column of what a window gives."""
    chosen = made.take()
    return [float(sample.row[0]) for sample in chosen.samples] if chosen else []


# -- choosing --------------------------------------------------------------------------------------


def test_a_reservoir_is_uniform_over_the_window_and_so_is_its_beginning() -> None:
    counts, firsts = np.zeros(20), np.zeros(20)
    made = keeper(5)
    for _ in range(4000):
        for value in range(20):
            made.offer(np.full(2, float(value)), "l", "p", 0.5)
        values = [int(value) for value in taken(made)]
        counts[values] += 1
        firsts[values[0]] += 1
    assert counts.sum() == 5 * 4000
    # 4000 draws of 5 in 20: mean 1000, standard deviation 27.4; of 1 in 20: 200, 13.8
    assert np.abs(counts - 1000).max() < 5 * 27.4
    assert np.abs(firsts - 200).max() < 5 * 13.8


def test_the_uncertain_strategy_keeps_the_least_confident_rows_and_gives_them_in_order() -> None:
    made = keeper(3, "uncertain")
    for value in [0.9, 0.5, 0.99, 0.4, 0.5, 0.8, 0.41]:
        made.offer(np.full(2, value), "l", "p", value)
    assert taken(made) == pytest.approx([0.4, 0.41, 0.5])


def test_a_row_is_copied_when_it_is_taken() -> None:
    made, row = keeper(1), np.array([1.0, 2.0])
    made.offer(row, "l", "p", 0.5)
    row[:] = 9.0
    assert taken(made) == [1.0]


@pytest.mark.parametrize("strategy", ["reservoir", "uncertain"])
def test_a_quota_of_nothing_takes_nothing(strategy: str) -> None:
    made = keeper(0, strategy)
    made.offer(np.zeros(2), "l", "p", 0.5)
    assert made.take() is None


def test_each_window_begins_anew() -> None:
    made = keeper(2)
    made.offer(np.zeros(2), "l", "p", 0.5)
    assert taken(made) == [0.0]
    assert made.take() is None


# -- the quota of a day ----------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_model_gives_no_more_than_its_rows_in_any_day(tmp_path: Path, clock: Clock) -> None:
    quota = DailyQuota(tmp_path, clock)
    assert quota.take("m", 30, 50) == 30
    assert quota.take("m", 30, 50) == 20
    assert quota.take("m", 1, 50) == 0
    assert quota.take("other", 30, 50) == 30
    clock.now += DAY_S
    assert quota.take("m", 30, 50) == 0  # the last ten minutes count whole
    clock.now += 600
    assert quota.take("m", 60, 50) == 50


def test_the_quota_holds_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    DailyQuota(tmp_path, clock).take("m", 40, 50)
    assert DailyQuota(tmp_path, clock).take("m", 40, 50) == 10


def test_a_lower_quota_holds_at_once(tmp_path: Path, clock: Clock) -> None:
    quota = DailyQuota(tmp_path, clock)
    quota.take("m", 40, 50)
    assert quota.take("m", 10, 20) == 0


def test_a_clock_that_was_ahead_holds_rows_back_for_a_day_and_no_longer(
    tmp_path: Path, clock: Clock
) -> None:
    quota = DailyQuota(tmp_path, clock)
    clock.now += 20 * 365 * DAY_S
    assert quota.take("m", 50, 50) == 50
    clock.now -= 20 * 365 * DAY_S
    assert quota.take("m", 50, 100) == 50
    clock.now += DAY_S + 600
    assert quota.take("m", 200, 100) == 100


def test_a_damaged_counter_uses_the_day_up_and_no_more(tmp_path: Path, clock: Clock) -> None:
    quota = DailyQuota(tmp_path, clock)
    quota.take("m", 10, 50)
    (tmp_path / QUOTA_NAME).write_bytes(b"rubbish")
    assert quota.take("m", 10, 50) == 0
    assert DailyQuota(tmp_path, clock).take("other", 10, 50) == 0
    clock.now += DAY_S + 600
    assert quota.take("m", 10, 50) == 10


def test_without_a_counter_that_can_be_written_nothing_is_given(clock: Clock) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        DailyQuota(Path("/proc/none"), clock).take("m", 10, 50)


def test_many_threads_together_give_no_more_than_the_quota(tmp_path: Path, clock: Clock) -> None:
    quota, given = DailyQuota(tmp_path, clock), []
    threads = [
        threading.Thread(target=lambda: given.append(quota.take("m", 3, 20))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(given) == 20


# -- redaction and packing -------------------------------------------------------------------------


class Desk:
    """A desk with what it delivers; work runs when it is given unless it is held."""

    def __init__(self, folder: Path, redact: Redact | None = None, *, hold: bool = False) -> None:
        self.messages: list[Samples] = []
        self.held: list[Callable[[], None]] = []
        self.desk = SampleDesk(
            DailyQuota(folder, Clock()),
            redact,
            start=self.held.append if hold else lambda work: work(),
            deliver=self.messages.append,
        )

    def take(self, *rows: list[float], orders: SamplePolicy | None = None) -> NDArray[np.float32]:
        samples = [Sample(np.array(row, np.float32), "l", "p") for row in rows]
        self.desk.take(SLOT, FEATURES, Chosen(orders or policy(), samples))
        data = b"".join(message.rows for message in self.messages)
        return np.frombuffer(data, "<f4").reshape(-1, len(FEATURES))


def test_rows_travel_with_their_columns_labels_and_purpose(tmp_path: Path) -> None:
    made = Desk(tmp_path)
    made.take([0.5, 1.0], [0.25, 0.0])
    (message,) = made.messages
    assert (message.columns, message.labels, message.predicted) == (
        ["n", "c"],
        ["l"] * 2,
        ["p"] * 2,
    )
    assert (message.model, message.release, message.purpose) == ("m", 1, "retraining")
    assert np.frombuffer(message.rows, "<f4").tolist() == [0.5, 1.0, 0.25, 0.0]


def test_wide_rows_travel_in_several_messages(tmp_path: Path) -> None:
    made = Desk(tmp_path)
    features = [Feature(f"c{i}") for i in range(4096)]
    rows = [Sample(np.zeros(4096, np.float32), "l", "p")] * 100
    made.desk.take(SLOT, features, Chosen(policy(), rows))
    assert [len(message.labels) for message in made.messages] == [16] * 6 + [4]
    assert all(len(message.rows) <= 256 * 1024 for message in made.messages)


def test_no_more_than_the_days_rows_are_delivered_and_the_first_ones_are(tmp_path: Path) -> None:
    made = Desk(tmp_path)
    orders = policy(per_day=3)
    assert made.take([1, 0], [2, 0], orders=orders)[:, 0].tolist() == [1, 2]
    assert made.take([3, 0], [4, 0], orders=orders)[:, 0].tolist() == [1, 2, 3]
    assert made.take([5, 0], orders=orders)[:, 0].tolist() == [1, 2, 3]


def test_redaction_sees_values_by_column_and_what_it_gives_is_sent(tmp_path: Path) -> None:
    seen: list[Any] = []

    def redact(row: Any) -> Any:
        seen.append(dict(row))
        return {"n": round(row["n"]), "c": "a" if row["c"] == "b" else row["c"]}

    sent = Desk(tmp_path, redact).take([0.75, 1.0], [0.25, 0.0], [0.25, -1.0])
    assert seen == [{"n": 0.75, "c": "b"}, {"n": 0.25, "c": "a"}, {"n": 0.25, "c": None}]
    assert sent.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]  # an unknown one stays unknown


def test_a_column_that_redaction_leaves_out_is_missing(tmp_path: Path) -> None:
    sent = Desk(tmp_path, lambda row: {"c": "elsewhere"}).take([0.75, 1.0])
    assert np.isnan(sent[0, 0])
    assert sent[0, 1] == -1.0


def raising(row: Any) -> Any:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("redact", "dropped"),
    [
        (raising, 2),
        (lambda row: {**row, "extra": 1.0}, 2),
        (lambda row: {**row, "n": "text"}, 2),
        (lambda row: 5, 2),
        (lambda row: None, 0),
    ],
    ids=["raises", "other column", "text for a number", "no mapping", "declines"],
)
def test_what_was_not_redacted_is_never_sent(tmp_path: Path, redact: Any, dropped: int) -> None:
    made = Desk(tmp_path, redact)
    made.take([0.75, 1.0], [0.25, 0.0])
    assert made.messages == []
    assert made.desk.dropped == dropped


def test_a_redaction_that_hangs_holds_up_a_few_windows_and_drops_the_rest(tmp_path: Path) -> None:
    made = Desk(tmp_path, hold=True)
    for _ in range(MAX_WINDOWS_AT_ONCE + 2):
        made.take([0.5, 0.0])
    assert (len(made.held), made.desk.dropped) == (MAX_WINDOWS_AT_ONCE, 2)
    assert not made.desk.wait(0.0)
    for work in made.held:
        work()
    assert made.desk.wait(0.0)
    assert len(made.messages) == MAX_WINDOWS_AT_ONCE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "expected `module:function`"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("math:no_such", "AttributeError"),
        ("math:pi", "is float, not a function"),
        (":f", "expected `module:function`"),
    ],
)
def test_a_redaction_that_cannot_be_used_is_a_configuration_error(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_redaction(name)


def test_a_module_that_fails_when_imported_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_redaction.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_redaction("broken_redaction:f")
    assert "broken_redaction" not in sys.modules


# -- end to end ------------------------------------------------------------------------------------


def test_samples_leave_redacted_are_repeated_until_acknowledged_and_then_forgotten(
    tmp_path: Path, bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "def hide(row):\n    return {**row, 'a': None}\n"
    (tmp_path / "site_redaction.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    hub = HubDouble()
    consent = SampleConsent(consent=True, redact="site_redaction:hide")
    config = Config(store=str(tmp_path / "store"), board="generic-x86_64", samples=consent)
    rig = Rig(
        tmp_path / "store", hub, config=config, surroundings={"try_candidate": lambda *_: PASSED}
    )
    orders = SamplePolicy("retraining", per_window=10, per_day=6)
    hub.send_all(rig.link, hub.release(bundle(), 1, window_rows=4, samples=orders))
    rig.settle()
    model = rig.engine.model("colours")
    for _ in range(2):
        for _ in range(4):
            given = model.predict([1.0, 2.0, 3.0, 4.0])
            # The last label of a window comes too late for it, and counts in the next one.
            assert model.feedback(given.id, CLASSES[0])
    rig.settle(acknowledge=False)
    sent = hub.bodies(Samples)
    assert [len(body.labels) for body in sent] == [3, 3]
    rows = np.frombuffer(sent[0].rows, "<f4").reshape(-1, len(COLUMNS))
    assert np.isnan(rows[:, 0]).all()
    assert (rows[:, 1:] == [2.0, 3.0, 4.0]).all()
    waiting = len(rig.engine._outbox)
    rig.later(3600.0)
    assert len(rig.engine._outbox) < waiting
    assert len(rig.engine._outbox) == 0
    rig.close()


def test_a_redaction_that_cannot_be_imported_stops_the_start(tmp_path: Path) -> None:
    consent = SampleConsent(consent=True, redact="no_such_module:f")
    config = Config(store=str(tmp_path), board="generic-x86_64", samples=consent)
    with pytest.raises(ConfigError, match="no_such_module"):
        Rig(tmp_path, HubDouble(), config=config)


PASSED = Verdict([])
