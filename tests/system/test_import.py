"""From a model file by `edgefleet-convert` and `edgefleet import` to a device that serves it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from demo.fleet import BIN
from tests.system.processes import DEVICE, Fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def made(iris: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the bundles of a model."""
    folder = tmp_path_factory.mktemp("made") / "bundles"
    done = subprocess.run(
        [
            *(BIN / "edgefleet-convert", "convert", iris[0], "--sample", iris[1]),
            *("--label", "target", "--variants", "onnx-fp32", "--out", folder),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_bundles_made_elsewhere_are_verified_registered_and_shipped(
    fleet: Fleet, made: Path
) -> None:
    done = fleet.cli("import", made, "--name", "leaf", "--to", "all", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "completed"
    models = fleet.hub.client.get(f"/v1/devices/{DEVICE}")["models"]
    (leaf,) = [model for model in models if model["model"] == "leaf"]
    assert leaf["in_sync"]
    assert leaf["reported"]["variant"] == "onnx-fp32"


def test_a_version_that_came_as_bundles_cannot_be_searched_at_the_hub(
    fleet: Fleet, made: Path
) -> None:
    assert fleet.cli("import", made, "--name", "branch").returncode == 0
    done = fleet.cli("search", "branch", "1")
    assert done.returncode == 2
    assert "branch 1 came as finished bundles" in done.stderr


def test_a_folder_without_bundles_is_wrong_use(fleet: Fleet, tmp_path: Path) -> None:
    done = fleet.cli("import", tmp_path)
    assert done.returncode == 2
    assert "holds no bundle (manifest.json)" in done.stderr


def test_firmware_ci_asks_an_enrolled_device_and_gets_its_own_measurement(
    fleet: Fleet, made: Path, tmp_path: Path
) -> None:
    home = fleet.hub.home
    client = json.loads((home / "client.json").read_text())
    result, measurements = tmp_path / "result.json", tmp_path / "measurements.json"
    done = subprocess.run(
        [
            *(BIN / "edgefleet-compat", "run", made / "onnx-fp32", "--device", DEVICE),
            *("--hub", client["url"], "--ca", client["ca"]),
            *("--result", result, "--measurements", measurements),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"EDGEFLEET_TOKEN": (home / "admin.token").read_text().strip()},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(result.read_text())["cells"]
    assert cell["outcome"]["kind"] == "right"
    assert cell["target"]["runtime"] == "onnxruntime"
    (time_us,) = cell["outcome"]["samples_us"]
    assert time_us > 0
    (run,) = json.loads(measurements.read_text())["runs"]
    assert run["measured"][0]["latency_us"]["p50"] == pytest.approx(time_us, abs=0.01)
    # What serves under the model's own name was not touched.
    served = {model["model"] for model in fleet.hub.client.get(f"/v1/devices/{DEVICE}")["models"]}
    assert "compat-iris" in served
