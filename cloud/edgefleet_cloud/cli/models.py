"""`edgefleet models`: versions, decisions about them, and releases."""

from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import JsonFlag

app = typer.Typer(cls=output.Group, help="Models, versions, releases.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Name of the model.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Its version.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]

_MODELS = ("name", "task", "versions", "champion", "release")
_VERSIONS = ("version", "state", "metrics", "variants", "releases")
_VARIANTS = ("name", "state", "bytes", "sent", "score", "latency µs", "runtime", "reason")


@app.command("list")
def list_models(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """List all models."""
    rows = connect(ctx).get("/v1/models")
    output.show(rows, _MODELS, json_flag, empty="no models yet; `edgefleet train` makes one")


@app.command("show")
def show_model(
    ctx: typer.Context,
    model: Model,
    version: Annotated[str | None, typer.Argument(help="One version, with its variants.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Show the versions of a model, or the variants of one version."""
    client = connect(ctx)
    if version is None:
        row = client.get(f"/v1/models/{model}")
        if json_flag:
            output.show(row, (), json_flag)
        else:
            output.show([_version(item) for item in row["history"]], _VERSIONS, json_flag)
        return
    row = client.get(f"/v1/models/{model}/versions/{version}")
    if json_flag:
        output.show(row, (), json_flag)
        return
    output.show(_version(row), ("model", "version", "state", "metrics", "releases"), json_flag)
    output.show([_variant(item) for item in row["variants"]], _VARIANTS, json_flag)


@app.command("approve")
def approve(
    ctx: typer.Context,
    model: Model,
    version: VersionArgument,
    reason: Reason = "",
    json_flag: JsonFlag = False,
) -> None:
    """Allow a version to be released."""
    _decide(ctx, model, version, "approve", reason, json_flag)


@app.command("refuse")
def refuse(
    ctx: typer.Context,
    model: Model,
    version: VersionArgument,
    reason: Reason = "",
    json_flag: JsonFlag = False,
) -> None:
    """Keep a version from being released."""
    _decide(ctx, model, version, "refuse", reason, json_flag)


@app.command("retire")
def retire(
    ctx: typer.Context,
    model: Model,
    version: VersionArgument,
    reason: Reason = "",
    json_flag: JsonFlag = False,
) -> None:
    """Withdraw an approved version: it is not released again."""
    _decide(ctx, model, version, "retire", reason, json_flag)


@app.command("release")
def release(
    ctx: typer.Context,
    model: Model,
    version: VersionArgument,
    reason: Reason = "by the operator",
    json_flag: JsonFlag = False,
) -> None:
    """Give an approved version the next release number; a rollout then brings it to devices."""
    path = f"/v1/models/{model}/versions/{version}/release"
    row = connect(ctx).post(path, {"reason": reason})
    output.show(row, ("model", "version", "number", "reason"), json_flag)


def _decide(
    ctx: typer.Context, model: str, version: str, what: str, reason: str, json_flag: bool
) -> None:
    path = f"/v1/models/{model}/versions/{version}/{what}"
    row = connect(ctx).post(path, {"reason": reason})
    output.show(row if json_flag else _version(row), ("model", "version", "state"), json_flag)


def _version(row: dict[str, Any]) -> dict[str, Any]:
    verified = [item["name"] for item in row["variants"] if item["state"] == "verified"]
    return {**row, "variants": verified}


def _variant(row: dict[str, Any]) -> dict[str, Any]:
    measured = row["measured"]
    return {
        **row,
        "bytes": row["model_bytes"],
        "sent": row["transfer_bytes"],
        "score": measured.get("score"),
        "latency µs": measured.get("latency_us"),
    }
