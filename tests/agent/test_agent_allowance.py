"""The byte budget: rolling, by class of link, kept over restarts, and never in its own favour."""

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_agent.config import Network
from edgefleet_agent.downloading.allowance import (
    ASK_AGAIN_S,
    DAY_S,
    NAME,
    QUARTER_S,
    Allowance,
    LinkClass,
    link_class,
)
from edgefleet_agent.errors import ConfigError
from edgefleet_agent.testing import Clock
from edgefleet_protocol.blocks import BLOCK_BYTES

MIB = 1024 * 1024
START = 1_700_000_100.0 - 1_700_000_100.0 % QUARTER_S
METERED = Network("metered", 8 * MIB, 0)


class Times:
    """Two clocks that go together until one is set."""

    def __init__(self) -> None:
        self.clock, self.monotonic = Clock(START), Clock(50.0)

    def go(self, seconds: float) -> None:
        self.clock.now += seconds
        self.monotonic.now += seconds


@pytest.fixture
def times() -> Times:
    return Times()


def never() -> LinkClass:
    raise AssertionError("the system is not to be asked")


def opened(
    folder: Path,
    times: Times,
    network: Network = METERED,
    ask: Callable[[], LinkClass] = never,
    start: Callable[[Callable[[], None]], None] = lambda work: work(),
) -> Allowance:
    return Allowance(folder, network, ask, times.clock, monotonic=times.monotonic, start=start)


def test_what_was_taken_is_free_again_24_hours_after_its_quarter_of_an_hour(
    tmp_path: Path, times: Times
) -> None:
    allowance = opened(tmp_path, times)
    assert (allowance.left(), allowance.waits_until(), allowance.reason()) == (8 * MIB, None, "")
    times.go(QUARTER_S - 1)
    allowance.take(6 * MIB)
    times.go(1)
    allowance.take(2 * MIB)
    assert allowance.left() == 0
    assert allowance.waits_until() == START + QUARTER_S + DAY_S
    assert allowance.reason() == "waits for its byte budget until 22:30 UTC"
    times.go(DAY_S - 1)
    assert allowance.left() == 0
    times.go(1)
    assert allowance.left() == 6 * MIB
    assert allowance.waits_until() is None


def test_less_than_a_block_is_nothing_to_begin_with(tmp_path: Path, times: Times) -> None:
    allowance = opened(tmp_path, times)
    allowance.take(8 * MIB - BLOCK_BYTES)
    assert allowance.waits_until() is None
    allowance.take(1)
    assert allowance.left() == BLOCK_BYTES - 1
    assert allowance.waits_until() == START + QUARTER_S + DAY_S


def test_no_limit_counts_nothing_and_writes_nothing(tmp_path: Path, times: Times) -> None:
    allowance = opened(tmp_path, times, Network("unmetered", MIB, 0))
    allowance.take(100 * MIB)
    assert allowance.left() is None
    allowance.close()
    assert not (tmp_path / NAME).exists()


def test_each_class_of_link_has_its_own_budget(tmp_path: Path, times: Times) -> None:
    answer: LinkClass = "metered"
    allowance = opened(tmp_path, times, Network("auto", MIB, 4 * MIB), lambda: answer)
    assert allowance.left() == MIB
    allowance.take(MIB)
    answer = "unmetered"
    assert allowance.left() == 0  # the old answer holds for a while
    times.go(ASK_AGAIN_S)
    assert allowance.left() == 4 * MIB
    answer = "metered"
    allowance.reconnected()
    assert allowance.left() == 0


def test_a_link_of_unknown_class_is_metered(tmp_path: Path, times: Times) -> None:
    waiting: list[Callable[[], None]] = []
    network = Network("auto", MIB, 0)
    allowance = opened(tmp_path, times, network, lambda: "unmetered", waiting.append)
    assert allowance.left() == MIB
    assert allowance.left() == MIB
    (work,) = waiting  # asked once
    work()
    assert allowance.left() is None


def test_the_system_is_asked_beside_the_engines_thread(tmp_path: Path, times: Times) -> None:
    asked_by: list[int] = []
    told = threading.Event()

    def ask() -> LinkClass:
        asked_by.append(threading.get_ident())
        told.set()
        return "unmetered"

    network = Network("auto", MIB, 0)
    allowance = Allowance(tmp_path, network, ask, times.clock, monotonic=times.monotonic)
    allowance.left()
    assert told.wait(10)
    assert asked_by != [threading.get_ident()]


