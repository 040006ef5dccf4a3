"""An external Mosquitto: its configuration, what the hub tells it, and when the hub refuses it."""

import json
import logging
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from edgefleet_cloud.broker import dynsec, identities, mosquitto, policy
from edgefleet_cloud.broker.configuration import Place, configuration
from edgefleet_cloud.broker.errors import BrokerError, LeakError
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_cloud.broker.testing import Site, missing
from edgefleet_cloud.cli import app
from edgefleet_cloud.database.models import DirectorRecord, Incident
from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.fleet import assignments, devices, enrolment
from edgefleet_cloud.fleet.testing import enrol, until
from edgefleet_cloud.settings import Settings
from edgefleet_protocol import topics

needs_mosquitto = pytest.mark.skipif(bool(missing()), reason=missing())
SETTINGS = Settings(home=Path("/h"), broker="mosquitto", mqtt_host="broker.example", mqtt_port=8884)


@pytest.fixture
def site(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(mosquitto, "START_TIMEOUT_S", 0.0)
    made = Site(tmp_path, "mosquitto", migrated)
    yield made
    made.stop()


def incidents(site: Site) -> list[Incident]:
    with site.services.database.read() as session:
        return session.query(Incident).filter(Incident.kind == mosquitto.LEAK).all()


def subjects(site: Site) -> set[str]:
    """Return the usernames that the plugin has on file."""
    document = json.loads((site.process.folder / "dynamic-security.json").read_text())
    return {client["username"] for client in document["clients"]}


# --- configuration --------------------------------------------------------------------------------


def test_the_configuration_names_its_files_where_they_will_be():
    place = Place(Path("/etc/m"), Path("/var/m"), Path("/p.so"), "10.0.0.1")
    lines = configuration(SETTINGS, place).splitlines()
    assert {
        "listener 8884 10.0.0.1",
        "plugin /p.so",
        "plugin_opt_config_file /etc/m/dynamic-security.json",
        "persistence_location /var/m/",
        "cafile /etc/m/ca.pem",
        "certfile /etc/m/broker.pem",
        "keyfile /etc/m/broker.key",
        "require_certificate true",
        "allow_anonymous false",
    } <= set(lines)


@pytest.mark.parametrize("folder", ["/a b", "/a\nallow_anonymous true"])
def test_a_path_that_would_change_the_configuration_is_refused(folder):
    with pytest.raises(InvalidError, match="cannot stand in a configuration of Mosquitto"):
        configuration(SETTINGS, Place(Path(folder), Path("/s"), Path("/p.so")))


def test_the_command_writes_all_that_the_broker_needs(tmp_path):
    home, to = tmp_path / "home", tmp_path / "to"
    answer = CliRunner().invoke(
        app,
        ["broker", "config", str(to), "--home", str(home), "--at", "/etc/m", "--json"],
        catch_exceptions=False,
    )
    assert answer.exit_code == 0
    files = {Path(row["file"]).name: Path(row["file"]) for row in json.loads(answer.stdout)}
    assert sorted(files) == sorted(path.name for path in to.iterdir())
    assert "certfile /etc/m/broker.pem" in files["mosquitto.conf"].read_text()
    for secret in ("broker.key", "dynamic-security.json"):
        assert files[secret].stat().st_mode & 0o777 == 0o600
    document = json.loads(files["dynamic-security.json"].read_text())
    mark = identities.link_mark(home / "broker")
    assert dynsec.username("hub", mark) in {client["username"] for client in document["clients"]}


def test_a_mark_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "mark").write_text("short")
    with pytest.raises(DamagedError, match="holds no mark of 32 letters and digits"):
        identities.link_mark(tmp_path)


def test_devices_are_told_the_brokers_own_name_where_it_has_one():
    assert SETTINGS.devices_mqtt_host == SETTINGS.public_host
    assert msgspec.structs.replace(SETTINGS, mqtt_public_host="b").devices_mqtt_host == "b"


