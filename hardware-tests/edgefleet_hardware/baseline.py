"""Regressions: a result document against that of the last release. Decisions only.

The baseline is an earlier result document as it was written; there is no second format. Cells are
matched by case and target (runtime release, processor, board). A model is worse if it

1. was right and is not any more,
2. is bigger by more than allowed, or its process needs more memory by more than allowed,
3. finds the right class in fewer rows (labels if there are any, else golden vectors),
4. is slower: even the lower end of its median's interval is above the upper end of the old one's,
   by more than allowed. Two medians that only differ by chance are not a regression.

What the baseline does not know is told, never passed over in silence.
"""

from msgspec import Struct, field

from edgefleet_converters.searching.medians import of_median
from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.results import Cell, Document
from edgefleet_hardware.targets import About

# Figures are shares of counts; their difference carries rounding errors.
_ROUNDING = 1e-9


class Allowed(Struct, frozen=True):
    """How much worse a model may become: shares of the old figure, and points of the share right.

    Attributes:
        slower: 0.1 is about what the same board differs by from day to day.
        bigger: of the model file.
        more_memory: of the peak of resident memory; allocators round up.
        drop: of accuracy or agreement, 0.005 for half a point.
    """

    slower: float = 0.1
    bigger: float = 0.02
    more_memory: float = 0.2
    drop: float = 0.0


class Change(Struct, frozen=True):
    """One figure that became worse."""

    case: str
    target: str
    what: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.case} on {self.target}: {self.what}: {self.before} before, {self.now} now"


class Comparison(Struct, frozen=True):
    """What became worse, and what could not be compared."""

    regressions: list[Change] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def compare(document: Document, baseline: Document, allowed: Allowed) -> Comparison:
    """Compare a run with an earlier one.

    Raises:
        BadUseError: they have no target in common: the baseline is of other boards or releases.
    """
    held = {(cell.case, cell.target): cell for cell in baseline.cells}
    known = {cell.target for cell in baseline.cells}
    targets = {cell.target for cell in document.cells}
    if not targets & known:
        raise BadUseError(
            f"the baseline is of {_names(known)}; this run is of {_names(targets)}: give the"
            " document of the same target"
        )
    regressions: list[Change] = []
    missing: list[str] = []
    for cell in document.cells:
        old = held.get((cell.case, cell.target))
        if old is None or old.outcome is None:
            missing.append(f"{cell.case} on {cell.target}")
        else:
            changes = _changes(old, old.outcome, cell, allowed)
            regressions += [
                Change(cell.case, str(cell.target), what, before, now)
                for what, before, now in changes
            ]
    return Comparison(regressions, missing)


def _names(targets: set[About]) -> str:
    return ", ".join(sorted(map(str, targets))) or "nothing"


def _changes(old: Cell, was: Outcome, cell: Cell, allowed: Allowed) -> list[tuple[str, str, str]]:
    """Return (what, before, now) of everything that became worse."""
    now = cell.outcome
    if now is None:
        return [("could be tried", "yes", f"no: {cell.untried}")] if was.is_right else []
    if was.is_right and not now.is_right:
        return [("outcome", was.kind, f"{now.kind}: {now.detail}")]
    found = []
    if cell.size_bytes > old.size_bytes * (1 + allowed.bigger):
        found.append(("bytes", f"{old.size_bytes:,}", f"{cell.size_bytes:,}"))
    peaks = was.memory_peak_bytes, now.memory_peak_bytes
    if peaks[0] and peaks[1] and peaks[1] > peaks[0] * (1 + allowed.more_memory):
        found.append(("peak memory in bytes", f"{peaks[0]:,}", f"{peaks[1]:,}"))
    shares = (("accuracy", was.accuracy, now.accuracy), ("agreement", was.agreement, now.agreement))
    for name, before, after in shares:
        if before is not None and after is not None and before - after > allowed.drop + _ROUNDING:
            found.append((name, f"{before:.2%}", f"{after:.2%}"))
    if was.samples_us and now.samples_us:
        past, present = of_median(was.samples_us), of_median(now.samples_us)
        if present.low > past.high * (1 + allowed.slower):
            found.append(("median µs", f"{past.point:,.1f}", f"{present.point:,.1f}"))
    return found
