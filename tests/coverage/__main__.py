"""Print what converts, and with `--write` put it into docs/coverage.md.

    python -m tests.coverage sklearn [--write] [NAME …]

The section of a library on that page, between two marks, is written anew; the rest is for people.
`tests.coverage.<library>_report` has `run(names) -> Report`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.coverage.report import Report

_PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
_LIBRARIES = sorted(
    p.stem.removesuffix("_report") for p in Path(__file__).parent.glob("*_report.py")
)


def main(arguments: Sequence[str]) -> int:
    """Check what was asked for; return 1 if anything that can be expressed is not right."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage")
    parser.add_argument("library", choices=_LIBRARIES)
    parser.add_argument("names", nargs="*", help="of estimators or layers; all without")
    parser.add_argument("--write", action="store_true", help="write the section of the page")
    asked = parser.parse_args(arguments)
    if asked.write and asked.names:
        parser.error("--write needs the whole table: give no names")
    module = importlib.import_module(f"tests.coverage.{asked.library}_report")
    report: Report = module.run(asked.names)
    console = Console()
    console.print(report.table)
    console.print(report.sentence)
    if asked.write:
        _PAGE.write_text(
            _replaced(_PAGE.read_text("utf-8"), asked.library, report.section), "utf-8"
        )
    return 0 if report.is_right else 1


def _replaced(page: str, library: str, section: str) -> str:
    """Return a page with the section between the marks of a library written anew."""
    begin, end = f"<!-- {library}: begin -->\n", f"<!-- {library}: end -->"
    if begin not in page or end not in page:
        raise ValueError(f"{_PAGE}: expected a section between {begin.strip()} and {end}")
    head, rest = page.split(begin, 1)
    return head + begin + section + end + rest.split(end, 1)[1]


sys.exit(main(sys.argv[1:]))
