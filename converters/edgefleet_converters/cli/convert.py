"""`edgefleet-convert convert`: a model into verified bundles, with a report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table as RichTable

from edgefleet_converters import bundles
from edgefleet_converters.cli.app import (
    JsonFlag,
    app,
    fail,
    metric_of,
    model_name,
    progress_bar,
    split,
)
from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.sources import KINDS, PICKLE_WARNING
from edgefleet_converters.verification.truth import METRICS
from edgefleet_protocol.manifest import Lineage

if TYPE_CHECKING:
    from edgefleet_converters.conversion import ConversionRequest, ConversionResult


@app.command(
    help="Convert a model into verified bundles for devices.\n\n"
    f"MODEL is a file ({', '.join(KINDS)}) or a SavedModel folder. Note: {PICKLE_WARNING}."
)
def convert(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    sample: Annotated[
        Path,
        typer.Option(help="CSV, Parquet or .npz of training rows: reference and calibration."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the bundles and report.json.")],
    label: Annotated[
        str | None, typer.Option(help="Column or array that holds the right answer.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column or array that says which rows belong together.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Rows the model has not seen, with the label.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(help="Names of recipes, by commas; the usual ones that apply by default."),
    ] = None,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Recipe file (YAML), made too; repeatable.")
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
    sparsity: Annotated[
        float | None, typer.Option(help="Share of weights pruned to zero, for pruned variants.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's name by default.")
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    seed: Annotated[int, typer.Option(help="Of the hold-out and the fine-tuning.")] = 0,
    max_latency_us: Annotated[
        int, typer.Option(min=0, help="Of one row on a device, which else refuses; 0 for any.")
    ] = 0,
    max_memory_mib: Annotated[
        int, typer.Option(min=0, help="That the model may add on a device; 0 for any.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Convert a model into verified bundles."""
    from edgefleet_converters.conversion import ConversionRequest, DeviceBudget

    try:
        request = ConversionRequest(
            str(model),
            str(sample),
            label,
            str(holdout) if holdout else None,
            split(variants),
            split(classes),
            sparsity=sparsity,
            seed=seed,
            budget=DeviceBudget(max_latency_us, max_memory_mib * 2**20),
            recipes=[recipes_of.read(path) for path in recipe or ()],
            metric=metric_of(metric),
            group=group,
            score_output=score_output,
        )
        title = model_name(name or model.stem.lower())
        result = _convert_with_bar(request)
        report = _write(result, out, title, version)
    except ConversionError as error:
        fail(error, as_json)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report, out)


def _convert_with_bar(request: "ConversionRequest") -> "ConversionResult":
    from edgefleet_converters.pipeline import convert as convert_model

    with progress_bar("converting") as progress:
        return convert_model(request, progress)


def _write(result: "ConversionResult", out: Path, model: str, version: str) -> dict[str, Any]:
    """Write the bundles of all verified variants and `report.json`; return the report."""
    variants = []
    for compiled in result.compiled:
        entry: dict[str, Any] = {
            "name": compiled.name,
            "runtime": compiled.runtime,
            "state": compiled.state,
            "reason": compiled.reason,
            "bytes": len(compiled.model),
            "measured": msgspec.to_builtins(compiled.measured),
            "evidence": msgspec.to_builtins(compiled.evidence),
            "latency": msgspec.to_builtins(compiled.latency),
            "peak_bytes": compiled.peak_bytes,
            "notes": compiled.notes,
        }
        if compiled.state == "verified":
            bundle = bundles.write_bundle(
                compiled, result.reference, model=model, version=version, lineage=Lineage()
            )
            bundles.save(bundle, out / compiled.name)
            entry |= {
                "transfer_bytes": bundle.manifest.transfer_bytes,
                "needs": msgspec.to_builtins(bundle.manifest.needs),
                "sha256": bundle.manifest.file("model").digest,
            }
        variants.append(entry)
    report = {
        "model": model,
        "version": version,
        "task": result.task,
        "metrics": result.metrics,
        "variants": variants,
        "seconds": result.phases_s,
    }
    try:
        (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return report


def _show(report: dict[str, Any], out: Path) -> None:
    title = f"{report['model']} {report['version']} ({report['task']})"
    # Without a frame, so that all figures fit into 80 columns.
    table = RichTable(title=title, box=None, pad_edge=False, collapse_padding=True)
    for column in ("variant", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("bytes", "sent", "score", "loses", "at most", "agrees", "µs"):
        table.add_column(column, justify="right", no_wrap=True)
    for variant in report["variants"]:
        table.add_row(variant["name"], variant["state"], *_figures(variant))
    console = Console()
    console.print(table)
    for variant in report["variants"]:
        if variant["reason"]:
            text = f"{variant['name']}: {variant['reason']}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
    console.print(f"original on held-out rows: {metrics or 'not scored (no label)'}")
    console.print(f"bundles and report.json are in {out}")


def _figures(variant: dict[str, Any]) -> list[str]:
    measured, evidence = variant["measured"], variant["evidence"]
    sizes = [f"{variant['bytes']:,}", f"{variant.get('transfer_bytes', 0):,}"]
    if measured is None or evidence is None:
        return sizes
    score, drop = measured.get("score"), evidence["drop"]
    return [
        *sizes,
        "-" if score is None else f"{score:.4f}",
        f"{drop['point']:.4f}",
        f"{drop['high']:.4f}",
        f"{measured['agreement']:.2%}",
        f"{measured['latency_us']:.0f}",
    ]
