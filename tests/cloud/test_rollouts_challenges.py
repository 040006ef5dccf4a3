"""Challenges on a real database: a version beside the champion, compared and taken up."""

import msgspec
import pytest

from edgefleet_cloud.database.models import (
    ChallengerOrder,
    Desired,
    Device,
    DirectorRecord,
    Release,
    VersionState,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import challenges, service
from edgefleet_cloud.rollouts.gate import GroupStatistics, StageStatistics
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import Fleet
from edgefleet_protocol.messages import Attempt, State, Step


@pytest.fixture
def fleet(database: Database, store: Store, clock) -> Fleet:
    """Four devices that run version 1, and an approved version 2."""
    fleet = Fleet(database, store, clock)
    for version in ("1", "2"):
        fleet.add_version(version)
    fleet.add_devices(4)
    with database.write() as session:
        service.create(session, fleet.model, "1", "all", "direct", clock())
        service.advance(session, clock())
    fleet.follow_orders()
    return fleet


def start(fleet: Fleet, role: str = "shadow", to: str = "all", version: str = "2", **more) -> int:
    with fleet.database.write() as session:
        return challenges.start(session, fleet.model, version, to, role, fleet.clock(), **more).id


def look(fleet: Fleet, challenge: int) -> dict:
    with fleet.database.read() as session:
        return challenges.view(session, challenges.get(session, challenge))


def orders(fleet: Fleet) -> dict[str, tuple[int, dict]]:
    with fleet.database.read() as session:
        rows = session.query(ChallengerOrder).order_by(ChallengerOrder.device_id)
        return {row.device_id: (row.release, row.order) for row in rows}


def sequences(fleet: Fleet) -> dict[str, int]:
    with fleet.database.read() as session:
        return {row.device_id: row.sequence for row in session.query(DirectorRecord)}


def test_a_challenger_is_ordered_beside_what_devices_serve_and_makes_no_champion(fleet) -> None:
    before = sequences(fleet)
    start(fleet, "split", "device:cam-00,cam-02", share_percent=20, window_rows=50)
    order = {"role": "split", "share_percent": 20, "window_rows": 50}
    assert orders(fleet) == {"cam-00": (2, order), "cam-02": (2, order)}
    after = sequences(fleet)
    assert [after[name] - before[name] for name in sorted(after)] == [1, 0, 1, 0]
    with fleet.database.read() as session:
        assert {row.release for row in session.query(Desired)} == {1}
        assert registry.champion(session, fleet.model).version == "1"
        assert session.get_one(Release, (fleet.model, 2)).challenge


def test_an_attempt_of_the_challengers_lane_is_what_the_view_shows(fleet) -> None:
    challenge = start(fleet, to="device:cam-00")
    with fleet.database.write() as session:
        device = session.get_one(Device, "cam-00")
        order = session.get_one(ChallengerOrder, ("cam-00", fleet.model))
        state = msgspec.convert(device.reported, State)
        attempt = Attempt(
            order.attempt, fleet.model, 2, "0" * 64, Step.REJECTED, "too slow", lane="challenger"
        )
        device.reported = msgspec.to_builtins(msgspec.structs.replace(state, attempts=[attempt]))
    assert look(fleet, challenge)["devices"] == [
        {"device": "cam-00", "variant": "onnx-int8", "step": "rejected", "reason": "too slow"}
    ]


def test_both_sides_are_counted_on_the_same_devices_since_the_start(fleet) -> None:
    fleet.windows({"cam-00": {"version": "1", "rows": 70}})
    fleet.clock.now += 10
    challenge = start(fleet, to="device:cam-00")
    fleet.clock.now += 10
    served = {"rows": 400, "labelled": 400}
    fleet.windows({"cam-00": {"version": "1", "correct": 300, **served}})
    fleet.windows({"cam-01": {"version": "1", "correct": 400, **served}})
    fleet.windows({"cam-00": {"version": "2", "release": 2, "correct": 380, **served}})
    seen = look(fleet, challenge)
    assert (seen["challenger"]["rows"], seen["control"]["rows"]) == (400, 400)
    assert (seen["challenger"]["correct"], seen["control"]["correct"]) == (380, 300)
    assert seen["verdict"] == ("better (99 %): accuracy 0.950 of 400 rows against 0.750 of 400")
    fleet.clock.now += 10
    with fleet.database.write() as session:
        challenges.stop(session, challenge, "seen enough", fleet.clock())
    fleet.clock.now += 10
    fleet.windows({"cam-00": {"version": "2", "release": 2, "correct": 0, **served}})
    assert look(fleet, challenge)["challenger"]["rows"] == 400


def test_stopping_takes_it_off_the_devices_and_lets_another_start(fleet) -> None:
    challenge = start(fleet)
    with pytest.raises(ConflictError, match="runs; stop it first"):
        start(fleet)
    before = sequences(fleet)
    with fleet.database.write() as session:
        challenges.stop(session, challenge, "enough", fleet.clock())
        challenges.stop(session, challenge, "again", fleet.clock())
    assert orders(fleet) == {}
    assert {after - before[name] for name, after in sequences(fleet).items()} == {1}
    seen = look(fleet, challenge)
    assert (seen["state"], seen["reason"], seen["devices"]) == ("stopped", "enough", [])
    assert start(fleet) != challenge


def test_rolling_a_challenger_out_takes_its_release_up_and_ends_it_there(fleet) -> None:
    start(fleet, to="device:cam-00,cam-01")
    with fleet.database.write() as session:
        rollout = service.create(
            session, fleet.model, "2", "device:cam-00", "direct", fleet.clock()
        )
        service.advance(session, fleet.clock())
        assert rollout.release == 2
        assert registry.champion(session, fleet.model).version == "2"
    assert list(orders(fleet)) == ["cam-01"]


def test_rolling_the_champion_out_again_does_not_need_a_new_release(fleet) -> None:
    start(fleet)
    with fleet.database.write() as session:
        again = service.create(session, fleet.model, "1", "all", "direct", fleet.clock())
        assert again.release == 1


def test_a_model_withdrawn_from_a_device_takes_its_challenger_along(fleet) -> None:
    start(fleet, to="device:cam-00")
    with fleet.database.write() as session:
        assignments.withdraw(session, "cam-00", fleet.model, fleet.clock())
    assert orders(fleet) == {}


def test_what_cannot_be_challenged_is_refused_with_the_reason(fleet) -> None:
    with pytest.raises(InvalidError, match="role 'ab': expected one of shadow, split"):
        start(fleet, "ab")
    with pytest.raises(NotFoundError):
        start(fleet, version="9")
    fleet.add_version("3", state=VersionState.REFUSED)
    with pytest.raises(ConflictError, match="only an approved version may run"):
        start(fleet, version="3")
    fleet.add_devices(1)
    with pytest.raises(InvalidError, match="cam-04 does not serve digits"):
        start(fleet, to="device:cam-04")
    assert orders(fleet) == {}


@pytest.mark.parametrize(
    ("challenger", "champion", "said"),
    [
        (GroupStatistics(1, 10, 0, 0, 0), GroupStatistics(), "10 rows seen, none labelled"),
        (
            GroupStatistics(1, 500, 0, 500, 350),
            GroupStatistics(1, 500, 0, 500, 450),
            "worse (99 %): accuracy 0.700 of 500 rows against 0.900 of 500",
        ),
        (
            GroupStatistics(1, 50, 0, 50, 44),
            GroupStatistics(1, 50, 0, 50, 45),
            "not decided: accuracy 0.880 of 50 rows against 0.900 of 50",
        ),
        (
            GroupStatistics(1, 900, 0, 0, 0, [450, 450]),
            GroupStatistics(1, 900, 0, 0, 0, [450, 450]),
            "no labels on both sides; predictions differ by PSI 0.000",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_figures_do(challenger, champion, said) -> None:
    statistics = StageStatistics(stage=challenger, control=champion)
    assert challenges.verdict(statistics).startswith(said)
