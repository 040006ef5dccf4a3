"""Planning of blocks, and which files may be asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.fleet.blocks import (
    COALESCE_S,
    DEMAND_S,
    MAX_BLOCKS_AT_ONCE,
    BlockPlanner,
    Send,
)
from edgefleet_cloud.fleet.catalog import BlobCatalog
from edgefleet_cloud.fleet.testing import open_services, release_bundle
from edgefleet_cloud.services import Services

DIGEST = "ab" * 32
T = 1000.0


def test_a_single_device_is_served_at_once():
    planner = BlockPlanner()
    planner.ask("a", DIGEST, [0, 2], T)
    assert planner.next_due() == T
    assert planner.due(T) == [Send(DIGEST, "a", (0, 2))]
    assert planner.next_due() is None
    assert planner.due(T) == []


def test_two_devices_are_served_each_for_itself():
    planner = BlockPlanner()
    planner.ask("a", DIGEST, [0], T)
    planner.ask("b", DIGEST, [1], T)
    assert planner.due(T) == [Send(DIGEST, "a", (0,)), Send(DIGEST, "b", (1,))]


def test_three_devices_within_50_ms_share_a_broadcast_of_all_they_want():
    planner = BlockPlanner()
    for offset, device in enumerate("abc"):
        planner.ask(device, DIGEST, [offset, 5], T + 0.01 * offset)
    assert planner.due(T + COALESCE_S - 0.001) == []
    assert planner.next_due() == T + COALESCE_S
    assert planner.due(T + COALESCE_S) == [Send(DIGEST, None, (0, 1, 2, 5))]


def test_a_file_in_demand_waits_even_for_one_but_goes_to_it_alone():
    planner = BlockPlanner()
    for device in "abc":
        planner.ask(device, DIGEST, [0], T)
    planner.due(T + COALESCE_S)
    planner.ask("a", DIGEST, [1], T + 0.1)
    assert planner.due(T + 0.1) == []
    assert planner.due(T + 0.1 + COALESCE_S) == [Send(DIGEST, "a", (1,))]


def test_demand_is_forgotten_after_a_second():
    planner = BlockPlanner()
    for device in "abc":
        planner.ask(device, DIGEST, [0], T)
    planner.due(T + COALESCE_S)
    planner.due(T + DEMAND_S)
    planner.ask("a", DIGEST, [1], T + DEMAND_S)
    assert planner.due(T + DEMAND_S) == [Send(DIGEST, "a", (1,))]


def test_a_device_gets_at_most_16_blocks_at_a_time_over_all_files():
    planner = BlockPlanner()
    planner.ask("a", DIGEST, range(10_000), T)
    planner.ask("a", "cd" * 32, range(10_000), T)
    planner.ask("b", DIGEST, [7], T)
    assert planner.due(T) == [Send(DIGEST, "a", tuple(range(16))), Send(DIGEST, "b", (7,))]
    planner.ask("a", DIGEST, range(16, 10_000), T)
    assert planner.due(T) == [Send(DIGEST, "a", tuple(range(16, 32)))]


def test_the_same_request_twice_is_one_request():
    planner = BlockPlanner()
    for _ in range(5):
        planner.ask("a", DIGEST, range(16), T)
    assert planner.due(T) == [Send(DIGEST, "a", tuple(range(16)))]


ASKS = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from([DIGEST, "cd" * 32]),
        st.sets(st.integers(0, 40), max_size=20),
        st.floats(0, 0.2),
    ),
    max_size=30,
)


@given(ASKS)
def test_whatever_is_asked_each_device_gets_blocks_it_wanted_and_all_within_its_share(asks):
    planner = BlockPlanner()
    now = T
    wanted: dict[tuple[str, str], set[int]] = {}
    served: dict[tuple[str, str], set[int]] = {}
    sends: list[Send] = []

    def serve(now: float) -> None:
        due = planner.due(now)
        sends.extend(due)
        for send in due:
            for device in [send.device] if send.device else "abcde":
                served.setdefault((device, send.digest), set()).update(send.indices)

    for device, digest, indices, pause in asks:
        now += pause
        serve(now)
        planner.ask(device, digest, sorted(indices), now)
        wanted.setdefault((device, digest), set()).update(indices)
    while (at := planner.next_due()) is not None:
        serve(at)
    assert not planner._waiting
    assert not planner._planned
    for send in sends:
        assert list(send.indices) == sorted(set(send.indices))
        if send.device is not None:
            assert len(send.indices) <= MAX_BLOCKS_AT_ONCE
            assert set(send.indices) <= wanted[send.device, send.digest]
        else:
            every = set().union(*(w for (_, d), w in wanted.items() if d == send.digest))
            assert set(send.indices) <= every
    everyone = {device for device, _, indices, _ in asks if indices}
    assert {device for device, _ in served} >= everyone


# --- which files ------------------------------------------------------------------------------


@pytest.fixture
def services(tmp_path: Path, migrated: Path) -> Iterator[Services]:
    opened = open_services(tmp_path, migrated=migrated)
    yield opened
    opened.database.close()


def test_only_manifests_and_blobs_of_released_bundles_may_be_served(services):
    catalog = BlobCatalog(services.database, services.store)
    secret = services.store.put(b"training data")
    assert catalog.size(secret) is None
    with services.database.write() as session:
        bundle = release_bundle(session, services.store, "digits", "1", 1, b"model")
    assert catalog.size(bundle.manifest) == bundle.entry.length
    assert {digest: catalog.size(digest) for digest in bundle.blobs} == {
        digest: len(blob) for digest, blob in bundle.blobs.items()
    }
    assert catalog.size(secret) is None


def test_a_later_release_is_found_and_a_lost_manifest_too_once_it_is_back(services):
    catalog = BlobCatalog(services.database, services.store)
    with services.database.write() as session:
        first = release_bundle(session, services.store, "digits", "1", 1, b"one")
    assert catalog.size(first.manifest)
    with services.database.write() as session:
        second = release_bundle(session, services.store, "digits", "2", 2, b"two")
    path = services.store.path(second.manifest)
    content = path.read_bytes()
    path.unlink()
    assert catalog.size(second.manifest) is None
    services.store.put(content)
    assert catalog.size(second.manifest) == len(content)
