"""The terminal: `edgefleet`. An edge; commands call the hub's API and hold no rules."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from edgefleet_cloud import __version__
from edgefleet_cloud.cli import (
    approvals,
    audit,
    broker,
    bundles,
    challenges,
    datasets,
    devices,
    jobs,
    models,
    monitoring,
    output,
    people,
    rollouts,
    search,
    ship,
    training,
    triggers,
    trust,
    up,
    verify,
)
from edgefleet_cloud.cli.client import Target

app = typer.Typer(
    cls=output.Group,
    help="Train, sign, push, watch and retrain models on a fleet of devices.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command("up")(up.up)
app.command("ship")(ship.ship)
app.command("import")(bundles.hand_in)
app.command("train")(training.train)
app.command("search")(search.search)
app.command("verify")(verify.verify)
app.command("login")(people.login)
app.command("logout")(people.logout)
app.command("whoami")(people.whoami)
for group, name in (
    (devices.app, "devices"),
    (broker.app, "broker"),
    (datasets.app, "datasets"),
    (models.app, "models"),
    (rollouts.app, "rollouts"),
    (challenges.app, "challenges"),
    (monitoring.drift, "drift"),
    (monitoring.incidents, "incidents"),
    (triggers.app, "triggers"),
    (triggers.retrainings, "retrainings"),
    (jobs.app, "jobs"),
    (approvals.app, "approvals"),
    (people.accounts, "accounts"),
    (people.tokens, "tokens"),
    (audit.app, "audit"),
    (trust.app, "trust"),
):
    app.add_typer(group, name=name)


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    hub: Annotated[str | None, typer.Option(help="URL of the hub; EDGEFLEET_HUB.")] = None,
    token: Annotated[str | None, typer.Option(help="API token; EDGEFLEET_TOKEN.")] = None,
    ca: Annotated[Path | None, typer.Option(help="CA of the hub; EDGEFLEET_CA.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Home of a hub on this machine; EDGEFLEET_HOME.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Say which hub is meant; without options, the one on this machine."""
    if version:
        sys.stdout.write(f"edgefleet {__version__}\n")
        raise typer.Exit
    if ctx.obj is None:
        ctx.obj = Target(hub, token, ca, home)


@app.command("openapi")
def openapi() -> None:
    """Print the OpenAPI document of the hub's API."""
    describe = import_module("edgefleet_cloud.api.app").describe
    sys.stdout.write(json.dumps(describe().openapi(), indent=2) + "\n")
