"""`edgefleet broker`: files for a broker that the hub does not start itself."""

import time
from pathlib import Path
from typing import Annotated

import typer

from edgefleet_cloud import settings as hub_settings
from edgefleet_cloud.cli.output import CliError, ExitCode, Group, JsonFlag, console, show
from edgefleet_cloud.errors import HubError, InvalidError

# Of Debian and its kin on 64-bit PCs; others lay it elsewhere.
_PLUGIN = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Files for a broker that the hub does not start itself."
)


@app.callback()
def broker() -> None:
    """Files for a broker that the hub does not start itself."""


@app.command()
def config(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; made if it is missing.")],
    home: Annotated[
        Path | None, typer.Option(envvar="EDGEFLEET_HOME", help="Home of the hub.")
    ] = None,
    at: Annotated[
        Path | None,
        typer.Option(help="Where the folder will be on the broker's machine; here by default."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the broker's own data; `data` in it by default.")
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(help="mosquitto_dynamic_security.so on that machine.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104  # TLS is required
    json: JsonFlag = False,
) -> None:
    """Write what an external Mosquitto needs: configuration, certificate, plugin file."""
    # The hub's parts take a second to import; other commands do without them.
    from edgefleet_cloud.broker import configuration
    from edgefleet_cloud.database.sessions import Database
    from edgefleet_cloud.trust.identity.authority import Authority

    there = (at or folder).absolute()
    place = configuration.Place(
        folder=there,
        state=state or there / "data",
        plugin=plugin or _PLUGIN,
        listen=listen,
    )
    try:
        settings = hub_settings.load(home)
        authority = Authority.open(settings.home / "authority", time.time)
        database = Database(settings.sqlalchemy_url)
        try:
            written = configuration.write(settings, authority, database, time.time(), folder, place)
        finally:
            database.close()
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except (HubError, OSError) as error:
        raise CliError(str(error)) from error
    show([{"file": str(path)} for path in written], ["file"], json)
    if not json:
        console().print(
            "Let only the broker's user read the key and write the plugin file, and set"
            ' broker = "mosquitto" in the hub\'s hub.toml. docs/brokers.md has every step.',
            markup=False,
        )
