"""A store that cannot be written, or gives back something else: serving goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet_agent import files
from edgefleet_agent.errors import StoreError
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.testing import Bundle, HubDouble, Rig
from edgefleet_agent.trusting.bounds import SETTLE_S
from edgefleet_protocol import codec, topics
from edgefleet_protocol.messages import Ack, Refusal, Result, SyncRequest

Make = Callable[..., Bundle]
Rigs = Callable[..., Rig]
ROW = [0.3, -0.2, 0.9, 0.1]


class Disk:
    """A disk on which nothing can be given its name while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        commit, put = files.commit, Outbox.put

        def checked_commit(partial: Path, path: Path) -> None:
            if self.full:
                raise OSError(28, "No space left on device", str(path))
            commit(partial, path)

        def checked_put(outbox: Outbox, body: Any, now: float) -> None:
            if self.full and isinstance(body, Result):
                raise StoreError("report cannot be stored: database or disk is full")
            put(outbox, body, now)

        monkeypatch.setattr(files, "commit", checked_commit)
        monkeypatch.setattr(Outbox, "put", checked_put)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def outcomes(hub: HubDouble) -> list[tuple[int, str]]:
    return [(body.attempt, str(body.outcome)) for body in hub.bodies(Result)]


def refusals(hub: HubDouble) -> list[tuple[str, str]]:
    return [(body.what, body.reason) for body in hub.bodies(Refusal)]


