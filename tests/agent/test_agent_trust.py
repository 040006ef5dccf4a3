"""What a device believes: attacks on the two repositories, by the names of Uptane and TUF."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefleet_agent.testing import Bundle, HubDouble, Repository, Rig
from edgefleet_agent.trusting.trust import SETTLE_S, Accepted, MetadataRefusedError, Trust, Waiting
from edgefleet_protocol import codec
from edgefleet_protocol.messages import Assignment, Refusal, Result, SyncRequest
from edgefleet_protocol.trust import DirectorTarget, target_path

Make = Callable[..., Bundle]
BOARD = "generic-x86_64"


class Device:
    """Trust alone, fed by hand."""

    def __init__(self, folder: Path, hub: HubDouble) -> None:
        self.folder, self.hub, self.now = folder, hub, 100.0
        self.floors: dict[str, int] = {}
        self.trust = self.open()

    def open(self) -> Trust:
        return Trust(
            self.folder,
            device=self.hub.device,
            board=BOARD,
            image_root=self.hub.image.roots[0],
            director_root=self.hub.director.roots[0],
        )

    def restart(self) -> None:
        self.trust = self.open()

    def images(self, messages: list[tuple[str, bytes]] | None = None) -> list[tuple[str, bytes]]:
        messages = self.hub.image_messages() if messages is None else messages
        for topic, data in messages:
            self.trust.take_image_role(topic.rpartition("/")[2], data)
        return messages

    def judge(self, assignment: bytes | None = None) -> Accepted | Waiting | None:
        if assignment is not None:
            self.trust.take_assignment(assignment)
        return self.trust.judge(self.now, self.floors)

    def refusal(self, assignment: bytes | None = None) -> tuple[str, str]:
        with pytest.raises(MetadataRefusedError) as caught:
            self.judge(assignment)
        return caught.value.what, caught.value.reason


@pytest.fixture
def device(tmp_path: Path, hub: HubDouble) -> Device:
    return Device(tmp_path / "trust", hub)


def accepted(verdict: Accepted | Waiting | None) -> Accepted:
    assert isinstance(verdict, Accepted)
    return verdict


def parts_of(message: bytes) -> dict[str, Any]:
    return msgspec.to_builtins(codec.decode(message, Assignment), builtin_types=(bytes,))


def edited(data: bytes, **changes: Any) -> bytes:
    """Change signed content and leave the signature as it was."""
    document = json.loads(data)
    document["signed"].update(changes)
    return json.dumps(document).encode()


def test_an_assignment_on_which_both_repositories_agree_is_accepted(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    made = bundle()
    target = hub.release(made, 3, window_rows=50)
    device.images()
    verdict = accepted(device.judge(hub.assignment(target)))
    assert verdict.sequence == device.trust.sequence == 1
    (assigned,) = verdict.targets
    assert assigned.slot.manifest == made.digest
    assert (assigned.slot.release, assigned.attempt, assigned.order.window_rows) == (3, 3, 50)
    assert assigned.manifest_bytes == len(made.data)


def test_the_assignment_of_another_device_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    stolen = hub.assignment(target, device="cam-2")
    assert device.refusal(stolen) == ("assignment", "wrong-device")


def test_a_replayed_assignment_is_refused(device: Device, hub: HubDouble, bundle: Make) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    old = hub.assignment(target)
    accepted(device.judge(old))
    accepted(device.judge(hub.assignment(target)))
    assert device.refusal(old) == ("assignment", "rollback")
    device.restart()
    device.images()
    assert device.refusal(old) == ("assignment", "rollback")


def test_a_replay_is_refused_when_a_power_cut_has_emptied_tufs_own_files(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    old = hub.assignment(target)
    accepted(device.judge(hub.assignment(target)))
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (device.folder / "director" / name).write_bytes(b"")
    device.restart()
    device.images()
    assert device.refusal(old) == ("assignment", "rollback")
    assert device.trust.sequence == 2


def test_a_lower_sequence_under_a_higher_version_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    accepted(device.judge(hub.assignment(target, sequence=7)))
    assert device.refusal(hub.assignment(target, sequence=6)) == ("assignment", "rollback")
    accepted(device.judge(hub.assignment(target, sequence=7)))


def test_a_release_below_the_confirmed_one_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 4)
    device.images()
    device.floors = {"colours": 5}
    assert device.refusal(hub.assignment(target)) == ("assignment", "rollback")
    device.floors = {"colours": 4}
    accepted(device.judge(hub.assignment(target)))


def test_other_content_under_a_vouched_name_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    from edgefleet_agent.testing import target_file

    target = hub.release(bundle(), 1)
    path = target_path("colours", 1, target.variant)
    device.images()
    evil = hub.assignment(target, files={path: target_file(b"arbitrary software", target)})
    assert device.refusal(evil) == ("assignment", "mix-and-match")


@pytest.mark.parametrize(
    "change", [{"version": "v9"}, {"runtime": "litert"}], ids=["version", "runtime"]
)
def test_a_director_that_describes_a_vouched_bundle_otherwise_is_refused(
    device: Device, hub: HubDouble, bundle: Make, change: dict[str, str]
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    other = msgspec.structs.replace(target, **change)
    assert device.refusal(hub.assignment(other)) == ("assignment", "mix-and-match")


def test_a_target_that_nobody_vouches_for_is_refused_after_the_settling_time(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    device.images()
    target = hub.release(bundle(), 1)  # listed only in what is published next
    assert isinstance(device.judge(hub.assignment(target)), Waiting)
    device.now += SETTLE_S - 1
    assert isinstance(device.judge(), Waiting)
    device.now += 1
    assert device.refusal() == ("assignment", "mix-and-match")


def test_a_target_vouched_for_within_the_settling_time_is_accepted(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    device.images()
    target = hub.release(bundle(), 1)
    assert isinstance(device.judge(hub.assignment(target)), Waiting)
    device.images()
    accepted(device.judge())


def test_a_bundle_for_another_board_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(boards=["rpi4", "rpi5"]), 1)
    device.images()
    assert device.refusal(hub.assignment(target)) == ("assignment", "incompatible-board")


def test_one_bad_target_refuses_the_whole_assignment(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    good = hub.release(bundle(model="good"), 1)
    bad = hub.release(bundle(boards=["rpi4"]), 2)
    device.images()
    assert device.refusal(hub.assignment(good, bad)) == ("assignment", "incompatible-board")
    assert device.trust.sequence == 0


def test_metadata_signed_by_other_keys_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    good = parts_of(hub.assignment(target))
    thief = HubDouble()
    thief._listed = hub._listed
    forged = parts_of(thief.assignment(target))
    for role in ("timestamp", "snapshot", "targets"):
        message = codec.encode(Assignment(**{**good, role: forged[role]}))
        assert device.refusal(message) == ("assignment", "bad-signature"), role


def test_changed_signed_content_is_refused(device: Device, hub: HubDouble, bundle: Make) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    good = parts_of(hub.assignment(target))
    for role in ("timestamp", "snapshot", "targets"):
        changed = edited(good[role], expires="2099-01-01T00:00:00Z")
        message = codec.encode(Assignment(**{**good, role: changed}))
        assert device.refusal(message) == ("assignment", "bad-signature"), role


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_roles_of_two_assignments_do_not_mix(
    device: Device, hub: HubDouble, bundle: Make, role: str
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    one, two = parts_of(hub.assignment(target)), parts_of(hub.assignment(target))
    message = codec.encode(Assignment(**{**two, role: one[role]}))
    assert device.refusal(message) == ("assignment", "mix-and-match")


def test_an_assignment_without_its_signed_device_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    hub.release(bundle(), 1)
    device.images()
    parts = hub.director.publish({})
    message = codec.encode(Assignment(hub.director.roots, **_ordered(parts)))
    assert device.refusal(message) == ("assignment", "malformed")


def test_a_model_listed_twice_is_refused(device: Device, hub: HubDouble, bundle: Make) -> None:
    one, two = hub.release(bundle(), 1), hub.release(bundle(version="v2"), 2)
    device.images()
    assert device.refusal(hub.assignment(one, two)) == ("assignment", "malformed")


def test_an_expired_assignment_is_refused(device: Device, hub: HubDouble, bundle: Make) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    hub.director.life = timedelta(seconds=-1)
    assert device.refusal(hub.assignment(target)) == ("assignment", "expired")
    hub.director.life = timedelta(days=1)
    accepted(device.judge(hub.assignment(target)))


def test_expired_metadata_leaves_the_model_serving_and_is_asked_for_again(
    rig: Callable[..., Rig], hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.director.life = timedelta(seconds=-1)
    hub.send_all(device.link, hub.release(bundle(version="v2"), 2))
    device.settle()
    device.later(5.0)
    assert [(r.what, r.reason) for r in hub.bodies(Refusal)] == [("assignment", "expired")]
    assert [type(r) for r in hub.requests if isinstance(r, SyncRequest)] == [SyncRequest]
    assert device.engine.model("colours").predict([0.0] * 4).release == 1
    hub.director.life = timedelta(days=1)
    hub.send_all(device.link, hub.release(bundle(version="v2"), 2))
    device.settle()
    assert [result.release for result in hub.bodies(Result)] == [1, 2]


# -- image metadata ------------------------------------------------------------------------------


def test_image_roles_may_arrive_in_any_order(device: Device, hub: HubDouble, bundle: Make) -> None:
    for release in (1, 2, 3, 4):
        target = hub.release(bundle(version=f"v{release}"), release)
        needed = [part for part in hub.image_messages() if "root" not in part[0]]
        order = needed[release % 3 :] + needed[: release % 3]
        device.trust.take_assignment(hub.assignment(target))
        for part in order[:-1]:
            device.images([part])
            assert isinstance(device.judge(), Waiting), (release, part[0])
        device.images([order[-1]])
        assert accepted(device.judge()).targets[0].slot.release == release


def test_an_older_image_timestamp_is_refused_only_when_nothing_newer_comes(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    hub.release(bundle(), 1)
    old = device.images()
    device.judge()
    device.images()
    device.judge()
    device.images([part for part in old if part[0].endswith("/timestamp")])
    device.judge(hub.assignment())
    device.now += SETTLE_S
    assert device.refusal() == ("image metadata", "rollback")


def test_a_whole_older_image_set_is_refused_at_once(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    hub.release(bundle(), 1)
    old = device.images()
    device.judge()
    device.images()
    device.judge()
    device.images(old)
    assert device.refusal() == ("image metadata", "rollback")
    # What was good before stays in force.
    target = hub.release(bundle(), 1)
    accepted(device.judge(hub.assignment(target)))


def test_image_metadata_with_a_changed_signature_is_refused_at_once(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    hub.release(bundle(), 1)
    messages = hub.image_messages()
    broken = [
        (topic, edited(data, expires="2099-01-01T00:00:00Z") if "timestamp" in topic else data)
        for topic, data in messages
    ]
    device.images(broken)
    assert device.refusal() == ("image metadata", "bad-signature")


def test_a_new_image_root_is_waited_for_and_then_walked_to(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    accepted(device.judge(hub.assignment(target)))
    hub.image.rotate()
    messages = hub.image_messages()
    device.images([part for part in messages if "root-2" not in part[0]])
    assert isinstance(device.judge(), Waiting)
    device.images([part for part in messages if "root-2" in part[0]])
    accepted(device.judge())


def test_a_director_that_has_rotated_its_keys_is_followed_and_the_old_key_is_not(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    hub.director.rotate()
    accepted(device.judge(hub.assignment(target)))
    stolen = Repository()
    stolen.version = 50
    parts = stolen.publish({})
    message = codec.encode(Assignment(hub.director.roots, **_ordered(parts)))
    assert device.refusal(message) == ("assignment", "bad-signature")


def test_a_root_signed_by_a_stranger_is_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    good = parts_of(hub.assignment(target))
    stranger = Repository()
    stranger.rotate()
    message = codec.encode(Assignment(**{**good, "roots": [good["roots"][0], stranger.roots[1]]}))
    assert device.refusal(message) == ("assignment", "bad-signature")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"signed": 5}', b"\xff" * 50])
def test_unreadable_image_roles_are_refused(
    device: Device, hub: HubDouble, bundle: Make, data: bytes
) -> None:
    hub.release(bundle(), 1)
    messages = [(t, data if t.endswith("/targets") else d) for t, d in hub.image_messages()]
    device.images(messages)
    assert device.refusal() == ("image metadata", "malformed")


def test_roles_with_other_names_are_left_out(device: Device) -> None:
    for role in ("root-0x1", "root-999", "mirrors", "delegated", "../../etc/passwd"):
        device.trust.take_image_role(role, b"junk")
    assert device.judge() is None


def test_a_role_over_its_limit_is_refused_before_it_is_kept(device: Device) -> None:
    with pytest.raises(MetadataRefusedError) as caught:
        device.trust.take_image_role("targets", bytes(5_000_001))
    assert caught.value.reason == "too-large"


def test_one_damaged_generation_of_the_counters_is_made_up_for_by_the_other(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    old = hub.assignment(target)
    accepted(device.judge(old))
    accepted(device.judge(hub.assignment(target)))
    accepted(device.judge(hub.assignment(target)))
    (device.folder / "counters.json").write_bytes(b"")
    device.restart()
    device.images()
    assert device.trust.sequence == 2
    assert device.refusal(old) == ("assignment", "rollback")


@pytest.mark.parametrize("how", ["zeroed", "deleted"])
def test_without_any_counters_no_assignment_is_accepted(
    device: Device, hub: HubDouble, bundle: Make, how: str
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    accepted(device.judge(hub.assignment(target)))
    for path in device.folder.glob("counters.json*"):
        path.unlink() if how == "deleted" else path.write_bytes(bytes(10))
    device.restart()
    device.images()
    assert device.refusal(hub.assignment(target)) == ("assignment", "counters-lost")


def test_what_tuf_was_writing_when_the_device_died_is_cleared_away(device: Device) -> None:
    leftover = device.folder / "image" / "tmpabc123"
    leftover.write_bytes(b"half")
    device.restart()
    assert not leftover.exists()


def test_the_sequence_is_on_disk_before_the_assignment_is_acted_on(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    accepted(device.judge(hub.assignment(target)))
    device.restart()
    assert device.trust.sequence == 1


def _ordered(parts: dict[str, bytes]) -> dict[str, bytes]:
    return {name: parts[name] for name in ("timestamp", "snapshot", "targets")}


def test_custom_fields_of_a_wrong_form_are_refused(
    device: Device, hub: HubDouble, bundle: Make
) -> None:
    target = hub.release(bundle(), 1)
    device.images()
    bad: DirectorTarget = msgspec.structs.replace(target, window_rows=0)
    assert device.refusal(hub.assignment(bad)) == ("assignment", "malformed")
