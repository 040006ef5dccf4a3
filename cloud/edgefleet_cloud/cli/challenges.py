"""`edgefleet challenges`: versions beside the champion, as a shadow or for a share of the calls."""

from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import JsonFlag

app = typer.Typer(
    cls=output.Group, help="Versions that run beside the champion.", no_args_is_help=True
)
_LIST = ("id", "model", "version", "champion", "role", "to", "state", "verdict")
_SHOW = (
    "id", "model", "version", "release", "champion", "role", "share_percent", "to", "state",
    "reason", "verdict",
)  # fmt: skip
_DEVICES = ("device", "variant", "step", "reason")
_SIDES = ("side", "devices", "rows", "errors", "labelled", "correct")
Number = Annotated[int, typer.Argument(help="Number of the challenge.")]


@app.command("start")
def start(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="An approved version of it.")],
    to: Annotated[str, typer.Option(help="all, device:a,b, label:site=north or board:rpi4.")],
    role: Annotated[str, typer.Option(help="shadow or split.")] = "shadow",
    share_percent: Annotated[
        int, typer.Option("--share", min=1, max=99, help="Per cent of the calls, for a split.")
    ] = 50,
    window_rows: Annotated[int | None, typer.Option(min=1, help="Of its reports.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Let a version run beside the champion: shadow answers nobody, split a share of the calls."""
    body = {
        "model": model,
        "version": version,
        "to": to,
        "role": role,
        "share_percent": share_percent,
        "window_rows": window_rows,
    }
    _show(connect(ctx).post("/v1/challenges", body), json_flag)


@app.command("list")
def list_challenges(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """List challenges, newest first."""
    rows = connect(ctx).get("/v1/challenges", model=model)
    output.show(rows, _LIST, json_flag, empty="no challenges yet")


@app.command("show")
def show(ctx: typer.Context, challenge: Number, json_flag: JsonFlag = False) -> None:
    """Show how a challenger compares with the champion."""
    _show(connect(ctx).get(f"/v1/challenges/{challenge}"), json_flag)


@app.command("stop")
def stop(
    ctx: typer.Context,
    challenge: Number,
    reason: Annotated[str, typer.Option(help="For whoever reads it later.")] = "",
    json_flag: JsonFlag = False,
) -> None:
    """Take the challenger off its devices. What was compared stays."""
    row = connect(ctx).post(f"/v1/challenges/{challenge}/stop", {"reason": reason})
    _show(row, json_flag)


def _show(row: dict[str, Any], json_flag: bool) -> None:
    output.show(row, _SHOW, json_flag)
    if json_flag:
        return
    sides = [
        {"side": f"challenger {row['version']}", **row["challenger"]},
        {"side": f"champion {row['champion'] or '-'}", **row["control"]},
    ]
    output.show(sides, _SIDES, json_flag)
    if row["devices"]:
        output.show(row["devices"], _DEVICES, json_flag)
