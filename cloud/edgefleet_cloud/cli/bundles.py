"""`edgefleet import`: what `edgefleet-convert` made becomes a version of the hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgefleet_cloud.cli import jobs, output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_cloud.cli.ship import arrive
from edgefleet_converters import bundle_archive, bundles
from edgefleet_converters.errors import BadInputError

_COLUMNS = ("model", "version", "name", "state", "bytes", "transfer_bytes", "score", "reason")


def hand_in(
    ctx: typer.Context,
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of bundles, or folders that hold such.")
    ],
    name: Annotated[str | None, typer.Option(help="Of the model; as in the bundles.")] = None,
    to: Annotated[
        str, typer.Option(help="Ship at once to: all, device:a,b, label:site=north, board:rpi4.")
    ] = "",
    strategy: Annotated[str, typer.Option(help="direct, staged or canary.")] = "direct",
    json_flag: JsonFlag = False,
) -> None:
    """Register bundles that edgefleet-convert made as one version; with --to, ship it.

    The hub checks every digest and runs each variant's golden vectors before it believes them.
    """
    client = connect(ctx)
    with tempfile.TemporaryFile() as archive:
        try:
            found = _bundles(folders)
            model = name or bundles.load(found[0]).manifest.model
            bundle_archive.pack(found, archive)
        except BadInputError as error:
            raise CliError(str(error), ExitCode.USAGE) from error
        archive.seek(0)
        begun = client.post(
            "/v1/bundles",
            form={"name": model, "to": to, "strategy": strategy},
            files={"archive": ("bundles.tar", archive)},
        )
    if to:
        arrive(client, begun["job"], json_flag)
        return
    result = jobs.follow(client, begun["job"])["result"]
    rows = [
        {**variant, "model": result["model"], "version": result["version"]}
        for variant in result["variants"]
    ]
    output.show(rows, _COLUMNS, json_flag)


def _bundles(folders: list[Path]) -> list[Path]:
    """Return the folders of all bundles at and below the given ones.

    Raises:
        BadInputError: there is none below one of them.
    """
    found = []
    for folder in folders:
        here = sorted(path.parent for path in folder.rglob(bundles.MANIFEST_NAME))
        if not here:
            raise BadInputError(f"{folder}: holds no bundle ({bundles.MANIFEST_NAME})")
        found += here
    return found
