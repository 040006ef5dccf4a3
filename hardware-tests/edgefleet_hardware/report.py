"""Reports for people: tables on the screen and in Markdown, made from a result document."""

from collections.abc import Iterator

from rich.table import Table

from edgefleet_hardware.results import Cell, Count, Document, count
from edgefleet_hardware.targets import About

# How a cell of the grid is written: what happened, and a mark where the check said otherwise.
_SHORT = {
    "right": "right",
    "wrong": "wrong",
    "refused": "refused",
    "crashed": "crashed",
    "hung": "hung",
    "over-memory": "memory",
}
_LONGEST_DETAIL = 160
_COLUMNS = ("model", "runtime", "processor", "check", "run", "detail", "p50 µs", "p99 µs", "MiB")
# What a narrow screen must not break into pieces.
_WHOLE = ("check", "run")


def table(document: Document) -> Table:
    """Return one line a cell: for few cells."""
    made = Table()
    for name in _COLUMNS:
        made.add_column(name, no_wrap=name in _WHOLE)
    for cell in document.cells:
        outcome = cell.outcome
        latency = None if outcome is None else outcome.latency_us
        memory = None if outcome is None else outcome.memory_bytes
        made.add_row(
            cell.case,
            f"{cell.target.runtime}=={cell.target.version}",
            cell.target.processor,
            _told(cell),
            _happened(cell),
            _detail(cell),
            f"{latency.p50:.1f}" if latency else "—",
            f"{latency.p99:.1f}" if latency else "—",
            f"{memory / 2**20:.1f}" if memory is not None else "—",
        )
    return made


def grid(document: Document) -> Table:
    """Return a line for each model and runtime with a column for each processor."""
    processors = _processors(document)
    made = Table("model", "runtime", "check", *processors)
    for case, runtime, told, cells in _lines(document):
        made.add_row(case, runtime, told, *cells)
    return made


def markdown(document: Document) -> str:
    """Return the grid and the summary as a page."""
    processors = _processors(document)
    lines = ["# Compatibility matrix", "", *summary(count(document.cells)), ""]
    lines += [f"| model | runtime | check | {' | '.join(processors)} |"]
    lines += ["|" + " --- |" * (3 + len(processors))]
    for case, runtime, told, cells in _lines(document):
        lines.append(f"| {case} | {runtime} | {told} | {' | '.join(cells)} |")
    lines += ["", "## Why", ""]
    seen = set()
    for cell in document.cells:
        why = _why(cell)
        key = (cell.case, cell.target.runtime, cell.target.version, why)
        if why and key not in seen:
            seen.add(key)
            lines.append(f"- `{cell.case}` in {cell.target.runtime} {cell.target.version}: {why}")
    return "\n".join(lines) + "\n"


def summary(counted: Count) -> Iterator[str]:
    """Yield each disagreement by name, then the line of totals."""
    for cell in counted.disagreeing:
        told = "said it fits" if cell.told is not None and cell.told.fits else "refused it"
        kind = cell.outcome.kind if cell.outcome is not None else "not tried"
        yield (
            f"disagreement: {cell.case}, {cell.target}: the check {told}; it was {kind}:"
            f" {_why(cell)}"
        )
    untried = counted.cells - counted.tried
    agreement = counted.agreeing / counted.tried if counted.tried else 0.0
    yield (
        f"{counted.cells} cells, {untried} not tried; agreement {agreement:.2%}"
        f" ({counted.agreeing} of {counted.tried}); {len(counted.disagreeing)} disagreements, of"
        f" which {counted.broken_promises} broken promises (said to fit, not right)"
    )


def _processors(document: Document) -> list[str]:
    return list(dict.fromkeys(cell.target.processor for cell in document.cells))


def _lines(document: Document) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield case, runtime, what the check said, and a word for each processor."""
    processors = _processors(document)
    groups: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in document.cells:
        key = (cell.case, f"{cell.target.runtime} {cell.target.version}")
        groups.setdefault(key, {})[cell.target.processor] = cell
    for (case, runtime), cells in sorted(groups.items(), key=lambda item: _order(item[1])):
        told = " / ".join(dict.fromkeys(_told(cell) for cell in cells.values()))
        yield case, runtime, told, [_word(cells.get(name)) for name in processors]


def _order(cells: dict[str, Cell]) -> tuple[str, str, list[int]]:
    cell = next(iter(cells.values()))
    return cell.case, cell.target.runtime, _release(cell.target)


def _release(target: About) -> list[int]:
    return [int(part) for part in target.version.split(".") if part.isdigit()]


def _told(cell: Cell) -> str:
    if cell.told is None:
        return "—"
    return "fits" if cell.told.fits else "refused"


def _word(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.outcome is None:
        return "not tried"
    return _SHORT[cell.outcome.kind] + ("" if cell.agrees else " (!)")


def _happened(cell: Cell) -> str:
    if cell.outcome is not None:
        return cell.outcome.kind
    return "not tried" if cell.untried else "—"


def _detail(cell: Cell) -> str:
    if cell.untried:
        return cell.untried[:_LONGEST_DETAIL]
    if cell.outcome is not None and cell.outcome.detail:
        return cell.outcome.detail[:_LONGEST_DETAIL]
    return _why(cell)


def _why(cell: Cell) -> str:
    """Return why a cell is not simply right: the check's reasons, then the run's."""
    said = [] if cell.told is None or cell.told.fits else [f"check: {'; '.join(cell.told.reasons)}"]
    if cell.untried:
        said.append(f"not tried: {cell.untried}")
    elif cell.outcome is not None and not cell.outcome.is_right:
        said.append(f"run: {cell.outcome.kind}: {cell.outcome.detail}")
    return " — ".join(part[:_LONGEST_DETAIL] for part in said)
