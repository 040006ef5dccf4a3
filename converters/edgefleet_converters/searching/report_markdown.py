"""The report of a search as Markdown, for merge requests and terminals. Pure."""

from collections.abc import Iterable

from edgefleet_converters.searching.candidates import Candidate
from edgefleet_converters.searching.choice import Choice
from edgefleet_converters.searching.found import Found, budget_words, loss_words


def markdown(found: Found) -> str:
    """Return the report."""
    lines = [
        f"# {found.model} {found.version}: which variant for which board",
        "",
        *_boards(found),
        "",
        "## Everything that was tried",
        "",
        *_tried(found),
        "",
        "## Why the others lost",
        "",
        *_lost(found),
        "",
    ]
    if found.unmade:
        lines += ["## What could not be made", ""]
        lines += [f"- `{made.name}`: {_one_line(made.reason)}" for made in found.unmade]
        lines.append("")
    lines += ["## How", "", *(f"- {_one_line(note)}" for note in found.how), ""]
    return "\n".join(lines)


def _boards(found: Found) -> Iterable[str]:
    yield "| board | variant | bytes | drop (interval) | why |"
    yield "|---|---|---:|---|---|"
    for choice in found.choices:
        yield _row(_board(found, choice))


def _board(found: Found, choice: Choice) -> list[str]:
    why = "; ".join([choice.reason, *choice.notes])
    if choice.chosen is None:
        return [choice.title, "**none**", "", "", why]
    chosen = found.candidate(choice.chosen)
    return [choice.title, f"**{chosen.name}**", f"{chosen.size_bytes:,}", loss_words(chosen), why]


def _tried(found: Found) -> Iterable[str]:
    yield "Budgets: " + "; ".join(budget_words(found.plan.general)) + "."
    yield ""
    yield (
        f"| variant | bytes | sent | drop of {found.metric} | p50 µs | p90 | p99 | × float32 |"
        " memory | on the front |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---|---:|---|"
    front = found.front
    for candidate in found.candidates:
        yield _row(_figures(candidate, candidate.name in front))


def _figures(candidate: Candidate, on_front: bool) -> list[str]:
    latency = candidate.latency_us
    ratios = [f"{ratio.point:.2f}" for ratio in candidate.against.values()]
    return [
        f"`{candidate.name}`",
        f"{candidate.size_bytes:,}",
        f"{candidate.transfer_bytes:,}",
        loss_words(candidate),
        f"{latency.p50:,.1f}",
        f"{latency.p90:,.1f}",
        f"{latency.p99:,.1f}",
        ", ".join(ratios),
        f"{candidate.memory_peak_bytes:,}",
        "yes" if on_front else "",
    ]


def _lost(found: Found) -> Iterable[str]:
    for candidate in found.candidates:
        for boards, reasons in found.why_lost(candidate):
            where = "" if len(boards) == len(found.choices) else f" ({', '.join(boards)})"
            yield f"- `{candidate.name}`{where}: {_one_line('; '.join(reasons))}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
