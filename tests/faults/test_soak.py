"""Random faults on a device, and twenty updates of one model with failures mixed in."""

import time
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefleet_protocol.messages import BlockRequest, Step
from tests.faults.soak import play
from tests.faults.world import MODEL, Kind, World, complaints, send

KINDS: list[Kind] = ["good", "refused", "good", "faulty", "good", "broken", "good"]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(faults=st.integers(5, 25), seed=st.integers(0, 10_000))
def test_whatever_happens_the_device_serves_one_verified_release_and_converges(
    faults: int, seed: int, tmp_path: Path
) -> None:
    tally = play(faults, str(seed), tmp_path / "world")
    assert {name: found for name, found in tally.violations.items() if found} == {}


@pytest.mark.timeout(120)
def test_the_twentieth_update_of_a_model_deploys_like_the_first(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    rig = world.rig()
    given_, spent, sizes, asked, memory = [], [], [], [], []
    for number in range(20):
        kind: Kind = "good" if number in (0, 19) else KINDS[number % len(KINDS)]
        order = world.order(kind)
        given_.append(order)
        requests = len(world.hub.requests)
        began = time.perf_counter()
        send(rig, order)
        world.converge(rig, order)
        spent.append(time.perf_counter() - began)
        facts = world.facts(rig)
        assert complaints(world, facts, given_) == []
        sizes.append(sum(p.stat().st_size for p in world.store.rglob("*") if p.is_file()))
        made = world.hub.requests[requests:]
        asked.append([type(request) for request in made])
        memory.append(psutil.Process().memory_info().rss)
    good = [n for n, order in enumerate(given_) if order.kind == "good"]
    assert rig.steps() == {MODEL: Step.CONFIRMED}
    # The first has to fetch reference and golden vectors too; all later ones share them.
    assert all(asked[n] == [BlockRequest] * 2 for n in good[1:])
    assert spent[-1] < 10 * max(spent[good[1]], 0.05)
    assert memory[-1] - memory[4] < 64 * 1024 * 1024
    # What failed attempts have fetched may stay while there is room.
    assert sizes[-1] < 20 * sizes[0]
    assert len({(store, number) for store, number, *_ in world.hub.results()}) == 20
    rig.close()
