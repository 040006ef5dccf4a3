"""Two people approve what is risky: the rules, and every way by which a version reaches devices."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from edgefleet_cloud.database.models import (
    AccountKind,
    Approval,
    Model,
    Retraining,
    Trigger,
    Variant,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import awaited
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.acting import Actor
from edgefleet_cloud.trust.people import accounts, approvals, tokens
from edgefleet_cloud.trust.people.approvals import AwaitsApprovalError
from edgefleet_cloud.trust.people.testing import NOW, account, version

PEOPLE = {"olga": ("owner",), "ann": ("approver",), "ben": ("approver",), "maker": ("admin",)}


@pytest.fixture
def held(database: Database) -> "Held":
    for name, roles in PEOPLE.items():
        account(database, name, *roles)
    account(database, "robot", "admin", kind=AccountKind.SERVICE)
    version(database)
    return Held(database)


class Held:
    """A high-risk model `door` with one version, made by `maker`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.write() as session, acting.acting(Actor("olga", "person")):
            approvals.set_risk(session, "door", "high", "opens doors", NOW)

    def approve_version(self) -> int:
        """Let the owner decide for the version; return the question that this asks."""
        with self.database.write() as session, acting.acting(Actor("olga", "person")):
            registry.approve(session, "door", "1", {"by": "olga", "reason": "is good"}, NOW)
            return approvals.listing(session)[0].id

    def speak(self, who: str, number: int, *, yes: bool = True, digest: str | None = None) -> str:
        with self.database.write() as session:
            caller = tokens.caller_of(session, who)
            asked = approvals.get(session, number)
            said = approvals.speak(
                session, number, caller, yes=yes, digest=digest or asked.digest, reason="", now=NOW
            )
            return said.state

    def release(self) -> int:
        with self.database.write() as session:
            return registry.release(session, "door", "1", "", NOW).number


def test_two_others_say_yes_and_the_version_is_released(held: Held) -> None:
    number = held.approve_version()
    with pytest.raises(AwaitsApprovalError, match=f"waits for approval {number}: 0 of 2 said yes"):
        held.release()
    assert held.speak("ann", number) == "waiting"
    with pytest.raises(AwaitsApprovalError, match=f"approval {number}: 1 of 2 said yes"):
        held.release()
    assert held.speak("ben", number) == "approved"
    assert held.release() == 1
    assert held.release() == 2  # the approval is of the version, not of one release


def test_a_model_of_standard_risk_asks_nobody(database: Database) -> None:
    version(database)
    with database.write() as session:
        registry.approve(session, "door", "1", {}, NOW)
        assert registry.release(session, "door", "1", "", NOW).number == 1
        assert approvals.listing(session) == []


@pytest.mark.parametrize(
    ("who", "complaint"),
    [
        ("maker", "maker made or asked for this"),  # started the run
        ("olga", "olga made or asked for this"),  # asked
        ("robot", "robot is a service; only people approve"),
        ("vera", "vera has not the permission to approve"),
    ],
)
def test_whoever_has_no_voice_is_told_so(held: Held, who: str, complaint: str) -> None:
    account(held.database, "vera", "viewer")
    number = held.approve_version()
    with pytest.raises(DeniedError, match=complaint):
        held.speak(who, number)


def test_the_author_of_the_trigger_behind_a_retraining_has_no_voice(held: Held) -> None:
    with held.database.write() as session:
        trigger = Trigger(model="door", kind="drift", recipe={}, enabled=True, made_by="ann")
        session.add(trigger)
        session.flush()
        from edgefleet_cloud.jobs import service as jobs

        job = jobs.submit(session, "train", {}, NOW)
        session.add(
            Retraining(
                model="door", trigger_id=trigger.id, job_id=job.id, recipe={}, state="running",
                version="1", created_at=NOW,
            )
        )  # fmt: skip
    number = held.approve_version()
    with pytest.raises(DeniedError, match="ann made or asked for this"):
        held.speak("ann", number)


def test_one_person_is_not_two(held: Held) -> None:
    number = held.approve_version()
    held.speak("ann", number)
    with pytest.raises(ConflictError, match=f"ann has spoken on approval {number} already"):
        held.speak("ann", number)


def test_one_no_ends_the_question_and_asking_again_starts_from_nothing(held: Held) -> None:
    number = held.approve_version()
    held.speak("ann", number)
    assert held.speak("ben", number, yes=False) == "refused"
    with pytest.raises(ConflictError, match=f"approval {number} is refused"):
        held.speak("ann", number)
    with pytest.raises(AwaitsApprovalError, match="is not approved by 2 people; ask them with"):
        held.release()
    with held.database.write() as session, acting.acting(Actor("olga", "person")):
        again = approvals.ask(session, registry.get_version(session, "door", "1"), NOW)
        assert again is not None
        assert again.id != number
    with pytest.raises(AwaitsApprovalError, match="0 of 2"):
        held.release()


def test_a_voice_of_somebody_who_was_shut_out_meanwhile_does_not_count(held: Held) -> None:
    account(held.database, "cid", "approver")
    number = held.approve_version()
    held.speak("ann", number)
    with held.database.write() as session:
        accounts.disable(session, "ann", "left", NOW)
    assert held.speak("ben", number) == "waiting"
    assert held.speak("cid", number) == "approved"