@pytest.mark.parametrize("device", sorted(policy.RESERVED))
def test_no_device_may_be_called_as_the_hub_or_its_self_test(device, database):
    with pytest.raises(InvalidError, match="is the name of the hub"), database.write() as session:
        enrolment.create_claim(session, device, {}, 60.0, "f" * 64, 0.0)


# --- a real broker --------------------------------------------------------------------------------


@pytest.mark.system
@needs_mosquitto
def test_the_plugin_knows_who_was_enrolled_before_and_after_and_forgets_the_revoked(site):
    site.start("before")
    enrol(site.services, "after", site.devices)
    site.broker.supervise()
    assert site.connect("before").listen().accepted
    assert site.connect("after").listen().accepted
    with site.services.database.write() as session:
        devices.revoke(session, "before", time.time())
    site.broker.supervise()
    names = {name.rpartition("CN=")[2] for name in subjects(site)}
    assert names == {"hub", "after"}


@pytest.mark.system
@needs_mosquitto
def test_what_somebody_else_put_into_the_plugin_is_gone_after_the_next_connect(site):
    site.start("a")
    site.broker.stop()
    site.process.kill()
    path = site.process.folder / "dynamic-security.json"
    document = json.loads(path.read_text())
    rule = {"acltype": "publishClientReceive", "topic": "#", "allow": True}
    document["roles"].append({"rolename": "all", "acls": [rule]})
    document["groups"] = [{"groupname": "all", "roles": [{"rolename": "all"}]}]
    document["clients"].append({"username": "spy", "groups": [{"groupname": "all"}]})
    document["defaultACLAccess"]["publishClientReceive"] = True
    for role in document["roles"]:
        if role["rolename"] == "device-a":
            role["acls"].append(rule)
    path.write_text(json.dumps(document))
    site.process.start()
    site.broker = site.open_broker()
    site.broker.start()
    after = json.loads(path.read_text())
    assert "spy" not in subjects(site)
    assert after["defaultACLAccess"]["publishClientReceive"] is False
    assert "#" not in json.dumps(after)
    assert not after.get("groups")


@pytest.mark.system
@needs_mosquitto
def test_a_broker_without_fixed_client_ids_is_refused_with_what_it_lets_through(site):
    site.configure(replace=("use_username_as_clientid true", ""))
    site.process.start()
    with pytest.raises(LeakError, match="throws another client off by its client id"):
        site.broker.start()
    assert [incident.closed_at for incident in incidents(site)] == [None]
    with pytest.raises(LeakError):
        site.broker.start()
    assert len(incidents(site)) == 1
    # Put right, the incident closes by itself.
    site.process.kill()
    site.configure()
    site.process.start()
    site.broker.start()
    assert incidents(site)[0].closed_at is not None


@pytest.mark.system
@needs_mosquitto
def test_a_broker_that_lets_devices_do_everything_is_refused_with_every_leak(site, monkeypatch):
    everything = Allowed(
        publish=("ef/1/d/+/up/+", "ef/1/d/+/down/+", "ef/1/fleet/+/+"),
        read=("ef/1/d/+/up/+", "ef/1/d/+/down/+", "ef/1/fleet/+/+"),
    )
    admit = dynsec.admit

    def admit_to_everything(contents, device, marks):
        admit(contents, device, marks)
        contents.roles[f"device-{device}"] |= dynsec.rules(everything)

    monkeypatch.setattr(dynsec, "admit", admit_to_everything)
    site.configure()
    site.process.start()
    with pytest.raises(LeakError) as caught:
        site.broker.start()
    for leak in (
        f"a device publishes on {topics.up(policy.PROBED, 'state')}",
        f"a device publishes on {topics.fleet_meta(policy.PROBE)}",
        f"a device reads {topics.down(policy.PROBED, 'ack')} by ef/1/d/+/down/+",
        f"a last will arrives on {topics.up(policy.PROBED, 'state')}",
    ):
        assert leak in str(caught.value)
    # Nothing of the trial is left behind.
    assert not any("hub-" in name for name in subjects(site))


