"""The quick fault cases, each a test; `make faults` runs all of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cases import select
from tests.faults.every import cases

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run the cases in a process of their own: they fork, and no model may be loaded there."""
    path = tmp_path_factory.mktemp("faults") / "faults.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert path.is_file(), done.stderr
    return {row["name"]: row for row in json.loads(path.read_bytes())}


@pytest.mark.parametrize("name", [case.name for case in select(cases(), quick=True)])
def test_a_device_survives(name: str, ran: dict[str, dict[str, Any]]) -> None:
    row = ran[name]
    if row["skipped"]:
        pytest.skip(row["skipped"])
    assert row["complaints"] == []
    assert row["runs"] > 0


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
