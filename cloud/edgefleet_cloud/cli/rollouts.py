"""`edgefleet rollouts`: releases on their way to devices, previewed, watched and steered."""

import time
from typing import Annotated, Any

import typer
from rich.console import Group as Lines
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag

app = typer.Typer(cls=output.Group, help="Releases on their way to devices.", no_args_is_help=True)

POLL_S = 0.5
ENDED = ("completed", "rolled_back", "cancelled")
_LIST = ("id", "model", "version", "release", "strategy", "state", "stage", "states", "reason")
_SHOW = (
    "id", "model", "version", "previous_version", "release", "strategy", "state", "stage",
    "stage_count", "states", "reason", "statistics",
)  # fmt: skip
_DEVICES = ("device", "stage", "variant", "state", "step", "reason")
_ENDED_DEVICE = ("confirmed", "failed", "skipped", "reverted")
Number = Annotated[int, typer.Argument(help="Number of the rollout.")]


@app.command("create")
def create(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="An approved version of it.")],
    to: Annotated[str, typer.Option(help="all, device:a,b, label:site=north or board:rpi4.")],
    strategy: Annotated[str, typer.Option(help="direct, staged or canary.")] = "staged",
    stages: Annotated[
        str | None, typer.Option(help="Cumulative shares, such as 0.1,0.5,1.")
    ] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a threshold; may be repeated.")
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the devices' policy; may be repeated."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="For all devices.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would happen.")
    ] = False,
    json_flag: JsonFlag = False,
) -> None:
    """Release a version to a group of devices, stage by stage."""
    body = {
        "model": model,
        "version": version,
        "to": to,
        "strategy": strategy,
        "stages": _shares(stages),
        "gate": assignments(gate),
        "order": assignments(order),
        "variant": variant,
    }
    client = connect(ctx)
    if dry_run:
        _show_plan(client.post("/v1/rollouts/preview", body), json_flag)
    else:
        output.show(client.post("/v1/rollouts", body), _SHOW, json_flag)


@app.command("list")
def list_rollouts(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json_flag: JsonFlag = False,
) -> None:
    """List rollouts, newest first."""
    rows = connect(ctx).get("/v1/rollouts", model=model, state=state, limit=limit)
    output.show(rows, _LIST, json_flag, empty="no rollouts yet")


@app.command("show")
def show(ctx: typer.Context, rollout: Number, json_flag: JsonFlag = False) -> None:
    """Show a rollout with its devices."""
    row = connect(ctx).get(f"/v1/rollouts/{rollout}")
    output.show(row, _SHOW, json_flag)
    if not json_flag:
        output.show(row["devices"], _DEVICES, json_flag)


@app.command("pause")
def pause(ctx: typer.Context, rollout: Number, json_flag: JsonFlag = False) -> None:
    """Order no further device until it is resumed."""
    output.show(connect(ctx).post(f"/v1/rollouts/{rollout}/pause"), _LIST, json_flag)


@app.command("resume")
def resume(
    ctx: typer.Context,
    rollout: Number,
    gate: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a threshold to change.")
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Go on; failed devices of the running stage are ordered once more."""
    body = {"gate": assignments(gate)}
    output.show(connect(ctx).post(f"/v1/rollouts/{rollout}/resume", body), _LIST, json_flag)


@app.command("cancel")
def cancel(ctx: typer.Context, rollout: Number, json_flag: JsonFlag = False) -> None:
    """Order no further device; what was ordered stays as it is."""
    output.show(connect(ctx).post(f"/v1/rollouts/{rollout}/cancel"), _LIST, json_flag)


@app.command("rollback")
def rollback(
    ctx: typer.Context,
    rollout: Number,
    reason: Annotated[str, typer.Option(help="For the history.")] = "",
    json_flag: JsonFlag = False,
) -> None:
    """Take the release back from every device that was given it."""
    body = {"reason": reason}
    output.show(connect(ctx).post(f"/v1/rollouts/{rollout}/rollback", body), _LIST, json_flag)


@app.command("watch")
def watch(ctx: typer.Context, rollout: Number, json_flag: JsonFlag = False) -> None:
    """Follow a rollout until it ends or pauses; exits 1 unless it completes."""
    row = follow(connect(ctx), rollout)
    output.show(row, _SHOW, json_flag)
    if row["state"] != "completed":
        raise CliError(f"rollout {rollout} is {row['state']}: {row['reason']}")


def follow(client: Client, rollout_id: int) -> dict[str, Any]:
    """Show a rollout live on standard error until it ends or pauses, and return it."""
    with Live(console=output.console(), transient=True, refresh_per_second=4) as live:
        while True:
            row: dict[str, Any] = client.get(f"/v1/rollouts/{rollout_id}")
            live.update(picture(row))
            if row["state"] in (*ENDED, "paused"):
                return row
            time.sleep(POLL_S)


def picture(row: dict[str, Any]) -> Lines:
    """Return a rollout as it is shown live: a bar a stage, and what the gate said last."""
    head = Text(
        f"rollout {row['id']}  {row['model']} {row['version']}  {row['strategy']}  {row['state']}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    for stage in row["stages"]:
        states = stage["states"]
        done = sum(states.get(state, 0) for state in _ENDED_DEVICE)
        total = max(sum(states.values()), 1)
        running = row["state"] == "running" and stage["index"] == row["stage"]
        table.add_row(
            Text("▸" if running else " "),
            Text(stage["name"]),
            ProgressBar(total=total, completed=done, width=30),
            Text(", ".join(f"{count} {state}" for state, count in states.items())),
        )
    return Lines(head, table, Text(f"gate: {row['reason'] or '-'}"))


def assignments(given: list[str] | None) -> dict[str, Any] | None:
    """Return `["a=1", "b=none"]` as `{"a": 1, "b": None}`; text that is no number stays text.

    Raises:
        CliError: if one has no `=`.
    """
    if not given:
        return None
    values: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise CliError(f"{item!r}: expected NAME=VALUE", ExitCode.USAGE)
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _shares(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CliError(f"--stages {text!r}: expected numbers by comma", ExitCode.USAGE) from error


def _show_plan(plan: dict[str, Any], json_flag: bool) -> None:
    if json_flag:
        output.show(plan, (), json_flag)
        return
    stages = [(stage["name"], stage["devices"]) for stage in plan["stages"]]
    rows = [
        {"stage": name, **device}
        for name, devices in [*stages, ("skipped", plan["skipped"])]
        for device in devices
    ]
    columns = ("stage", "device", "variant", "transfer_bytes", "sound", "reason")
    output.show(rows, columns, json_flag)
    output.show({"bytes in all": plan["transfer_bytes"]}, ("bytes in all",), json_flag)