def test_an_assignment_on_a_full_disk_is_acted_on_when_there_is_room(
    rig: Rigs, hub: HubDouble, bundle: Make, disk: Disk
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    disk.full = True
    hub.send_all(device.link, hub.release(bundle(version="v2", rows=70), 2))
    device.settle()
    for _ in range(5):
        device.later(30.0)
    assert device.engine.model("colours").predict(ROW).release == 1
    disk.full = False
    device.later(10.0)
    assert outcomes(hub) == [(1, "confirmed"), (2, "confirmed")]


def test_a_fault_on_a_full_disk_is_acted_on_at_once_and_reported_when_there_is_room(
    rig: Rigs, hub: HubDouble, bundle: Make, disk: Disk
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    brittle = hub.release(bundle("brittle.onnx", version="v2"), 2, confirm_rows=9)
    hub.send_all(device.link, brittle)
    device.settle()
    model = device.engine.model("colours")
    disk.full = True
    assert model.predict([101.0, 0.0, 0.0, 0.0]).release == 1
    device.settle()
    for _ in range(5):
        device.later(30.0)
        assert model.predict(ROW).release == 1
    assert outcomes(hub) == [(1, "confirmed")]
    disk.full = False
    device.later(10.0)
    assert outcomes(hub) == [(1, "confirmed"), (2, "rolled_back")]
    assert [slot.release for slot in device.state.serving] == [1]


def test_a_proof_on_a_full_disk_is_not_lost(
    rig: Rigs, hub: HubDouble, bundle: Make, disk: Disk
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1, confirm_rows=1))
    device.settle()
    disk.full = True
    device.engine.model("colours").predict(ROW)
    device.settle()
    device.later(3000.0)
    assert device.steps() == {"colours": "active"}
    disk.full = False
    device.later(1000.0)  # past its deadline, but proven in time
    assert outcomes(hub) == [(1, "confirmed")]


def test_a_device_on_a_full_disk_starts_and_serves(
    rig: Rigs, hub: HubDouble, bundle: Make, disk: Disk
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    device.close()
    disk.full = True
    device = rig()
    assert device.engine.model("colours").predict(ROW).release == 1


def test_a_result_that_cannot_be_stored_keeps_the_next_attempt_from_taking_its_place(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = rig()
    with monkeypatch.context() as patched:
        real = Outbox.put

        def put(outbox: Outbox, body: Any, now: float) -> None:
            if isinstance(body, Result):
                raise StoreError("report cannot be stored")
            real(outbox, body, now)

        patched.setattr(Outbox, "put", put)
        hub.send_all(device.link, hub.release(bundle(), 1))
        device.settle()
        hub.send_all(device.link, hub.release(bundle(version="v2", rows=70), 2))
        device.settle()
        assert outcomes(hub) == []
    device.later(30.0)
    device.later(30.0)
    assert outcomes(hub) == [(1, "confirmed"), (2, "confirmed")]


@pytest.mark.parametrize("how", [b"", b"{}", bytes(500), None])
def test_a_journal_that_was_lost_is_made_up_for_by_the_generation_before(
    rig: Rigs, hub: HubDouble, bundle: Make, how: bytes | None
) -> None:
    device = rig()
    target = hub.release(bundle(), 1)
    hub.send_all(device.link, target)
    device.settle()
    device.close()
    path = device.store / "models" / "colours.json"
    path.unlink() if how is None else path.write_bytes(how)
    device = rig()
    assert device.engine.model("colours").predict(ROW).release == 1
    hub.send_all(device.link, target)
    device.settle()
    assert set(outcomes(hub)) == {(1, "confirmed")}
    assert (("journal", "damaged") in refusals(hub)) == (how is not None)


def test_a_device_without_its_counters_serves_and_says_why_it_takes_no_order(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    target = hub.release(bundle(), 1)
    hub.send_all(device.link, target)
    device.settle()
    device.close()
    for path in (device.store / "trust").glob("counters.json*"):
        path.write_bytes(b"?")
    device = rig()
    assert device.engine.model("colours").predict(ROW).release == 1
    hub.send_all(device.link, hub.release(bundle(version="v2", rows=70), 2))
    device.settle()
    assert ("assignment", "counters-lost") in refusals(hub)
    assert device.engine.model("colours").predict(ROW).release == 1


YEARS_S = 3650 * 86_400.0
NOON = 1_790_000_000.0


@pytest.mark.parametrize("wrong_by_s", [YEARS_S, -YEARS_S], ids=["ahead", "behind"])
def test_a_device_whose_clock_is_wrong_by_years_updates_by_the_attested_time(
    rig: Rigs, hub: HubDouble, bundle: Make, wrong_by_s: float
) -> None:
    device = rig()
    device.clock.now = time.time() + wrong_by_s
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed")]
    assert refusals(hub) == []


def test_nothing_is_judged_before_the_time_is_attested_and_what_serves_goes_on(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    """What came while the device was off for months may look fresh by a clock that stood still."""
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    device.close()
    hub.attests = False
    device = rig()
    target = hub.release(bundle(version="v2", rows=70), 2)
    hub.send_all(device.link, target)
    device.settle()
    device.later(SETTLE_S - 1)
    assert refusals(hub) == []  # the answer may be on its way
    device.later(1)
    assert {reason for _, reason in refusals(hub)} == {"time-not-attested"}
    assert device.engine.model("colours").predict(ROW).release == 1
    before = len([r for r in hub.requests if isinstance(r, SyncRequest)])
    hub.attests = True
    device.later(600.0)
    assert len([r for r in hub.requests if isinstance(r, SyncRequest)]) > before
    hub.send_all(device.link, target)  # as the hub answers that request
    device.settle()
    assert outcomes(hub)[-1] == (2, "confirmed")


def test_the_hub_s_time_in_an_acknowledgement_tells_how_wrong_the_clock_is(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    hub.attests = False
    device = rig()
    ack = Ack("some store", [], at=1_700_000_100.0)
    device.link.send(topics.down("cam-1", "ack"), codec.encode(ack))
    device.settle()
    assert device.engine._health.read(0).clock_offset_s == -100.0


def test_the_attested_time_tells_how_wrong_the_clock_is(rig: Rigs, hub: HubDouble) -> None:
    hub.clock = lambda: NOON
    device = rig()
    device.clock.now = NOON + 40.0
    device.settle()
    assert device.engine._health.read(0).clock_offset_s == pytest.approx(40.0, abs=0.01)


def test_messages_that_come_too_fast_are_dropped_with_a_word(rig: Rigs, hub: HubDouble) -> None:
    device = rig()
    flood = bytes(400_000)
    for _ in range(90):
        device.link.send(topics.down("cam-1", "blocks"), flood)
    device.settle()
    assert ("message", "dropped") in refusals(hub)


def test_a_defect_in_one_turn_does_not_end_the_engine(
    rig: Rigs, hub: HubDouble, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    device = rig(alive=lambda: turns.append(1))
    with monkeypatch.context() as patched:
        patched.setattr(device.engine.attempts, "tick", lambda now: 1 / 0)
        assert device.engine.step(0.0)
    assert turns == [1]
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed")]
