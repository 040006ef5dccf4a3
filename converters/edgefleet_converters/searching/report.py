"""Write what a search found: `report.json`, `report.md`, `report.html`, and the bundles."""

from pathlib import Path

import msgspec
from msgspec import structs

from edgefleet_converters import bundles
from edgefleet_converters.conversion import Compiled
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching.choice import chosen_for
from edgefleet_converters.searching.found import Found
from edgefleet_converters.searching.report_html import html
from edgefleet_converters.searching.report_markdown import markdown
from edgefleet_converters.searching.study import Searched
from edgefleet_protocol.manifest import Lineage, Needs

BUNDLES, TRIED = "bundles", "tried"


def write(searched: Searched, out: Path, *, all_bundles: bool = False) -> list[Path]:
    """Write the reports, and a bundle for each variant that a board gets.

    Args:
        searched: by `study.search`.
        out: folder, which is made: `bundles/VARIANT`, and the three reports.
        all_bundles: also write all other sound variants, as `tried/VARIANT`, to be measured on
            boards.

    Returns:
        The folders of the bundles.

    Raises:
        BadInputError: the folder cannot be written.
    """
    found = searched.found
    won = {compiled.name for compiled in chosen(searched)}
    written = []
    for compiled in [*chosen(searched), *(_lost(searched) if all_bundles else ())]:
        folder = out / (BUNDLES if compiled.name in won else TRIED) / compiled.name
        _write_bundle(searched, compiled, folder)
        written.append(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for form, text in texts(found).items():
            (out / f"report.{form}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return written


def texts(found: Found) -> dict[str, str]:
    """Return the reports: `json`, `md` and `html`."""
    return {
        "json": msgspec.json.format(msgspec.json.encode(as_json(found)), indent=2).decode(),
        "md": markdown(found),
        "html": html(found),
    }


def chosen(searched: Searched) -> list[Compiled]:
    """Return the variants that a board gets, bound to their boards and budgets."""
    boards = chosen_for(searched.found.choices)
    return [
        _bound(searched, candidate.name, boards[candidate.name])
        for candidate in searched.found.sound
        if candidate.name in boards
    ]


def as_json(found: Found) -> dict[str, object]:
    """Return what was found as JSON can hold it, with the front."""
    values: dict[str, object] = msgspec.to_builtins(found)
    return values | {"front": found.front}


def _lost(searched: Searched) -> list[Compiled]:
    boards = chosen_for(searched.found.choices)
    return [
        _bound(searched, candidate.name, [])
        for candidate in searched.found.sound
        if candidate.name not in boards
    ]


def _bound(searched: Searched, name: str, boards: list[str]) -> Compiled:
    compiled = searched.compiled[name]
    assert compiled.needs is not None  # sound candidates ran
    return structs.replace(compiled, needs=_needs(searched.found, compiled.needs, boards))


def _write_bundle(searched: Searched, compiled: Compiled, folder: Path) -> None:
    bundle = bundles.write_bundle(
        compiled,
        searched.reference,
        model=searched.found.model,
        version=searched.found.version,
        lineage=Lineage(),
    )
    bundles.save(bundle, folder)


def _needs(found: Found, needs: Needs, boards: list[str]) -> Needs:
    """Return needs with the boards that a variant is for, and their budgets.

    A bundle goes to several boards; of their budgets it carries the loosest, so that no board
    refuses it by the budget of another. A variant that all boards get is not bound to them.
    """
    everywhere = len(boards) == len(found.choices)
    plans = [found.plan.of(board) for board in boards]
    return structs.replace(
        needs,
        boards=[] if everywhere else boards,
        max_latency_us=_loosest([budgets.max_latency_us for budgets in plans]),
        max_memory_bytes=_loosest([budgets.max_memory_bytes for budgets in plans]),
    )


def _loosest(limits: list[int]) -> int:
    return 0 if 0 in limits else max(limits, default=0)
