"""`edgefleet train`: from a data set to a registered version."""

import json
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import datasets, jobs, output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag

_COLUMNS = ("model", "version", "metrics", "variants", "run")


def train(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Option(help="Digest or name; a bundled one is added.")],
    trainer: Annotated[str, typer.Option(help="sklearn, keras-cnn or keras-mlp.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="KEY=VALUE of the trainer, VALUE as JSON or text."),
    ] = None,
    holdout: Annotated[str | None, typer.Option(help="Data set to judge on.")] = None,
    holdout_share: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    variant: Annotated[
        list[str] | None, typer.Option(help="Make only this; may be repeated.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Judge against the released version.")
    ] = False,
    max_latency_us: Annotated[
        int, typer.Option(min=0, help="Of one row on a device, which else refuses; 0 for any.")
    ] = 0,
    max_memory_mib: Annotated[
        int, typer.Option(min=0, help="That the model may add on a device; 0 for any.")
    ] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until the version is registered.")] = True,
    json_flag: JsonFlag = False,
) -> None:
    """Train a model, convert and verify it, and register it as a new version."""
    client = connect(ctx)
    body: dict[str, Any] = {
        "model": model,
        "trainer": trainer,
        "dataset": datasets.ensure(client, dataset)["digest"],
        "parameters": dict(parse_parameter(text) for text in parameter or []),
        "seed": seed,
        "variants": variant or None,
        "compare": compare,
        "budget": {
            "max_latency_us": max_latency_us,
            "max_memory_bytes": max_memory_mib * 2**20,
        },
    }
    if holdout is not None:
        body["holdout"] = datasets.ensure(client, holdout)["digest"]
    if holdout_share is not None:
        body["holdout_share"] = holdout_share
    job = client.post("/v1/runs", body)
    if not wait:
        output.show(job, ("id", "kind", "state"), json_flag)
        return
    result = jobs.follow(client, job["id"])["result"]
    made = [item["name"] for item in result["variants"] if item["state"] == "verified"]
    output.show(result if json_flag else {**result, "variants": made}, _COLUMNS, json_flag)


def parse_parameter(text: str) -> tuple[str, Any]:
    """Return the key and value of `KEY=VALUE`; a value that is no JSON is text.

    Raises:
        CliError: if there is no `=` or no key.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise CliError(f"parameter {text!r}: expected KEY=VALUE", ExitCode.USAGE)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
