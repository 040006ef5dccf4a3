"""The scheduler's rounds."""

import logging
import threading

import pytest

from edgefleet_cloud.scheduler import Part, Scheduler


def fail() -> None:
    raise RuntimeError("disk full")


def test_a_part_that_fails_stops_no_other() -> None:
    ran: list[str] = []
    parts = [
        Part("first", lambda: ran.append("first")),
        Part("broken", fail),
        Part("last", lambda: ran.append("last")),
    ]
    scheduler = Scheduler(parts, 1.0, threading.Event())
    scheduler.round()
    scheduler.round()
    assert ran == ["first", "last", "first", "last"]
    assert scheduler.failures == {"broken": 2}
    assert scheduler.rounds == 2


def test_a_lasting_fault_is_traced_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler([Part("broken", fail)], 1.0, threading.Event())
    with caplog.at_level(logging.ERROR):
        for _ in range(9):
            scheduler.round()
    traced = [number for number, record in enumerate(caplog.records, start=1) if record.exc_info]
    assert traced == [1, 2, 4, 8]
    assert caplog.records[-1].message == "broken failed (9 in a row): disk full"


def test_after_a_success_a_fault_is_new_again(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([True, False, True])

    def sometimes() -> None:
        if next(outcomes):
            fail()

    scheduler = Scheduler([Part("part", sometimes)], 1.0, threading.Event())
    for _ in range(3):
        scheduler.round()
    assert [record.message for record in caplog.records] == [
        "part failed (1 in a row): disk full"
    ] * 2


def test_waking_starts_the_next_round_at_once_and_stopping_ends_the_thread() -> None:
    woken, ran = threading.Event(), threading.Semaphore(0)
    scheduler = Scheduler([Part("part", ran.release)], 3600.0, woken)
    scheduler.start()
    assert ran.acquire(timeout=10)
    woken.set()
    assert ran.acquire(timeout=10)
    scheduler.stop()
    assert scheduler.rounds == 2
