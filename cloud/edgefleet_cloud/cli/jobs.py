"""`edgefleet jobs`: background work, listed and watched."""

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import Client, connect
from edgefleet_cloud.cli.output import CliError, JsonFlag

app = typer.Typer(cls=output.Group, help="Background jobs.", no_args_is_help=True)

POLL_S = 0.3
FINAL = ("succeeded", "failed")
_COLUMNS = ("id", "kind", "state", "progress", "step", "attempts", "error")


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json_flag: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    rows = connect(ctx).get("/v1/jobs", state=state, kind=kind, limit=limit)
    output.show(rows, _COLUMNS, json_flag, empty="no jobs yet")


@app.command("show")
def show_job(
    ctx: typer.Context,
    job: Annotated[int, typer.Argument(help="Number of the job.")],
    json_flag: JsonFlag = False,
) -> None:
    """Show one job with its result."""
    row = connect(ctx).get(f"/v1/jobs/{job}")
    output.show(row, (*_COLUMNS, "result"), json_flag)


@app.command("watch")
def watch_job(
    ctx: typer.Context,
    job: Annotated[int, typer.Argument(help="Number of the job.")],
    json_flag: JsonFlag = False,
) -> None:
    """Follow a job to its end; exits 1 if it fails."""
    row = follow(connect(ctx), job)
    output.show(row, (*_COLUMNS, "result"), json_flag)


@app.command("cancel")
def cancel_job(
    ctx: typer.Context,
    job: Annotated[int, typer.Argument(help="Number of the job.")],
    json_flag: JsonFlag = False,
) -> None:
    """End a job that is wanted no more; it makes no version."""
    row = connect(ctx).post(f"/v1/jobs/{job}/cancel")
    output.show(row, ("id", "kind", "state", "error"), json_flag)


def follow(client: Client, job_id: int) -> dict[str, Any]:
    """Show the progress of a job on standard error until it ends, and return it.

    Raises:
        CliError: if the job fails.
    """
    columns = (
        TextColumn("job {task.fields[number]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.console(), transient=True) as progress:
        task = progress.add_task("queued", total=1.0, number=job_id)
        while True:
            job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
            step = job["step"] or job["state"]
            progress.update(task, completed=job["progress"], description=step)
            if job["state"] in FINAL:
                break
            time.sleep(POLL_S)
    if job["state"] == "failed":
        raise CliError(f"job {job_id} ({job['kind']}) failed: {job['error']}")
    return job
