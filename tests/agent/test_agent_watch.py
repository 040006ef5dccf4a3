"""When a watched release is proven, and when it is too slow."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.inference.watch import RUN_CALLS, SLOW_RUNS, Watch
from edgefleet_protocol.messages import Slot

SLOT = Slot("m", "v1", 1, "x", "0" * 64)
BUDGET_US = 100


def watch(rows: int = 10**6) -> tuple[Watch, list[Slot]]:
    proven: list[Slot] = []
    return Watch(rows, proven.append, max_latency_us=BUDGET_US), proven


def run(made: Watch, slow_calls: int) -> list[str]:
    """Count one run of calls, the slow ones first; return the faults."""
    times = [BUDGET_US + 1] * slow_calls + [BUDGET_US] * (RUN_CALLS - slow_calls)
    return [text for time_us in times if (text := made.count(SLOT, 1, time_us))]


def test_two_slow_runs_in_succession_are_a_fault() -> None:
    made, _ = watch()
    assert run(made, RUN_CALLS) == []
    assert len(run(made, RUN_CALLS // 2 + 1)) == 1


def test_a_run_is_slow_only_if_more_than_half_of_its_calls_are() -> None:
    made, _ = watch()
    for _ in range(20):
        assert run(made, RUN_CALLS // 2) == []


def test_a_good_run_between_two_slow_ones_clears_the_release() -> None:
    made, _ = watch()
    for _ in range(10):
        assert run(made, RUN_CALLS) == []
        assert run(made, 0) == []


def test_without_a_budget_nothing_is_slow() -> None:
    made = Watch(10**6, lambda _: None)
    assert all(made.count(SLOT, 1, 1e9) is None for _ in range(RUN_CALLS * SLOW_RUNS))


def test_a_forgiven_latency_is_not_judged() -> None:
    made, _ = watch()
    made.forgive_latency()
    assert all(made.count(SLOT, 1, 1e9) is None for _ in range(RUN_CALLS * SLOW_RUNS))


def test_slow_rows_do_not_prove_a_release() -> None:
    made, proven = watch(rows=3)
    for _ in range(5):
        made.count(SLOT, 1, BUDGET_US + 1)
    assert proven == []
    made.count(SLOT, 3, BUDGET_US)
    assert proven == [SLOT]


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 500))
def test_a_release_is_proven_once_and_exactly_when_its_rows_are_there(
    calls: list[int], needed: int
) -> None:
    made, proven = watch(needed)
    total = 0
    for rows in calls:
        made.count(SLOT, rows, 1.0)
        total += rows
        assert len(proven) == (total >= needed)


@pytest.mark.parametrize("threads", [4])
def test_many_threads_prove_a_release_once(threads: int) -> None:
    made, proven = watch(rows=1000)
    workers = [
        threading.Thread(target=lambda: [made.count(SLOT, 1, 1.0) for _ in range(500)])
        for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert proven == [SLOT]
