"""Which labelled rows are kept, and how they travel."""

import random

import numpy as np
import pytest

from edgefleet_agent.samples import SampleKeeper
from edgefleet_protocol.messages import Slot
from edgefleet_protocol.trust import SamplePolicy

SLOT = Slot("m", "v1", 1, "x", "0" * 64)


def keeper(per_window: int, strategy: str = "reservoir", columns: int = 2) -> SampleKeeper:
    policy = SamplePolicy("retraining", per_window, strategy)  # type: ignore[arg-type]  # Literal
    return SampleKeeper(policy, [f"c{i}" for i in range(columns)], random.Random(5))


def test_a_reservoir_is_uniform_over_the_window() -> None:
    counts = np.zeros(20)
    made = keeper(5)
    for _ in range(4000):
        for value in range(20):
            made.offer(np.full(2, float(value)), "l", "p", 0.5)
        (message,) = made.take(SLOT)
        counts[np.frombuffer(message.rows, "<f4").reshape(-1, 2)[:, 0].astype(int)] += 1
    assert counts.sum() == 5 * 4000
    # 4000 draws of 5 in 20: mean 1000, standard deviation 27.4
    assert np.abs(counts - 1000).max() < 5 * 27.4


def test_the_uncertain_strategy_keeps_the_least_confident_rows() -> None:
    made = keeper(3, "uncertain")
    for value in [0.9, 0.5, 0.99, 0.4, 0.5, 0.8, 0.41]:
        made.offer(np.full(2, value), "l", "p", value)
    (message,) = made.take(SLOT)
    held = np.frombuffer(message.rows, "<f4").reshape(-1, 2)[:, 0]
    assert sorted(held.round(2).tolist()) == pytest.approx([0.4, 0.41, 0.5])


def test_a_row_is_copied_when_it_is_taken() -> None:
    made, row = keeper(1), np.array([1.0, 2.0])
    made.offer(row, "l", "p", 0.5)
    row[:] = 9.0
    assert np.frombuffer(made.take(SLOT)[0].rows, "<f4").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("strategy", ["reservoir", "uncertain"])
def test_a_quota_of_nothing_takes_nothing(strategy: str) -> None:
    made = keeper(0, strategy)
    made.offer(np.zeros(2), "l", "p", 0.5)
    assert made.take(SLOT) == []


def test_each_window_begins_anew() -> None:
    made = keeper(2)
    made.offer(np.zeros(2), "l", "p", 0.5)
    assert len(made.take(SLOT)[0].labels) == 1
    assert made.take(SLOT) == []


def test_wide_rows_travel_in_several_messages() -> None:
    made = keeper(100, columns=4096)
    for _ in range(100):
        made.offer(np.zeros(4096), "l", "p", 0.5)
    messages = made.take(SLOT)
    assert [len(message.labels) for message in messages] == [16, 16, 16, 16, 16, 16, 4]
    assert all(len(message.rows) <= 256 * 1024 for message in messages)
