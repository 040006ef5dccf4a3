"""Which assignments are too old: a floor for each key of the director, and what brings it down."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent import files
from edgefleet_agent.testing import Bundle, HubDouble, Repository
from edgefleet_agent.trusting import tufclient
from edgefleet_agent.trusting.counters import (
    MAX_KEYS,
    CounterFile,
    Counters,
    accepted,
    floor_of,
)
from edgefleet_agent.trusting.trust import Accepted, MetadataRefusedError, Trust

Make = Callable[..., Bundle]
FAR = 10**12


def test_the_floor_is_what_as_many_present_keys_reach_as_the_threshold() -> None:
    counters = Counters(9, {"a": 9, "b": 7, "c": 5})
    assert floor_of(counters, ["a", "b", "c"], 1) == 9
    assert floor_of(counters, ["a", "b", "c"], 2) == 7
    assert floor_of(counters, ["a", "b", "c"], 3) == 5
    assert floor_of(counters, ["b", "new"], 1) == 7
    assert floor_of(counters, ["b", "new"], 2) == 0
    assert floor_of(counters, ["new"], 1) == 0
    assert floor_of(counters, ["a", "a"], 2) == 0  # a key counts once


def test_counters_of_an_agent_that_did_not_know_keys_apart_bind_every_key() -> None:
    assert floor_of(Counters(4), ["any"], 1) == 4
    assert floor_of(accepted(Counters(4), 5, ["any"]), ["any"], 1) == 5


def test_a_key_that_is_named_again_brings_its_floor_back() -> None:
    counters = accepted(accepted(Counters(0), 7, ["a"]), 2, ["b"])
    assert floor_of(counters, ["b"], 1) == 2
    assert floor_of(counters, ["a"], 1) == 7


def test_the_keys_that_are_kept_are_bounded_and_the_highest_floors_stay() -> None:
    counters = Counters(0)
    for number in range(MAX_KEYS + 10):
        counters = accepted(counters, number, [f"key-{number}"])
    assert len(counters.floors) == MAX_KEYS
    assert min(counters.floors.values()) == 10


@given(st.lists(st.tuples(st.integers(0, 50), st.sets(st.sampled_from("abc"), min_size=1))))
def test_while_the_keys_stay_the_floor_never_goes_back(
    assignments: list[tuple[int, set[str]]],
) -> None:
    """Whatever is signed, by whichever keys: an accepted sequence is never undercut."""
    counters, highest = Counters(0), 0
    for sequence, signers in assignments:
        floor = floor_of(counters, "abc", 1)
        assert floor >= highest
        if sequence >= floor:
            counters = accepted(counters, sequence, signers)
            highest = sequence


def test_what_is_accepted_is_read_again(tmp_path: Path) -> None:
    CounterFile(tmp_path, expected=False).accept(3, ["a"])
    kept = CounterFile(tmp_path, expected=True)
    assert kept.counters == Counters(3, {"a": 3})
    assert kept.lost == ""


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    files.write_kept(tmp_path / "counters.json", b'{"sequence":6,"format":1}')
    assert CounterFile(tmp_path, expected=True).counters.sequence == 6


def test_a_file_that_must_be_there_and_is_not_is_a_loss(tmp_path: Path) -> None:
    assert CounterFile(tmp_path, expected=True).lost == "counters.json is gone"


# -- against the whole of trust --------------------------------------------------------------------


@pytest.fixture
def trust(tmp_path: Path, hub: HubDouble) -> Trust:
    return Trust(
        tmp_path / "trust",
        device=hub.device,
        board="generic-x86_64",
        image_root=hub.image.roots[0],
        director_root=hub.director.roots[0],
        run_client=tufclient.refresh,
    )


def judged(trust: Trust, hub: HubDouble, assignment: bytes) -> str:
    """Return `accepted`, or the reason of the refusal."""
    for topic, data in hub.image_messages():
        trust.take_image_role(topic.rpartition("/")[2], data)
    trust.take_assignment(assignment)
    try:
        verdict = trust.judge(1.0, {})
    except MetadataRefusedError as error:
        return error.reason
    assert isinstance(verdict, Accepted)
    return "accepted"


def test_a_stolen_director_key_that_ran_far_ahead_locks_nobody_out_once_it_is_replaced(
    trust: Trust, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    assert judged(trust, hub, hub.assignment(target)) == "accepted"
    # The thief holds the director's online keys, and with them TUF's versions too.
    hub.director.version = FAR
    stolen = hub.assignment(target, sequence=FAR)
    assert judged(trust, hub, stolen) == "accepted"
    hub.director.version = 10
    assert judged(trust, hub, hub.assignment(target, sequence=3)) == "rollback"
    hub.director.rotate()
    assert judged(trust, hub, hub.assignment(target, sequence=3)) == "accepted"
    assert trust.sequence == 3
    assert judged(trust, hub, hub.assignment(target, sequence=2)) == "rollback"


def test_what_a_replaced_director_key_signed_is_refused_whatever_its_sequence(
    trust: Trust, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    old = hub.assignment(target, sequence=FAR)
    hub.director.rotate()
    assert judged(trust, hub, hub.assignment(target, sequence=3)) == "accepted"
    assert judged(trust, hub, old) == "bad-signature"


def test_a_director_that_only_says_it_has_new_keys_does_not_bring_the_floor_down(
    trust: Trust, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    assert judged(trust, hub, hub.assignment(target, sequence=9)) == "accepted"
    stranger = Repository()
    stranger.rotate()
    forged = msgspec.structs.replace  # roots of a stranger beside our own first one
    from edgefleet_protocol import codec
    from edgefleet_protocol.messages import Assignment

    real = codec.decode(hub.assignment(target, sequence=3), Assignment)
    message = codec.encode(forged(real, roots=[hub.director.roots[0], stranger.roots[1]]))
    assert judged(trust, hub, message) == "bad-signature"
    assert trust.sequence == 9
