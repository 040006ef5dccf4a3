"""The device's own identity while the agent runs: renewal, the switch, statements, authorities."""

from pathlib import Path
from typing import Any

import pytest

from edgefleet_agent import files
from edgefleet_agent.errors import EnrolmentError
from edgefleet_agent.link import CertificateRefused
from edgefleet_agent.testing import HubDouble, Rig
from edgefleet_agent.trusting import custody, identity, renewal
from edgefleet_agent.trusting.renewal import Answer, Facts, Look, Renew, Sign
from edgefleet_protocol import statements
from edgefleet_protocol.messages import Attested, Refusal
from edgefleet_protocol.statements import DeviceStatement

DAY_S = 86_400.0


class Keyholder:
    """Stands for the program that holds the keys.

    Attributes:
        asked: what it was asked.
        renewed: its answer to a renewal.
    """

    def __init__(self, rig_clock: float, life_s: float = 30 * DAY_S) -> None:
        self.facts = Facts("1", rig_clock, rig_clock + life_s, ["a" * 64], "file")
        self.asked: list[renewal.Request] = []
        self.renewed = Answer("unreachable", "no hub")

    def __call__(self, request: renewal.Request) -> Answer:
        self.asked.append(request)
        match request:
            case Look():
                return Answer(facts=self.facts)
            case Renew():
                return self.renewed
            case Sign():
                return Answer(signature=b"signed")

    def renewals(self) -> int:
        return sum(isinstance(request, Renew) for request in self.asked)


def sworn(hub: HubDouble) -> list[DeviceStatement]:
    return [statements.read_statement(body.statement) for body in hub.bodies(Attested)]


@pytest.fixture
def device(tmp_path: Path, hub: HubDouble) -> Any:
    made: list[Rig] = []

    def make(keyholder: Keyholder) -> Rig:
        rig = Rig(tmp_path / "store", hub, ask_keyholder=keyholder)
        made.append(rig)
        rig.settle()
        return rig

    yield make
    for rig in made:
        rig.close()


def now_of(rig: Rig) -> float:
    return rig.engine.timekeeper.instant().at


def with_life(rig: Rig, keyholder: Keyholder, life_s: float) -> None:
    """Let the certificate begin now and have that life."""
    now = now_of(rig)
    keyholder.facts = Facts("1", now, now + life_s, ["a" * 64], "file")
    rig.engine.custody._note(keyholder.facts)


def test_a_statement_follows_the_first_state_and_then_once_a_day(
    device: Any, hub: HubDouble
) -> None:
    keyholder = Keyholder(0.0, 1e12)
    rig = device(keyholder)
    (first,) = sworn(hub)
    assert (first.counter, first.certificate, first.authorities) == (1, "1", ["a" * 64])
    assert (first.boot, first.sequence) == (rig.state.boot, rig.state.sequence)
    rig.later(custody.SWEAR_EVERY_S - 1.0)
    assert len(sworn(hub)) == 1
    rig.later(2.0)
    assert [one.counter for one in sworn(hub)] == [1, 2]


def test_what_is_refused_is_sworn_to_a_minute_apart(device: Any, hub: HubDouble) -> None:
    rig = device(Keyholder(0.0, 1e12))
    rig.engine.custody.refused("assignment", "rollback")
    rig.engine.custody.refused("image metadata", "expired")
    rig.later(1.0)
    assert len(sworn(hub)) == 1
    rig.later(custody.REFUSAL_PAUSE_S)
    assert sworn(hub)[-1].attack == "assignment: rollback; image metadata: expired"
    rig.engine.custody.swear()
    rig.later(1.0)
    assert sworn(hub)[-1].attack == ""


def test_the_counter_grows_over_restarts(device: Any, hub: HubDouble) -> None:
    rig = device(Keyholder(0.0, 1e12))
    rig.close()
    device(Keyholder(0.0, 1e12))
    assert [one.counter for one in sworn(hub)] == [1, 2]


def test_renewal_begins_at_two_thirds_less_its_share_of_chance(device: Any) -> None:
    keyholder = Keyholder(0.0, 1e12)
    rig = device(keyholder)
    with_life(rig, keyholder, 3000.0)
    due_s = 3000.0 * (2 / 3 - 0.1 * 0.5)  # the rig's chance is 0.5
    rig.later(due_s - 10.0)
    assert keyholder.renewals() == 0
    rig.later(20.0)
    assert keyholder.renewals() == 1


