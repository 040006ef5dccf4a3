"""Searches at the hub: what they aim at, what they refuse, and a real one in a job's process."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgefleet_cloud.cli import app
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.cli.output import ExitCode
from edgefleet_cloud.database.models import Device, DeviceState, Run
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.datasets import bundled, content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import InvalidError, NotFoundError
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training import boards, search, service
from edgefleet_cloud.training.boards import Board
from edgefleet_cloud.training.search import SearchRequest
from edgefleet_cloud.training.service import BoundRecipe, TrainRequest
from edgefleet_cloud.training.testing import WITHOUT
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol import manifest
from edgefleet_protocol.profiles import DeviceProfile
from tests.cloud.conftest import finish

CSV = "length,width,answer\n" + "".join(
    f"{i},{i * 2},{'yes' if i % 2 else 'no'}\n" for i in range(40)
)


def device(name: str, board: str, **runtimes: str) -> Device:
    return Device(
        id=name,
        state=DeviceState.ENROLLED,
        board=board,
        runtimes={key.replace("_", "-"): version for key, version in runtimes.items()},
        memory_bytes=2**30,
        labels={},
        reported={},
        created_at=1.0,
    )


# --- what is aimed at ---------------------------------------------------------------------------


def test_every_release_of_a_runtime_that_all_devices_of_a_board_have_counts() -> None:
    found = boards.of_devices(
        [
            device("b", "rpi4", onnxruntime="1.20.1", litert="2.0.3"),
            device("a", "rpi4", onnxruntime="1.18.0", litert="2.0.3"),
            device("c", "rpi4", onnxruntime="1.20.1", litert="2.1.0", tflite_runtime="2.14.0"),
            device("d", "rpi3", tflite_runtime="2.14.0"),
        ]
    )
    assert found == [
        Board("rpi3", ["tflite-runtime==2.14.0"]),
        Board(
            "rpi4",
            [
                "ai-edge-litert==2.0.3",
                "ai-edge-litert==2.1.0",
                "onnxruntime==1.18.0",
                "onnxruntime==1.20.1",
            ],
        ),
    ]


def test_devices_of_a_board_without_a_common_runtime_are_no_aim() -> None:
    devices = [device("a", "rpi4", onnxruntime="1.20"), device("b", "rpi4", litert="2.0.3")]
    with pytest.raises(
        InvalidError, match=r"rpi4 have no runtime in common \(litert; onnxruntime\)"
    ):
        boards.of_devices(devices)


def test_a_fleet_without_devices_asks_for_boards() -> None:
    with pytest.raises(InvalidError, match="no enrolled device; name boards"):
        boards.of_devices([])


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ([Board("rpi9", [])], "no profile of the board rpi9; there are: generic-arm64"),
        ([Board("", [])], r"no profile of the board \(not reported\)"),
        ([Board("../rpi4.toml", [])], "no profile of the board"),
        ([Board("rpi4", []), Board("rpi4", [])], "named twice"),
    ],
)
def test_boards_that_cannot_be_aimed_at_are_named(wanted: list[Board], complaint: str) -> None:
    with pytest.raises(InvalidError, match=complaint):
        boards.checked(wanted)


def test_a_runtime_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"onnxruntime 9\.9: nothing is known of it"):
        boards.checked([Board("rpi4", ["onnxruntime==9.9"])])


# --- a real search ------------------------------------------------------------------------------


def trained(database: Database, store: Store, runner: JobRunner) -> None:
    """Make version 1 of `iris`."""
    whole = content.prepare(store, bundled.load("iris"), bundled.LABEL)
    parts = content.split(store, whole.digest, whole.label, 0.5, 0)
    with database.write() as session:
        row = datasets.add(session, whole, name="iris", source="bundled:iris", now=1.0)
        train, holdout = datasets.add_split(session, row, *parts, 1.0)
        request = TrainRequest(
            model="iris",
            trainer="sklearn",
            dataset=train.digest,
            holdout=holdout.digest,
            parameters={"estimator": "RandomForestClassifier", "n_estimators": 12},
            variants=["onnx-fp32"],
        )
        job = service.start_training(session, request, 1.0)
    assert finish(database, runner, job.id).error is None


def test_a_search_gives_each_board_of_the_fleet_its_variant_as_a_new_version(
    database: Database, store: Store, tmp_path: Path
) -> None:
    runner = JobRunner(database, store, tmp_path / "jobs", limit=1, clock=lambda: 5.0)
    trained(database, store, runner)
    with database.write() as session:
        session.add(device("gate-1", "rpi4", onnxruntime="1.20.1"))
        session.add(device("gate-2", "generic-x86_64", onnxruntime="1.23.2"))
    request = SearchRequest(
        "iris", "1", variants=["onnx-fp32", "onnx-fp16", "onnx-student"], trials=0
    )
    with database.write() as session:
        job_id = search.start_search(session, request, 2.0).id
    job = finish(database, runner, job_id)
    assert job.error is None
    choices = {choice["board"]: choice for choice in job.result["choices"]}
    assert sorted(choices) == ["generic-x86_64", "rpi4"]
    chosen = {board: choice["chosen"] for board, choice in choices.items()}
    assert None not in chosen.values()
    with database.write() as session:
        registry.approve(session, "iris", "2", {}, 5.0)
        registry.release(session, "iris", "2", "first", 5.0)
        for board, version in (("rpi4", "1.20.1"), ("generic-x86_64", "1.23.2")):
            profile = DeviceProfile(board, {"onnxruntime": version}, 1 << 30)
            (variant,) = registry.variants_for(session, "iris", 1, profile)
            assert variant.name == chosen[board]
            assert variant.manifest is not None
            read = manifest.decode(store.read(variant.manifest))
            assert (read.lineage.trainer, read.lineage.parameters) == ("search", {"of": "1"})
        first, second = session.get_one(Run, 1), session.get_one(Run, 2)
        version = registry.get_version(session, "iris", "2")
    assert (second.artifact, second.filename) == (first.artifact, "model.skops")
    assert (second.dataset, second.holdout) == (first.dataset, first.holdout)
    assert version.metrics["accuracy"] > 0.85
    assert version.metrics["rows"] == 75
    html = store.read(second.reports["html"]).decode()
    assert "iris" in html
    assert "onnx-student" in html
    found = json.loads(store.read(second.reports["json"]))
    assert [choice["chosen"] for choice in found["choices"]] == [chosen[b] for b in sorted(chosen)]
    retrained_like(database, store, runner, second)
    runner.close()


def retrained_like(database: Database, store: Store, runner: JobRunner, run: Run) -> None:
    """A retraining takes over what the search chose, and for which boards."""
    assert run.dataset is not None
    assert run.holdout is not None
    with database.write() as session:
        released = registry.champion(session, "iris")
        assert released is not None
        before = registry.variants(session, released.id)
        request = TrainRequest(
            model="iris",
            trainer="sklearn",
            dataset=run.dataset,
            holdout=run.holdout,
            parameters={"estimator": "RandomForestClassifier", "n_estimators": 9},
            recipes=[BoundRecipe(item.recipe, item.needs.get("boards", [])) for item in before],
        )
        job_id = service.start_training(session, request, 6.0, compare=True).id
    job = finish(database, runner, job_id)
    assert job.error is None
    with database.read() as session:
        made = registry.variants(session, registry.get_version(session, "iris", "3").id)
    assert [(item.name, item.recipe, item.needs.get("boards")) for item in made] == [
        (item.name, item.recipe, item.needs.get("boards")) for item in before
    ]
    assert job.result["comparison"]["rows"] == 75


# --- what is refused, and what people see -------------------------------------------------------


@pytest.fixture
def door(hub_rig: Any, tmp_path: Path) -> Any:
    """A hub with version 1 of the model `door`, trained here."""
    path = tmp_path / "door.csv"
    path.write_text(CSV)
    assert run(hub_rig, "datasets", "add", str(path), "--label", "answer").exit_code == 0
    done = run(hub_rig, "train", "--dataset", "door", "--trainer", "sklearn", "--model", "door",
               "-p", "estimator=LogisticRegression")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return hub_rig


def run(rig: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), obj=Client(rig.http))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": "7"}, "there is no version 'door 7'"),
        ({"budgets": {"max_dropp": 0.1}}, "unknown field `max_dropp`"),
        ({"budgets": {"max_drop": 2}}, "max_drop"),
        ({"budgets": {"boards": {"rpi5": {"max_bytes": 1}}}}, "rpi5, which is not searched for"),
        ({"variants": ["onnx-int3"]}, "unknown variant onnx-int3"),
        ({"boards": [], "to": "all"}, "there is no enrolled device"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_and_makes_no_version(
    door: Any, changes: dict[str, Any], complaint: str
) -> None:
    asked = {"model": "door", "version": "1", "boards": [Board("rpi4", [])]} | changes
    with (
        door.services.database.write() as session,
        pytest.raises((InvalidError, BadInputError, NotFoundError), match=complaint),
    ):
        search.start_search(session, SearchRequest(**asked), 2.0)
    assert door.http.get("/v1/models/door").json()["versions"] == 1
    assert len(door.http.get("/v1/runs").json()) == 1


def test_a_version_that_came_as_bundles_has_no_fitted_model_to_search_with(door: Any) -> None:
    with door.services.database.write() as session:
        session.get_one(Run, 1).filename = ""
    answer = door.http.post(
        "/v1/models/door/versions/1/search", json={"boards": [{"name": "rpi4"}]}
    )
    assert answer.status_code == 422
    assert "came as finished bundles" in answer.json()["error"]


def test_a_search_on_the_terminal_shows_each_board_and_keeps_the_report(
    door: Any, tmp_path: Path
) -> None:
    budgets = tmp_path / "budgets.yaml"
    budgets.write_text("max_drop: 0.02\nboards:\n  rpi4: {max_bytes: 9000}\n")
    done = run(
        door, "search", "door", "1", "--board", "rpi4", "--board", "rpi5",
        "--runtime", "onnxruntime==1.20", "--budgets", str(budgets), "--max-drop", "0.005",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "it is the smallest; not measured there" in done.stdout
    assert "edgefleet models approve door 2" in done.stderr
    for form in ("html", "md", "json"):
        assert (tmp_path / "out" / f"report.{form}").read_text() == f"a report as {form}"
    row = door.http.get("/v1/runs/2").json()
    assert row["trainer"] == "search"
    assert row["parameters"] == {
        "of": "1",
        "boards": [
            {"name": "rpi4", "runtimes": ["onnxruntime==1.20"]},
            {"name": "rpi5", "runtimes": ["onnxruntime==1.20"]},
        ],
        "budgets": {"max_drop": 0.005, "boards": {"rpi4": {"max_bytes": 9000}}},
        "variants": None,
        "trials": 24,
    }


def test_a_board_without_a_variant_exits_with_one(door: Any) -> None:
    done = run(door, "search", "door", "1", "--board", "rpi4", "--board", WITHOUT)
    assert done.exit_code == ExitCode.FAILED
    assert f"no variant for {WITHOUT}" in done.stderr
    assert "nothing runs there" in done.stdout


def test_runtimes_without_boards_and_unreadable_budgets_are_wrong_use(
    door: Any, tmp_path: Path
) -> None:
    alone = run(door, "search", "door", "1", "--runtime", "onnxruntime==1.20")
    assert alone.exit_code == ExitCode.USAGE
    missing = run(door, "search", "door", "1", "--budgets", str(tmp_path / "none.yaml"))
    assert missing.exit_code == ExitCode.USAGE


def test_a_report_is_a_page_that_can_run_nothing(door: Any) -> None:
    assert run(door, "search", "door", "1", "--board", "rpi4").exit_code == 0
    answer = door.http.get("/v1/runs/2/report")
    assert answer.text == "a report as html"
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy
    assert door.http.get("/v1/runs/1/report").status_code == 404
    assert door.http.get("/v1/runs/2/report", params={"form": "exe"}).status_code == 422
