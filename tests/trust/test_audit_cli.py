"""`edgefleet audit`, and the API behind it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from edgefleet_cloud.cli import app
from edgefleet_cloud.cli.client import Client, Target
from edgefleet_cloud.cli.output import ExitCode
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import export, log
from tests.cloud.conftest import HubRig


class Auditor:
    """Someone at the terminal of a hub whose log has a few decisions."""

    def __init__(self, rig: HubRig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.now = rig.services.clock()
        for number, (name, subject) in enumerate(
            [("ada", "digits 1"), ("bob", "digits 2"), ("ada", "digits 2")]
        ):
            with acting(Actor(name, "person")), rig.services.database.write() as session:
                log.record(
                    session, "version.approve", subject, self.now + 10 * number,
                    before={"state": "registered"}, after={"state": "approved"}, reason="better",
                )  # fmt: skip
        (folder / "audit.pem").write_text(rig.services.audit.key.public_pem)

    def run(self, *arguments: str, code: int = 0, target: Any = None) -> str:
        done = CliRunner().invoke(app, list(arguments), obj=target or Client(self.rig.http))
        assert done.exit_code == code, done.output
        return done.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def export(self, *filters: str) -> Path:
        path = self.folder / "log.jsonl"
        self.run("audit", "export", str(path), *filters)
        return path

    def verify(self, path: Path, *options: str, code: int = 0) -> str:
        key = str(self.folder / "audit.pem")
        return self.run("audit", "verify", str(path), "--key", key, *options, code=code)


@pytest.fixture
def auditor(hub_rig: HubRig, tmp_path: Path) -> Auditor:
    return Auditor(hub_rig, tmp_path)


def test_decisions_are_listed_newest_first_and_filtered(auditor: Auditor) -> None:
    rows = auditor.json("audit", "list", "--action", "version.approve")
    assert [row["subject"] for row in rows] == ["digits 2", "digits 2", "digits 1"]
    rows = auditor.json("audit", "list", "--actor", "ada", "--subject", "digits 2")
    assert [(row["actor"], row["reason"]) for row in rows] == [("ada", "better")]
    shown = auditor.run("audit", "list", "--since", "2027-01-15T08:00:20")
    assert shown.count("version.approve") == 1
    assert "2027-01-15 08:00:20" in shown


def test_a_long_list_goes_on_below_a_number(auditor: Auditor) -> None:
    get = auditor.rig.http.get
    first = get("/v1/audit", params={"limit": 2}).json()
    rest = get("/v1/audit", params={"below": first[-1]["number"]}).json()
    numbers = [row["number"] for row in first + rest]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 1


def test_one_decision_is_shown_with_before_and_after(auditor: Auditor) -> None:
    number = auditor.json("audit", "list", "--limit", "1")[0]["number"]
    row = auditor.json("audit", "show", str(number))
    assert (row["before"], row["after"]) == ({"state": "registered"}, {"state": "approved"})
    assert "state=approved" in auditor.run("audit", "show", str(number))
    assert "no audit entry 999" in auditor.run("audit", "show", "999", code=ExitCode.FAILED)


def test_what_a_stranger_wrote_cannot_steer_the_terminal(auditor: Auditor) -> None:
    with auditor.rig.services.database.write() as session:
        log.record(session, "login.fail", "\x1b[2Jeve", auditor.now, after={"\x07": ["\x1b"]})
    shown = auditor.run("audit", "list", "--action", "login.fail")
    assert "\\x1b[2Jeve" in shown
    assert "\x1b" not in shown
    number = auditor.json("audit", "list", "--limit", "1")[0]["number"]
    assert "\x07" not in auditor.run("audit", "show", str(number))


def test_an_exported_log_is_verified_without_a_hub(auditor: Auditor) -> None:
    path = auditor.export()
    shown = auditor.verify(path)
    assert shown.startswith("verified: entries 1 to ")
    held = json.loads(auditor.verify(path, "--json"))
    assert held["verified"] is True
    assert held["entries"] == held["last"] == held["signed"]


def test_a_part_is_verified_too(auditor: Auditor) -> None:
    path = auditor.export("--actor", "ada")
    held = json.loads(auditor.verify(path, "--json"))
    assert held["entries"] == 2
    assert held["last"] > 3


def test_an_export_without_a_file_goes_to_standard_output(auditor: Auditor) -> None:
    assert auditor.run("audit", "export").startswith('{"audit":1,')


def test_what_is_broken_is_named_and_the_exit_code_says_so(auditor: Auditor) -> None:
    path = auditor.export()
    path.write_bytes(path.read_bytes().replace(b'"actor":"bob"', b'"actor":"eve"'))
    shown = auditor.verify(path, code=ExitCode.FAILED)
    assert "the log is broken at entry" in shown
    broken = json.loads(auditor.verify(path, "--json", code=ExitCode.FAILED))
    assert (broken["verified"], broken["kind"]) == (False, "altered")


def test_a_database_file_is_verified(auditor: Auditor) -> None:
    auditor.export()
    with acting(Actor("ada", "person")), auditor.rig.services.database.write() as session:
        log.record(session, "version.retire", "digits 1", auditor.now)
    shown = auditor.verify(auditor.rig.services.settings.home / "hub.db")
    assert "1 later entries are not signed yet" in shown


def test_kept_checkpoints_show_that_the_end_is_gone(auditor: Auditor) -> None:
    older = auditor.export().rename(auditor.folder / "older.jsonl")
    with acting(Actor("ada", "person")), auditor.rig.services.database.write() as session:
        log.record(session, "version.retire", "digits 1", auditor.now)
    auditor.export()
    kept = auditor.folder / "kept.jsonl"
    kept.write_text(auditor.run("audit", "checkpoint"))
    auditor.verify(older)
    shown = auditor.verify(older, "--checkpoint", str(kept), code=ExitCode.FAILED)
    assert "cut" in shown


def test_the_home_gives_the_key_where_none_is_named(auditor: Auditor) -> None:
    path = auditor.export()
    home = auditor.rig.services.settings.home
    auditor.run("audit", "verify", str(path), target=Target(home=home))
    shown = auditor.run(
        "audit", "verify", str(path), target=Target(home=auditor.folder), code=ExitCode.USAGE
    )
    assert "name the public audit key with --key" in shown
    assert auditor.run("audit", "key") == (auditor.folder / "audit.pem").read_text()


def test_what_cannot_be_read_is_wrong_use(auditor: Auditor) -> None:
    auditor.verify(auditor.folder / "nothing", code=ExitCode.USAGE)
    path = auditor.export()
    (auditor.folder / "audit.pem").write_text("nonsense")
    auditor.verify(path, code=ExitCode.USAGE)


def test_nothing_is_signed_at_first(hub_rig: HubRig) -> None:
    answer = hub_rig.http.get("/v1/audit/checkpoint")
    assert (answer.status_code, answer.json()) == (
        409, {"error": "nothing of the log is signed yet"},
    )  # fmt: skip


@pytest.mark.parametrize("path", ["", "/export", "/checkpoint", "/key", "/1"])
def test_the_log_is_not_for_strangers(hub_rig: HubRig, path: str) -> None:
    assert httpx.get(f"{hub_rig.http.base_url}/v1/audit{path}").status_code == 401


def test_an_export_of_many_batches_is_whole(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH", 7)
    with auditor.rig.services.database.write() as session:
        for number in range(100):
            log.record(session, "thing.do", f"thing {number % 5}", auditor.now)
    path = auditor.export("--subject", "thing 3")
    held = json.loads(auditor.verify(path, "--json"))
    assert held["entries"] == 20
    whole = auditor.export()
    assert json.loads(auditor.verify(whole, "--json"))["entries"] == held["last"]
