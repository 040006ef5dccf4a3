"""`edgefleet trust` as people use it: against a hub, and on a machine without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from typer.testing import CliRunner, Result

from edgefleet_cloud.api.testing import served
from edgefleet_cloud.cli import app
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.cli.output import ExitCode
from edgefleet_cloud.fleet.testing import open_services
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.repositories import founding, keys
from tests.trust.ceremony import listed

PASSPHRASE = "correct horse battery"


class Rig:
    """A hub whose offline keys are files, and people at terminals."""

    def __init__(self, services: Services, http: httpx.Client, home: Path) -> None:
        self.services, self.http = services, http
        self.keys = home / "trust" / founding.OFFLINE_KEYS
        self.secret = self.keys / founding.PASSPHRASE_FILE

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(app, ["trust", *arguments], obj=Client(self.http))
        assert result.exit_code == 0, result.stderr
        return result

    def refused(self, *arguments: str) -> Result:
        result = CliRunner().invoke(app, ["trust", *arguments], obj=Client(self.http))
        assert result.exit_code != 0, result.stdout
        return result

    def sign(self, *names: str, where: Path | None = None) -> str:
        """Sign with some of the fleet's own offline keys."""
        arguments = ["sign", "--yes", "--passphrase-file", str(self.secret)]
        for name in names:
            arguments += ["--key", str(self.keys / f"{name}.pem")]
        return self.run(*arguments, *(["--from", str(where)] if where else [])).stderr


@pytest.fixture
def rig(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv(keys.PASSPHRASE, PASSPHRASE)
    founding.by_hub(home / "trust", {}, 2_000_000_000.0)
    services = open_services(home, lambda: 2_000_000_000.0, migrated=migrated)
    services.images.sync(dict([listed("digits", 1)]))
    try:
        with served(services) as http:
            yield Rig(services, http, home)
    finally:
        services.database.close()


def test_status_shows_who_signs_what(rig):
    shown = rig.run("status").stdout
    assert "image.root" in shown
    assert "2 of root-1*, root-2*, root-3*" in shown
    assert "the hub (director.targets)" in shown
    answer = json.loads(rig.run("status", "--json").stdout)
    assert answer["drafts"] == []
    assert {role["name"]: role["online"] for role in answer["roles"]}["image.targets"] is False


def test_an_owner_is_put_in_charge_by_people_on_three_machines(rig, tmp_path):
    rig.run("key", "ann", "--out", str(tmp_path))
    rig.run("delegate", "vision", "--model", "digits", "--key", str(tmp_path / "ann.pub"))
    shown = rig.run("status").stderr
    assert "image.targets 2 waits for 2 of targets-1, targets-2, targets-3" in shown
    assert "owner-vision signs digits/*/*" in shown
    # One holder at the hub's terminal.
    assert "image.targets: taken; more signatures are needed" in rig.sign("targets-1")
    # Another on a machine without network, and the owner on hers, on the same stick.
    desk = tmp_path / "stick"
    assert "image root 1 is SHA-256" in rig.run("export", str(desk)).stderr
    assert "signed in" in rig.sign("targets-3", where=desk)
    said = rig.run("sign", "--yes", "--from", str(desk), "--key", str(tmp_path / "ann.pem")).stderr
    assert "added: digits/r1/onnx-fp32.json, 100 bytes, sha256 abab" in said
    said = rig.run("import", str(desk)).stderr
    assert "image.targets: in force" in said or "image.owner-vision: in force" in said
    assert rig.services.images.owners() == {"digits": "owner-vision"}
    assert rig.refused("import", str(desk)).stderr.count("no signature that the hub does not have")


def test_nothing_is_signed_unless_the_person_says_yes(rig):
    rig.run("renew", "director.root")
    key = str(rig.keys / "root-1.pem")
    arguments = ["trust", "sign", "--key", key, "--passphrase-file", str(rig.secret)]
    result = CliRunner().invoke(app, arguments, obj=Client(rig.http), input="n\n")
    assert result.exit_code == ExitCode.FAILED
    assert "valid until 2036-05-17 (now 2036-05-17)" in result.stderr
    assert "nothing was signed" in result.stderr
    assert rig.services.director.drafts()["director.root"].signatures == {}


def test_signing_with_a_key_that_nothing_waits_for_says_so(rig):
    said = rig.refused(
        "sign", "--key", str(rig.keys / "root-1.pem"), "--passphrase-file", str(rig.secret)
    )
    assert "no draft waits for a signature of these keys" in said.stderr


def test_all_online_keys_of_the_director_are_replaced(rig):
    before = rig.services.director.sign_bytes("timestamp", b"x").keyid
    assert "director.root" in rig.run("rotate", "director.online").stdout
    assert "director.root: in force" in rig.sign("root-1", "root-2")
    assert rig.services.director.root_version == 2
    assert rig.services.director.sign_bytes("timestamp", b"x").keyid != before


def test_a_root_key_is_rotated_to_a_persons_new_one_and_then_revoked(rig, tmp_path):
    rig.run("key", "root-4", "--out", str(tmp_path))
    rig.run("rotate", "root-1", "--new", str(tmp_path / "root-4.pub"))
    rig.sign("root-2", "root-3")
    shown = rig.run("status").stdout
    assert "root-4" in shown
    assert "root-1" not in shown
    assert "needs 2 keys" not in rig.run("revoke", "root-4").stderr
    assert "needs 2 keys" in rig.refused("revoke", "root-3").stderr
    rig.run("discard", "image.root")
    rig.run("discard", "director.root")
    assert json.loads(rig.run("status", "--json").stdout)["drafts"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rotate", "nothing"], "there is no role or key 'nothing'"),
        (["rotate", "root-1"], "is the key of a person: give the public file"),
        (["revoke", "nothing"], "there is no role or key 'nothing'"),
        (["renew", "image.nothing"], "there is no signed file 'image.nothing'"),
        (["discard", "image.root"], "there is no draft 'image.root'"),
        (["undelegate", "vision"], "there is no owner 'vision'"),
        (["sign"], "name at least one key"),
    ],
)
def test_what_cannot_be_done_is_said(rig, arguments, text):
    assert text in rig.refused(*arguments).stderr


