"""`edgefleet approvals`: what waits for a second person."""

from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import JsonFlag

app = typer.Typer(cls=output.Group, help="What waits for a second person.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(help="From `edgefleet approvals list`.")]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the answer.")]
Digest = Annotated[
    str | None,
    typer.Option(help="Of what you looked at; by default what the hub shows now."),
]
_ROW = ("id", "kind", "model", "version", "state", "asked_by", "said", "outcome")
_DETAIL = ("id", "kind", "model", "version", "digest", "state", "asked_by", "makers", "reason",
           "said", "voices", "outcome")  # fmt: skip


@app.command("list")
def list_approvals(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    state: Annotated[
        str | None, typer.Option(help="waiting, approved, refused or superseded.")
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """List what people were asked."""
    rows = connect(ctx).get("/v1/approvals", model=model, state=state)
    shown = rows if json_flag else [_row(row) for row in rows]
    output.show(shown, _ROW, json_flag, empty="nothing was asked")


@app.command("show")
def show(ctx: typer.Context, number: Number, json_flag: JsonFlag = False) -> None:
    """Show one question with all answers."""
    row = connect(ctx).get(f"/v1/approvals/{number}")
    output.show(row if json_flag else _row(row), _DETAIL, json_flag)


@app.command("ask")
def ask(
    ctx: typer.Context,
    model: Model,
    version: Annotated[str, typer.Argument(help="An approved version of it.")],
    reason: Reason = "",
    json_flag: JsonFlag = False,
) -> None:
    """Ask two people about a version of a high-risk model."""
    body = {"model": model, "version": version, "reason": reason}
    row = connect(ctx).post("/v1/approvals", body)
    if row is None:
        output.console().print("nobody has to be asked", markup=False)
        return
    output.show(row if json_flag else _row(row), _DETAIL, json_flag)


@app.command("approve")
def approve(
    ctx: typer.Context,
    number: Number,
    reason: Reason = "",
    digest: Digest = None,
    json_flag: JsonFlag = False,
) -> None:
    """Say yes, as a person who had no part in it."""
    _speak(ctx, number, "approve", reason, digest, json_flag)


@app.command("refuse")
def refuse(
    ctx: typer.Context,
    number: Number,
    reason: Reason = "",
    digest: Digest = None,
    json_flag: JsonFlag = False,
) -> None:
    """Say no, which ends the question."""
    _speak(ctx, number, "refuse", reason, digest, json_flag)


@app.command("risk")
def risk(
    ctx: typer.Context,
    model: Model,
    level: Annotated[str, typer.Argument(help="high, at once; standard, once two agree.")],
    reason: Reason = "",
    json_flag: JsonFlag = False,
) -> None:
    """Say how risky a model is."""
    row = connect(ctx).put(f"/v1/models/{model}/risk", {"risk": level, "reason": reason})
    waits = row["approval"]
    shown = row if json_flag else {**row, "approval": waits and waits["id"]}
    output.show(shown, ("model", "risk", "approval"), json_flag)


def _speak(
    ctx: typer.Context, number: int, what: str, reason: str, digest: str | None, json_flag: bool
) -> None:
    client = connect(ctx)
    if digest is None:
        digest = client.get(f"/v1/approvals/{number}")["digest"]
    row = client.post(f"/v1/approvals/{number}/{what}", {"digest": digest, "reason": reason})
    output.show(row if json_flag else _row(row), _DETAIL, json_flag)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    yes = sum(voice["yes"] for voice in row["voices"])
    said = [f"{v['account']}: {'yes' if v['yes'] else 'no'} {v['reason']}" for v in row["voices"]]
    return {**row, "said": f"{yes} of {row['needed']}", "voices": [text.strip() for text in said]}
