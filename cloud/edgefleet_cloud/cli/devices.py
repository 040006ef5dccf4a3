"""`edgefleet devices`: let devices in, look at them, shut them out."""

import time
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import CliError, ExitCode, Group, JsonFlag, console, show

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Let devices in, look at them, shut them out."
)

Device = Annotated[str, typer.Argument(help="Device id.")]
COLUMNS = {
    "id": "device",
    "state": "state",
    "online": "online",
    "board": "board",
    "serving": "serving",
    "labels": "labels",
    "silent": "last seen",
}


@app.command()
def claim(
    ctx: typer.Context,
    device: Device,
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE; may be given more than once.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Expect a device and print the token that lets it in, once."""
    body = {"device": device, "labels": _labels(label or [])}
    answer = connect(ctx).post("/v1/devices", body)
    show(answer, ["device", "token"], json)
    if not json:
        hours = max(answer["expires_at"] - time.time(), 0) / 3600
        console().print(
            "On the device: edgefleet-agent enroll --hub URL --token TOKEN."
            f" It works once, for {hours:.0f} h, and is not shown again.",
            markup=False,
        )


@app.command("list")
def list_devices(
    ctx: typer.Context,
    group: Annotated[
        str | None,
        typer.Option(help="all, device:ID,…, label:KEY=VALUE or board:NAME (enrolled devices)."),
    ] = None,
    state: Annotated[str | None, typer.Option(help="claimed, enrolled or revoked.")] = None,
    json: JsonFlag = False,
) -> None:
    """List devices."""
    rows = connect(ctx).get("/v1/devices", group=group, state=state)
    shown = rows if json else [row | {"silent": _ago(row["silent_s"])} for row in rows]
    show(shown, COLUMNS, json, empty="no devices; let one in with `edgefleet devices claim NAME`")


@app.command("show")
def show_device(ctx: typer.Context, device: Device, json: JsonFlag = False) -> None:
    """Show one device: what is wanted, what it reports, and how it is."""
    row = connect(ctx).get(f"/v1/devices/{device}")
    if json:
        show(row, [], json)
        return
    row |= {
        "silent": _ago(row["silent_s"]),
        "certificate": _until(row["certificate_expires_at"]),
        "runtimes": row["runtimes"],
        "memory": f"{row['memory_bytes'] / 2**20:.0f} MiB",
        "progress": _progress(row["assignment"]),
        "steps": [_step(attempt) for attempt in row["attempts"]],
    }
    extra = {
        "runtimes": "runtimes",
        "memory": "memory",
        "agent_version": "agent",
        "certificate": "certificate",
        "progress": "assignment",
        "steps": "newest attempts",
        "health": "health",
    }
    show(row, COLUMNS | extra, json)
    models = [_model(item) for item in row["models"]]
    if models:
        show(models, ["model", "desired", "reported", "in_sync"], json)


@app.command()
def revoke(ctx: typer.Context, device: Device, json: JsonFlag = False) -> None:
    """Shut a device out; a new claim lets it in again."""
    show(connect(ctx).post(f"/v1/devices/{device}/revoke"), ["id", "state"], json)


@app.command()
def label(
    ctx: typer.Context,
    device: Device,
    labels: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE …; none takes all labels away.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Replace a device's labels."""
    answer = connect(ctx).put(f"/v1/devices/{device}/labels", _labels(labels or []))
    show(answer, ["id", "labels"], json)


@app.command()
def refusals(
    ctx: typer.Context,
    device: Annotated[str | None, typer.Option(help="Of this device alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json: JsonFlag = False,
) -> None:
    """List what devices refused, newest first."""
    rows = connect(ctx).get("/v1/refusals", device=device, limit=limit)
    show(rows, ["device", "what", "reason", "text"], json, empty="no device has refused anything")


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise CliError(f"{pair!r} is no label: expected KEY=VALUE", ExitCode.USAGE)
        labels[key] = value
    return labels


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _until(at: float | None) -> str:
    if at is None:
        return "none"
    days = (at - time.time()) / 86_400
    return f"ends in {days:.0f} days" if days >= 0 else f"ended {-days:.0f} days ago"


def _progress(assignment: dict[str, Any]) -> str:
    words = ("wanted", "signed", "accepted")
    return ", ".join(f"{word} {assignment[word]}" for word in words) + (
        "" if assignment["published"] else " (not published yet)"
    )


def _step(attempt: dict[str, Any]) -> str:
    reason = f" ({attempt['reason']})" if attempt.get("reason") else ""
    return f"{attempt['model']} #{attempt['number']}: {attempt['step']}{reason}"


def _model(item: dict[str, Any]) -> dict[str, Any]:
    def words(side: dict[str, Any] | None) -> str | None:
        return None if side is None else f"{side['version']} ({side['variant']})"

    return {
        "model": item["model"],
        "desired": words(item["desired"]),
        "reported": words(item["reported"]),
        "in_sync": item["in_sync"],
    }
