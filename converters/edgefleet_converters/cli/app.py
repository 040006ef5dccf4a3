"""What the commands share: the application they register with, errors, and options.

A module of this package imports `app`, decorates its command with `app.command`, and is imported by
the package, in the order in which `--help` lists commands.

Exit codes: 0 done, 1 the model or bundle failed, 2 wrong use or input that cannot be read.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress as ProgressBar

from edgefleet_converters.errors import BadInputError, ConversionError
from edgefleet_converters.verification.truth import METRICS, Metric
from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.profiles import FAMILIES

FAILED, BAD_INPUT = 1, 2
errors = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Convert, compress and verify models for small devices.",
)

# Name under which a device reports a runtime → distribution that brings it.
_DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
}


def fail(error: ConversionError, as_json: bool) -> NoReturn:
    """Print an error and leave with its exit code."""
    if as_json:
        print(json.dumps({"error": str(error)}))
    else:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_INPUT if isinstance(error, BadInputError) else FAILED) from error


def split(text: str | None) -> list[str] | None:
    """Return the parts of a comma-separated list; None for None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def model_name(text: str) -> str:
    """Return the name of a model.

    Raises:
        BadInputError: if it is none.
    """
    try:
        return identifiers.model_name(text)
    except MalformedError as error:
        raise BadInputError(f"{error}; give one with --name") from error


def metric_of(text: str | None) -> Metric | None:
    """Return the metric that an option names.

    Raises:
        BadInputError: if there is none of that name.
    """
    if text is None:
        return None
    if text not in METRICS:
        raise BadInputError(f"--metric {text}: expected one of {', '.join(METRICS)}")
    return text


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on standard error while the block runs; give the function that moves it."""
    with ProgressBar(console=errors, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)


def installed(family: Runtime) -> dict[str, str]:
    """Return the runtimes of a family that are installed here, as a device reports them."""
    found: dict[str, str] = {}
    for name in FAMILIES[family]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(_DISTRIBUTIONS[name])
    return found
