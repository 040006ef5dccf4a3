"""`edgefleet audit`: who decided what, and whether the log of it can be believed."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefleet_cloud.cli import output
from edgefleet_cloud.cli.client import Target, connect
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag
from edgefleet_cloud.errors import InvalidError

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

app = typer.Typer(cls=output.Group, help="Who decided what.", no_args_is_help=True)

Since = Annotated[datetime | None, typer.Option(help="Not before this time (UTC).")]
Until = Annotated[datetime | None, typer.Option(help="Before this time (UTC).")]
Who = Annotated[str | None, typer.Option(help="Only decisions of this actor.")]
Action = Annotated[str | None, typer.Option(help="Only this action, as version.approve.")]
Subject = Annotated[str | None, typer.Option(help='Only this subject, as "digits 3".')]

_COLUMNS = ("number", "at", "actor", "kind", "action", "subject", "reason")


@app.command("list")
def list_entries(
    ctx: typer.Context,
    since: Since = None,
    until: Until = None,
    actor: Who = None,
    action: Action = None,
    subject: Subject = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The most to show.")] = 50,
    json_flag: JsonFlag = False,
) -> None:
    """List decisions, newest first."""
    query = _query(since, until, actor, action, subject)
    rows = connect(ctx).get("/v1/audit", limit=limit, **query)
    output.show(rows, _COLUMNS, json_flag, empty="no decision of that kind")


@app.command("show")
def show_entry(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(min=1, help="Of the entry.")],
    json_flag: JsonFlag = False,
) -> None:
    """Show one decision: what was, what is since, and why."""
    row = connect(ctx).get(f"/v1/audit/{number}")
    columns = (*_COLUMNS[:-1], "before", "after", "reason", "digest")
    output.show(row, columns, json_flag)


@app.command("export")
def export_log(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="To write; else standard output.")] = None,
    since: Since = None,
    until: Until = None,
    actor: Who = None,
    action: Action = None,
    subject: Subject = None,
) -> None:
    """Write the log, signed up to now, as JSON Lines that `verify` checks without a hub.

    With filters the other entries are replaced by their digests: a part is verified too.
    """
    query = _query(since, until, actor, action, subject)
    chunks = connect(ctx).stream("/v1/audit/export", **query)
    if file is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        return
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as opened:
        opened.writelines(chunks)
    partial.replace(file)


@app.command("checkpoint")
def show_checkpoint(ctx: typer.Context) -> None:
    """Print the newest signature under the log, one line; keep it away from the hub's machine."""
    row = connect(ctx).get("/v1/audit/checkpoint")
    sys.stdout.write(json.dumps(row, separators=(",", ":")) + "\n")


@app.command("key")
def show_key(ctx: typer.Context) -> None:
    """Print the public key that signs the log."""
    sys.stdout.write((connect(ctx).content("/v1/audit/key") or b"").decode())


@app.command("verify")
def verify_log(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="An exported log, or a hub's database file.")],
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Public audit key, PEM; repeat for several. Else that of the home."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoints that were kept, as checkpoints.jsonl; may be repeated."),
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Check that nothing of a log was changed, removed, moved or cut off. Needs no hub.

    Exit codes: 0 it is whole; 1 it is not: the first broken entry is named; 2 it cannot be read.
    """
    # What checks the log is imported where it is needed: other commands do without.
    from edgefleet_cloud.trust.audit import sources, verification

    try:
        held = verification.verify(
            sources.lines(file),
            [_key(path) for path in key or [home_of(ctx) / "audit" / "public.pem"]],
            known=[item for path in checkpoint or [] for item in sources.checkpoints(path)],
            unsigned_tail=sources.is_database(file),
        )
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except verification.BrokenError as error:
        if json_flag:
            broken = {"verified": False, "kind": error.kind, "number": error.number}
            output.show(broken | {"text": error.text}, (), json_flag)
            raise typer.Exit(int(ExitCode.FAILED)) from error
        raise CliError(f"the log is broken at entry {error.number}: {error}") from error
    row = {name: getattr(held, name) for name in held.__struct_fields__}
    if json_flag:
        output.show({"verified": True, **row}, (), json_flag)
        return
    sys.stdout.write(
        f"verified: entries {held.first} to {held.last}, {held.entries} of them in full\n"
        f"signed: up to entry {held.signed} at {output.moment(held.at)} by key {held.keyid[:12]}\n"
    )
    if held.last > held.signed:
        count = held.last - held.signed
        output.console().print(f"{count} later entries are not signed yet", markup=False)
    if held.unused:
        text = f"{held.unused} kept checkpoints are of entries before this file"
        output.console().print(text, markup=False)


def _query(
    since: datetime | None,
    until: datetime | None,
    actor: str | None,
    action: str | None,
    subject: str | None,
) -> dict[str, Any]:
    return {
        "since": since and since.replace(tzinfo=UTC).timestamp(),
        "until": until and until.replace(tzinfo=UTC).timestamp(),
        "actor": actor,
        "action": action,
        "subject": subject,
    }


def home_of(ctx: typer.Context) -> Path:
    """Return the home of the hub on this machine, whether there is one or not."""
    target = ctx.obj if isinstance(ctx.obj, Target) else Target()
    return target.home or Path(os.environ.get("EDGEFLEET_HOME") or Path.home() / ".edgefleet")


def _key(path: Path) -> "SSlibKey":
    from edgefleet_cloud.trust.audit.keys import public_key  # as above

    try:
        return public_key(path.read_bytes())
    except OSError as error:
        raise CliError(
            f"{path} cannot be read ({error.strerror}); name the public audit key with --key"
            " (`edgefleet audit key` prints it)",
            ExitCode.USAGE,
        ) from error
