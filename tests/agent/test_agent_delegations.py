"""Targets are looked up through delegations: whom they bind, and what happens without them."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from edgefleet_agent.testing import Bundle, HubDouble
from edgefleet_agent.trusting import bounds, tufclient
from edgefleet_agent.trusting.testing import RELEASES, Delegating
from edgefleet_agent.trusting.trust import Accepted, MetadataRefusedError, Trust, Waiting
from edgefleet_protocol.messages import Refusal
from edgefleet_protocol.trust import DirectorTarget, Fleet

Make = Callable[..., Bundle]
OWNER = "owner-vision"
OWNERS = {OWNER: (["colours/*/*"], 2), **RELEASES}


class Device:
    """Trust alone, with the client in this process."""

    def __init__(self, folder: Path, hub: HubDouble) -> None:
        self.hub, self.now = hub, 100.0
        self.trust = Trust(
            folder,
            device=hub.device,
            board="generic-x86_64",
            image_root=hub.image.roots[0],
            director_root=hub.director.roots[0],
            run_client=tufclient.refresh,
        )
        self.roles: dict[str, bytes] = {}

    def take(self, roles: Mapping[str, bytes]) -> None:
        for role, data in roles.items():
            self.trust.take_image_role(role, data)

    def publish(self, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
        made = {topic.rpartition("/")[2]: data for topic, data in self.hub.image_messages()}
        self.take({role: data for role, data in made.items() if role not in but})
        return made

    def judge(self, assignment: bytes | None = None) -> Accepted | Waiting | None:
        if assignment is not None:
            self.trust.take_assignment(assignment)
        return self.trust.judge(self.now, {})

    def refusal(self, assignment: bytes | None = None) -> tuple[str, str]:
        with pytest.raises(MetadataRefusedError) as caught:
            self.judge(assignment)
        return caught.value.what, caught.value.reason


@pytest.fixture
def image() -> Delegating:
    return Delegating(OWNERS)


@pytest.fixture
def hub(image: Delegating) -> HubDouble:
    return HubDouble(image=image)


@pytest.fixture
def device(tmp_path: Path, hub: HubDouble) -> Device:
    return Device(tmp_path / "trust", hub)


@pytest.fixture
def target(hub: HubDouble, bundle: Make) -> DirectorTarget:
    return hub.release(bundle(), 1)


def unsigned(data: bytes, signers: list[CryptoSigner], keep: int) -> bytes:
    """Sign a role with the first `keep` keys only."""
    metadata = Metadata[Targets].from_bytes(data)
    metadata.signatures.clear()
    for signer in signers[:keep]:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def test_a_model_is_vouched_for_by_its_owner_and_others_by_the_hub_s_own_role(
    device: Device, hub: HubDouble, target: DirectorTarget, bundle: Make
) -> None:
    other = hub.release(bundle(model="gestures"), 1)
    made = device.publish()
    assert set(Metadata[Targets].from_bytes(made[OWNER]).signed.targets) == {
        f"colours/r1/{target.variant}.json"
    }
    verdict = device.judge(hub.assignment(target, other))
    assert isinstance(verdict, Accepted)
    assert sorted(one.slot.model for one in verdict.targets) == ["colours", "gestures"]


def test_the_hub_cannot_vouch_for_a_model_that_an_owner_has_claimed(
    device: Device, hub: HubDouble, image: Delegating, target: DirectorTarget
) -> None:
    listed = dict(hub._listed)
    made = image.publish({})
    made["releases"] = image.owned("releases", listed)
    made |= image.seal({role: made[role] for role in (OWNER, "releases", "targets")})
    device.take(made)
    assert isinstance(device.judge(hub.assignment(target)), Waiting)
    device.now += bounds.SETTLE_S
    assert device.refusal() == ("assignment", "mix-and-match")


def test_an_owner_cannot_vouch_for_another_owner_s_model(
    device: Device, hub: HubDouble, image: Delegating, bundle: Make
) -> None:
    foreign = hub.release(bundle(model="gestures"), 1)
    made = image.publish({})
    made[OWNER] = image.owned(OWNER, hub._listed)
    made |= image.seal({role: made[role] for role in (OWNER, "releases", "targets")})
    device.take(made)
    assert isinstance(device.judge(hub.assignment(foreign)), Waiting)
    device.now += bounds.SETTLE_S
    assert device.refusal() == ("assignment", "mix-and-match")


def test_a_withheld_role_is_waited_for_and_the_set_judged_when_it_comes(
    device: Device, hub: HubDouble, target: DirectorTarget
) -> None:
    made = device.publish(but=(OWNER,))
    waiting = device.judge(hub.assignment(target))
    assert waiting == Waiting("the image roles owner-vision have not arrived")
    device.take({OWNER: made[OWNER]})
    assert isinstance(device.judge(), Accepted)


def test_a_role_that_nobody_needs_may_be_withheld_for_ever(
    device: Device, hub: HubDouble, target: DirectorTarget
) -> None:
    device.publish(but=("releases",))
    assert isinstance(device.judge(hub.assignment(target)), Waiting)
    device.now += bounds.SETTLE_S
    assert isinstance(device.judge(), Accepted)


def test_a_needed_role_that_is_withheld_refuses_the_assignment_in_the_end(
    device: Device, hub: HubDouble, target: DirectorTarget
) -> None:
    device.publish(but=(OWNER,))
    assert isinstance(device.judge(hub.assignment(target)), Waiting)
    device.now += bounds.SETTLE_S - 1
    assert isinstance(device.judge(), Waiting)
    device.now += 1
    assert device.refusal() == ("assignment", "mix-and-match")


@pytest.mark.parametrize(("keep", "good"), [(1, False), (2, True)])
def test_an_owner_s_role_needs_as_many_signatures_as_its_threshold(
    device: Device,
    hub: HubDouble,
    image: Delegating,
    target: DirectorTarget,
    keep: int,
    good: bool,
) -> None:
    made = {topic.rpartition("/")[2]: data for topic, data in hub.image_messages()}
    made[OWNER] = unsigned(made[OWNER], image.signers[OWNER], keep)
    device.take(made | image.seal({r: made[r] for r in (OWNER, "releases", "targets")}))
    if good:
        assert isinstance(device.judge(hub.assignment(target)), Accepted)
    else:
        assert device.refusal(hub.assignment(target)) == ("image metadata", "bad-signature")


def test_after_a_bad_role_the_right_one_is_taken_without_anything_else(
    device: Device, hub: HubDouble, image: Delegating, target: DirectorTarget
) -> None:
    made = {topic.rpartition("/")[2]: data for topic, data in hub.image_messages()}
    device.take(made | {OWNER: made[OWNER].replace(b"colours", b"colourz")})
    assert device.refusal(hub.assignment(target)) == ("image metadata", "mix-and-match")
    assert device.judge() == Waiting("the image roles owner-vision have not arrived")
    device.take({OWNER: made[OWNER]})
    assert isinstance(device.judge(), Accepted)


def test_an_expired_owner_s_role_stops_only_the_updates_of_its_models(
    device: Device, hub: HubDouble, image: Delegating, target: DirectorTarget, bundle: Make
) -> None:
    other = hub.release(bundle(model="gestures"), 1)
    made = {topic.rpartition("/")[2]: data for topic, data in hub.image_messages()}
    image.life = timedelta(seconds=-1)
    made[OWNER] = image.owned(OWNER, {})
    image.life = timedelta(days=1)
    device.take(made | image.seal({r: made[r] for r in (OWNER, "releases", "targets")}))
    assert isinstance(device.judge(hub.assignment(other)), Accepted)
    assert device.refusal(hub.assignment(other, target)) == ("image metadata", "expired")


def test_an_owner_s_older_role_is_refused(
    device: Device, hub: HubDouble, image: Delegating, target: DirectorTarget
) -> None:
    old = device.publish()
    device.judge(hub.assignment(target))
    device.publish()
    assert isinstance(device.judge(hub.assignment(target)), Accepted)
    made = {topic.rpartition("/")[2]: data for topic, data in hub.image_messages()}
    made[OWNER] = old[OWNER]
    image.versions[OWNER] = 1
    device.take(made | image.seal({r: made[r] for r in (OWNER, "releases", "targets")}))
    assert device.refusal() == ("image metadata", "rollback")


def test_delegations_without_end_are_left_at_the_bound(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    """A role that is reached only after more roles than `MAX_DELEGATIONS` vouches for nothing."""
    deep = {f"owner-{n}": (["*/*/*"], 1) for n in range(bounds.MAX_DELEGATIONS + 1)}
    image = Delegating({**deep, **RELEASES}, keys=1)
    for owner in image.owners:
        owner.terminating = False
    hub.image = image
    far = HubDouble(image=image)
    target = far.release(bundle(), 1)
    made = image.publish({})
    made["releases"] = image.owned("releases", far._listed)
    made |= image.seal({r: d for r, d in made.items() if r not in ("snapshot", "timestamp")})
    near = Device(device.trust._folders["image"].parent / "near", far)
    near.take(made)
    assert isinstance(near.judge(far.assignment(target)), Waiting)
    near.now += bounds.SETTLE_S
    assert near.refusal() == ("assignment", "mix-and-match")


def test_the_fleet_s_field_is_told_once_it_is_verified(device: Device, image: Delegating) -> None:
    assert device.trust.fleet is None
    assert device.trust.authorities == []
    device.take(image.publish({}, {"edgefleet": {"authorities": ["PEM"]}}))
    assert device.judge() is None
    assert device.trust.fleet == Fleet(["PEM"])
    assert device.trust.authorities == ["PEM"]


def test_a_fleet_s_field_that_cannot_be_read_refuses_the_set_that_brings_it(
    device: Device, image: Delegating
) -> None:
    device.take(image.publish({}, {"edgefleet": {"authorities": "all of them"}}))
    assert device.refusal() == ("image metadata", "malformed")
    assert device.trust.fleet is None


def test_a_new_assignment_is_judged_by_metadata_that_has_not_expired_meanwhile(
    device: Device, hub: HubDouble, image: Delegating, target: DirectorTarget
) -> None:
    """A frozen image repository is not believed for as long as the process lives."""
    from edgefleet_agent.trusting.timekeeping import Instant

    device.publish()
    assert isinstance(device.judge(hub.assignment(target)), Accepted)
    hub.director.life = timedelta(days=800)
    late = image.life + timedelta(days=1)
    at = Instant(hub.clock() + late.total_seconds(), attested=True)
    device.trust._instant = lambda: at
    hub.director._root.expires = hub.director._root.expires + 3 * timedelta(days=365)
    hub.director.rotate()
    assert device.refusal(hub.assignment(target)) == ("image metadata", "expired")
    assert device.judge(hub.assignment(target)) == Waiting("no image metadata has arrived")


def test_a_device_follows_delegations_from_wire_to_serving(
    rig: Callable[..., object], hub: HubDouble, target: DirectorTarget
) -> None:
    from edgefleet_agent.testing import Rig

    made = rig()
    assert isinstance(made, Rig)
    hub.send_all(made.link, target)
    made.settle()
    assert made.engine.model("colours").predict([0.0] * 4).release == 1
    assert hub.bodies(Refusal) == []


def test_targets_listed_by_the_top_level_role_itself_are_still_found(
    tmp_path: Path, bundle: Make
) -> None:
    """The flat layout, without delegations or consistent snapshots."""
    flat = HubDouble()
    target = flat.release(bundle(), 1)
    device = Device(tmp_path / "flat", flat)
    device.publish()
    assert isinstance(device.judge(flat.assignment(target)), Accepted)


def test_roles_of_owners_alone_are_waited_with_and_not_judged(
    device: Device, hub: HubDouble, target: DirectorTarget
) -> None:
    made = device.publish(but=("snapshot", "targets", "timestamp"))
    assert device.judge(hub.assignment(target)) == Waiting("no image metadata has arrived")
    device.take({"timestamp": made["timestamp"]})
    waiting = device.judge()
    assert waiting == Waiting("the image roles snapshot, targets have not arrived")
    device.take(made)
    assert isinstance(device.judge(), Accepted)
