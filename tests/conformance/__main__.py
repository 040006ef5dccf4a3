"""The command `make conformance SUITE=…`: the TUF conformance suite against the agent's client.

    python -m tests.conformance SUITE [--over http|mqtt] [-k EXPRESSION]

Runs theupdateframework/tuf-conformance, checked out at SUITE, twice: over HTTP, and with the same
client fetching over MQTT through a real broker. Each must pass whole. A failure, an error, a skip
or a case that is marked as expected to fail makes the exit code 1; nothing is marked so here.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from tests.conformance import broker
from tests.conformance.relay import Relay

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "conformance"


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("suite", type=Path, help="checkout of theupdateframework/tuf-conformance")
    parser.add_argument("--over", choices=("http", "mqtt"), action="append")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="as pytest's")
    given = parser.parse_args()
    suite: Path = given.suite.resolve()
    if not (suite / "tuf_conformance").is_dir():
        parser.error(f"{suite} is no checkout of tuf-conformance: it has no folder tuf_conformance")
    if shutil.which("faketime") is None:
        parser.error("the suite needs the program faketime: scripts/system_packages.sh installs it")
    BUILD.mkdir(parents=True, exist_ok=True)
    python = _environment(suite)
    lines, passed = [], True
    for over in given.over or ("http", "mqtt"):
        with _entrypoint(over) as entrypoint:
            line, good = _run(python, suite, over, entrypoint, given.k)
        lines.append(f"over {over}: {line}")
        passed = passed and good
    print("\n".join(["", *lines]))
    return 0 if passed else 1


def _environment(suite: Path) -> Path:
    """Return the Python of an environment that has the suite's own pins."""
    folder = BUILD / "venv"
    python, stamp = folder / "bin" / "python", folder / "suite"
    wanted = sha256(str(suite).encode() + (suite / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text("ascii") != wanted:
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--editable", suite], check=True)
        stamp.write_text(wanted, "ascii")
    return python


@contextmanager
def _entrypoint(over: str) -> Iterator[str]:
    """Give the command of the client under test."""
    command = f"{sys.executable} -m tests.conformance.client"
    if over == "http":
        yield command
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        broker.running(Path(folder)) as port,
        Relay(broker.LOOPBACK, port) as relay,
    ):
        yield f"{command} --over {broker.LOOPBACK}:{port}"
        print(f"{relay.answered} files went through the broker")


def _run(python: Path, suite: Path, over: str, entrypoint: str, k: str) -> tuple[str, bool]:
    """Run the suite; return pytest's counts, and whether every case passed."""
    report = BUILD / f"{over}.json"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", str(suite / "tuf_conformance")]
    command += ["--entrypoint", entrypoint, "-q", "-rfEsxX", "--tb=short", "-p", "no:cacheprovider"]
    command += ["--json-report", "--json-report-file", str(report)]
    code = subprocess.run(
        [*command, "-k", k] if k else command,
        # The client is a module of this repository; the suite's own modules stay the suite's.
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=REPOSITORY,
        check=False,
    ).returncode
    if not report.exists():
        return f"pytest ended with {code} and wrote no report", False
    return judged(code, json.loads(report.read_bytes())["summary"])


def judged(code: int, summary: Mapping[str, int]) -> tuple[str, bool]:
    """Return pytest's counts as text, and whether all that was chosen passed.

    Args:
        code: pytest's exit code.
        summary: outcome → count, of the suite's report.
    """
    counts = {name: n for name, n in summary.items() if name not in ("total", "collected")}
    text = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing ran"
    good = code == 0 and set(counts) <= {"passed", "deselected"} and counts.get("passed", 0) > 0
    return f"{text}; exit code {code}", good


if __name__ == "__main__":
    sys.exit(main())
