"""`edgefleet login`, `logout`, `whoami`, `accounts` and `tokens`.

Rules:

1. A password is typed, never given as an argument: arguments are seen by every process of the
   machine and kept by the shell.
2. A token is printed only where it was asked for (`tokens create`); a login keeps its own.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_cloud.cli import logins, output
from edgefleet_cloud.cli.client import (
    Client,
    Target,
    connect,
    find_hub,
    open_anonymous,
    open_client,
)
from edgefleet_cloud.cli.logins import Login
from edgefleet_cloud.cli.output import CliError, ExitCode, JsonFlag

accounts = typer.Typer(cls=output.Group, help="Who may use the hub.", no_args_is_help=True)
tokens = typer.Typer(cls=output.Group, help="Tokens of programs and people.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Of the account.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the log of decisions.")]
Role = Annotated[
    list[str] | None,
    typer.Option(help="viewer, operator, owner, owner:MODEL, approver, admin, ci; repeatable."),
]
_ACCOUNT = ("name", "kind", "roles", "signs_in", "disabled_at", "created_at")
_TOKEN = ("id", "account", "name", "permissions", "model", "expires_at", "used_at", "revoked_at")


def login(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Sign in with this name and a typed password.")
    ] = None,
    json_flag: JsonFlag = False,
) -> None:
    """Sign in at a hub, through its web page; later commands need no token."""
    target = ctx.obj if isinstance(ctx.obj, Target) else Target()
    hub, ca = find_hub(target, os.environ)
    client = open_anonymous(hub, ca)
    ctx.call_on_close(client.close)
    made = _by_page(client, hub) if name is None else _by_password(client, name)
    kept = Login(
        hub=hub,
        ca=str(Path(ca).absolute()) if ca else "",
        account=made["account"],
        token=made["token"],
        expires_at=made["expires_at"],
    )
    path = logins.keep(os.environ, kept)
    shown = {"account": made["account"], "hub": hub, "until": made["expires_at"], "kept": str(path)}
    output.show(shown, tuple(shown), json_flag)


def logout(ctx: typer.Context) -> None:
    """End the login at a hub, there and here."""
    target = ctx.obj if isinstance(ctx.obj, Target) else Target()
    hub, ca = find_hub(target, os.environ)
    held = logins.find(os.environ, hub)
    if held is None:
        raise CliError(f"there is no login at {hub}", ExitCode.USAGE)
    client = open_client(Target(hub, held.token, Path(ca) if ca else None, target.home), {})
    ctx.call_on_close(client.close)
    try:
        client.post("/v1/logout")
    except CliError as error:
        if error.code is not ExitCode.DENIED:  # one that has ended already is as good
            raise
    logins.forget(os.environ, hub)


def whoami(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """Show who asks, and what they may."""
    row = connect(ctx).get("/v1/me")
    output.show(row, ("account", "kind", "roles", "permissions", "model"), json_flag)


@accounts.command("list")
def list_accounts(ctx: typer.Context, json_flag: JsonFlag = False) -> None:
    """List all accounts."""
    output.show(connect(ctx).get("/v1/accounts"), _ACCOUNT, json_flag)


@accounts.command("create")
def create_account(
    ctx: typer.Context,
    name: Name,
    role: Role = None,
    service: Annotated[bool, typer.Option(help="A program: it has tokens, no password.")] = False,
    password: Annotated[bool, typer.Option(help="Ask for its password.")] = False,
    json_flag: JsonFlag = False,
) -> None:
    """Make an account. A name is given once, for ever."""
    body: dict[str, Any] = {
        "name": name,
        "kind": "service" if service else "person",
        "roles": role or [],
    }
    if password:
        body["password"] = _typed(f"Password of {name}", confirm=True)
    output.show(connect(ctx).post("/v1/accounts", body), _ACCOUNT, json_flag)


@accounts.command("roles")
def set_roles(
    ctx: typer.Context, name: Name, role: Role = None, json_flag: JsonFlag = False
) -> None:
    """Give an account these roles in place of those before; none takes all away."""
    row = connect(ctx).put(f"/v1/accounts/{name}/roles", {"roles": role or []})
    output.show(row, _ACCOUNT, json_flag)


@accounts.command("password")
def set_password(ctx: typer.Context, name: Name, json_flag: JsonFlag = False) -> None:
    """Give an account a new password, which is typed; its web sessions end."""
    body = {"password": _typed(f"New password of {name}", confirm=True)}
    row = connect(ctx).post(f"/v1/accounts/{name}/password", body)
    output.show(row, _ACCOUNT, json_flag)


@accounts.command("disable")
def disable(
    ctx: typer.Context, name: Name, reason: Reason = "", json_flag: JsonFlag = False
) -> None:
    """Shut an account out; its sessions and tokens end at once."""
    row = connect(ctx).post(f"/v1/accounts/{name}/disable", {"reason": reason})
    output.show(row, _ACCOUNT, json_flag)


@accounts.command("enable")
def enable(
    ctx: typer.Context, name: Name, reason: Reason = "", json_flag: JsonFlag = False
) -> None:
    """Let an account in again; its former tokens stay revoked."""
    row = connect(ctx).post(f"/v1/accounts/{name}/enable", {"reason": reason})
    output.show(row, _ACCOUNT, json_flag)


@tokens.command("list")
def list_tokens(
    ctx: typer.Context,
    everyone: Annotated[bool, typer.Option("--all", help="Of all accounts, for an admin.")] = False,
    json_flag: JsonFlag = False,
) -> None:
    """List one's own tokens."""
    rows = connect(ctx).get("/v1/tokens", everyone=everyone)
    output.show(rows, _TOKEN, json_flag, empty="no tokens")


