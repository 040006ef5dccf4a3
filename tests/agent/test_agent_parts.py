"""Roles as they arrive: what makes a set whole, what is held at most, and how long it is waited."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet_agent.errors import StoreError
from edgefleet_agent.testing import Bundle, HubDouble
from edgefleet_agent.trusting import bounds, tufclient
from edgefleet_agent.trusting.bounds import Patience
from edgefleet_agent.trusting.parts import Parts, version_of
from edgefleet_agent.trusting.refresh import Outcome, Request
from edgefleet_agent.trusting.timekeeping import Instant
from edgefleet_agent.trusting.trust import Accepted, MetadataRefusedError, Trust, Waiting
from edgefleet_protocol.errors import TooLargeError

Make = Callable[..., Bundle]
MIXED = "the image roles that have arrived are of different publications"


def role(version: int, **meta: int) -> bytes:
    named = {f"{name}.json": {"version": number} for name, number in meta.items()}
    return json.dumps({"signed": {"version": version, "meta": named}, "signatures": []}).encode()


def whole(**owners: int) -> Parts:
    """Return a whole set of version 1, with these delegated roles."""
    parts = Parts()
    parts.take("timestamp", role(1, snapshot=1))
    parts.take("snapshot", role(1, targets=1, **owners))
    parts.take("targets", role(1))
    for name, version in owners.items():
        parts.take(name, role(version))
    return parts


# -- whole or not ----------------------------------------------------------------------------------


def test_a_set_is_whole_when_every_role_is_here_in_the_version_that_is_named() -> None:
    assert whole(releases=3).lacking() == ""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("timestamp", role(2, snapshot=2)),
        ("snapshot", role(1, targets=2, releases=3)),
        ("targets", role(2)),
        ("releases", role(4)),
    ],
)
def test_a_role_of_another_publication_is_waited_with(name: str, data: bytes) -> None:
    parts = whole(releases=3)
    assert parts.take(name, data)
    assert parts.lacking() == MIXED


def test_missing_roles_are_named_the_first_of_them() -> None:
    parts = whole()
    parts.take("snapshot", role(1, targets=1, a=1, b=1, c=1, d=1))
    assert parts.lacking() == "the image roles a, b, c and others have not arrived"


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "releases"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"signed":' * 1500])
def test_a_role_that_cannot_be_read_is_no_reason_to_wait(name: str, data: bytes) -> None:
    parts = whole(releases=1)
    parts.take(name, data)
    assert parts.lacking() == ""
    assert version_of(data) == 0


# -- what is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("timestamp", bounds.MAX_TIMESTAMP_BYTES),
        ("snapshot", bounds.MAX_SNAPSHOT_BYTES),
        ("targets", bounds.MAX_TARGETS_BYTES),
        ("owner-x", bounds.MAX_TARGETS_BYTES),
        ("root-2", bounds.MAX_ROOT_BYTES),
    ],
)
def test_a_role_may_be_as_long_as_its_limit_and_not_longer(name: str, limit: int) -> None:
    Parts().take(name, bytes(limit))
    with pytest.raises(TooLargeError):
        Parts().take(name, bytes(limit + 1))


@pytest.mark.parametrize(
    "name", ["root-0", "root-0x1", "root-257", "root", "roots", "../x", "a/b", "a.b", "", "x" * 65]
)
def test_names_that_no_role_has_are_left_out(name: str) -> None:
    parts = Parts()
    assert not parts.take(name, b"junk")
    assert parts.all() == {}


def test_roles_without_end_are_not_held_and_those_that_are_listed_stay() -> None:
    parts = whole(releases=1)
    for number in range(3 * bounds.MAX_ROLES):
        parts.take(f"junk-{number}", b"x")
    assert parts.lacking() == ""
    assert len(parts.all()) <= bounds.MAX_ROLES + 3


def test_a_set_of_too_many_listed_roles_is_refused() -> None:
    names = {f"owner-{number}": 1 for number in range(bounds.MAX_ROLES)}
    assert whole(**names).lacking() == ""
    with pytest.raises(TooLargeError):
        whole(**names, one_more=1)


def test_bytes_without_end_are_not_held() -> None:
    parts = Parts()
    parts.take("snapshot", role(1, **{f"owner-{number}": 1 for number in range(4)}))
    for number in range(3):
        parts.take(f"owner-{number}", bytes(bounds.MAX_TARGETS_BYTES))
    with pytest.raises(TooLargeError, match="image metadata has 20000"):
        parts.take("owner-3", bytes(bounds.MAX_TARGETS_BYTES))
    assert "owner-3" not in parts.all()


def test_what_a_verified_set_does_not_list_is_let_go_of() -> None:
    parts = whole(releases=1)
    parts.take("root-1", b"root")
    parts.take("stranger", b"x")
    parts.verified()
    assert set(parts.all()) == {"timestamp", "snapshot", "targets", "releases", "root-1"}


def test_a_delegated_role_that_is_not_listed_changes_nothing() -> None:
    parts = whole()
    parts.verified()
    assert parts.take("stranger", b"x")
    assert not parts.changed
    assert parts.take("timestamp", role(2, snapshot=2))
    assert parts.changed


def test_after_a_refusal_the_last_good_set_is_at_hand() -> None:
    parts = whole(releases=1)
    parts.verified()
    good = parts.all()
    parts.take("timestamp", b"junk")
    parts.refused()
    assert parts.all() == good
    parts.forget()
    parts.refused()
    assert parts.all() == {}


# -- how long it is waited -------------------------------------------------------------------------


def test_a_stall_and_the_whole_are_bounded_to_the_second() -> None:
    patience = Patience(stall_s=10.0, whole_s=25.0)
    assert not patience.stalled(1e9)
    patience.waits(100.0)
    assert not patience.stalled(109.9)
    assert patience.stalled(110.0)
    patience.progressed()
    patience.waits(110.0)
    assert not patience.stalled(119.9)
    patience.progressed()
    patience.waits(119.0)
    assert not patience.stalled(124.9)
    assert patience.overdue(125.0)
    assert patience.stalled(125.0)
    patience.ends()
    assert not patience.overdue(1e9)


class Counted:
    """The client in this process, and how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, request: Request) -> Outcome:
        self.runs += 1
        return tufclient.refresh(request)


