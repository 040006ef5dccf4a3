"""`edgefleet-convert recipes`: what can be done to a model, and how each of it is set."""

import inspect
import json
import re
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgefleet_converters.cli.app import JsonFlag, app, fail
from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.steps import registry
from edgefleet_converters.steps.registry import Step


@app.command("recipes")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe or step: print its YAML or description.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the built-in recipes, and the steps with their options and references."""
    known, steps = recipes_of.builtin(), registry.all_steps()
    if name is None and as_json:
        described = {
            "recipes": [msgspec.to_builtins(recipe) for recipe in known.values()],
            "steps": [describe(step) for step in steps.values()],
        }
        print(json.dumps(described, indent=2))
    elif name is None:
        _show(known, steps)
    else:
        try:
            _show_one(name, known, steps, as_json)
        except ConversionError as error:
            fail(error, as_json)


def describe(step: Step) -> dict[str, Any]:
    """Return a step as JSON can hold it."""
    return {
        "name": step.name,
        "summary": step.summary,
        "takes": list(step.takes),
        "gives": step.gives,
        "exact": step.exact,
        "reference": step.reference,
        "options": list(options_of(step)),
    }


def options_of(step: Step) -> list[dict[str, Any]]:
    """Return name, default and limits of each option of a step."""
    _, definitions = msgspec.json.schema_components([step.options])
    schema = definitions[step.options.__name__]
    defaults = msgspec.to_builtins(step.options())
    return [
        {"name": name, "default": defaults[name], "limits": _limits(entry, definitions)}
        for name, entry in schema.get("properties", {}).items()
    ]


def _limits(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return in words what a value may be, from its JSON schema."""
    if "$ref" in entry:
        return _limits(definitions[entry["$ref"].rsplit("/", 1)[1]], definitions)
    if "enum" in entry:
        return " | ".join(str(value) for value in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(_limits(each, definitions) for each in entry["anyOf"])
    words = [str(entry.get("type", "any"))]
    if words == ["array"]:
        return f"list of {_limits(entry.get('items', {}), definitions)}"
    bounds = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    return " ".join(
        words + [f"{sign} {entry[key]:g}" for key, sign in bounds.items() if key in entry]
    )


def _show(known: dict[str, Recipe], steps: dict[str, Step]) -> None:
    console = Console()
    table = Table(title="recipes (variants)")
    for column in ("recipe", "gives", "steps", "what it makes"):
        table.add_column(column, no_wrap=column == "recipe")
    for recipe in known.values():
        calls = ", ".join(call.step for call in recipe.steps) or "conversion only"
        table.add_row(recipe.name, recipe.gives, calls, recipe.summary)
    console.print(table)
    table = Table(title="steps", show_lines=True)
    table.add_column("step", no_wrap=True)
    heading = "what it does, its options (limits, default) and where it is described"
    table.add_column(heading, overflow="fold")
    for step in steps.values():
        way = f"{', '.join(step.takes)} → {step.gives}"
        lines = [step.summary, *_option_lines(step), step.reference]
        table.add_row(f"{step.name}\n{way}", escape("\n".join(lines)))
    console.print(table)


def _option_lines(step: Step) -> list[str]:
    return [
        f"- {option['name']}: {option['limits']} ({json.dumps(option['default'])})"
        for option in options_of(step)
    ]


def _show_one(name: str, known: dict[str, Recipe], steps: dict[str, Step], as_json: bool) -> None:
    """Print one recipe or step.

    Raises:
        BadInputError: if nothing has that name.
    """
    if name in known:
        recipe = known[name]
        print(json.dumps(msgspec.to_builtins(recipe)) if as_json else recipes_of.dump(recipe))
    elif name in steps:
        print(json.dumps(describe(steps[name]), indent=2) if as_json else _page(steps[name]))
    else:
        raise BadInputError(
            f"no recipe or step is called {name!r}; recipes: {', '.join(known)};"
            f" steps: {', '.join(steps)}"
        )


def _page(step: Step) -> str:
    """Return what is known of a step, for people: the text before its sections for programmers."""
    text = inspect.getdoc(step.run) or ""
    about = re.split(r"\n(?:Args|Returns|Raises):\n", text)[0].strip()
    heading = f"{step.name}: {', '.join(step.takes)} → {step.gives}"
    options = [] if not options_of(step) else ["", "Options (limits, default):"]
    return "\n".join(
        [heading, "", about, *options, *_option_lines(step), "", f"Described in {step.reference}"]
    )
