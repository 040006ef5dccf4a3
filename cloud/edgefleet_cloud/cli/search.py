"""`edgefleet search`: the best variant of a version for each board of the fleet."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import jobs, output
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.models import Model, VersionArgument
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching import options

_COLUMNS = ("board", "variant", "bytes", "sent", "score", "reason")
_FORMS = ("html", "md", "json")


def search(
    ctx: typer.Context,
    model: Model,
    version: VersionArgument,
    to: Annotated[
        str, typer.Option(help="Devices whose boards and runtimes are aimed at: all, board:rpi4.")
    ] = "all",
    board: Annotated[
        list[str] | None, typer.Option(help="Board to aim at instead; repeatable.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="On each --board, like onnxruntime==1.20; the newest by default."),
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
    variant: Annotated[
        list[str] | None, typer.Option(help="Try only this; may be repeated.")
    ] = None,
    trials: options.Trials = 24,
    out: Annotated[Path | None, typer.Option(help="Folder for the report's files.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the version is registered.")] = True,
    json_flag: JsonFlag = False,
) -> None:
    """Find the best variant for each board and register them as a new version.

    Exits with 1 if a board got none.
    """
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
    if runtime and not board:
        raise CliError(
            "--runtime is for boards named with --board; devices say what they have",
            ExitCode.USAGE,
        )
    client = connect(ctx)
    body = {
        "to": to,
        "boards": [{"name": name, "runtimes": runtime or []} for name in board or []],
        "budgets": _read(budgets) | given,
        "variants": variant or None,
        "trials": trials,
    }
    job = client.post(f"/v1/models/{model}/versions/{version}/search", body)
    if not wait:
        output.show(job, ("id", "kind", "state"), json_flag)
        return
    result = jobs.follow(client, job["id"])["result"]
    if out is not None:
        _save(client, result["run"], out)
    output.show(result if json_flag else _rows(result), _COLUMNS, json_flag)
    if not json_flag:
        output.console().print(_next(result, out), markup=False, highlight=False, soft_wrap=True)
    without = [choice["board"] for choice in result["choices"] if choice["chosen"] is None]
    if without:
        raise CliError(f"no variant for {', '.join(without)}")


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    from edgefleet_converters.searching import budgets

    try:
        return budgets.read(file)
    except BadInputError as error:
        raise CliError(str(error), ExitCode.USAGE) from error


def _save(client: Client, run: int, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form in _FORMS:
            with (folder / f"report.{form}").open("wb") as file:
                file.writelines(client.stream(f"/v1/runs/{run}/report", form=form))
    except OSError as error:
        raise CliError(
            f"{folder} cannot be written: {error.strerror or error}; the report stays at the hub"
        ) from error


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each board."""
    made = {variant["name"]: variant for variant in result["variants"]}
    rows = []
    for choice in result["choices"]:
        variant = made.get(choice["chosen"], {})
        rows.append(
            {
                "board": choice["board"],
                "variant": choice["chosen"],
                "bytes": variant.get("bytes"),
                "sent": variant.get("transfer_bytes"),
                "score": variant.get("score"),
                "reason": "; ".join([choice["reason"], *choice["notes"]]),
            }
        )
    return rows


def _next(result: dict[str, Any], out: Path | None) -> str:
    report = (
        f"`edgefleet search … --out FOLDER` or /v1/runs/{result['run']}/report"
        if out is None
        else str(out / "report.html")
    )
    name = f"{result['model']} {result['version']}"
    return (
        f"registered as {name}; what was tried and why it lost: {report}; to release it:"
        f" `edgefleet models approve {name}`"
    )
