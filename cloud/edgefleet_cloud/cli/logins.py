"""The logins of this machine's user: which token belongs to which hub.

They are in `~/.config/edgefleet/logins.json` (`EDGEFLEET_CONFIG` names another folder), readable by
the user alone; a file that others could read is refused.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgefleet_cloud.cli.output import CliError, ExitCode
from edgefleet_cloud.trust import durable


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """One login.

    Attributes:
        hub: its URL.
        ca: file of its CA, "" for the system's.
        token: the secret; ends at `expires_at`.
    """

    hub: str
    ca: str
    account: str
    token: str
    expires_at: float


def find(environment: Mapping[str, str], hub: str) -> Login | None:
    """Return the login at this hub, None if there is none."""
    return next((login for login in _read(_path(environment)) if login.hub == hub), None)


def last(environment: Mapping[str, str]) -> Login | None:
    """Return the newest login, None if there is none."""
    logins = _read(_path(environment))
    return logins[-1] if logins else None


def keep(environment: Mapping[str, str], login: Login) -> Path:
    """Keep a login as the newest one, in place of the former at the same hub; return where."""
    path = _path(environment)
    others = [held for held in _read(path) if held.hub != login.hub]
    _write(path, [*others, login])
    return path


def forget(environment: Mapping[str, str], hub: str) -> None:
    """Forget the login at a hub."""
    path = _path(environment)
    held = _read(path)
    left = [login for login in held if login.hub != hub]
    if left != held:
        _write(path, left)


def _path(environment: Mapping[str, str]) -> Path:
    base = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(environment.get("EDGEFLEET_CONFIG") or base / "edgefleet") / "logins.json"


def _read(path: Path) -> list[Login]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", ExitCode.DENIED) from error
    if mode & 0o077:
        raise CliError(
            f"{path} holds tokens, and others may read it (mode {mode:o}); run `chmod 600 {path}`"
            " and, if they may have, `edgefleet tokens revoke`",
            ExitCode.DENIED,
        )
    try:
        return msgspec.json.decode(text, type=list[Login])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CliError(f"{path} cannot be read: {error}", ExitCode.USAGE) from error


def _write(path: Path, logins: list[Login]) -> None:
    text = json.dumps(msgspec.to_builtins(logins), indent=2)
    durable.write(path, text.encode() + b"\n", mode=durable.PRIVATE)
