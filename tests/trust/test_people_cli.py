"""The terminal: logging in and out, accounts, tokens, approvals."""

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from edgefleet_cloud.cli import app, logins, people
from edgefleet_cloud.cli.client import Target
from edgefleet_cloud.cli.logins import Login
from edgefleet_cloud.cli.output import CliError, ExitCode
from edgefleet_cloud.fleet.testing import until
from edgefleet_cloud.trust.people import terminal, tokens
from edgefleet_cloud.trust.people.testing import PASSWORD, account, version
from tests.trust.people_rig import Clock, WebHub, web_hub
from tests.trust.people_rig import moved as moved  # a fixture


@pytest.fixture
def hub(
    tmp_path: Path, migrated: Path, moved: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WebHub]:
    for name in ("HUB", "TOKEN", "TOKEN_FILE", "CA", "HOME"):
        monkeypatch.delenv(f"EDGEFLEET_{name}", raising=False)
    monkeypatch.setenv("EDGEFLEET_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEFLEET_HOME", str(tmp_path / "nowhere"))
    with web_hub(tmp_path, migrated, moved) as held:
        (tmp_path / "ca.pem").write_bytes(held.services.authority.ca_pem)
        yield held


def run(*arguments: str, typed: str = "", target: Target | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=typed, obj=target)


def at(hub: WebHub, token: str | None = None) -> Target:
    return Target(hub.url, token, hub.services.settings.home.parent / "ca.pem")


def test_a_login_with_a_password_is_kept_for_later_commands(hub: WebHub, tmp_path: Path) -> None:
    account(hub.services.database, "ada", "viewer", password=PASSWORD)
    done = run("login", "--name", "ada", typed=PASSWORD + "\n", target=at(hub))
    assert done.exit_code == 0, done.output
    path = tmp_path / "config" / "logins.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (kept,) = json.loads(path.read_text())
    assert kept["account"] == "ada"
    assert kept["token"] not in done.output
    assert PASSWORD not in done.output
    # Neither hub, CA nor token has to be named again.
    shown = run("whoami", "--json")
    assert json.loads(shown.stdout)["account"] == "ada"
    assert run("logout").exit_code == 0
    assert json.loads(path.read_text()) == []
    with hub.services.database.read() as session:
        assert tokens.list_tokens(session, "ada")[0].revoked_at is not None
    assert run("whoami").exit_code == ExitCode.UNREACHABLE


def test_a_login_through_the_page_waits_for_the_person(
    hub: WebHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    account(hub.services.database, "ada", "viewer")
    said: list[str] = []
    monkeypatch.setattr(people.output, "console", lambda: Shown(said))
    monkeypatch.setattr(terminal, "POLL_S", 0.05)
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(run("login", target=at(hub))))
    waiting.start()
    until(lambda: said, "the code")
    code = said[0].rsplit(" ", 1)[1]
    assert f"{hub.url}/terminal" in said[0]
    with hub.services.database.write() as session:
        caller = tokens.caller_of(session, "ada")
        terminal.decide(session, code, caller, allowed=True, now=hub.services.clock())
    waiting.join()
    assert results[0].exit_code == 0, results[0].output
    assert json.loads(run("whoami", "--json").stdout)["account"] == "ada"


