"""Markdown summary of a result document: what a person reads on the page of a CI job."""

from itertools import groupby

from edgefleet_hardware import loads
from edgefleet_hardware.baseline import Comparison
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.results import Cell, Document

_MAX_DETAIL = 200


def markdown(document: Document, compared: Comparison | None = None) -> str:
    """Return a table for each target, what failed first, and the comparison with a baseline."""
    cells = document.cells
    right = sum(cell.outcome is not None and cell.outcome.is_right for cell in cells)
    untried = sum(cell.outcome is None for cell in cells)
    lines = ["## edgefleet-compat", ""]
    lines.append(f"{right} of {len(cells)} right, {untried} could not be tried.")
    if compared is not None:
        lines += ["", *(f"- {_cell(line)}" for line in comparison(compared))]
    for target, group in groupby(cells, key=lambda cell: cell.target):
        lines += ["", f"### {_cell(str(target))}", ""]
        lines += ["| model | outcome | p50 µs (95 %) | p99 µs | peak MiB | °C | said |"]
        lines += ["|---|---|--:|--:|--:|--:|---|"]
        lines += [_row(cell) for cell in sorted(group, key=_is_right)]
    return "\n".join(lines) + "\n"


def _is_right(cell: Cell) -> bool:
    return cell.outcome is not None and cell.outcome.is_right


def _row(cell: Cell) -> str:
    outcome = cell.outcome
    if outcome is None:
        return f"| {_cell(cell.case)} | not tried | – | – | – | – | {_cell(cell.untried)} |"
    latency, peak, heat = outcome.latency_us, outcome.memory_peak_bytes, outcome.temperature_c
    figures = [
        "–" if latency is None else f"{_time(latency.p50)}{_between(outcome)}",
        "–" if latency is None else _time(latency.p99),
        "–" if peak is None else f"{peak / 2**20:,.0f}",
        "–" if heat is None else f"{heat:.0f}",
    ]
    kind = outcome.kind if outcome.is_right else f"**{outcome.kind}**"
    told = ""
    if cell.told is not None and not cell.told.fits:
        told = "; the static check refuses it: " + "; ".join(cell.told.reasons)
    return (
        f"| {_cell(cell.case)} | {kind} | {' | '.join(figures)} | {_cell(outcome.detail + told)} |"
    )


def comparison(found: Comparison) -> list[str]:
    """Return what a comparison with a baseline says, a line each."""
    lines = [f"worse: {change}" for change in found.regressions]
    lines += [f"not in the baseline: {text}" for text in found.missing]
    lines = lines or ["nothing is worse than in the baseline"]
    return [*lines, *(f"note: {text}" for text in found.notes)]


def _between(outcome: Outcome) -> str:
    """Return the ends of the interval over loads, where there are enough."""
    interval = loads.clock_us(outcome.loads)
    return "" if interval is None else f" ({_time(interval.low)}–{_time(interval.high)})"


def _time(time_us: float) -> str:
    """Return µs with as many digits as a change of some per cent needs."""
    return f"{time_us:,.0f}" if time_us >= 100 else f"{time_us:.1f}"


def _cell(text: str) -> str:
    """Return text that cannot leave its cell of a table, nor become markup or a mention."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= _MAX_DETAIL else flat[: _MAX_DETAIL - 1] + "…"
    for sign in "\\`*_[]<>|@":
        short = short.replace(sign, f"&#{ord(sign)};")
    return short
