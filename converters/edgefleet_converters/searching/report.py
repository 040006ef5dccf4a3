"""Write what a search found: `report.json`, `report.md`, `report.html`, and the bundles."""

from pathlib import Path

import msgspec
from msgspec import structs

from edgefleet_converters import bundles
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
    boards = chosen_for(found.choices)
    written = []
    for candidate in found.sound:
        wanted = boards.get(candidate.name)
        if wanted is None and not all_bundles:
            continue
        folder = out / (TRIED if wanted is None else BUNDLES) / candidate.name
        _write_bundle(searched, candidate.name, wanted or [], folder)
        written.append(folder)
    texts = {
        "report.json": msgspec.json.format(msgspec.json.encode(as_json(found)), indent=2).decode(),
        "report.md": markdown(found),
        "report.html": html(found),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return written


def as_json(found: Found) -> dict[str, object]:
    """Return what was found as JSON can hold it, with the front."""
    values: dict[str, object] = msgspec.to_builtins(found)
    return values | {"front": found.front}


def _write_bundle(searched: Searched, name: str, boards: list[str], folder: Path) -> None:
    compiled = searched.compiled[name]
    assert compiled.needs is not None  # sound candidates ran
    needs = _needs(searched.found, compiled.needs, boards)
    bundle = bundles.write_bundle(
        structs.replace(compiled, needs=needs),
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