class Shown:
    """A console that keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def print(self, text: str, **_: object) -> None:
        self._said.append(text)


def test_a_refused_login_exits_4(hub: WebHub, monkeypatch: pytest.MonkeyPatch) -> None:
    account(hub.services.database, "ada", "viewer")
    said: list[str] = []
    monkeypatch.setattr(people.output, "console", lambda: Shown(said))
    monkeypatch.setattr(terminal, "POLL_S", 0.05)
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(run("login", target=at(hub))))
    waiting.start()
    until(lambda: said, "the code")
    with hub.services.database.write() as session:
        caller = tokens.caller_of(session, "ada")
        code = said[0].rsplit(" ", 1)[1]
        terminal.decide(session, code, caller, allowed=False, now=hub.services.clock())
    waiting.join()
    assert results[0].exit_code == ExitCode.DENIED
    assert "refused on the web page" in results[0].stderr


def test_a_wrong_password_exits_4_and_keeps_nothing(hub: WebHub, tmp_path: Path) -> None:
    done = run("login", "--name", "ada", typed="wrong password\n", target=at(hub))
    assert done.exit_code == ExitCode.DENIED
    assert "do not belong together" in done.stderr
    assert not (tmp_path / "config" / "logins.json").exists()


def test_accounts_and_tokens_from_the_terminal(hub: WebHub) -> None:
    admin = at(hub, hub.api.headers["Authorization"].partition(" ")[2])
    made = run("accounts", "create", "ada", "--role", "viewer", "--role", "owner:door",
               "--password", "--json", typed=PASSWORD + "\n", target=admin)  # fmt: skip
    assert json.loads(made.stdout)["roles"] == ["owner:door", "viewer"]
    run("accounts", "create", "nightly", "--service", "--role", "ci", target=admin)
    token = run("tokens", "create", "ci job", "--account", "nightly", "--days", "7",
                "--may", "read", "--may", "check", target=admin)  # fmt: skip
    secret = token.stdout.strip()
    assert secret.startswith("eft_")
    me = json.loads(run("whoami", "--json", target=at(hub, secret)).stdout)
    assert (me["account"], me["permissions"]) == ("nightly", ["check", "read"])
    (row, *_) = json.loads(run("tokens", "list", "--json", target=at(hub, secret)).stdout)
    run("tokens", "revoke", str(row["id"]), target=admin)
    assert run("whoami", target=at(hub, secret)).exit_code == ExitCode.DENIED
    run("accounts", "roles", "ada", "--role", "ci", target=admin)
    run("accounts", "disable", "ada", "--reason", "left", target=admin)
    listed = json.loads(run("accounts", "list", "--json", target=admin).stdout)
    ada = next(row for row in listed if row["name"] == "ada")
    assert (ada["roles"], ada["disabled_at"] is not None) == (["ci"], True)


def test_approvals_from_the_terminal(hub: WebHub) -> None:
    database = hub.services.database
    version(database)
    people_of = {name: account(database, name, role) for name, role in
                 (("olga", "owner"), ("ann", "approver"), ("ben", "approver"))}  # fmt: skip
    olga, ann, ben = (at(hub, people_of[name]) for name in ("olga", "ann", "ben"))
    run("approvals", "risk", "door", "high", "--reason", "opens doors", target=olga)
    run("models", "approve", "door", "1", target=olga)
    blocked = run("models", "release", "door", "1", target=olga)
    assert (blocked.exit_code, "0 of 2 said yes" in blocked.stderr) == (ExitCode.FAILED, True)
    (asked,) = json.loads(run("approvals", "list", "--json", target=ann).stdout)
    number = str(asked["id"])
    own = run("approvals", "approve", number, target=olga)
    assert (own.exit_code, "permission to approve" in own.stderr) == (ExitCode.DENIED, True)
    assert run("approvals", "approve", number, "--reason", "seen", target=ann).exit_code == 0
    stale = run("approvals", "approve", number, "--digest", "0" * 64, target=ben)
    assert (stale.exit_code, "look again" in stale.stderr) == (ExitCode.FAILED, True)
    run("approvals", "approve", number, target=ben)
    shown = run("approvals", "show", number, target=ben)
    assert "ann: yes seen, ben: yes" in shown.stdout
    assert run("models", "release", "door", "1", target=olga).exit_code == 0


# --- kept logins ----------------------------------------------------------------------------------

LOGIN = Login(hub="https://a", ca="", account="ada", token="eft_x", expires_at=1.0)


def test_the_newest_login_is_the_one_that_is_meant(tmp_path: Path) -> None:
    environment = {"EDGEFLEET_CONFIG": str(tmp_path)}
    other = Login(hub="https://b", ca="", account="bob", token="eft_y", expires_at=1.0)
    logins.keep(environment, LOGIN)
    logins.keep(environment, other)
    assert logins.last(environment) == other
    logins.keep(environment, LOGIN)
    assert logins.last(environment) == LOGIN
    logins.forget(environment, "https://a")
    assert logins.find(environment, "https://a") is None
    assert logins.find(environment, "https://b") == other


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_logins_that_others_could_read_are_refused(tmp_path: Path, mode: int) -> None:
    environment = {"EDGEFLEET_CONFIG": str(tmp_path)}
    logins.keep(environment, LOGIN).chmod(mode)
    with pytest.raises(CliError, match=r"others may read it .*chmod 600") as refused:
        logins.find(environment, "https://a")
    assert refused.value.code is ExitCode.DENIED


@pytest.mark.parametrize("content", ["{", "[1]", '[{"hub": 1}]'])
def test_logins_that_cannot_be_read_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "logins.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(CliError, match="cannot be read"):
        logins.find({"EDGEFLEET_CONFIG": str(tmp_path)}, "https://a")


def test_the_command_line_takes_no_password_as_an_argument() -> None:
    for command in (["login"], ["accounts", "create"], ["accounts", "password"]):
        text = run(*command, "--help").stdout
        assert "--password TEXT" not in text