def test_a_kill_costs_some_allowance_and_a_stop_costs_none(tmp_path: Path, times: Times) -> None:
    killed = opened(tmp_path, times)
    killed.take(MIB)
    after = opened(tmp_path, times)
    slack = after.ahead_bytes("metered")
    assert slack == 512 * 1024
    assert after.left() == 7 * MIB - slack
    after.close()
    assert opened(tmp_path, times).left() == 7 * MIB - slack


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "go", "kill", "stop"]), st.integers(1, 4 * BLOCK_BYTES)),
        max_size=40,
    )
)
def test_whatever_happens_a_day_never_sees_more_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    folder, times, budget = tmp_path_factory.mktemp("a"), Times(), MIB
    network = Network("metered", budget, 0)
    allowance = opened(folder, times, network)
    taken: list[tuple[float, int]] = []
    for act, number in acts:
        if act == "take":
            count = min(number, allowance.left() or 0)
            allowance.take(count)
            taken.append((times.clock.now, count))
        elif act == "go":
            times.go(number / 10)
        else:
            if act == "stop":
                allowance.close()
            allowance = opened(folder, times, network)
        recent = sum(count for when, count in taken if when > times.clock.now - DAY_S)
        assert recent <= budget
        assert recent + (allowance.left() or 0) <= budget


def test_setting_the_clock_gives_nothing_back(tmp_path: Path, times: Times) -> None:
    allowance = opened(tmp_path, times)
    allowance.take(8 * MIB)
    times.clock.now = 60.0  # 1970
    assert allowance.left() == 0
    times.clock.now = 2_208_988_800.0  # 2040
    assert allowance.left() == 0
    times.go(DAY_S + QUARTER_S)
    assert allowance.left() == 8 * MIB


def test_a_restart_in_1970_counts_what_it_finds_as_made_now(tmp_path: Path, times: Times) -> None:
    first = opened(tmp_path, times)
    first.take(8 * MIB)
    first.close()
    times.clock.now = 0.0
    second = opened(tmp_path, times)
    assert second.left() == 0
    times.clock.now = START  # the network has come, and with it the time
    assert second.left() == 0


def test_a_damaged_file_is_a_budget_spent(tmp_path: Path, times: Times) -> None:
    (tmp_path / NAME).write_bytes(b"{")
    allowance = opened(tmp_path, times)
    assert allowance.left() == 0
    times.go(DAY_S + QUARTER_S)
    assert allowance.left() == 8 * MIB


def test_a_store_that_cannot_be_written_is_told_about_once_and_counted_in_memory(
    tmp_path: Path, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    allowance = opened(tmp_path / "missing", times)
    for _ in range(4):
        allowance.take(MIB)
    assert allowance.left() == 4 * MIB
    assert caplog.text.count("cannot be written") == 1


def test_a_budget_below_one_block_is_refused(tmp_path: Path, times: Times) -> None:
    with pytest.raises(ConfigError, match="nothing could ever be fetched"):
        opened(tmp_path, times, Network("auto", BLOCK_BYTES - 1, 0))
    opened(tmp_path, times, Network("metered", BLOCK_BYTES, 0))


def answering(stdout: str = "", stderr: str = "") -> Callable[..., Any]:
    return lambda *_, **__: subprocess.CompletedProcess([], 0, stdout, stderr)


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ("u 0\n", "unmetered"),
        ("u 1\n", "metered"),
        ("u 2\n", "unmetered"),
        ("u 3\n", "metered"),
        ("u 4\n", "unmetered"),
        ("u 5\n", "metered"),
        ("", "metered"),
    ],
)
def test_network_manager_is_believed(tmp_path: Path, stdout: str, expected: str) -> None:
    assert link_class(answering(stdout), tmp_path) == expected


def test_without_network_manager_the_link_is_unmetered_and_nobody_is_asked(tmp_path: Path) -> None:
    assert link_class(never, tmp_path / "missing") == "unmetered"


def test_a_network_manager_that_does_not_answer_is_metered_and_says_how_to_change_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hang(*_: object, **__: object) -> Any:
        raise subprocess.TimeoutExpired("busctl", 5.0)

    assert link_class(hang, tmp_path) == "metered"
    assert 'set [network] link = "unmetered"' in caplog.text
