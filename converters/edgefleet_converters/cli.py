"""Command line `edgefleet-convert`: convert a model here, verify a bundle on this runtime.

Exit codes: 0 done, 1 the model or bundle failed, 2 wrong use or input that cannot be read.
"""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table as RichTable

from edgefleet_converters import bundles, child, verify
from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_converters.exports import Made
from edgefleet_converters.sources import PICKLE_WARNING
from edgefleet_protocol import identifiers, profiles
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Lineage, Runtime
from edgefleet_protocol.profiles import DeviceProfile

if TYPE_CHECKING:
    from edgefleet_converters.conversion import ConversionRequest, ConversionResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Convert, compress and verify models for small devices.",
)
FAILED, BAD_INPUT = 1, 2
_DISTRIBUTIONS: dict[Runtime, list[str]] = {
    "onnxruntime": ["onnxruntime"],
    "litert": ["ai-edge-litert", "tflite-runtime"],
}
_errors = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(
    help="Convert a model into verified bundles for devices.\n\n"
    "MODEL is a .skops, .joblib, .pkl, .keras or .onnx file. Note: " + PICKLE_WARNING + "."
)
def convert(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    sample: Annotated[
        Path, typer.Option(help="CSV or Parquet of training rows: reference and calibration.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the bundles and report.json.")],
    label: Annotated[
        str | None, typer.Option(help="Column of the sample that holds the right answer.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Rows the model has not seen, with the label.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Names, separated by commas; all that apply by default.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in output order, by commas.")
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Share of weights pruned to zero.")] = 0.5,
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

    request = ConversionRequest(
        str(model),
        str(sample),
        label,
        str(holdout) if holdout else None,
        _split(variants),
        _split(classes),
        sparsity=sparsity,
        seed=seed,
        budget=DeviceBudget(max_latency_us, max_memory_mib * 2**20),
    )
    try:
        title = _model_name(name or model.stem.lower())
        result = _convert_with_bar(request)
        report = _write(result, out, title, version)
    except ConversionError as error:
        _fail(error, as_json)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report, out)


@app.command("verify")
def verify_bundle(
    bundle_dir: Annotated[Path, typer.Argument(help="Folder with manifest.json and its blobs.")],
    as_json: JsonFlag = False,
) -> None:
    """Run a bundle's golden vectors on the runtime that is installed here."""
    try:
        report = _verify(bundle_dir)
    except ConversionError as error:
        _fail(error, as_json)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        outcome = "reproduces" if report["verified"] else "does NOT reproduce"
        print(
            f"{report['model']} {report['version']} {report['variant']}: {report['runtime']}"
            f" {report['runtime_version']} {outcome} its golden vectors"
        )
        for fault in report["faults"]:
            print(f"  {fault}")
    if not report["verified"]:
        raise typer.Exit(FAILED)


def _convert_with_bar(request: "ConversionRequest") -> "ConversionResult":
    from edgefleet_converters.pipeline import convert as convert_model

    with ProgressBar(console=_errors, transient=True) as bar:
        task = bar.add_task("converting", total=1.0)
        return convert_model(
            request,
            lambda fraction, text: bar.update(task, completed=fraction, description=text),
        )


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


def _verify(folder: Path) -> dict[str, Any]:
    bundle = bundles.load(folder)
    described = bundle.manifest
    runtime = described.needs.runtime
    version = _installed(runtime)
    profile = DeviceProfile("", {} if version is None else {runtime: version}, sys.maxsize)
    needs = msgspec.structs.replace(described.needs, boards=[])  # no board is asked about here
    faults = profiles.misfits(needs, profile)
    if version is not None:
        made = Made(bundle.unpack("model"), described.signature, needs.runtime_min)
        try:
            faults += child.run(
                f"running {folder}",
                verify.golden_faults,
                runtime,
                made,
                bundle.unpack("golden"),
                returns=list[str],
            )
        except ConversionError as error:
            faults.append(str(error))
    return {
        "model": described.model,
        "version": described.model_version,
        "variant": described.variant,
        "runtime": runtime,
        "runtime_version": version,
        "verified": not faults,
        "faults": faults,
    }


def _installed(runtime: Runtime) -> str | None:
    """Return the version of a runtime here; None if it is not installed."""
    for distribution in _DISTRIBUTIONS[runtime]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _show(report: dict[str, Any], out: Path) -> None:
    table = RichTable(title=f"{report['model']} {report['version']} ({report['task']})")
    for column in ("variant", "state", "bytes", "sent", "score", "off by", "agrees", "µs", "why"):
        table.add_column(column, justify="left" if column in ("variant", "why") else "right")
    for variant in report["variants"]:
        measured = variant["measured"] or {}
        score = measured.get("score")
        table.add_row(
            variant["name"],
            variant["state"],
            f"{variant['bytes']:,}",
            f"{variant.get('transfer_bytes', 0):,}",
            "-" if score is None else f"{score:.4f}",
            f"{measured['parity_max']:.2g}" if measured else "-",
            f"{measured['agreement']:.2%}" if measured else "-",
            f"{measured['latency_us']:.0f}" if measured else "-",
            variant["reason"],
        )
    console = Console()
    console.print(table)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
    console.print(f"original on held-out rows: {figures or 'not scored (no label)'}")
    console.print(f"bundles and report.json are in {out}")


def _model_name(text: str) -> str:
    try:
        return identifiers.model_name(text)
    except MalformedError as error:
        raise BadInputError(f"{error}; give one with --name") from error


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _fail(error: ConversionError, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": str(error)}))
    else:
        _errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_INPUT if isinstance(error, BadInputError) else FAILED) from error
