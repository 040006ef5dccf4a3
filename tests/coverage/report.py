"""What the check of one library hands to the command."""

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Report:
    """The outcome of all cases.

    Attributes:
        table: for the terminal.
        sentence: the share, in one line.
        section: Markdown for docs/coverage.md.
        is_right: whether every case came out right.
    """

    table: Table
    sentence: str
    section: str
    is_right: bool
