"""`edgefleet devices`: let devices in, look at them, shut them out."""

import csv
import io
import time
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import CliError, ExitCode, Group, JsonFlag, console, show

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Let devices in, look at them, shut them out."
)

Device = Annotated[str, typer.Argument(help="Device id.")]
_APPROVAL = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
EXPECTED_COLUMNS = {
    "serial": "serial",
    "device": "device",
    "state": "state",
    "asked_key": "asked by key",
    "labels": "labels",
}
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


@app.command()
def expect(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns serial[,device,board,key,approval,label.KEY…], or JSON.",
            exists=True,
            dir_okay=False,
        ),
    ],
    json: JsonFlag = False,
) -> None:
    """Announce serial numbers; each may enrol once, without a token."""
    client = connect(ctx)
    rows = client.post("/v1/devices/expected", announced(file))
    show(rows, EXPECTED_COLUMNS, json)
    if not json:
        newest = client.get("/v1/trust/authorities")[0]["fingerprint"]
        console().print(
            "On each device: edgefleet-agent enroll --hub URL --ca-fingerprint"
            f" {newest}\nWithout a key, a serial number is only as secret as the label on the case:"
            " such a device waits for `edgefleet devices accept`.",
            markup=False,
        )


@app.command()
def expected(ctx: typer.Context, json: JsonFlag = False) -> None:
    """List announced serial numbers, and which of them wait to be accepted."""
    rows = connect(ctx).get("/v1/devices/expected")
    show(rows, EXPECTED_COLUMNS, json, empty="no serial number is expected")


@app.command()
def accept(
    ctx: typer.Context,
    serial: Annotated[str, typer.Argument(help="Serial number that has asked.")],
    key: Annotated[str, typer.Argument(help="Fingerprint that the device shows, or its start.")],
    json: JsonFlag = False,
) -> None:
    """Accept the key that has asked with a serial number, after comparing it."""
    row = connect(ctx).post("/v1/devices/expected/accept", {"serial": serial, "key": key})
    show(row, EXPECTED_COLUMNS, json)


@app.command()
def forget(
    ctx: typer.Context, serial: Annotated[str, typer.Argument(help="Serial number.")]
) -> None:
    """Expect a serial number no more; a device that has enrolled with it stays enrolled."""
    connect(ctx).post("/v1/devices/expected/forget", {"serial": serial})


@app.command()
def identity(ctx: typer.Context, device: Device, json: JsonFlag = False) -> None:
    """Show a device's certificates, where its key lives, and what it has sworn to."""
    row = connect(ctx).get(f"/v1/devices/{device}/identity")
    if json:
        show(row, [], json)
        return
    sworn = row["statement"]
    told = "nothing yet" if sworn is None else f"#{sworn['counter']}, {_ago(_since(sworn))}"
    show(row | {"sworn": told}, {"device": "device", "key": "key", "sworn": "sworn"}, json)
    shown = [
        one | {"state": one["ended"] or "good", "ends": _until(one["expires_at"])}
        for one in row["certificates"]
    ]
    show(shown, {"serial": "certificate", "state": "state", "ends": "life"}, json)


def announced(file: Path) -> list[dict[str, Any]]:
    """Read announced devices from a CSV or JSON file, as the API takes them.

    Raises:
        CliError: if the file cannot be read as such.
    """
    try:
        text = file.read_text("utf-8-sig")
        if file.suffix.lower() == ".json":
            rows = loads(text)
            if not isinstance(rows, list):
                raise ValueError("expected a list of objects")
            return rows
        return [_announced_row(row) for row in csv.DictReader(io.StringIO(text))]
    except (OSError, ValueError, csv.Error) as error:
        raise CliError(f"{file} cannot be read: {error}", ExitCode.USAGE) from error


def _announced_row(row: dict[str | None, Any]) -> dict[str, Any]:
    known = {"serial", "device", "board", "key"}
    made: dict[str, Any] = {"labels": {}}
    for name, value in row.items():
        if name is None or value is None:
            raise ValueError(f"a row has not as many cells as there are columns: {row}")
        if name.startswith("label."):
            made["labels"] |= {name.removeprefix("label."): value} if value else {}
        elif name == "approval":
            if value and value.strip().lower() not in _APPROVAL:
                raise ValueError(f"approval {value!r}; expected yes or no")
            made |= {"approval": _APPROVAL[value.strip().lower()]} if value else {}
        elif name in known:
            made[name] = value.strip()
        else:
            raise ValueError(f"column {name!r}; expected {', '.join(sorted(known))}, label.KEY")
    return made


def _since(sworn: dict[str, Any]) -> float:
    return max(time.time() - float(sworn["received_at"]), 0.0)


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