class Plain(FetcherInterface):
    """Fetches one file a connection, which it closes."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        answer = httpx.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(url, answer.status_code)
        return iter([answer.content])


def test_any_tuf_client_reads_the_mirror_without_a_login(rig, tmp_path):
    base = str(rig.http.base_url)
    answer = httpx.get(f"{base}/v1/trust/image/metadata/1.root.json")
    assert answer.content == rig.services.images.root_1
    assert httpx.get(f"{base}/v1/trust/director/root/1.root.json").content == (
        rig.services.director.root_1
    )
    for name in ("2.root.json", "../1.root.json", "root.json", "1.targets"):
        assert httpx.get(f"{base}/v1/trust/image/metadata/{name}").status_code == 404
        assert httpx.get(f"{base}/v1/trust/director/root/{name}").status_code == 404
    updater = Updater(
        str(tmp_path / "client"),
        f"{base}/v1/trust/image/metadata/",
        fetcher=Plain(),
        config=UpdaterConfig(prefix_targets_with_hash=False),
        bootstrap=rig.services.images.root_1,
    )
    assert updater.get_targetinfo("digits/r1/onnx-fp32.json").length == 100


def test_drafts_and_signatures_need_a_login(rig):
    base = rig.http.base_url
    assert httpx.get(f"{base}/v1/trust").status_code == 401
    for path in ("rotate", "revoke", "drafts/image.root", "owners/a/signatures"):
        assert httpx.post(f"{base}/v1/trust/{path}", json={}).status_code == 401


# --- founding ---------------------------------------------------------------------------------


def init(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["trust", "init", "--home", str(home), *arguments])


def test_init_makes_encrypted_keys_and_founds_the_fleet(tmp_path):
    home = tmp_path / "home"
    done = init(home, "--root-keys", "2", "--targets-keys", "1", "--targets-threshold", "1")
    assert done.exit_code == 0, done.stderr
    folder = home / founding.OFFLINE_KEYS
    assert sorted(path.name for path in folder.glob("*.pem")) == [
        "root-1.pem", "root-2.pem", "targets-1.pem",
    ]  # fmt: skip
    assert all(b"ENCRYPTED" in path.read_bytes() for path in folder.glob("*.pem"))
    assert founding.is_founded(home)
    again = init(home)
    assert again.exit_code == ExitCode.USAGE
    assert "is founded already" in again.stderr


def test_a_fleet_is_founded_by_people_who_never_show_their_keys_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv(keys.PASSPHRASE, PASSPHRASE)
    home, vault = tmp_path / "home", tmp_path / "vault"
    holders = []
    for name in ("ann", "bob", "eve"):
        CliRunner().invoke(app, ["trust", "key", name, "--out", str(vault)])
        holders += ["--root-key", str(vault / f"{name}.pub")]
    done = init(home, *holders, "--targets-keys", "1", "--targets-threshold", "1")
    assert "the first files wait for signatures" in done.stderr
    desk = home / founding.FOUNDING
    for name in ("ann", "eve"):
        assert not founding.is_founded(home)
        arguments = ["trust", "sign", "--yes", "--from", str(desk)]
        signed = CliRunner().invoke(app, [*arguments, "--key", str(vault / f"{name}.pem")])
        assert signed.exit_code == 0, signed.stderr
    founding.put_in_place(home, founding.begun(home))
    assert founding.is_founded(home)
