"""The outbox: nothing is lost before it is acknowledged; what may be dropped goes first."""

import sqlite3
from pathlib import Path

import pytest

from edgefleet_agent.errors import StoreError
from edgefleet_agent.outbox import MAX_UNACKNOWLEDGED, NAME, Outbox
from edgefleet_protocol.messages import Refusal, Result, Samples, Step, Window

WINDOW = Window("m", "v1", 1, "0" * 64, "1" * 64, 0.0, 1.0, 10, b"c" * 400, b"m" * 400)
SAMPLES = Samples("m", "v1", 1, "retraining", ["a"], bytes(400), ["x"], ["x"])
REFUSAL = Refusal("bundle", "malformed", "x" * 400)
RESULT = Result(1, "m", "v1", 1, "0" * 64, Step.CONFIRMED, "y" * 400)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path, "cam-1", 1 << 20)


def kinds(box: Outbox, now: float = 0.0) -> list[str]:
    return [type(report.body).__name__ for report in box.due(now)]


def test_a_report_is_sent_again_ever_more_slowly_until_it_is_acknowledged(outbox: Outbox) -> None:
    outbox.put(RESULT, 9.0)
    (report,) = outbox.due(0.0)
    assert (report.number, report.at, report.body) == (1, 9.0, RESULT)
    sent = [at for at in range(1, 400) if outbox.due(float(at))]
    assert sent == [5, 15, 35, 75, 135, 195, 255, 315, 375]
    assert outbox.acknowledge(outbox.store, [1]) == 1
    assert outbox.due(1000.0) == []
    assert len(outbox) == 0


def test_numbers_grow_for_ever_and_the_store_keeps_its_name(tmp_path: Path) -> None:
    first = Outbox(tmp_path, "cam-1", 1 << 20)
    first.put(RESULT, 0.0)
    first.acknowledge(first.store, [1])
    first.close()
    second = Outbox(tmp_path, "cam-1", 1 << 20)
    second.put(RESULT, 0.0)
    assert second.store == first.store
    assert [report.number for report in second.due(0.0)] == [2]
    second.close()


def test_what_was_not_acknowledged_survives_a_process_that_never_closed_it(tmp_path: Path) -> None:
    Outbox(tmp_path, "cam-1", 1 << 20).put(RESULT, 0.0)
    assert kinds(Outbox(tmp_path, "cam-1", 1 << 20)) == ["Result"]


def test_an_acknowledgement_of_another_store_is_left_alone(outbox: Outbox) -> None:
    outbox.put(RESULT, 0.0)
    assert outbox.acknowledge("other", [1]) == 0
    assert len(outbox) == 1


def test_unknown_and_repeated_numbers_are_no_fault(outbox: Outbox) -> None:
    outbox.put(RESULT, 0.0)
    assert outbox.acknowledge(outbox.store, [7, 1, 1]) == 1


def test_windows_go_first_then_samples_then_refusals_and_never_results(tmp_path: Path) -> None:
    one_of_each = [RESULT, REFUSAL, SAMPLES, WINDOW]
    box = Outbox(tmp_path, "cam-1", 1)
    for body in one_of_each:
        box.put(body, 0.0)
    assert kinds(box) == ["Result"]
    assert box.dropped == 3
    box.put(RESULT, 0.0)
    assert kinds(box) == ["Result"]


def test_the_oldest_windows_are_dropped(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "cam-1", 2500)
    for _ in range(5):
        box.put(WINDOW, 0.0)
    assert [report.number for report in box.due(0.0)] == [4, 5]
    box.put(RESULT, 0.0)
    assert [report.number for report in box.due(60.0)] == [5, 6]


def test_a_bounded_number_of_reports_is_under_way_oldest_first(outbox: Outbox) -> None:
    for _ in range(MAX_UNACKNOWLEDGED + 3):
        outbox.put(RESULT, 0.0)
    first = [report.number for report in outbox.due(0.0)]
    assert first == list(range(1, MAX_UNACKNOWLEDGED + 1))
    assert outbox.due(1.0) == []
    outbox.acknowledge(outbox.store, [2, 3])
    assert [report.number for report in outbox.due(1.0)] == [33, 34]


def test_a_new_connection_makes_everything_due(outbox: Outbox) -> None:
    outbox.put(RESULT, 0.0)
    outbox.due(0.0)
    outbox.reconnected()
    assert kinds(outbox, 0.1) == ["Result"]


def test_a_damaged_database_is_set_aside_and_a_new_store_begun(tmp_path: Path) -> None:
    first = Outbox(tmp_path, "cam-1", 1 << 20)
    first.close()
    (tmp_path / NAME).write_bytes(b"not a database" * 100)
    second = Outbox(tmp_path, "cam-1", 1 << 20)
    assert second.damaged.startswith("outbox was damaged (")
    assert second.store != first.store
    assert (tmp_path / f"damaged-{NAME}").exists()
    second.put(RESULT, 0.0)
    assert kinds(second) == ["Result"]


def test_a_store_that_cannot_be_written_is_an_error_that_says_so(
    outbox: Outbox, tmp_path: Path
) -> None:
    outbox.close()
    with pytest.raises(StoreError, match="report cannot be stored"):
        outbox.put(RESULT, 0.0)
    with pytest.raises(StoreError, match="cannot be opened"):
        Outbox(tmp_path / "missing", "cam-1", 1)


def test_every_commit_is_durable(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert sqlite3.connect(tmp_path / NAME).execute("PRAGMA journal_mode").fetchone() == ("wal",)
