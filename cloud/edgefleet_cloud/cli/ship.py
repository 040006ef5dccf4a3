"""`edgefleet ship`: from a fitted model to running devices in one command."""

import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from edgefleet_cloud.cli import datasets, jobs, output, rollouts
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.sources import PICKLE_WARNING, recognise

_COLUMNS = ("model", "version", "release", "rollout", "state", "confirmed", "failed", "skipped")


def ship(
    ctx: typer.Context,
    model: Annotated[
        Path, typer.Argument(help="Model file, or SavedModel folder; docs/models.md lists kinds.")
    ],
    sample: Annotated[Path, typer.Option(help="CSV or Parquet of training rows.")],
    to: Annotated[str, typer.Option(help="all, device:a,b, label:site=north or board:rpi4.")],
    label: Annotated[str | None, typer.Option(help="Column with the right answers.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; from the file's name.")] = None,
    strategy: Annotated[str, typer.Option(help="direct, staged or canary.")] = "direct",
    variant: Annotated[
        list[str] | None, typer.Option(help="Make only this; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the conversion.")] = 0,
    max_latency_us: Annotated[
        int, typer.Option(min=0, help="Of one row on a device, which else refuses; 0 for any.")
    ] = 0,
    max_memory_mib: Annotated[
        int, typer.Option(min=0, help="That the model may add on a device; 0 for any.")
    ] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until the devices have confirmed it.")] = True,
    json_flag: JsonFlag = False,
) -> None:
    """Convert a fitted model, release it, and roll it out; exits 1 if it does not arrive."""
    try:
        kind = recognise(model).kind
    except BadInputError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    client = connect(ctx)
    if kind == "pickle":
        output.console().print(
            f"warning: {PICKLE_WARNING}. The hub loads it in a child process of its own.",
            style="yellow",
            markup=False,
        )
    options = {
        "name": name or datasets.name_from(model),
        "to": to,
        "label": label,
        "strategy": strategy,
        "variants": variant or None,
        "seed": seed,
        "budget": {
            "max_latency_us": max_latency_us,
            "max_memory_bytes": max_memory_mib * 2**20,
        },
    }
    with _opened(model) as (filename, file), datasets.open_file(sample) as sample_file:
        files = {"model": (filename, file), "sample": (sample.name, sample_file)}
        begun = client.post("/v1/ship", form={"options": json.dumps(options)}, files=files)
    if not wait:
        output.show(begun, ("job", "model", "version", "devices"), json_flag)
        return
    arrive(client, begun["job"], json_flag)


@contextmanager
def _opened(model: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Give what is sent of a model, with its file name: a SavedModel folder travels packed."""
    if not model.is_dir():
        with datasets.open_file(model) as file:
            yield model.name, file
        return
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(model, arcname=model.resolve().name)
        packed.seek(0)
        yield f"{model.resolve().name}.tar.gz", packed


def arrive(client: Client, job: int, json_flag: bool) -> None:
    """Follow a job that ships what it makes until the devices have it; exits 1 if they do not."""
    result = jobs.follow(client, job)["result"]
    if "approval" in result:
        output.show(result, ("model", "version", "approval"), json_flag)
        raise CliError(
            f"{result['model']} is of high risk: the rollout waits for approval"
            f" {result['approval']}"
        )
    rollout = rollouts.follow(client, result["rollout"])
    counts = count(rollout)
    summary = {**result, "state": rollout["state"], **counts}
    output.show(summary, _COLUMNS, json_flag)
    if rollout["state"] != "completed" or counts["failed"] or not counts["confirmed"]:
        raise CliError(_why(rollout))


def count(rollout: dict[str, Any]) -> dict[str, int]:
    """Return how many devices of a rollout are in each state."""
    states = [device["state"] for device in rollout["devices"]]
    names = ("waiting", "assigned", "confirmed", "failed", "skipped", "reverted")
    return {name: states.count(name) for name in names}


def _why(rollout: dict[str, Any]) -> str:
    reasons = [
        f"{device['device']}: {device['reason']}"
        for device in rollout["devices"]
        if device["reason"] and device["state"] != "confirmed"
    ]
    parts = [f"rollout {rollout['id']} is {rollout['state']}", rollout["reason"], *reasons[:5]]
    return "; ".join(part for part in parts if part)
