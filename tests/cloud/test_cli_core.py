"""`edgefleet` against a real API: what it prints, where, and with which exit code."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from edgefleet_cloud.cli import app, client, output
from edgefleet_cloud.cli.client import Client, Target
from edgefleet_cloud.cli.output import CliError, ExitCode
from edgefleet_cloud.cli.training import parse_parameter
from edgefleet_cloud.fleet.testing import enrol

CSV = "length,width,answer\n" + "".join(
    f"{i},{i * 2},{'yes' if i % 2 else 'no'}\n" for i in range(40)
)


@pytest.fixture
def door(tmp_path: Path) -> Path:
    path = tmp_path / "Door 2.csv"
    path.write_text(CSV)
    return path


def run(rig: Any, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), obj=Client(rig.http))


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# --- data sets, training, models ----------------------------------------------------------------


def test_a_file_is_added_listed_and_shown(hub_rig: Any, door: Path) -> None:
    row = json_of(run(hub_rig, "datasets", "add", str(door), "--label", "answer", "--json"))
    assert (row["name"], row["rows"], row["features"]) == ("door-2", 40, 2)
    assert [r["digest"] for r in json_of(run(hub_rig, "datasets", "list", "--json"))] == [
        row["digest"]
    ]
    shown = run(hub_rig, "datasets", "show", "door-2")
    assert shown.exit_code == 0
    assert "length, width" in shown.stdout
    assert row["digest"][:12] in run(hub_rig, "datasets", "list").stdout


def test_an_empty_list_says_what_to_do_and_stays_parsable(hub_rig: Any) -> None:
    result = run(hub_rig, "models", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`edgefleet train` makes one" in result.stderr
    assert json_of(run(hub_rig, "models", "list", "--json")) == []


def test_training_waits_for_the_version_and_prints_it(hub_rig: Any, door: Path) -> None:
    run(hub_rig, "datasets", "add", str(door), "--label", "answer")
    arguments = ("train", "--dataset", "door-2", "--trainer", "sklearn", "--model", "door")
    parameters = ("-p", "estimator=LogisticRegression", "-p", "C=0.5")
    made = json_of(run(hub_rig, *arguments, *parameters, "--json"))
    assert (made["model"], made["version"]) == ("door", "1")
    assert hub_rig.http.get("/v1/runs/1").json()["parameters"]["C"] == 0.5
    table = run(hub_rig, *arguments, *parameters)
    assert table.exit_code == 0
    assert re.search(r"variants\s+onnx-fp32, tflite-fp32", table.stdout)
    queued = json_of(run(hub_rig, *arguments, *parameters, "--no-wait", "--json"))
    assert queued["kind"] == "train"


def test_a_version_is_approved_and_released_on_the_terminal(hub_rig: Any, door: Path) -> None:
    run(hub_rig, "datasets", "add", str(door), "--label", "answer")
    run(hub_rig, "train", "--dataset", "door-2", "--trainer", "sklearn", "--model", "door",
        "-p", "estimator=LogisticRegression")  # fmt: skip
    early = run(hub_rig, "models", "release", "door", "1")
    assert early.exit_code == ExitCode.FAILED
    assert "only an approved version is released" in early.stderr
    approved = json_of(run(hub_rig, "models", "approve", "door", "1", "--reason", "ok", "--json"))
    assert approved["decision"]["reason"] == "ok"
    assert json_of(run(hub_rig, "models", "release", "door", "1", "--json"))["number"] == 1
    assert re.search(r"door +classification +1 +1 +1", run(hub_rig, "models", "list").stdout)
    detail = run(hub_rig, "models", "show", "door", "1").stdout
    assert "onnx-int8" in detail
    assert "loses 5 points" in detail
    assert json_of(run(hub_rig, "models", "show", "door", "--json"))["history"][0]["version"] == "1"
    assert run(hub_rig, "models", "retire", "door", "1").exit_code == 0
    assert run(hub_rig, "models", "refuse", "door", "1").exit_code == ExitCode.FAILED


def test_jobs_are_listed_shown_and_watched(hub_rig: Any, door: Path) -> None:
    run(hub_rig, "datasets", "add", str(door), "--label", "answer")
    run(hub_rig, "train", "--dataset", "door-2", "--trainer", "sklearn", "--model", "door",
        "-p", "estimator=LogisticRegression")  # fmt: skip
    (row,) = json_of(run(hub_rig, "jobs", "list", "--state", "succeeded", "--json"))
    assert json_of(run(hub_rig, "jobs", "watch", str(row["id"]), "--json")) == row
    assert "succeeded" in run(hub_rig, "jobs", "show", str(row["id"])).stdout
    assert run(hub_rig, "jobs", "list", "--state", "done").exit_code == ExitCode.USAGE


# --- ship ---------------------------------------------------------------------------------------


def model_file(folder: Path, name: str = "door.joblib") -> str:
    path = folder / name
    path.write_bytes(b"\x80\x05 not a real pickle")
    return str(path)


def test_shipping_a_pickle_warns_that_it_runs_code(
    hub_rig: Any, door: Path, tmp_path: Path
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    result = run(hub_rig, "ship", model_file(tmp_path), "--sample", str(door), "--label", "answer",
                 "--to", "all", "--no-wait", "--json")  # fmt: skip
    assert json_of(result)["devices"] == 1
    said = " ".join(result.stderr.split())
    assert "runs code when it is loaded" in said
    assert "in a child process" in said


def test_a_savedmodel_folder_travels_packed(hub_rig: Any, door: Path, tmp_path: Path) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    folder = tmp_path / "door"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"a graph")
    sent = run(hub_rig, "ship", str(folder), "--sample", str(door), "--label", "answer",
               "--to", "all", "--no-wait", "--json")  # fmt: skip
    job = hub_rig.http.get(f"/v1/jobs/{json_of(sent)['job']}").json()["arguments"]
    assert job["filename"] == "door.tar.gz"
    packed = hub_rig.services.store.read(job["artifact"])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames() == ["door", "door/saved_model.pb"]


def test_a_shipment_that_cannot_be_converted_exits_1(
    hub_rig: Any, door: Path, tmp_path: Path
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    result = run(hub_rig, "ship", model_file(tmp_path, "broken.joblib"), "--sample", str(door),
                 "--to", "all")  # fmt: skip
    assert result.exit_code == ExitCode.FAILED
    assert "failed: broken.joblib: no pickle, or a truncated one" in result.stderr


@pytest.mark.parametrize(
    ("name", "sample", "to", "code", "complaint"),
    [
        ("none.joblib", CSV, "all", ExitCode.USAGE, "none.joblib: cannot be read"),
        ("door.docx", CSV, "all", ExitCode.USAGE, "expected a model file ending in .skops"),
        ("door.pt", CSV, "all", ExitCode.USAGE, "this is a PyTorch file that"),
        ("door.joblib", "a,b\n1\n", "all", ExitCode.USAGE, "line 2: expected 2 cells"),
        ("door.joblib", CSV, "label:site=x", ExitCode.FAILED, "no enrolled device matches"),
    ],
)
def test_bad_input_is_refused_where_a_person_sees_it(
    hub_rig: Any, tmp_path: Path, name: str, sample: str, to: str, code: int, complaint: str
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    path = str(tmp_path / name) if name.startswith("none") else model_file(tmp_path, name)
    (tmp_path / "s.csv").write_text(sample)
    result = run(hub_rig, "ship", path, "--sample", str(tmp_path / "s.csv"), "--to", to)
    assert result.exit_code == code
    assert complaint in result.stderr
    assert result.stdout == ""


def test_a_rollout_that_pauses_exits_1_and_says_which_device_failed(
    hub_rig: Any, door: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(hub_rig.services, "cam-1", tmp_path)
    device = {"device": "cam-1", "state": "failed", "reason": "golden vectors differ"}
    rollout = {"id": 1, "state": "paused", "reason": "1 of 1 failed", "devices": [device]}
    monkeypatch.setattr("edgefleet_cloud.cli.rollouts.follow", lambda *_: rollout)
    result = run(hub_rig, "ship", model_file(tmp_path), "--sample", str(door), "--to", "all")
    assert result.exit_code == ExitCode.FAILED
    assert "rollout 1 is paused; 1 of 1 failed; cam-1: golden vectors differ" in result.stderr


# --- finding the hub ----------------------------------------------------------------------------


def test_without_a_hub_the_exit_code_is_3(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--home", str(tmp_path), "models", "list"])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "Start one with `edgefleet up`" in result.stderr


def test_a_hub_that_does_not_answer_gives_3(hub_rig: Any) -> None:
    with httpx.Client(base_url="http://127.0.0.1:1") as http:
        result = CliRunner().invoke(app, ["models", "list"], obj=Client(http))
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "does not answer" in result.stderr


def test_a_wrong_token_gives_4(hub_rig: Any) -> None:
    with httpx.Client(base_url=hub_rig.http.base_url) as http:
        result = CliRunner().invoke(app, ["models", "list"], obj=Client(http))
    assert result.exit_code == ExitCode.DENIED
    assert "this needs a token" in result.stderr


@pytest.mark.parametrize("content", ["{", '{"url": "x"}', "[]"])
def test_a_client_file_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "client.json").write_text(content)
    with pytest.raises(CliError, match=r"client\.json cannot be read") as refused:
        client.open_client(Target(home=tmp_path), {})
    assert refused.value.code == ExitCode.USAGE


def test_options_are_above_the_environment_and_that_above_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(httpx, "Client", lambda **kwargs: made.append(kwargs))
    monkeypatch.setattr(client.ssl, "create_default_context", lambda cafile: f"CA {cafile}")
    (tmp_path / "client.json").write_text('{"url": "https://home", "ca": "/home/ca.pem"}')
    (tmp_path / "admin.token").write_text("home-token\n")
    environment = {"EDGEFLEET_HUB": "https://env", "EDGEFLEET_CA": "/env/ca.pem",
                   "EDGEFLEET_TOKEN": "env-token"}  # fmt: skip
    client.open_client(Target(home=tmp_path), {})
    client.open_client(Target(home=tmp_path), environment)
    client.open_client(Target("https://option", "option-token", None, tmp_path), environment)
    # Another hub than that of the home does not get the home's CA, nor its token.
    client.open_client(Target("https://option", home=tmp_path), {})
    found = [(m["base_url"], m["verify"], m["headers"].get("Authorization")) for m in made]
    assert found == [
        ("https://home", "CA /home/ca.pem", "Bearer home-token"),
        ("https://env", "CA /env/ca.pem", "Bearer env-token"),
        ("https://option", "CA /env/ca.pem", "Bearer option-token"),
        ("https://option", "CA None", None),
    ]


# --- output -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (True, "yes"), (0.123456789, "0.123457"), (1_800_000_000.0, "1800000000"),
        ({"a": 1, "b": None}, "a=1, b=-"), ([1, "x"], "1, x"), ([], "-"), ({}, "-"), ("x", "x"),
    ],
)  # fmt: skip
def test_cells_are_short_and_readable(value: object, text: str) -> None:
    assert output.text_of(value) == text


def test_tables_show_dates_and_no_text_that_steers_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"at": 0.0, "closed_at": None, "used_at": 86_400, "reason": {"\x07": "\x1b[2Jgone"}}
    output.show([row], tuple(row), json_flag=False)
    _, cells = capsys.readouterr().out.splitlines()
    assert cells.split() == [
        "1970-01-01", "00:00:00", "-", "1970-01-02", "00:00:00", "\\x07=\\x1b[2Jgone"
    ]  # fmt: skip
    output.show(row, tuple(row), json_flag=True)
    assert json.loads(capsys.readouterr().out) == row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a=[8,8,1]", ("a", [8, 8, 1])),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
    ],
)
def test_parameters_are_json_or_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_parameter(text) == expected


@pytest.mark.parametrize("text", ["a", "=1"])
def test_a_parameter_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="expected KEY=VALUE"):
        parse_parameter(text)


def test_the_description_of_the_api_is_printed() -> None:
    document = json_of(CliRunner().invoke(app, ["openapi"]))
    assert document["openapi"].startswith("3.1")
    assert "/v1/ship" in document["paths"]


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == "edgefleet 0.1.0\n"


def test_every_command_explains_itself() -> None:
    result = CliRunner().invoke(app, [])
    for name in ("up", "ship", "train", "devices", "rollouts", "drift", "incidents", "triggers"):
        assert name in result.output
