"""The outbox: nothing is lost before it is acknowledged; what may be dropped goes first."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_agent.errors import StoreError
from edgefleet_agent.outbox import (
    MAX_UNACKNOWLEDGED,
    MAX_UNWRITTEN_BYTES,
    NAME,
    WRITE_AGAIN_S,
    Body,
    Outbox,
)
from edgefleet_protocol.messages import Refusal, Result, Samples, Step, Window

WINDOW = Window("m", "v1", 1, "0" * 64, "1" * 64, 0.0, 1.0, 10, b"c" * 400, b"m" * 400)
SAMPLES = Samples("m", "v1", 1, "retraining", ["a"], bytes(400), ["x"], ["x"])
REFUSAL = Refusal("bundle", "malformed", "x" * 400)
RESULT = Result(1, "m", "v1", 1, "0" * 64, Step.CONFIRMED, "y" * 400)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path, "cam-1", 1 << 20, jitter=lambda: 1.0)


def kinds(box: Outbox, now: float = 0.0) -> list[str]:
    return [type(report.body).__name__ for report in box.due(now)]


def test_a_report_is_sent_again_ever_more_slowly_until_it_is_acknowledged(outbox: Outbox) -> None:
    outbox.put(RESULT, 9.0)
    (report,) = outbox.due(0.0)
    assert (report.number, report.at, report.body) == (1, 9.0, RESULT)
    sent = [at for at in range(1, 400) if outbox.due(float(at))]  # at the latest there is
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


def test_an_outbox_that_cannot_be_opened_is_opened_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "missing"
    box = Outbox(folder, "cam-1", 1 << 20)
    assert "unable to open database file; it is opened when it can be" in caplog.text
    box.put(WINDOW, 1.0)
    with pytest.raises(StoreError, match="report cannot be stored: unable to open"):
        box.put(RESULT, 2.0)
    assert box.due(0.0) == []
    assert box.acknowledge("other", [1]) == 0
    folder.mkdir()
    assert box.due(WRITE_AGAIN_S - 0.1) == []
    assert kinds(box, WRITE_AGAIN_S) == ["Window"]
    box.put(RESULT, 3.0)
    assert kinds(box, WRITE_AGAIN_S) == ["Result"]
    box.close()


def test_devices_do_not_send_again_in_one_moment(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "cam-1", 1 << 20, jitter=lambda: 0.0)
    box.put(RESULT, 0.0)
    box.due(0.0)
    assert box.next_at() == 2.5


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.sampled_from([WINDOW, SAMPLES, REFUSAL, RESULT]), max_size=30),
    limit=st.integers(1, 12_000),
)
def test_results_survive_any_limit_and_the_rest_is_dropped_in_order(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[Body], limit: int
) -> None:
    box = Outbox(tmp_path_factory.mktemp("box"), "cam-1", limit)
    for body in bodies:
        box.put(body, 0.0)
    held = [report.body for report in box.due(0.0)]
    size_of = {type(body): len(box._encoder.encode(body)) for body in bodies}
    box.close()
    expected: list[Body] = []
    for body in bodies:
        expected.append(body)
        for kind in (Window, Samples, Refusal):
            while sum(size_of[type(left)] for left in expected) > limit:
                oldest = next((left for left in expected if isinstance(left, kind)), None)
                if oldest is None:
                    break
                expected.remove(oldest)
    assert held == expected
    assert held.count(RESULT) == bodies.count(RESULT)
    assert box.dropped == len(bodies) - len(held)


def shut(box: Outbox) -> None:
    """Make every write fail as on a read-only or full disk."""
    box._database.execute("PRAGMA query_only = ON")


def open_again(box: Outbox) -> None:
    box._database.execute("PRAGMA query_only = OFF")


def test_a_result_that_cannot_be_written_is_given_back(outbox: Outbox) -> None:
    shut(outbox)
    with pytest.raises(StoreError, match="report cannot be stored: attempt to write a readonly"):
        outbox.put(RESULT, 0.0)
    open_again(outbox)
    assert len(outbox) == 0
    outbox.put(RESULT, 1.0)
    assert kinds(outbox) == ["Result"]


def test_other_reports_wait_in_memory_until_they_can_be_written(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    shut(outbox)
    outbox.put(WINDOW, 1.0)
    outbox.put(REFUSAL, 2.0)
    assert caplog.text.count("waiting in memory until it can be") == 1
    assert outbox.due(0.0) == []
    open_again(outbox)
    assert outbox.due(WRITE_AGAIN_S - 0.1) == []
    reports = outbox.due(WRITE_AGAIN_S)
    assert [(report.at, report.body) for report in reports] == [(1.0, WINDOW), (2.0, REFUSAL)]


def test_the_next_report_takes_along_what_waits_in_memory(outbox: Outbox) -> None:
    shut(outbox)
    outbox.put(WINDOW, 1.0)
    open_again(outbox)
    outbox.put(RESULT, 2.0)
    assert kinds(outbox) == ["Window", "Result"]


def test_what_waits_in_memory_is_bounded_and_the_oldest_goes(outbox: Outbox) -> None:
    shut(outbox)
    size = len(outbox._encoder.encode(WINDOW))
    fits = MAX_UNWRITTEN_BYTES // size
    for number in range(fits + 2):
        outbox.put(WINDOW, float(number))
    assert outbox.dropped == 2
    assert outbox._unwritten[0][1] == 2.0


def test_a_failed_acknowledgement_changes_nothing(outbox: Outbox) -> None:
    outbox.put(RESULT, 0.0)
    outbox.due(0.0)
    shut(outbox)
    with pytest.raises(StoreError, match="acknowledged reports cannot be deleted"):
        outbox.acknowledge(outbox.store, [1])
    open_again(outbox)
    assert [report.number for report in outbox.due(5.0)] == [1]
    assert outbox.acknowledge(outbox.store, [1]) == 1
    assert outbox._bytes == 0


def test_a_database_that_is_damaged_while_it_is_used_is_set_aside_too(tmp_path: Path) -> None:
    first = Outbox(tmp_path, "cam-1", 1 << 22)
    for _ in range(200):
        first.put(WINDOW, 0.0)
    first.close()
    box = Outbox(tmp_path, "cam-1", 1 << 22)
    old = box.store
    with (tmp_path / NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    with pytest.raises(StoreError, match="cannot be deleted: database disk image is malformed"):
        box.acknowledge(old, range(1, 201))
    assert box.store != old
    assert (tmp_path / f"damaged-{NAME}").exists()
    (report,) = box.due(0.0)
    assert isinstance(report.body, Refusal)
    assert (report.body.what, report.body.reason) == ("outbox", "damaged")
    box.put(RESULT, 0.0)
    assert kinds(box, 1.0) == ["Result"]


def test_one_report_that_cannot_be_read_does_not_hold_up_the_others(outbox: Outbox) -> None:
    outbox.put(WINDOW, 0.0)
    outbox.put(RESULT, 0.0)
    with outbox._database:
        outbox._database.execute("UPDATE report SET body = x'c1' WHERE number = 1")
    assert kinds(outbox) == ["Result"]
    assert (len(outbox), outbox.dropped) == (1, 1)


def test_the_log_of_changes_stays_small(outbox: Outbox, tmp_path: Path) -> None:
    for _ in range(600):
        outbox.put(WINDOW, 0.0)
        outbox.acknowledge(outbox.store, [outbox.due(0.0)[0].number])
    assert (tmp_path / f"{NAME}-wal").stat().st_size < 1_200_000
    assert (tmp_path / NAME).stat().st_size < 200_000


def test_every_commit_is_durable(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert sqlite3.connect(tmp_path / NAME).execute("PRAGMA journal_mode").fetchone() == ("wal",)
