"""`edgefleet triggers` and `edgefleet retrainings`: what starts a retraining, and how it ended."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag

app = typer.Typer(cls=output.Group, help="Rules that start a retraining.", no_args_is_help=True)
retrainings = typer.Typer(
    cls=output.Group, help="Challenges of a model's champion.", no_args_is_help=True
)

_TRIGGERS = ("id", "model", "kind", "enabled", "fired_at", "fired_version", "recipe")
_RETRAININGS = ("id", "model", "champion", "version", "state", "reason", "job_id", "rollout_id")
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
RecipeFile = Annotated[
    Path,
    typer.Option(
        "--recipe",
        help='JSON file: {"trainer": …, "parameters": {…}, "min_samples": …, "min_gain": …, …}.',
    ),
]


@app.command("add")
def add(
    ctx: typer.Context, model: ModelName, recipe: RecipeFile, json_flag: JsonFlag = False
) -> None:
    """Have drift of a model's champion start a retraining."""
    body = {"model": model, "recipe": read_recipe(recipe)}
    output.show(connect(ctx).post("/v1/triggers", body), _TRIGGERS, json_flag)


@app.command("list")
def list_triggers(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """List triggers, newest first."""
    rows = connect(ctx).get("/v1/triggers", model=model)
    output.show(rows, _TRIGGERS, json_flag, empty="no triggers yet")


@app.command("disable")
def disable(
    ctx: typer.Context,
    trigger: Annotated[int, typer.Argument(help="Number of the trigger.")],
    json_flag: JsonFlag = False,
) -> None:
    """Let a trigger start nothing any more."""
    output.show(connect(ctx).post(f"/v1/triggers/{trigger}/disable"), _TRIGGERS, json_flag)


@retrainings.command("start")
def start(
    ctx: typer.Context,
    model: ModelName,
    recipe: RecipeFile,
    since: Annotated[float, typer.Option(min=0, help="Samples from then on, Unix seconds.")] = 0.0,
    json_flag: JsonFlag = False,
) -> None:
    """Retrain a model now, from the labelled samples of the field."""
    body = {"model": model, "recipe": read_recipe(recipe), "since": since}
    output.show(connect(ctx).post("/v1/retrainings", body), _RETRAININGS, json_flag)


@retrainings.command("list")
def list_retrainings(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json_flag: JsonFlag = False,
) -> None:
    """List retrainings, newest first."""
    rows = connect(ctx).get("/v1/retrainings", model=model, limit=limit)
    output.show(rows, _RETRAININGS, json_flag, empty="no retrainings yet")


@retrainings.command("show")
def show(
    ctx: typer.Context,
    retraining: Annotated[int, typer.Argument(help="Number of the retraining.")],
    json_flag: JsonFlag = False,
) -> None:
    """Show a retraining with its decision."""
    row = connect(ctx).get(f"/v1/retrainings/{retraining}")
    output.show(row, (*_RETRAININGS, "decision", "recipe"), json_flag)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CliError: if it cannot be read as one.
    """
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CliError(f"{path} cannot be read as JSON: {error}", ExitCode.USAGE) from error
    if not isinstance(recipe, dict):
        raise CliError(f"{path}: expected a JSON object", ExitCode.USAGE)
    return recipe
