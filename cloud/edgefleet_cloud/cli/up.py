"""`edgefleet up`: the hub, in the foreground."""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from edgefleet_cloud import settings as hub_settings
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_cloud.errors import ConflictError, HubError, InvalidError

_POLL_S = 0.5


def up(
    home: Annotated[
        Path | None, typer.Option(envvar="EDGEFLEET_HOME", help="Folder of all that it keeps.")
    ] = None,
    api_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the API.")] = None,
    mqtt_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the broker.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = None,
    public_host: Annotated[
        str | None, typer.Option(help="Name or address by which devices reach this machine.")
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Start the hub: API, broker, link, background jobs. Stop it with Ctrl-C or SIGTERM."""
    given = {
        "API_PORT": api_port,
        "MQTT_PORT": mqtt_port,
        "API_HOST": host,
        "PUBLIC_HOST": public_host,
    }
    environment = dict(os.environ)
    environment.update({f"EDGEFLEET_{k}": str(v) for k, v in given.items() if v is not None})
    try:
        settings = hub_settings.load(home, environment)
        if host is not None and settings.broker == "embedded":
            settings = msgspec.structs.replace(settings, mqtt_host=host)
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # python-tuf notes every signature that is not there yet.
    for name in ("alembic", "tuf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopping.set())
    try:
        _run(settings, stopping, json_flag)
    except ConflictError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except HubError as error:
        raise CliError(str(error)) from error


def _run(settings: hub_settings.Settings, stopping: threading.Event, json_flag: bool) -> None:
    from edgefleet_cloud import hub  # the whole hub; other commands do without it

    with hub.running(settings) as held:
        _announce(settings, held.url, json_flag)
        while not stopping.wait(_POLL_S):
            if held.failed.is_set():
                raise HubError("the HTTPS API ended by itself; the log has the details")


def _announce(settings: hub_settings.Settings, url: str, json_flag: bool) -> None:
    listens = {
        "api": url,
        "broker": f"mqtts://{settings.devices_mqtt_host}:{settings.mqtt_port}",
        "home": str(settings.home),
        "token": str(settings.home / "admin.token"),
        "ca": str(settings.home / "ca.pem"),
        "pid": os.getpid(),
    }
    if json_flag:
        sys.stdout.write(json.dumps(listens) + "\n")
        sys.stdout.flush()
        return
    table = Table(show_header=False, box=None, title="edgefleet hub", title_justify="left")
    table.add_row("API", url)
    table.add_row("broker", f"{listens['broker']} (mutual TLS)")
    table.add_row("home", str(settings.home))
    table.add_row("token", f"{listens['token']} (the admin's; keep it to yourself)")
    table.add_row("CA", str(listens["ca"]))
    console = Console(markup=False)
    console.print(table)
    console.print("Enrol a device: edgefleet devices claim NAME. Stop: Ctrl-C.")
