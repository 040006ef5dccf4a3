"""`edgefleet datasets`: rows to train and judge on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_cloud.datasets.bundled import BUNDLED

app = typer.Typer(cls=output.Group, help="Data sets.", no_args_is_help=True)

_LIST = ("name", "digest", "rows", "features", "label", "source")


@app.command("add")
def add_dataset(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(help=f"A CSV or Parquet file, or one of {', '.join(BUNDLED)}.")
    ],
    name: Annotated[str | None, typer.Option(help="For people; from the file's name.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the right answers.")] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Add a data set. A bundled one brings its own label column, `target`."""
    client = connect(ctx)
    path = Path(source)
    if source in BUNDLED and not path.exists():
        if name is not None or label is not None:
            raise CliError("a bundled data set has its own name and label", ExitCode.USAGE)
        row = client.post("/v1/datasets/bundled", {"name": source})
    else:
        form = {"name": name or name_from(path)}
        if label is not None:
            form["label"] = label
        with open_file(path) as file:
            row = client.post("/v1/datasets", form=form, files={"file": (path.name, file)})
    output.show(_row(row), _LIST, json_flag)


@app.command("list")
def list_datasets(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """List data sets, newest first."""
    rows = connect(ctx).get("/v1/datasets")
    shown = rows if json_flag else [{**_row(row), "digest": row["digest"][:12]} for row in rows]
    output.show(shown, _LIST, json_flag, empty="no data sets yet; `edgefleet datasets add iris`")


@app.command("show")
def show_dataset(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Digest, its beginning, or name.")],
    json_flag: JsonFlag = False,
) -> None:
    """Show one data set."""
    row = connect(ctx).get(f"/v1/datasets/{dataset}")
    output.show(row if json_flag else _row(row), (*_LIST, "parents", "column names"), json_flag)


def ensure(client: Client, reference: str) -> dict[str, Any]:
    """Return a data set of the hub; a bundled one is added first if it is not there.

    Raises:
        CliError: if there is none, and none of that name is bundled.
    """
    found = client.find(f"/v1/datasets/{reference}")
    if found is None and reference in BUNDLED:
        found = client.post("/v1/datasets/bundled", {"name": reference})
    if found is None:
        raise CliError(
            f"there is no data set {reference!r}; add one with `edgefleet datasets add`",
            ExitCode.USAGE,
        )
    row: dict[str, Any] = found
    return row


def open_file(path: Path) -> Any:
    """Open a file to send.

    Raises:
        CliError: if it cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", ExitCode.USAGE) from error


def name_from(path: Path) -> str:
    """Return a name for the hub out of a file's name: lower case, the rest as `-`."""
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower())
    return text.strip("-")[:64] or "unnamed"


def _row(row: dict[str, Any]) -> dict[str, Any]:
    names = [column["name"] for column in row["columns"]]
    return {**row, "features": len(names), "column names": names}
