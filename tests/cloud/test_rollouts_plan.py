"""Which device comes when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.rollouts import plan
from edgefleet_cloud.rollouts.plan import Candidate, Plan

VARIANTS = ("onnx-int8", "tflite-int8", "onnx-fp32")


def group(size: int, variants: tuple[str, ...] = VARIANTS[:2]) -> list[Candidate]:
    return [
        Candidate(f"cam-{index:05}", variants[index % len(variants)], 1000, "best")
        for index in range(size)
    ]


def sizes(made: Plan) -> list[int]:
    return [len(stage.devices) for stage in made.stages]


candidates = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 10**6).map(lambda number: f"cam-{number}"),
        st.sampled_from([*VARIANTS, None]),
        st.integers(0, 10**6),
        st.just(""),
        st.booleans(),
    ),
    unique_by=lambda candidate: candidate.device,
    max_size=60,
)
shares = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(lambda s: [*sorted(s), 1.0])


@given(candidates, st.sampled_from(plan.STRATEGIES), st.none() | shares, st.text(max_size=5))
def test_every_fitting_device_is_in_exactly_one_stage_and_every_other_is_skipped(
    devices: list[Candidate], strategy: str, given_shares: list[float] | None, seed: str
) -> None:
    fitting = [device for device in devices if device.variant is not None]
    if not fitting:
        with pytest.raises(InvalidError, match="no device of the group can take"):
            plan.make(devices, strategy, seed, given_shares)
        return
    made = plan.make(devices, strategy, seed, given_shares)
    staged = [device for stage in made.stages for device in stage.devices]
    assert sorted(d.device for d in staged) == sorted(d.device for d in fitting)
    assert sorted(d.device for d in staged + made.skipped) == sorted(d.device for d in devices)
    assert all(stage.devices for stage in made.stages)
    assert made.transfer_bytes == sum(d.transfer_bytes for d in fitting)


@given(candidates, st.randoms())
def test_the_order_in_which_devices_are_listed_changes_nothing(devices, random) -> None:
    if not any(device.variant for device in devices):
        return
    shuffled = list(devices)
    random.shuffle(shuffled)
    left, right = (plan.make(d, "canary", "digits/2") for d in (devices, shuffled))
    assert left.stages == right.stages


def test_the_shares_of_each_strategy() -> None:
    assert sizes(plan.make(group(12), "direct", "s")) == [12]
    assert sizes(plan.make(group(12), "staged", "s")) == [3, 3, 6]
    assert sizes(plan.make(group(12), "canary", "s")) == [2, 4, 6]
    assert sizes(plan.make(group(10_000), "canary", "s")) == [1500, 3500, 5000]
    assert sizes(plan.make(group(12), "staged", "s", [0.1, 1.0])) == [2, 10]
    names = [stage.name for stage in plan.make(group(12), "canary", "s").stages]
    assert names == ["canary", "50%", "all"]


@pytest.mark.parametrize(("size", "canary"), [(1, 1), (3, 1), (7, 1), (8, 2), (12, 2), (20, 3)])
def test_a_canary_has_one_device_and_two_from_eight_on(size: int, canary: int) -> None:
    assert sizes(plan.make(group(size), "canary", "s"))[0] == canary


@pytest.mark.parametrize("seed", [f"digits/{release}" for release in range(20)])
def test_a_canary_tries_every_variant_that_it_has_room_for(seed: str) -> None:
    made = plan.make(group(20, VARIANTS), "canary", seed)
    assert {device.variant for device in made.stages[0].devices} == set(VARIANTS)


def test_another_release_begins_with_other_devices() -> None:
    firsts = {
        plan.make(group(50), "canary", f"digits/{release}").stages[0].devices[0].device
        for release in range(20)
    }
    assert len(firsts) > 10


def test_unsound_devices_come_last() -> None:
    devices = [Candidate(f"cam-{i}", "onnx-int8", 0, "", sound=i not in (1, 4)) for i in range(12)]
    for seed in "abcdef":
        last = plan.make(devices, "staged", seed).stages[-1].devices[-2:]
        assert {device.device for device in last} == {"cam-1", "cam-4"}


@pytest.mark.parametrize(
    "given_shares", [[], [0.5], [0.5, 0.5, 1.0], [0.0, 1.0], [1.0, 0.5], [float("nan"), 1.0]]
)
def test_shares_that_do_not_rise_to_one_are_refused(given_shares: list[float]) -> None:
    with pytest.raises(InvalidError, match="rising to 1"):
        plan.check_shares(given_shares)
