"""`edgefleet-convert search`: the best variant for each board, under budgets, with a report."""

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from edgefleet_converters.cli.app import (
    FAILED,
    JsonFlag,
    app,
    fail,
    metric_of,
    model_name,
    progress_bar,
    split,
)
from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_converters.searching import options
from edgefleet_converters.sources import PICKLE_WARNING
from edgefleet_converters.verification.truth import METRICS

if TYPE_CHECKING:
    from edgefleet_converters.searching.budgets import BudgetPlan
    from edgefleet_converters.searching.found import Found
    from edgefleet_converters.searching.space import Space
    from edgefleet_converters.searching.targets import Target

# Of the extra `search`.
_LIBRARIES = ("matplotlib", "optuna")


@app.command(
    help="Find the best variant of a model for each board, under budgets.\n\n"
    "Writes bundles of the chosen variants and report.html, report.md, report.json. Exits with 1 if"
    f" a board got no variant. Note: {PICKLE_WARNING}."
)
def search(
    model: Annotated[Path, typer.Argument(help="Model file, or SavedModel folder.")],
    sample: Annotated[Path, typer.Option(help="CSV, Parquet or .npz of training rows.")],
    out: Annotated[Path, typer.Option(help="Folder for the reports and bundles.")],
    board: Annotated[
        list[str], typer.Option(help="Board, or a profile of your own (.toml); repeatable.")
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="On every board, like onnxruntime==1.18; the newest by default."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column or array that holds the right answer.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column or array that says which rows belong together.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Rows the model has not seen, with the label.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help=f"By which variants are judged: {', '.join(METRICS)}.")
    ] = None,
    score_output: Annotated[
        str | None, typer.Option(help="Output of the model that holds the scores.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in output order, by commas.")
    ] = None,
    budgets: options.BudgetFile = None,
    max_drop: options.MaxDrop = None,
    max_bytes: options.MaxBytes = None,
    max_transfer_bytes: options.MaxTransferBytes = None,
    max_latency_us: options.MaxLatencyUs = None,
    max_memory_mib: options.MaxMemoryMib = None,
    evidence: options.EvidenceKind = None,
    confidence: options.Confidence = None,
    prefer: options.Preference = None,
    measurements: Annotated[
        list[Path] | None, typer.Option(help="Figures from boards, by edgefleet-compat.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Built-in recipes to try, by commas; all by default.")
    ] = None,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Recipe file (YAML), tried too; repeatable.")
    ] = None,
    space: Annotated[
        list[Path] | None, typer.Option(help="Space file (YAML), instead of the built-in ones.")
    ] = None,
    trials: options.Trials = 24,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keeps results; ~/.cache/edgefleet/search, or under EDGEFLEET_CACHE."),
    ] = None,
    all_bundles: Annotated[
        bool, typer.Option(help="Also write the variants that lost, to measure them on boards.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's name by default.")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    seed: Annotated[int, typer.Option(help="Of the hold-out, the training and the sampler.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Find the best variant of a model for each board."""
    from edgefleet_converters.conversion import ConversionRequest
    from edgefleet_converters.recipes import recipe as recipes
    from edgefleet_converters.searching import measurements as figures
    from edgefleet_converters.searching import report, study

    try:
        _require_libraries()
        conversion = ConversionRequest(
            str(model),
            str(sample),
            label,
            str(holdout) if holdout else None,
            split(variants),
            split(classes),
            seed=seed,
            recipes=[recipes.read(path) for path in recipe or ()],
            metric=metric_of(metric),
            group=group,
            score_output=score_output,
        )
        given = options.given(
            max_drop=max_drop,
            max_bytes=max_bytes,
            max_transfer_bytes=max_transfer_bytes,
            max_latency_us=max_latency_us,
            max_memory_mib=max_memory_mib,
            evidence=evidence,
            confidence=confidence,
            prefer=prefer,
        )
        request = study.SearchRequest(
            conversion,
            model_name(name or model.stem.lower()),
            version,
            _targets(board, runtime or []),
            _plan(budgets, given),
            _spaces(space),
            trials,
            [figures.read(path) for path in measurements or ()],
            str(cache or _default_cache()),
        )
        with progress_bar("searching") as progress:
            searched = study.search(request, progress)
        report.write(searched, out, all_bundles=all_bundles)
    except ConversionError as error:
        fail(error, as_json)
    if as_json:
        print(json.dumps(report.as_json(searched.found), indent=2))
    else:
        _show(searched.found, out)
    if any(choice.chosen is None for choice in searched.found.choices):
        raise typer.Exit(FAILED)


def _require_libraries() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInputError(
            f"the search needs {' and '.join(missing)}; install edgefleet-converters[search]"
        )


def _targets(names: list[str], runtimes: list[str]) -> "list[Target]":
    from edgefleet_converters.compatibility import boards, releases
    from edgefleet_converters.searching import targets

    asked = [releases.asked(text) for text in runtimes]
    found = {profile.name: targets.target(profile, asked) for profile in map(boards.find, names)}
    return list(found.values())


def _plan(file: Path | None, given: dict[str, Any]) -> "BudgetPlan":
    from edgefleet_converters.searching import budgets

    if file is None:
        return budgets.plan({}, given, "command line")
    return budgets.plan(budgets.read(file), given, str(file))


def _spaces(files: list[Path] | None) -> "list[Space]":
    from edgefleet_converters.searching import space

    if files is None:
        return list(space.builtin().values())
    return [space.read(file) for file in files]


def _default_cache() -> Path:
    root = os.environ.get("EDGEFLEET_CACHE") or Path.home() / ".cache" / "edgefleet"
    return Path(root) / "search"


def _show(found: "Found", out: Path) -> None:
    from edgefleet_converters.searching.found import loss_words

    table = RichTable(title=f"{found.model} {found.version}")
    for column in ("board", "variant", "bytes", f"drop of {found.metric}"):
        table.add_column(column, justify="right" if column == "bytes" else "left", no_wrap=True)
    for choice in found.choices:
        chosen = None if choice.chosen is None else found.candidate(choice.chosen)
        figures = ("", "") if chosen is None else (f"{chosen.size_bytes:,}", loss_words(chosen))
        table.add_row(choice.board, choice.chosen or "none", *figures)
    console = Console()
    console.print(table)
    texts = [f"{c.board}: {'; '.join([c.reason, *c.notes])}" for c in found.choices]
    texts.append(
        f"{len(found.candidates)} variants ran; why each lost stands in {out / 'report.html'}"
    )
    for text in texts:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
