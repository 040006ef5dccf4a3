"""Room on disk: what goes first, what never goes, and what a refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.config import Storage
from edgefleet_agent.downloading.storage import (
    LEFTOVER_BYTES,
    Disk,
    Held,
    NoRoomError,
    Why,
    room,
    surplus,
)

MIB = 1024 * 1024
HELD = [
    Held("files/serving", 4 * MIB, Why.NEEDED, 1.0),
    Held("files/previous", 3 * MIB, Why.PREVIOUS, 2.0),
    Held("parts/new", 2 * MIB, Why.LEFTOVER, 9.0),
    Held("parts/old", 1 * MIB, Why.LEFTOVER, 8.0),
]


def disk(free_mib: float) -> Disk:
    return Disk("/store", int(free_mib * MIB))


def test_nothing_is_deleted_while_there_is_room() -> None:
    assert room(10 * MIB, disk(42), Storage(), HELD) == []


@pytest.mark.parametrize(
    ("free_mib", "gone"),
    [
        (41.9, ["parts/old"]),
        (41, ["parts/old"]),
        (40.9, ["parts/old", "parts/new"]),
        (39, ["parts/old", "parts/new"]),
        (38.9, ["parts/old", "parts/new", "files/previous"]),
        (36, ["parts/old", "parts/new", "files/previous"]),
    ],
)
def test_leftovers_go_first_the_oldest_before_all_then_previous_releases(
    free_mib: float, gone: list[str]
) -> None:
    assert room(10 * MIB, disk(free_mib), Storage(), HELD) == gone


def test_what_does_not_fit_is_refused_with_figures_and_nothing_is_deleted() -> None:
    with pytest.raises(NoRoomError) as refusal:
        room(10 * MIB, disk(35.9), Storage(), HELD)
    assert str(refusal.value) == (
        "no room: 10.0 MiB more are needed in /store; 35.9 MiB are free,"
        " of which 32.0 MiB are kept free for others; 6.0 MiB could be deleted. Free disk space"
    )


def test_a_quota_counts_everything_that_is_held() -> None:
    assert room(2 * MIB, disk(1000), Storage(12 * MIB), HELD) == []
    assert room(2 * MIB + 1, disk(1000), Storage(12 * MIB), HELD) == ["parts/old"]
    with pytest.raises(NoRoomError) as refusal:
        room(9 * MIB, disk(1000), Storage(12 * MIB, 0), HELD)
    assert str(refusal.value) == (
        "no room: 9.0 MiB more are needed in /store; 1000.0 MiB are free;"
        " the store takes 10.0 MiB of the 12.0 MiB it may take; 6.0 MiB could be deleted."
        " Free disk space, or raise [storage] max_bytes"
    )


HOLDINGS = st.lists(
    st.builds(
        Held, st.uuids().map(str), st.integers(0, 100), st.sampled_from(Why), st.floats(0, 9)
    ),
    max_size=12,
)


@given(HOLDINGS, st.integers(0, 300), st.integers(0, 300), st.integers(0, 400))
def test_after_the_evictions_it_fits_and_nothing_needed_is_gone(
    held: list[Held], needed: int, free: int, quota: int
) -> None:
    storage = Storage(quota, 20)
    try:
        gone = set(room(needed, Disk("/store", free), storage, held))
    except NoRoomError:
        spare = sum(file.size_bytes for file in held if file.why is not Why.NEEDED)
        used = sum(file.size_bytes for file in held)
        fits_disk = needed + 20 <= free + spare
        fits_quota = not quota or used - spare + needed <= quota
        assert not (fits_disk and fits_quota)
        return
    freed = sum(file.size_bytes for file in held if file.name in gone)
    left = [file for file in held if file.name not in gone]
    assert needed + 20 <= free + freed
    assert not quota or sum(file.size_bytes for file in left) + needed <= quota
    assert all(file.why is not Why.NEEDED for file in held if file.name in gone)
    if any(file.why is Why.PREVIOUS for file in held if file.name in gone):
        assert all(file.why is not Why.LEFTOVER or not file.size_bytes for file in left)


def test_leftovers_stay_while_they_take_less_than_half_of_the_room() -> None:
    held = [Held("a", 30 * MIB, Why.LEFTOVER, 1.0), Held("b", 10 * MIB, Why.LEFTOVER, 2.0)]
    assert surplus(disk(72), Storage(), held) == []
    assert surplus(disk(71.9), Storage(), held) == ["a"]
    assert surplus(disk(0), Storage(), held) == ["a", "b"]


def test_leftovers_are_bounded_on_a_large_disk_and_by_the_quota() -> None:
    held = [
        Held("files/serving", 4 * MIB, Why.NEEDED),
        Held("a", LEFTOVER_BYTES, Why.LEFTOVER, 1.0),
    ]
    assert surplus(disk(10_000), Storage(), held) == []
    one_more = [*held, Held("b", 1, Why.LEFTOVER, 2.0)]
    assert surplus(disk(10_000), Storage(), one_more) == ["a"]
    quota = Storage(LEFTOVER_BYTES + 4 * MIB)
    assert surplus(disk(10_000), quota, held) == []
    assert surplus(disk(10_000), Storage(quota.max_bytes - 1), held) == ["a"]


def test_previous_releases_are_never_surplus() -> None:
    assert surplus(disk(0), Storage(1), [Held("files/previous", MIB, Why.PREVIOUS)]) == []
