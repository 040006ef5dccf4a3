"""What the terminal shows: tables for people, JSON for scripts, and errors with exit codes.

Rules:

1. Answers go to standard output, everything else (progress, warnings, errors) to standard error,
   so that `--json` output can be piped as it is.
2. A command that did not do what it was asked for exits with one of `ExitCode`, never with 0.
3. In tables, text cannot steer the terminal (reasons and names may come from strangers), and what
   the API calls `at` or `…_at`, Unix seconds, is a date in UTC.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

Row = Mapping[str, Any]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class ExitCode(IntEnum):
    """Exit codes of `edgefleet`.

    FAILED: the thing asked for did not succeed. USAGE: bad input. UNREACHABLE: no hub answers.
    DENIED: the hub does not permit it. NOT_KNOWN: the file is none of this fleet's.
    """

    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DENIED = 4
    NOT_KNOWN = 5


class CliError(Exception):
    """Ends the command with a text for a person and an exit code.

    Args:
        text: what was expected, what came, what to do.
        code: the exit code.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


class Group(TyperGroup):
    """A command group that turns `CliError` into a line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # `Any`: Typer keeps the type of its context private
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CliError as error:
            text = printable(f"error: {error}")
            Console(stderr=True).print(text, markup=False, soft_wrap=True)
            raise typer.Exit(int(error.code)) from error


def console() -> Console:
    """Return the console for progress and warnings (standard error)."""
    return Console(stderr=True)


def show(
    data: Row | Sequence[Row],
    columns: Sequence[str] | Mapping[str, str],
    json_flag: bool,
    *,
    empty: str = "nothing to show",
) -> None:
    """Print one record or a list of them on standard output.

    Args:
        data: one record is shown as name and value lines, a list as a table.
        columns: keys to show, in order; a mapping also gives each its heading.
        json_flag: print all of `data` as JSON instead.
        empty: said on standard error where the list is empty.
    """
    if json_flag:
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return
    headings = (
        dict(columns)
        if isinstance(columns, Mapping)
        else {key: key.replace("_", " ") for key in columns}
    )
    if isinstance(data, Mapping):
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for key, heading in headings.items():
            table.add_row(heading, _cell(key, data.get(key)))
    elif data:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings.values():
            table.add_column(heading, overflow="fold")
        for row in data:
            table.add_row(*(_cell(key, row.get(key)) for key in headings))
    else:
        console().print(empty, markup=False)
        return
    _stdout().print(table)


def text_of(value: object) -> str:
    """Return one value as a cell: lists by comma, mappings as `key=value`, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text_of(item)}" for key, item in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text_of(item) for item in value) or "-"
    return str(value)


def moment(at: float) -> str:
    """Return Unix seconds as a date for a person, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Return text with everything that could steer the terminal written out, but for new lines."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _cell(key: str, value: object) -> str:
    if isinstance(value, int | float) and (key == "at" or key.endswith("_at")):
        return moment(value)
    return printable(text_of(value))


def _stdout() -> Console:
    # A pipe has no width: without one, rich would fold cells at 80 columns and break `grep`.
    return Console(markup=False, width=None if sys.stdout.isatty() else 240, highlight=False)