class Device:
    """Trust alone, by a clock that the test moves."""

    def __init__(self, folder: Path, hub: HubDouble) -> None:
        self.hub, self.now = hub, 0.0
        self.client = Counted()
        self.instant = Instant(hub.clock(), attested=True)
        self.trust = Trust(
            folder,
            device=hub.device,
            board="generic-x86_64",
            image_root=hub.image.roots[0],
            director_root=hub.director.roots[0],
            run_client=self.client,
            instant=lambda: self.instant,
        )

    def images(self) -> dict[str, bytes]:
        return {topic.rpartition("/")[2]: data for topic, data in self.hub.image_messages()}

    def take(self, roles: dict[str, bytes]) -> None:
        for name, data in roles.items():
            self.trust.take_image_role(name, data)

    def judge(self) -> Accepted | Waiting | None:
        return self.trust.judge(self.now, {})

    def refusal(self) -> tuple[str, str]:
        with pytest.raises(MetadataRefusedError) as caught:
            self.judge()
        return caught.value.what, caught.value.reason


@pytest.fixture
def device(tmp_path: Path, hub: HubDouble, bundle: Make) -> Device:
    target = hub.release(bundle(), 1)
    made = Device(tmp_path / "trust", hub)
    made.trust.take_assignment(hub.assignment(target))
    return made


def test_a_broker_that_drips_and_never_completes_a_set_is_given_up_in_the_end(
    device: Device,
) -> None:
    """Slow retrieval: something new comes ever again, so that no stall ends the waiting."""
    while device.now < bounds.WHOLE_S:
        device.take({"timestamp": device.images()["timestamp"]})
        assert isinstance(device.judge(), Waiting)
        device.now += bounds.SETTLE_S / 2
    assert device.client.runs == 0
    assert device.refusal() == ("image metadata", "slow-retrieval")


def test_a_set_that_never_fits_is_judged_in_the_end_whatever_is_added(device: Device) -> None:
    """Endless mixing: each new role resets the stall, but not the whole."""
    device.take(device.images())
    while device.now < bounds.WHOLE_S:
        device.take({"timestamp": device.images()["timestamp"]})
        assert isinstance(device.judge(), Waiting)
        device.now += bounds.SETTLE_S / 2
    assert device.refusal() == ("image metadata", "mix-and-match")


def test_nobody_is_late_while_the_device_is_not_connected(device: Device) -> None:
    device.take({"timestamp": device.images()["timestamp"]})
    assert isinstance(device.judge(), Waiting)
    device.trust.interrupted()
    for _ in range(3):
        device.now += bounds.WHOLE_S
        assert isinstance(device.judge(), Waiting)
    device.trust.resumed()
    assert isinstance(device.judge(), Waiting)
    device.now += bounds.WHOLE_S - 1
    assert isinstance(device.judge(), Waiting)
    device.now += 1
    assert device.refusal() == ("image metadata", "slow-retrieval")


def test_waiting_costs_no_process_until_something_comes(device: Device) -> None:
    """A path that nobody lists is looked up once, however often the tick asks."""
    roles = device.images()
    device.hub._listed.clear()
    device.take(device.images() | {"root-1": roles["root-1"]})
    assert isinstance(device.judge(), Waiting)
    assert device.client.runs == 1
    device.now += 1
    assert isinstance(device.judge(), Waiting)
    assert device.client.runs == 1


@pytest.mark.parametrize("clock_s", [-1e9, 0.0, 1e9])
def test_nothing_is_judged_before_the_time_is_attested_whatever_the_clock_says(
    device: Device, clock_s: float
) -> None:
    device.take(device.images())
    device.instant = Instant(device.hub.clock() + clock_s, attested=False)
    assert device.judge() == Waiting("the hub has not attested the time yet")
    assert device.client.runs == 0
    device.instant = Instant(device.hub.clock(), attested=True)
    assert isinstance(device.judge(), Accepted)


def test_a_hub_that_never_attests_the_time_is_told_of(device: Device) -> None:
    device.take(device.images())
    device.instant = Instant(device.hub.clock(), attested=False)
    assert isinstance(device.judge(), Waiting)
    device.now += bounds.SETTLE_S - 1
    assert isinstance(device.judge(), Waiting)
    device.now += 1
    assert device.refusal() == ("assignment", "time-not-attested")


@pytest.mark.parametrize("late_s", [7 * 86_400.0 + 10, 1e9])
def test_metadata_that_has_expired_by_the_attested_time_is_refused(
    device: Device, late_s: float
) -> None:
    device.take(device.images())
    device.instant = Instant(device.hub.clock() + late_s, attested=True)
    assert device.refusal() == ("image metadata", "expired")


def test_a_child_that_fails_leaves_everything_to_be_judged_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: Request) -> Outcome:
        raise StoreError("the child ended")

    device.take(device.images())
    with monkeypatch.context() as patched:
        patched.setattr(device.trust, "_run_client", fails)
        with pytest.raises(StoreError):
            device.judge()
    assert isinstance(device.judge(), Accepted)
