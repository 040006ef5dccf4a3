"""Rollouts, drift, incidents and triggers over HTTP, and the commands over the same API."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgefleet_cloud.cli import app, rollouts
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.database.models import Incident, VersionState
from edgefleet_cloud.monitoring import service as watching
from edgefleet_cloud.rollouts import service
from edgefleet_cloud.testing import Fleet
from edgefleet_protocol import sketch
from edgefleet_protocol.sketch import ReferenceProfile

EMPTY_PROFILE = sketch.encode_profile(ReferenceProfile(0, [], b"\x01", b""))
RECIPE = {"trainer": "sklearn", "parameters": {"estimator": "LogisticRegression"}}


class Operator:
    """Someone at the API and at the terminal of one hub."""

    def __init__(self, http: httpx.Client, fleet: Fleet) -> None:
        self.http = http
        self.fleet = fleet

    def post(self, path: str, body: object = None, status: int = 200) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        answer = self.http.get(path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    def run(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(arguments), obj=Client(self.http))
        assert done.exit_code == code, done.output
        return done.output

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code))

    def tick(self) -> None:
        self.fleet.clock.now += 1
        with self.fleet.database.write() as session:
            service.advance(session, self.fleet.clock())

    def install(self) -> None:
        self.tick()
        self.fleet.follow_orders()
        self.tick()


@pytest.fixture
def operator(hub_rig, clock) -> Operator:
    fleet = Fleet(hub_rig.services.database, hub_rig.services.store, clock)
    for version in ("1", "2"):
        fleet.add_version(version, reference=EMPTY_PROFILE)
    fleet.add_devices(4)
    return Operator(hub_rig.http, fleet)


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "digits", "version": "1", "to": "all", "strategy": "direct"} | changes


# --- rollouts -------------------------------------------------------------------------------------


def test_a_rollout_is_previewed_created_watched_and_taken_back(operator: Operator) -> None:
    plan = operator.post("/v1/rollouts/preview", body(strategy="staged"))
    assert [len(stage["devices"]) for stage in plan["stages"]] == [1, 1, 2]
    assert plan["transfer_bytes"] == 4000
    assert operator.get("/v1/rollouts") == []
    made = operator.post("/v1/rollouts", body(), 201)
    assert (made["state"], made["version"], made["release"]) == ("running", "1", 1)
    operator.install()
    shown = operator.get(f"/v1/rollouts/{made['id']}")
    assert shown["state"] == "completed"
    assert {device["state"] for device in shown["devices"]} == {"confirmed"}
    assert [entry["event"] for entry in shown["history"]][-1] == "completed"
    back = operator.post(f"/v1/rollouts/{made['id']}/rollback", {"reason": "complaints"})
    assert (back["state"], back["reason"]) == ("rolling_back", "complaints")
    operator.install()
    (listed,) = operator.get("/v1/rollouts", model="digits", state="rolled_back")
    assert listed["states"] == {"reverted": 4}


def test_steering_a_rollout(operator: Operator) -> None:
    operator.post("/v1/rollouts", body(strategy="staged"), 201)
    assert operator.post("/v1/rollouts/1/pause")["state"] == "paused"
    gate = {"gate": {"min_rows": 7}}
    assert operator.post("/v1/rollouts/1/resume", gate)["state"] == "running"
    assert operator.get("/v1/rollouts/1")["gate"]["min_rows"] == 7
    assert operator.post("/v1/rollouts/1/cancel")["state"] == "cancelled"
    error = operator.post("/v1/rollouts/1/cancel", status=409)["error"]
    assert error == ("rollout 1 is cancelled and cannot be cancelled; expected running, paused")


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"gate": {"max_error_rate": "low"}}, 422, "gate: Expected `float`"),
        ({"version": "9"}, 404, "there is no version 'digits 9'"),
        ({"strategy": "yolo"}, 422, "body.strategy: "),
        ({"surprise": 1}, 422, "body.surprise: "),
    ],
)
def test_a_bad_rollout_is_refused_with_a_sentence(
    operator: Operator, changes: dict, status: int, text: str
) -> None:
    answer = operator.post("/v1/rollouts", body(**changes), status)
    assert answer["error"].startswith(text)


def test_unknown_things_are_not_found(operator: Operator) -> None:
    for path in ("/v1/rollouts/9", "/v1/retrainings/9", "/v1/models/digits/drift"):
        assert "there is no" in operator.get(path, 404)["error"]
    for path in ("/v1/incidents/9/close", "/v1/triggers/9/disable", "/v1/rollouts/9/pause"):
        assert "there is no" in operator.post(path, status=404)["error"]


@pytest.mark.parametrize(
    "path", ["/v1/rollouts", "/v1/incidents", "/v1/triggers", "/v1/models/digits/drift"]
)
def test_without_the_operator_token_nothing_is_told(operator: Operator, path: str) -> None:
    answer = operator.http.get(path, headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401


# --- drift, incidents, triggers -------------------------------------------------------------------


def test_drift_incidents_and_performance_are_shown(operator: Operator) -> None:
    operator.post("/v1/rollouts", body(), 201)
    operator.install()
    reference = operator.fleet.store.put(EMPTY_PROFILE)
    window = {"version": "1", "reference": reference, "counts": b"\x01", "rows": 600}
    operator.fleet.windows({"cam-00": window | {"labelled": 10, "correct": 9}})
    operator.fleet.windows({"cam-01": window | {"counts": b""}})
    with operator.fleet.database.write() as session:
        watching.evaluate(session, operator.fleet.store, operator.fleet.clock())
    drift = operator.get("/v1/models/digits/drift")
    assert (drift["version"], drift["verdict"]["scope"]) == ("1", "none")
    assert [(row["device"], row["malformed"]) for row in drift["devices"]] == [
        ("cam-00", 0),
        ("cam-01", 1),
    ]
    assert operator.get("/v1/models/digits/verdicts")[0]["devices"] == 1
    (served,) = operator.get("/v1/models/digits/performance", bucket_s=3600)
    assert (served["rows"], served["accuracy"]) == (1200, 0.9)
    (incident,) = operator.get("/v1/incidents", only_open=True)
    assert incident["kind"] == "malformed-report"
    assert operator.post(f"/v1/incidents/{incident['id']}/close")["closed_at"]
    assert operator.get("/v1/incidents", only_open=True) == []


def test_triggers_and_retrainings(operator: Operator) -> None:
    made = operator.post("/v1/triggers", {"model": "digits", "recipe": RECIPE}, 201)
    assert made["recipe"]["strategy"] == "canary"
    assert operator.post(f"/v1/triggers/{made['id']}/disable")["enabled"] is False
    assert len(operator.get("/v1/triggers", model="digits")) == 1
    assert operator.get("/v1/retrainings") == []
    started = operator.post("/v1/retrainings", {"model": "digits", "recipe": RECIPE}, 422)
    assert started["error"].startswith("0 labelled rows for the purpose 'retraining'")
    bad = operator.post("/v1/triggers", {"model": "digits", "recipe": {"trainer": 1}}, 422)
    assert bad["error"].startswith("recipe: ")


# --- the terminal ---------------------------------------------------------------------------------


def test_the_commands_for_rollouts(operator: Operator) -> None:
    create = ("rollouts", "create", "digits", "1", "--to", "all")
    plan = operator.run(*create, "--strategy", "canary", "--dry-run")
    assert "canary" in plan
    assert "bytes in all" in plan
    made = operator.json(*create, "--stages", "0.5,1", "--gate", "min_rows=0")
    assert made["gate"]["min_rows"] == 0
    assert [len(stage["devices"]) for stage in made["stages"]] == [2, 2]
    assert operator.json("rollouts", "pause", "1")["state"] == "paused"
    resumed = operator.json("rollouts", "resume", "1", "--gate", "max_latency_ratio=none")
    assert resumed["state"] == "running"
    for _ in range(3):
        operator.install()
    shown = operator.json("rollouts", "show", "1")
    assert shown["gate"]["max_latency_ratio"] is None
    assert shown["state"] == "completed"
    assert "cam-00" in operator.run("rollouts", "show", "1")
    assert operator.json("rollouts", "watch", "1")["state"] == "completed"
    assert operator.json("rollouts", "list", "--state", "completed")[0]["id"] == 1
    assert operator.json("rollouts", "rollback", "1")["state"] == "rolling_back"


def test_watching_a_rollout_that_does_not_complete_exits_with_one(operator: Operator) -> None:
    operator.post("/v1/rollouts", body(), 201)
    assert operator.json("rollouts", "cancel", "1")["state"] == "cancelled"
    output = operator.run("rollouts", "watch", "1", code=1)
    assert "rollout 1 is cancelled: cancelled by an operator" in output


@pytest.mark.parametrize(
    ("option", "value"), [("--gate", "min_rows"), ("--order", "=5"), ("--stages", "half,1")]
)
def test_options_that_cannot_be_read_exit_with_two(
    operator: Operator, option: str, value: str
) -> None:
    operator.run("rollouts", "create", "digits", "1", "--to", "all", option, value, code=2)


def test_a_version_that_is_not_approved_exits_with_one(operator: Operator) -> None:
    operator.fleet.add_version("3", state=VersionState.REGISTERED)
    output = operator.run("rollouts", "create", "digits", "3", "--to", "all", code=1)
    assert "digits 3 is registered; only an approved version is rolled out" in output


def test_the_live_picture_of_a_rollout() -> None:
    row = {
        "id": 3, "model": "digits", "version": "2", "strategy": "canary", "state": "running",
        "stage": 0, "reason": "0 of 500 rows served",
        "stages": [
            {"name": "canary", "index": 0, "states": {"confirmed": 1, "assigned": 1}},
            {"name": "all", "index": 1, "states": {"waiting": 10}},
        ],
    }  # fmt: skip
    console = Console(width=100, record=True)
    with console.capture() as captured:
        console.print(rollouts.picture(row))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert lines[0] == "rollout 3  digits 2  canary  running"
    assert lines[1].startswith("▸  canary")
    assert lines[1].endswith("1 confirmed, 1 assigned")
    assert lines[2].strip().startswith("all")
    assert lines[3] == "gate: 0 of 500 rows served"


def test_values_on_the_command_line_keep_their_kind() -> None:
    given = ["a=1", "b=0.5", "c=none", "d=roll_back"]
    assert rollouts.assignments(given) == {"a": 1, "b": 0.5, "c": None, "d": "roll_back"}
    assert rollouts.assignments(None) is None


def test_the_commands_for_drift_and_incidents(operator: Operator) -> None:
    operator.post("/v1/rollouts", body(), 201)
    operator.install()
    assert "not judged yet" in operator.run("drift", "show", "digits")
    assert operator.json("drift", "show", "digits", "--version", "2")["version"] == "2"
    assert operator.json("drift", "performance", "digits") == []
    with operator.fleet.database.write() as session:
        session.add(
            Incident(
                model="digits", version="1", kind="device-fault", scope="device",
                devices=["cam-00"], features=["p0"], text="stuck", opened_at=1.0,
            )
        )  # fmt: skip
    (incident,) = operator.json("incidents", "list")
    assert incident["devices"] == ["cam-00"]
    operator.run("incidents", "close", "1")
    assert operator.json("incidents", "list") == []
    assert len(operator.json("incidents", "list", "--all")) == 1
    operator.run("incidents", "close", "1", code=1)


def test_the_commands_for_triggers(operator: Operator, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    made = operator.json("triggers", "add", "digits", "--recipe", str(recipe))
    assert made["enabled"] is True
    assert len(operator.json("triggers", "list")) == 1
    assert operator.json("triggers", "disable", "1")["enabled"] is False
    operator.run("retrainings", "start", "digits", "--recipe", str(recipe), code=2)
    assert operator.json("retrainings", "list", "--model", "digits") == []
    operator.run("retrainings", "show", "1", code=1)
    recipe.write_text("[1]")
    output = operator.run("triggers", "add", "digits", "--recipe", str(recipe), code=2)
    assert "expected a JSON object" in output
    operator.run("triggers", "add", "digits", "--recipe", str(tmp_path / "none"), code=2)
