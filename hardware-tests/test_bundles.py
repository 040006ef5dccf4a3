"""Each bundle below EDGEFLEET_BUNDLES reproduces its golden vectors on the installed runtime."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("EDGEFLEET_BUNDLES")
BUNDLES = sorted(path.parent for path in Path(FOLDER).rglob("manifest.json")) if FOLDER else []


def test_bundles_are_given() -> None:
    """A folder without bundles must not pass for a runtime that is right."""
    if FOLDER is None:
        pytest.skip("set EDGEFLEET_BUNDLES to a folder of bundles (edgefleet-convert … --out)")
    assert BUNDLES, f"EDGEFLEET_BUNDLES: no bundle (manifest.json) below {FOLDER}"


@pytest.mark.parametrize("bundle", BUNDLES, ids=str)
def test_the_runtime_reproduces_the_golden_vectors(bundle: Path) -> None:
    """`edgefleet-convert verify` accepts the bundle."""
    command = [
        sys.executable,
        "-c",
        "from edgefleet_converters.cli import app; app()",
        "verify",
        str(bundle),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
