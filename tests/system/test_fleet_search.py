"""From a version at the hub to the variant that a search chose, on a real device."""

import json
from pathlib import Path

import pytest

from tests.system.processes import DEVICE, Fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
MODEL = "petals"


def test_a_search_aims_at_what_the_devices_report_and_its_choice_serves_there(
    fleet: Fleet, iris: tuple[Path, Path], tmp_path: Path
) -> None:
    done = fleet.ship(*iris, "--name", MODEL, "--variant", "onnx-fp32")
    assert done.returncode == 0, done.stderr
    reported = fleet.hub.client.get(f"/v1/devices/{DEVICE}")
    done = fleet.cli(
        *("search", MODEL, "1", "--variant", "onnx-fp32", "--variant", "onnx-fp16"),
        *("--trials", "0", "--out", tmp_path / "report", "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (choice,) = result["choices"]
    assert choice["board"] == reported["board"]
    assert choice["chosen"] in ("onnx-fp32", "onnx-fp16")
    assert MODEL in (tmp_path / "report" / "report.html").read_text()
    (wanted,) = fleet.hub.client.get(f"/v1/runs/{result['run']}")["parameters"]["boards"]
    assert f"onnxruntime=={reported['runtimes']['onnxruntime']}" in wanted["runtimes"]

    assert fleet.cli("models", "approve", MODEL, result["version"]).returncode == 0
    done = fleet.cli("rollouts", "create", MODEL, result["version"], "--to", "all",
                     "--strategy", "direct", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = json.loads(done.stdout)["id"]
    assert fleet.cli("rollouts", "watch", str(number)).returncode == 0
    models = fleet.hub.client.get(f"/v1/devices/{DEVICE}")["models"]
    (serving,) = [model["reported"] for model in models if model["model"] == MODEL]
    assert (serving["version"], serving["variant"]) == (result["version"], choice["chosen"])
