"""The command line: what a person sees, and the exit codes that a script uses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet_agent import cli, files
from edgefleet_agent.testing import Bundle, HubDouble, Rig

Make = Callable[..., Bundle]


@pytest.fixture
def store(rig: Callable[..., Rig], hub: HubDouble, bundle: Make) -> Path:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle(acknowledge=False)
    return device.store


def rows(tmp_path: Path, text: str = "a,b,c,d\n1,0,0,0\n0,1,0,0\n") -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    return path


def test_predict_answers_with_the_release_of_the_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "colours", "--input", str(rows(tmp_path)), "--store", str(store)]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found] == ["red", "green"]
    assert [row["release"] for row in found] == [1, 1]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "row  label  score",
        f"1    red    {found[0]['score']:.4f}",
        f"2    green  {found[1]['score']:.4f}",
    ]


@pytest.mark.parametrize(
    ("model", "text", "complaint"),
    [
        ("shapes", "a,b,c,d\n1,0,0,0\n", "serves no model 'shapes'"),
        ("colours", "a,b\n1,2\n", "lacks the columns c, d that the model takes"),
        ("colours", "a,b,c,d\n1,0,x,0\n", "column 'c' must hold numbers, not 'x'"),
    ],
)
def test_predict_says_what_is_wrong(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    text: str,
    complaint: str,
) -> None:
    path = rows(tmp_path, text)
    assert cli.main(["predict", model, "--input", str(path), "--store", str(store)]) == 1
    assert complaint in capsys.readouterr().err


def test_status_shows_models_and_waiting_reports(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--store", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["reports_waiting"]) == ("cam-1", 1)
    assert found["models"] == [
        {
            "model": "colours",
            "version": "v1",
            "release": 1,
            "variant": "onnxruntime-test",
            "previous_release": None,
            "attempt": 1,
            "step": "confirmed",
            "reason": "",
        }
    ]
    assert cli.main(["status", "--store", str(store)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "device cam-1, hub https://localhost, 1 reports wait"
    assert out[2].split() == ["colours", "v1", "1", "onnxruntime-test", "1", "confirmed"]


@pytest.mark.parametrize("command", [["run"], ["status"]])
def test_a_device_that_is_not_enrolled_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, "--store", str(tmp_path)]) == 1
    assert "run: edgefleet-agent enroll --hub URL --token CLAIM" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_used_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("heartbeats = 5", "utf-8")
    assert cli.main(["run", "--config", str(path)]) == 2
    assert f"configuration from {path} cannot be used" in capsys.readouterr().err


def test_two_agents_do_not_share_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.locked(store):
        assert cli.main(["run", "--store", str(store)]) == 1
    assert "is in use by another agent" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["dance"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