@pytest.mark.system
@needs_mosquitto
@pytest.mark.parametrize(
    "rule", ["use_subject_as_username true", "plugin_opt_config_file", "require_certificate true"]
)
def test_a_broker_whose_plugin_does_not_know_the_hub_is_refused(site, monkeypatch, rule):
    monkeypatch.setattr(mosquitto, "ANSWER_TIMEOUT_S", 0.5)
    site.configure()
    path = site.process.folder / "mosquitto.conf"
    kept = [line for line in path.read_text().splitlines() if not line.startswith(rule)]
    if rule == "plugin_opt_config_file":
        kept = [line for line in kept if not line.startswith("plugin ")]
    path.write_text("\n".join(kept) + "\n")
    site.process.start()
    with pytest.raises(BrokerError, match=r"does not answer|does not accept|cannot be reached"):
        site.broker.start()


@needs_mosquitto
def test_a_broker_that_is_not_there_is_said_so(site):
    port = site.services.settings.mqtt_port
    with pytest.raises(BrokerError, match=f"broker at 127.0.0.1:{port} cannot be reached"):
        site.broker.start()


@pytest.mark.system
@needs_mosquitto
def test_after_kill_9_the_broker_has_its_retained_messages_and_the_hub_comes_back(site):
    site.start("a")
    hub = site.connect("hub")
    hub.client.publish(topics.down("a", "assignment"), b"kept", 1, True).wait_for_publish(10)
    stored = site.process.folder / "data" / "mosquitto.db"
    until(lambda: stored.exists() and b"kept" in stored.read_bytes(), "it is written")
    site.process.kill()
    until(hub.closed.is_set, "the connection is gone")
    site.process.start()
    enrol(site.services, "b", site.devices)
    until(lambda: _supervise(site) and "CN=b" in str(subjects(site)), "the hub is back")
    assert assignments_published(site, "a") is None
    device = site.connect("a").listen()
    until(lambda: device.payloads(topics.down("a", "assignment")) == [b"kept"], "retained")


@pytest.mark.system
@needs_mosquitto
def test_a_broker_that_lost_its_messages_has_every_assignment_published_again(site, caplog):
    site.start("a")
    services = site.services
    assignments.sign_due(
        services.database, services.store, services.director, services.settings, time.time()
    )
    with services.database.write() as session:
        session.get_one(DirectorRecord, "a").published = True
    # Nothing was lost: nothing is published again.
    site.broker.stop()
    site.broker.start()
    assert assignments_published(site, "a") is True
    site.process.kill()
    shutil.rmtree(site.process.folder / "data")
    (site.process.folder / "data").mkdir()
    site.process.start()
    until(lambda: _supervise(site) and assignments_published(site, "a") is False, "unpublished")
    assert "has not kept what was published" in caplog.text


@pytest.mark.system
@needs_mosquitto
def test_a_certificate_of_the_broker_that_ends_soon_is_said_so(site, monkeypatch, caplog):
    monkeypatch.setattr(mosquitto, "EXPIRY_WARNING_S", 366 * 86_400.0)
    site.start()
    assert "the broker's certificate ends in 365 days" in caplog.text


@pytest.mark.system
@needs_mosquitto
def test_a_new_certificate_is_taken_on_sighup_and_closes_no_connection(site):
    site.start("a")
    device = site.connect("a").listen()
    before = _served(site)
    (site.process.folder / "broker.pem").unlink()
    site.configure()
    site.process.reload()
    until(lambda: _served(site) != before, "the new certificate is served")
    assert not device.closed.is_set()


