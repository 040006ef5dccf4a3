"""Regressions: a result document against that of the last release. Decisions only.

The baseline is an earlier result document as it was written; there is no second format. Cells are
matched by case and target (runtime release, processor, board). A model is worse if it

1. was right and is not any more,
2. is bigger by more than allowed, or its process needs more memory by more than allowed,
3. finds the right class in fewer rows (labels if there are any, else golden vectors),
4. is slower by more than allowed, as `loads.is_slower` tells from the fresh loads of both runs.

What the baseline does not know, what is too little to be compared, and a processor that ran at
another pace are told, never passed over in silence.
"""

from collections.abc import Iterable
from statistics import median

from msgspec import Struct, field

from edgefleet_hardware import loads
from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.results import Cell, Document
from edgefleet_hardware.targets import About

# Figures are shares of counts; their difference carries rounding errors.
_ROUNDING = 1e-9
# Of a processor that ran so much faster or slower a reader must know.
_UNEQUAL_PACE = 0.1


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
    """What became worse, what could not be compared, and what a reader must know of the times."""

    regressions: list[Change] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    notes: list[str] = []
    paces: dict[About, list[float]] = {}
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
            notes += _untimed(old.outcome, cell)
            paces.setdefault(cell.target, []).extend(_pace(old.outcome, cell.outcome))
    return Comparison(regressions, missing, [*notes, *_unequal(paces)])


def _untimed(was: Outcome, cell: Cell) -> list[str]:
    """Tell of times that are there, and of too few loads to be compared."""
    now = cell.outcome
    if now is None or not now.is_right or not (was.samples_us or now.samples_us):
        return []
    if min(len(was.loads), len(now.loads)) >= loads.LEAST:
        return []
    counts = f"fresh loads were {len(was.loads)} before and are {len(now.loads)} now"
    what = f"{cell.case} on {cell.target}"
    return [f"{what}: times are not compared: {counts}; {loads.LEAST} tell an interval"]


def _pace(was: Outcome, now: Outcome | None) -> list[float]:
    """Return how much longer the same work took than before, where both are known."""
    past, present = loads.pace_us(was.loads), loads.pace_us(now.loads if now else [])
    return [] if past is None or present is None else [present.point / past.point]


def _unequal(paces: dict[About, list[float]]) -> Iterable[str]:
    for target, ratios in paces.items():
        ratio = median(ratios) if ratios else 1.0
        if max(ratio, 1 / ratio) > 1 + _UNEQUAL_PACE:
            yield (
                f"{target}: the processor took {ratio:.2f} times as long for the same work as in"
                " the baseline; give the board a fixed clock, or take the baseline anew"
            )


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
    past, present = loads.cpu_us(was.loads), loads.cpu_us(now.loads)
    if past and present and loads.is_slower(now.loads, was.loads, allowed.slower):
        found.append(("processor time in µs", f"{past.point:,.1f}", f"{present.point:,.1f}"))
    return found
