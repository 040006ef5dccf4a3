"""The command `python -m tests.faults`: the table of cases, or the soak."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from tests.faults import runner, soak
from tests.faults.cases import select
from tests.faults.every import cases


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="names that match")
    parser.add_argument("--quick", action="store_true", help="those of the default test suite")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("build/faults/faults.json"))
    commands = parser.add_subparsers(dest="command")
    soak_parser = commands.add_parser("soak", help="random faults, in one process")
    soak_parser.add_argument("--faults", type=int, default=10_000)
    soak_parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.command == "soak":
        return soak.main(given.faults, given.seed, given.jobs)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    chosen = list(select(cases(), pattern=given.only, quick=given.quick))
    if given.list:
        for case in chosen:
            console.print(f"{case.name}: {case.injected} → {case.expected}", markup=False)
        return 0
    progress = Console(stderr=True, highlight=False)
    ran = runner.run_all(
        chosen,
        jobs=given.jobs,
        told=lambda one: progress.print(f"{one.verdict:8}{one.seconds:7.1f} s  {one.case.name}"),
    )
    ran.sort(key=lambda one: [case.name for case in chosen].index(one.case.name))
    runner.write_json(ran, given.json)
    runner.show(console, ran)
    console.print(runner.counts(ran))
    return 1 if any(one.verdict == "FAILED" for one in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