def test_a_failed_renewal_is_tried_again_ever_more_slowly(device: Any) -> None:
    keyholder = Keyholder(0.0, 1e12)
    rig = device(keyholder)
    with_life(rig, keyholder, 1.0)
    rig.later(1.0)
    waits = []
    for _ in range(4):
        before = rig.monotonic.now
        while keyholder.renewals() == len(waits) + 1:
            rig.later(5.0)
        waits.append(rig.monotonic.now - before)
    assert waits == [45.0, 90.0, 180.0, 360.0]  # three quarters of 60, 120, 240, 480 s


def test_the_hub_s_no_is_reported_and_asked_again_after_an_hour(
    device: Any, hub: HubDouble
) -> None:
    keyholder = Keyholder(0.0, 1e12)
    keyholder.renewed = Answer("refused", "the hub does not renew: revoked")
    rig = device(keyholder)
    with_life(rig, keyholder, 1.0)
    rig.later(1.0)
    assert [body.reason for body in hub.bodies(Refusal)] == ["not-renewed"]
    rig.later(renewal.REFUSED_PAUSE_S * 0.75 - 10.0)
    assert keyholder.renewals() == 1
    rig.later(20.0)
    assert keyholder.renewals() == 2


def test_a_renewed_certificate_is_connected_with_and_put_in_place(
    device: Any, hub: HubDouble, tmp_path: Path
) -> None:
    keyholder = Keyholder(0.0, 1e12)
    rig = device(keyholder)
    folder = tmp_path / "store" / identity.FOLDER

    def renew(request: renewal.Request) -> Answer:
        if isinstance(request, Renew):
            identity.keep(folder, b"new key", b"new certificate")
            keyholder.facts = Facts("2", 0.0, 1e12, ["a" * 64], "file")
            return Answer(facts=keyholder.facts)
        return Keyholder.__call__(keyholder, request)

    rig.engine.custody._ask = renew
    with_life(rig, keyholder, 1.0)
    rig.later(1.0)
    assert (folder / identity.CERTIFICATE).read_bytes() == b"new certificate"
    assert (folder / identity.KEY).read_bytes() == b"new key"
    assert sworn(hub)[-1].certificate == "2"


def test_a_certificate_that_the_broker_refuses_is_renewed_and_not_in_a_loop(device: Any) -> None:
    keyholder = Keyholder(0.0, 1e12)
    rig = device(keyholder)
    keyholder.renewed = Answer(facts=keyholder.facts)
    rig.engine.custody._reconnect = lambda: None  # it would not come through
    for _ in range(3):
        rig.engine.deliver(CertificateRefused("TLSV1_ALERT_UNKNOWN_CA"))
        rig.settle()
    assert keyholder.renewals() == 1
    rig.later(renewal.REFUSED_PAUSE_S * 2)
    assert keyholder.renewals() == 2


def test_authorities_are_adopted_only_if_all_of_them_are_some(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / identity.CA).write_bytes(b"the one before")
    assert not identity.adopt(folder, [])
    with pytest.raises(EnrolmentError, match="the ones before are kept"):
        identity.adopt(folder, ["no certificate"])
    assert (folder / identity.CA).read_bytes() == b"the one before"


class PowerCutError(Exception):
    """The power went."""


@pytest.mark.parametrize("steps", range(6))
def test_the_power_may_go_at_every_step_of_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Whatever is left, the device has a key with its own certificate, the old or the new one."""
    (tmp_path / identity.KEY).write_bytes(b"old")
    (tmp_path / identity.CERTIFICATE).write_bytes(b"old")
    known = identity.Identity(identity.Hub("cam-1", "h", 1, "u"), tmp_path, b"", b"")
    left = steps
    commit = files.commit

    def dying(partial: Path, path: Path) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        commit(partial, path)

    monkeypatch.setattr(files, "commit", dying)
    try:
        identity.keep(tmp_path, b"new", b"new")
        identity.promote(tmp_path)
    except PowerCutError:
        pass
    monkeypatch.undo()
    held = known.credentials()
    pairs = [(one.key.read_bytes(), one.certificate.read_bytes()) for one in held]
    assert all(key == certificate for key, certificate in pairs)
    assert {key for key, _ in pairs} == [{b"old"}, {b"old"}, {b"new", b"old"}, {b"new"}, {b"new"}][
        min(steps, 4)
    ]
    identity.promote(tmp_path)
    assert len(known.credentials()) == 1