@tokens.command("create")
def create_token(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    account: Annotated[str | None, typer.Option(help="A service's, for an admin.")] = None,
    days: Annotated[float, typer.Option(help="Until it ends; 365 at most.")] = 90.0,
    may: Annotated[
        list[str] | None, typer.Option(help="At most: read, check, make, …; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="The only model that it may change.")] = "",
    json_flag: JsonFlag = False,
) -> None:
    """Make a token and print it, this once."""
    body = {"name": name, "account": account, "days": days, "permissions": may, "model": model}
    row = connect(ctx).post("/v1/tokens", body)
    if json_flag:
        output.show(row, (), json_flag)
        return
    output.console().print("The token is shown this once:", markup=False)
    sys.stdout.write(row["token"] + "\n")


@tokens.command("revoke")
def revoke_token(
    ctx: typer.Context,
    number: Annotated[int, typer.Argument(help="From `edgefleet tokens list`.")],
    json_flag: JsonFlag = False,
) -> None:
    """End a token at once."""
    output.show(connect(ctx).post(f"/v1/tokens/{number}/revoke"), _TOKEN, json_flag)


def _by_password(client: Client, name: str) -> dict[str, Any]:
    body = {"name": name, "password": _typed(f"Password of {name}")}
    made: dict[str, Any] = client.post("/v1/login", body)
    return made


def _by_page(client: Client, hub: str) -> dict[str, Any]:
    begun = client.post("/v1/login/terminal")
    output.console().print(
        f"Open {hub}{begun['page']} in a browser, sign in, and type the code {begun['code']}",
        markup=False,
        soft_wrap=True,
    )
    deadline = time.monotonic() + max(0.0, begun["expires_at"] - time.time())
    while time.monotonic() < deadline:
        time.sleep(begun["poll_s"])
        token = client.post("/v1/login/terminal/token", {"secret": begun["secret"]})["token"]
        if token is not None:
            made: dict[str, Any] = token
            return made
    raise CliError("nobody typed the code in time; begin again", ExitCode.DENIED)


def _typed(what: str, *, confirm: bool = False) -> str:
    """Return what a person types without seeing it, or the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    typed: str = typer.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True)
    return typed
