"""The pytest suite for firmware CI, run as its README says: pytest in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from edgefleet_hardware import packages, runtimes
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.runtimes import Runtime
from edgefleet_protocol import manifest
from tests.hardware.made_bundles import doubled_rows

ROOT = Path(__file__).resolve().parents[2]
# Plugins that the suite has no use for; they take longer to load than it takes to run.
WITHOUT = [f"-pno:{name}" for name in ("cacheprovider", "schemathesis", "hypothesispytest")]
RELEASE = f"onnxruntime=={onnxruntime.__version__}"


def suite(bundles: Path, **variables: str) -> tuple[int, str]:
    """Run the suite over a folder; return the exit code and what was printed."""
    given = {"EDGEFLEET_BUNDLES": str(bundles), "EDGEFLEET_RUNTIME": RELEASE, **variables}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *WITHOUT, "-v", "hardware-tests"],
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


def flip(bundle: Path) -> None:
    """Flip one bit of the model file of a bundle."""
    entry = manifest.decode((bundle / "manifest.json").read_bytes()).file("model")
    blob = bundle / entry.transfer.digest
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """What the suite says of a right bundle, a damaged one, and one that is for no release."""
    try:
        packages.folder(Runtime.parse(RELEASE), runtimes.own().wheels)
    except TargetUnavailableError as error:
        pytest.skip(f"{error}; configure a package index, or fill EDGEFLEET_CACHE")
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("whole", "flipped"):
        doubled_rows(folder / name)
    flip(folder / "flipped")
    doubled_rows(folder / "newer", opset=999)
    return suite(folder)


def test_a_right_bundle_passes(said: tuple[int, str]) -> None:
    assert f"test_the_bundle_is_right[whole-{RELEASE}-{runtimes.own().name}] PASSED" in said[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("flipped", "refused: digest "), ("newer", "refused: ")],
)
def test_a_bundle_that_is_not_right_fails_and_says_why(
    said: tuple[int, str], name: str, text: str
) -> None:
    code, output = said
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert f"test_the_bundle_is_right[{name}-{RELEASE}-{runtimes.own().name}] FAILED" in output
    report = output.partition(f"_ test_the_bundle_is_right[{name}-")[2]
    line = report.splitlines()[1]
    assert f"doubling/onnx-fp32 on {RELEASE} on {runtimes.own().name}: {text}" in line
    assert "(static check: does not fit: " in line
    assert "2 failed" in output


def test_a_bundle_that_no_release_is_for_does_not_pass_by_being_skipped(tmp_path: Path) -> None:
    doubled_rows(tmp_path / "whole")
    code, output = suite(tmp_path, EDGEFLEET_RUNTIME="tflite-runtime==2.14.0, ")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    text = "doubling/onnx-fp32 is of the format onnx; EDGEFLEET_RUNTIME has no release for it"
    assert f"{text}: tflite-runtime==2.14.0\n" in output
    assert "1 failed, 1 passed, 1 skipped" in output
