"""`edgefleet drift` and `edgefleet incidents`: what is wrong with the data, and where."""

from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import JsonFlag

drift = typer.Typer(cls=output.Group, help="What devices see, and how it has changed.")
incidents = typer.Typer(cls=output.Group, help="What someone has to act on.", no_args_is_help=True)

_FINDINGS = ("scope", "kind", "devices", "label", "text")
_DEVICES = ("device", "state", "flagged", "rows", "malformed", "reporting")
_SERVED = ("version", "at", "device", "rows", "errors", "labelled", "accuracy")
_INCIDENTS = (
    "id",
    "kind",
    "scope",
    "model",
    "version",
    "devices",
    "text",
    "opened_at",
    "closed_at",
)
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]


@drift.callback()
def drift_main() -> None:
    """Show drift and performance of a model on the fleet."""


@drift.command("show")
def show_drift(
    ctx: typer.Context,
    model: ModelName,
    version: Annotated[str | None, typer.Option(help="The champion by default.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Show what the hub finds wrong now, and the state of every device."""
    answer: dict[str, Any] = connect(ctx).get(f"/v1/models/{model}/drift", version=version)
    if json_flag:
        output.show(answer, (), json_flag)
        return
    verdict = answer["verdict"]
    head = {
        "model": model,
        "version": answer["version"],
        "scope": verdict["scope"] if verdict else "not judged yet",
    }
    output.show(head, tuple(head), json_flag)
    findings = verdict["findings"] if verdict else []
    output.show(findings, _FINDINGS, json_flag, empty="nothing is wrong")
    rows = [
        {**row, "flagged": [*row["stuck"], *row["shifted"], *row["unlike"]][:6]}
        for row in answer["devices"]
    ]
    output.show(rows, _DEVICES, json_flag, empty="no device has reported on this version")


@drift.command("performance")
def show_performance(
    ctx: typer.Context,
    model: ModelName,
    bucket: Annotated[float | None, typer.Option(min=1, help="Seconds in a row.")] = None,
    by_device: Annotated[bool, typer.Option("--by-device", help="Tell devices apart.")] = False,
    json_flag: JsonFlag = False,
) -> None:
    """Show rows, errors and accuracy by version over time."""
    rows = connect(ctx).get(f"/v1/models/{model}/performance", bucket_s=bucket, by_device=by_device)
    columns = [name for name in _SERVED if by_device or name != "device"]
    output.show(rows, columns, json_flag, empty="no device has reported on this model")


@incidents.command("list")
def list_incidents(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    closed: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    json_flag: JsonFlag = False,
) -> None:
    """List open incidents, newest first."""
    rows = connect(ctx).get(
        "/v1/incidents", model=model, kind=kind, only_open=not closed, limit=limit
    )
    output.show(rows, _INCIDENTS, json_flag, empty="no incidents")


@incidents.command("close")
def close_incident(
    ctx: typer.Context,
    incident: Annotated[int, typer.Argument(help="Number of the incident.")],
    json_flag: JsonFlag = False,
) -> None:
    """Close an incident; a drift or a device fault then makes its devices learn anew."""
    output.show(connect(ctx).post(f"/v1/incidents/{incident}/close"), _INCIDENTS, json_flag)
