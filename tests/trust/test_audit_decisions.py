"""What the hub decides by itself is in the log too, with the rule that decided."""

from typing import Any

import pytest
from sqlalchemy import select

from edgefleet_cloud import hub as hubs
from edgefleet_cloud.database.models import (
    AuditEntry,
    Job,
    JobState,
    Retraining,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet.testing import free_port
from edgefleet_cloud.retraining import service as retraining
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.settings import Settings, described
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import Fleet
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import chain
from tests.cloud.conftest import Clock


def entries(database: Database, prefix: str = "") -> list[chain.Entry]:
    with database.read() as session:
        rows = session.scalars(select(AuditEntry).order_by(AuditEntry.number))
        return [chain.decode(row.line) for row in rows if row.action.startswith(prefix)]


@pytest.fixture
def fleet(database: Database, store: Store, clock: Clock) -> Fleet:
    fleet = Fleet(database, store, clock)
    fleet.add_version("1")
    fleet.add_devices(2)
    return fleet


def tick(fleet: Fleet, seconds: float = 1.0) -> None:
    fleet.clock.now += seconds  # type: ignore[attr-defined]  # the tests' clock
    with fleet.database.write() as session:
        rollouts.advance(session, fleet.clock())


def roll_out(fleet: Fleet, **options: Any) -> None:
    with acting(Actor("ada", "person")), fleet.database.write() as session:
        rollouts.create(session, "digits", "1", "all", "direct", fleet.clock(), **options)


def test_a_rollout_is_begun_by_a_person_and_carried_on_by_the_hub(fleet: Fleet) -> None:
    roll_out(fleet)
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    found = [(entry.action, entry.actor) for entry in entries(fleet.database)]
    assert found == [
        ("release.create", "ada"),
        ("rollout.create", "ada"),
        ("rollout.start_stage", "hub"),
        ("rollout.pass_stage", "hub"),
        ("rollout.complete", "hub"),
    ]
    release, created, _, passed, completed = entries(fleet.database)
    assert (release.subject, release.after["release"]) == ("digits 1", 1)
    assert created.after["devices"] == ["cam-00", "cam-01"]
    assert passed.after["statistics"]["stage"]["rows"] == 0
    assert (completed.before, completed.after["state"]) == ({"state": "running"}, "completed")
    assert completed.reason


def test_a_gate_that_takes_a_release_back_says_why(fleet: Fleet) -> None:
    roll_out(fleet, gate={"on_breach": "roll_back"})
    tick(fleet)
    fleet.follow_orders(default="fail")
    tick(fleet)
    back = entries(fleet.database, "rollout.roll_back")[0]
    assert back.before == {"state": "running"}
    assert back.after["state"] == "rolling_back"
    assert "fail" in back.reason
    tick(fleet)
    fleet.follow_orders()
    tick(fleet)
    assert entries(fleet.database, "rollout.end_rollback")[0].actor == "hub"


def test_what_devices_report_is_no_decision(fleet: Fleet) -> None:
    roll_out(fleet, gate={"on_breach": "pause"})
    tick(fleet)
    fleet.follow_orders(default="fail")
    tick(fleet)
    assert entries(fleet.database, "rollout.device") == []
    assert entries(fleet.database, "rollout.pause")[0].reason


def test_how_a_retraining_ends_is_recorded(fleet: Fleet) -> None:
    with fleet.database.write() as session:
        job = Job(
            kind="retrain", arguments={}, state=JobState.FAILED, error="no rows", created_at=0.0
        )
        session.add(job)
        session.flush()
        session.add(
            Retraining(
                model="digits", job_id=job.id, champion="1", recipe={}, state="running", reason="",
                created_at=0.0,
            )
        )  # fmt: skip
    with fleet.database.write() as session:
        retraining.conclude(session, 5.0)
    (entry,) = entries(fleet.database, "retraining.decide")
    assert (entry.actor, entry.before["state"], entry.after["state"]) == (
        "hub",
        "running",
        "failed",
    )
    assert entry.reason == "no rows"


# --- the hub itself -----------------------------------------------------------------------------


def test_settings_are_told_without_what_is_secret(tmp_path: Any) -> None:
    settings = Settings(
        home=tmp_path, database_url="postgresql+psycopg://hub:hunter2@db/hub", api_port=1234
    )
    told = described(settings)
    assert told["api_port"] == 1234
    assert told["database_url"] == "postgresql+psycopg://hub:***@db/hub"
    assert "hunter2" not in str(told)
    assert set(told) == set(Settings.__struct_fields__)


@pytest.mark.parametrize("word", ["secret", "password", "passphrase", "token", "pin"])
def test_a_setting_that_is_named_as_a_secret_is_only_said_to_be_there(word: str) -> None:
    assert hubs.described.__module__ == "edgefleet_cloud.settings"
    from edgefleet_cloud.settings import _shown

    assert _shown(f"provider_{word}", "x") is True
    assert _shown(f"provider_{word}", "") is False
    assert _shown("api_host", "x") == "x"


def test_a_hub_that_runs_says_so_and_signs_its_log_when_it_ends(
    migrated: Any, tmp_path: Any
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = Settings(home=home, api_port=free_port(), mqtt_port=free_port(), tick_s=0.05)
    for _ in range(2):
        with hubs.running(settings):
            pass
    database = Database(settings.sqlalchemy_url)
    actions = [entry.action for entry in entries(database)]
    assert actions.count("hub.start") == actions.count("hub.stop") == 2
    assert actions.count("key.create") == 2
    with database.read() as session:
        from edgefleet_cloud.trust.audit import checkpoints, log

        newest = checkpoints.newest(session)
        assert newest is not None
        assert newest.number == log.head(session).number
    database.close()