def test_a_voice_is_for_exactly_what_was_looked_at(held: Held) -> None:
    number = held.approve_version()
    with pytest.raises(ConflictError, match="look again"):
        held.speak("ann", number, digest="0" * 64)


def test_content_that_changes_after_the_approval_is_not_released(held: Held) -> None:
    number = held.approve_version()
    held.speak("ann", number)
    held.speak("ben", number)
    with held.database.write() as session:
        session.scalars(select(Variant)).one().manifest = "f" * 64
    with pytest.raises(AwaitsApprovalError, match="is not approved by 2 people"):
        held.release()


def test_content_that_changes_while_people_look_gets_no_voice(held: Held) -> None:
    number = held.approve_version()
    with held.database.write() as session:
        session.scalars(select(Variant)).one().manifest = "f" * 64
    with pytest.raises(ConflictError, match="look again"):
        held.speak("ann", number)


def test_lowering_the_risk_needs_two_others_as_well(held: Held) -> None:
    with held.database.write() as session, acting.acting(Actor("ann", "person")):
        asked = approvals.set_risk(session, "door", "standard", "no doors any more", NOW)
        assert asked is not None
        number = asked.id
    with pytest.raises(DeniedError, match="ann made or asked for this"):
        held.speak("ann", number)
    held.speak("ben", number)
    with held.database.read() as session:
        assert session.get_one(Model, "door").risk == "high"
    held.speak("maker", number)
    with held.database.read() as session:
        assert session.get_one(Model, "door").risk == "standard"


def test_saying_high_again_ends_the_question_about_lowering(held: Held) -> None:
    with held.database.write() as session, acting.acting(Actor("ann", "person")):
        asked = approvals.set_risk(session, "door", "standard", "", NOW)
        assert asked is not None
        assert approvals.set_risk(session, "door", "standard", "", NOW) is asked
        approvals.set_risk(session, "door", "high", "", NOW)
        assert asked.state == "superseded"


def test_an_unknown_model_or_risk_is_refused(held: Held) -> None:
    with held.database.write() as session:
        with pytest.raises(NotFoundError, match="there is no model 'x'"):
            approvals.set_risk(session, "x", "high", "", NOW)
        with pytest.raises(InvalidError, match="expected standard or high"):
            approvals.set_risk(session, "door", "low", "", NOW)


# --- every way to devices -------------------------------------------------------------------------


def test_a_release_made_before_the_risk_was_raised_is_not_rolled_out(database: Database) -> None:
    version(database)
    with database.write() as session:
        registry.approve(session, "door", "1", {}, NOW)
        registry.release(session, "door", "1", "", NOW)
        approvals.set_risk(session, "door", "high", "", NOW)
    with database.write() as session, pytest.raises(AwaitsApprovalError):
        rollouts.create(session, "door", "1", "all", "direct", NOW)


def test_going_back_asks_nobody(held: Held) -> None:
    number = held.approve_version()
    assert number
    with held.database.write() as session:
        assert registry.release(session, "door", "1", "", NOW, way_back=True).number == 1


def test_what_was_to_follow_is_given_up_with_a_reason_if_it_cannot(held: Held) -> None:
    number = held.approve_version()
    wanted = {"model": "door", "version": "1", "to": "all", "strategy": "direct"}
    with held.database.write() as session:
        approvals.ask(session, registry.get_version(session, "door", "1"), NOW, then=wanted)
        awaited.start(session, NOW)
        assert session.get_one(Approval, number).outcome == ""
    held.speak("ann", number)
    held.speak("ben", number)
    with held.database.write() as session:
        awaited.start(session, NOW)
        awaited.start(session, NOW)
        outcome = session.get_one(Approval, number).outcome
    assert outcome == "no rollout: the group 'all' has no enrolled device"


def test_a_shipped_version_of_high_risk_waits_and_then_rolls_out(
    hub_rig: Any, tmp_path: Path
) -> None:
    from edgefleet_cloud.fleet.testing import enrol
    from tests.cloud.test_api_app import ship

    database = hub_rig.services.database
    for name in ("ann", "ben"):
        account(database, name, "approver")
    enrol(hub_rig.services, "cam-1", tmp_path)
    version(database)
    hub_rig.http.put("/v1/models/door/risk", json={"risk": "high"})
    result = hub_rig.job(ship(hub_rig.http).json()["job"])["result"]
    assert "rollout" not in result
    (asked,) = hub_rig.http.get("/v1/approvals", params={"state": "waiting"}).json()
    assert (asked["id"], asked["version"], asked["makers"]) == (result["approval"], "2", ["admin"])
    blocked = hub_rig.http.post("/v1/rollouts", json={"model": "door", "version": "2", "to": "all"})
    assert blocked.status_code == 409
    challenge = {"model": "door", "version": "2", "to": "all", "role": "shadow"}
    assert hub_rig.http.post("/v1/challenges", json=challenge).status_code in (409, 422)
    with database.write() as session:
        for name in ("ann", "ben"):
            caller = tokens.caller_of(session, name)
            approvals.speak(
                session, asked["id"], caller, yes=True, digest=asked["digest"], reason="", now=NOW
            )
        awaited.start(session, NOW)
    shown = hub_rig.http.get(f"/v1/approvals/{asked['id']}").json()
    assert (shown["state"], shown["rollout_id"]) == ("approved", 1)
    assert hub_rig.http.get("/v1/rollouts/1").json()["version"] == "2"
