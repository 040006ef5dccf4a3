"""The result document: what was tried, what the static check said, what happened. Format version 2.

Version 1 is read as well. It has times of one load only, which are shown and not compared.

Everything that reports (tables, Markdown, JUnit, baselines) is made from it. Exit codes: 0 right, 1
not right, 2 wrong use, 3 something could not be tried, which never counts as success.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct, field

from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.targets import About

VERSION = 2
_READ = (1, VERSION)
RIGHT, NOT_RIGHT, WRONG_USE, UNTRIED = 0, 1, 2, 3


class Told(Struct, frozen=True, omit_defaults=True):
    """What the static check said before the run.

    Attributes:
        fits: whether nothing speaks against it.
        reasons: everything that does.
    """

    fits: bool
    reasons: list[str] = field(default_factory=list)


class Cell(Struct, frozen=True, omit_defaults=True):
    """One case on one target.

    Attributes:
        case: its name.
        sha256: of the model file.
        size_bytes: of the model file.
        target: where it was tried.
        told: what the static check said; None where it was not asked.
        outcome: what happened; None where the target could not be tried, see `untried`.
        untried: why not.
    """

    case: str
    sha256: str
    size_bytes: int
    target: About
    told: Told | None = None
    outcome: Outcome | None = None
    untried: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the static check and the run say the same; False where one of them is missing."""
        return (
            self.told is not None
            and self.outcome is not None
            and self.told.fits == self.outcome.is_right
        )

    @property
    def is_broken_promise(self) -> bool:
        """Whether the check said that the model fits, and it did not come out right."""
        return (
            self.told is not None
            and self.told.fits
            and self.outcome is not None
            and not self.outcome.is_right
        )


class Document(Struct, frozen=True):
    """A whole run.

    Attributes:
        cells: in the order of their targets, then as the cases were given.
    """

    cells: list[Cell]
    version: int = VERSION


class Count(Struct, frozen=True):
    """How often the static check and the run agreed.

    Attributes:
        cells: that were asked for.
        tried: of them, that were really run.
        agreeing: of them.
        disagreeing: the cells in which they did not, broken promises first.
        broken_promises: how many cells said "fits" and were not right.
    """

    cells: int
    tried: int
    agreeing: int
    disagreeing: list[Cell]
    broken_promises: int


def count(cells: Iterable[Cell]) -> Count:
    """Count agreement over cells."""
    listed = list(cells)
    tried = [cell for cell in listed if cell.outcome is not None]
    apart = [cell for cell in tried if not cell.agrees]
    apart.sort(key=lambda cell: not cell.is_broken_promise)
    return Count(
        len(listed),
        len(tried),
        len(tried) - len(apart),
        apart,
        sum(cell.is_broken_promise for cell in tried),
    )


def exit_code(cells: Sequence[Cell], *, is_told_only: bool = False) -> int:
    """Return what cells come to: a failure outweighs what could not be tried.

    Args:
        cells: of a run.
        is_told_only: whether nothing was to be run, so that the static check decides.
    """
    if is_told_only:
        return (
            RIGHT if all(cell.told is not None and cell.told.fits for cell in cells) else NOT_RIGHT
        )
    if any(cell.outcome is not None and not cell.outcome.is_right for cell in cells):
        return NOT_RIGHT
    return UNTRIED if any(cell.outcome is None for cell in cells) else RIGHT


def encode(document: Document) -> bytes:
    """Return the document as JSON: equal documents give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1) + b"\n"


def decode(data: bytes) -> Document:
    """Read a document.

    Raises:
        BadUseError: it is none, or of a version that is not read.
    """
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadUseError(f"no result document: {error}") from error
    if document.version not in _READ:
        versions = " or ".join(map(str, _READ))
        raise BadUseError(f"result document version {document.version}: expected {versions}")
    return document