@pytest.mark.system
@needs_mosquitto
def test_a_rotated_authority_is_known_to_a_broker_configured_anew_and_the_old_one_still(site):
    site.start("old")
    site.services.authority.rotate()
    # The hub's own certificates are of the new authority now, and show how the old one vouches.
    site.broker.stop()
    site.broker.start()
    site.process.kill()
    site.configure()
    site.process.start()
    enrol(site.services, "new", site.devices)
    until(lambda: _supervise(site) and "CN=new" in str(subjects(site)), "the hub is back")
    assert site.connect("old").listen().accepted
    assert site.connect("new").listen().accepted


@pytest.mark.system
@needs_mosquitto
def test_many_devices_are_let_in_over_several_rounds_and_who_leaves_goes_first(site, monkeypatch):
    site.start("leaving", "a")
    leaving = site.connect("leaving").listen()
    monkeypatch.setattr(mosquitto, "ROUND_S", 0.0)
    monkeypatch.setattr(mosquitto, "COMMANDS_AT_ONCE", 2)
    for number in range(4):
        enrol(site.services, f"new-{number}", site.devices)
    with site.services.database.write() as session:
        devices.revoke(session, "leaving", time.time())
    site.broker.supervise()
    until(leaving.closed.is_set, "it is closed in the first round")
    rounds = 1
    while not all(f"CN=new-{number}" in str(subjects(site)) for number in range(4)):
        site.broker.supervise()
        rounds += 1
        assert rounds < 20
    assert rounds > 1
    assert site.connect("new-3").listen().accepted


@pytest.mark.system
@needs_mosquitto
def test_who_is_revoked_while_others_are_still_being_let_in_is_shut_out_too(site, monkeypatch):
    site.start()
    monkeypatch.setattr(mosquitto, "ROUND_S", 0.0)
    monkeypatch.setattr(mosquitto, "COMMANDS_AT_ONCE", 2)
    for name in ("a", "b", "c"):
        enrol(site.services, name, site.devices)
    site.broker.supervise()
    # The hub's three, and the first of the devices.
    assert len(subjects(site)) == 4
    with site.services.database.write() as session:
        for name in ("a", "b", "c"):
            devices.revoke(session, name, time.time())
    site.broker.supervise()
    assert {name.rpartition("CN=")[2] for name in subjects(site)} == {"hub"}


@pytest.mark.system
@needs_mosquitto
def test_a_broker_that_comes_back_leaking_is_left_by_the_link_until_it_is_put_right(site):
    site.start("a")
    link = Link(site.services, lambda: site.broker.usable)
    link.start()
    try:
        assert link.await_connected(10)
        site.process.kill()
        site.configure(replace=("use_username_as_clientid true", ""))
        site.process.start()

        def left() -> bool:
            link.publish_pending()
            return not _supervise(site) and bool(incidents(site)) and not link.connected

        until(left, "the incident is open, and the link has left")
        site.process.kill()
        site.configure()
        site.process.start()
        until(lambda: _supervise(site) and link.connected, "the link is back", deadline_s=40.0)
    finally:
        link.stop()


@pytest.mark.system
@needs_mosquitto
def test_the_self_test_says_how_long_a_revoked_connection_stayed(site, caplog):
    caplog.set_level(logging.INFO, mosquitto.__name__)
    site.start()
    assert "a revoked device's connection was closed after" in caplog.text


def _supervise(site: Site) -> bool:
    try:
        site.broker.supervise()
    except BrokerError:
        return False
    return True


def assignments_published(site: Site, device: str) -> bool | None:
    with site.services.database.read() as session:
        record = session.get_one(DirectorRecord, device)
        return record.published if record.payload is not None else None


def _served(site: Site) -> bytes:
    context = ssl.create_default_context(cadata=site.services.authority.ca_pem.decode())
    context.load_cert_chain(site.devices / "a.pem", site.devices / "a.key")
    address = ("127.0.0.1", site.services.settings.mqtt_port)
    with (
        socket.create_connection(address, timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        return line.getpeercert(binary_form=True) or b""
