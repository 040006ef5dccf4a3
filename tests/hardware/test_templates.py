"""The templates for firmware CI: read as their services read them, and their commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest
import yaml
from typer.main import get_command

from edgefleet_hardware import results, runtimes
from edgefleet_hardware.cli import app
from tests.hardware.made_bundles import doubled_rows

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github" / "workflows" / "compat.yml"
GITLAB = ROOT / "hardware-tests" / "ci" / "gitlab.yml"


def scripts() -> dict[str, str]:
    """The shell text with which each template runs the models."""
    github = yaml.safe_load(GITHUB.read_text())["jobs"]["compat"]["steps"]
    gitlab = yaml.safe_load(GITLAB.read_text())[".edgefleet-compat"]["script"]
    (step,) = [step for step in github if step.get("name") == "Run"]
    return {"github": step["run"], "gitlab": "\n".join(gitlab)}


@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_every_option_in_a_template_is_one_of_the_command(service: str) -> None:
    command: Any = get_command(app)
    known = {name for param in command.commands["run"].params for name in param.opts}
    used = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", scripts()[service]))
    assert {"--runtime", "--cpu", "--baseline", "--result", "--junit"} <= used
    assert used <= known


def test_the_default_releases_and_cores_are_ones_that_the_command_knows() -> None:
    # YAML 1.1 reads the key `on` as true.
    inputs = yaml.safe_load(GITHUB.read_text())[True]["workflow_call"]["inputs"]
    variables = yaml.safe_load(GITLAB.read_text())[".edgefleet-compat"]["variables"]
    for releases, cores in (
        (inputs["runtimes"]["default"], inputs["cpus"]["default"]),
        (variables["RUNTIMES"], variables["CPUS"]),
    ):
        assert [str(runtimes.Runtime.parse(text)) for text in releases.split()]
        assert [runtimes.processor(name).name for name in cores.split()]


@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_the_commands_of_a_template_pass_a_right_bundle_and_compare_with_a_baseline(
    service: str, tmp_path: Path
) -> None:
    """As on a runner, on this machine's own core, with the release that is installed here."""
    doubled_rows(tmp_path / "bundles" / "doubling" / "onnx-fp32")
    places = {
        "RUNTIMES": f"onnxruntime=={onnxruntime.__version__}",
        "CPUS": runtimes.own().name,
        "BUNDLES": "bundles",
        "BASELINE": "baseline/result.json",
        "EDGEFLEET_LOADS": "0",  # times are tested elsewhere
        "PATH": f"{Path(sys.executable).parent}:{ROOT}/.uv/bin:{os.environ['PATH']}",
    }
    for turn in range(2):
        done = subprocess.run(
            ["sh", "-e", "-c", scripts()[service]],
            cwd=tmp_path,
            env=os.environ | places,
            capture_output=True,
            text=True,
        )
        if done.returncode == results.UNTRIED:
            pytest.skip(f"no package index: {done.stdout}{done.stderr}"[:500])
        assert done.returncode == 0, done.stdout + done.stderr
        document = results.decode((tmp_path / "result.json").read_bytes())
        assert [cell.outcome and cell.outcome.kind for cell in document.cells] == ["right"]
        assert (tmp_path / "junit.xml").is_file()
        if turn == 0:
            # A bigger file than the release before had fails the build.
            (cell,) = document.cells
            smaller = msgspec.structs.replace(cell, size_bytes=cell.size_bytes // 2)
            (tmp_path / "baseline").mkdir()
            (tmp_path / "baseline" / "result.json").write_bytes(results.encode(document))
            bad = tmp_path / "bad.json"
            bad.write_bytes(results.encode(msgspec.structs.replace(document, cells=[smaller])))
    worse = subprocess.run(
        [
            *("edgefleet-compat", "run", "bundles/doubling/onnx-fp32"),
            *("--runtime", places["RUNTIMES"], "--baseline", "bad.json"),
        ],
        cwd=tmp_path,
        env=os.environ | places,
        capture_output=True,
        text=True,
    )
    assert worse.returncode == results.NOT_RIGHT
    assert "worse: doubling/onnx-fp32" in worse.stdout
    assert "bytes" in worse.stdout
