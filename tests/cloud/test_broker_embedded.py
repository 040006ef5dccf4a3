"""The embedded broker: who may connect, what they may do, and what happens when it dies."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgefleet_cloud.broker import embedded, policy
from edgefleet_cloud.broker.backoff import SETTLED_S, Backoff
from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.errors import BrokerError
from edgefleet_cloud.database.models import Device, DirectorRecord
from edgefleet_cloud.fleet import assignments, devices
from edgefleet_cloud.fleet.testing import TestDevice, enrol, open_services, until
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_protocol import topics


def new_broker(services: Services, **arguments: object) -> EmbeddedBroker:
    return EmbeddedBroker(
        services.settings,
        services.authority,
        services.settings.home / "broker",
        services.database,
        **arguments,  # type: ignore[arg-type]
    )


class Site:
    """A broker with two devices, a client of the hub, and a way to start more."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.services = open_services(home)
        for name in ("a", "b", "c"):
            enrol(self.services, name, home / "devices")
        self.broker = new_broker(self.services)
        self.clients: list[TestDevice] = []

    def client(self, client_id: str, identity: str | None = None) -> TestDevice:
        folder = self.home / ("broker" if (identity or client_id) == "hub" else "devices")
        client = TestDevice(self.services, folder, client_id, identity)
        self.clients.append(client)
        return client.connect()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    # The tests look through the hub's eyes at all that happens, which its link may not.
    everything = policy.Allowed(
        policy.of_link().publish, ("ef/1/d/+/up/+", "ef/1/d/+/+/+", "ef/1/fleet/+/+")
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "of_link", lambda: everything)
            site.broker.start()
            yield site
    finally:
        site.broker.stop()
        site.services.database.close()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    running.close()


def test_the_hubs_link_hears_what_a_device_says_under_its_own_name(site):
    hub = site.client("hub")
    assert hub.subscribe(topics.ALL_UP)
    site.client("a").send("state", b"hello")
    until(lambda: hub.payloads(topics.up("a", "state")) == [b"hello"], "the message")


@pytest.mark.parametrize(
    "topic",
    [
        "ef/1/d/b/up/state",
        "ef/1/d/b/down/assignment",
        "ef/1/d/a/down/assignment",
        "ef/1/fleet/meta/root-1",
        "ef/1/fleet/blob/" + "ab" * 32,
        "$SYS/REQ/USER/AUTH",
        "$MQTT/rmsgs/ef/1/fleet/meta/root-1",
        "$JS/API/STREAM/DELETE/$MQTT_rmsgs",
        "elsewhere",
    ],
)
@pytest.mark.parametrize("retain", [False, True])
def test_a_device_publishes_nowhere_but_under_its_own_up(site, topic, retain):
    hub = site.client("hub")
    assert hub.subscribe("ef/1/d/+/+/+")
    assert hub.subscribe("ef/1/fleet/+/+")
    device = site.client("a")
    device.client.publish(topic, b"forged", 1, retain)
    device.send("state", b"after")
    until(lambda: hub.payloads(topics.up("a", "state")), "the allowed message")
    assert b"forged" not in [payload for _, payload, _ in hub.received]
    other = site.client("b").listen()
    assert other.received == []


def test_a_forged_last_will_is_not_delivered(site):
    hub = site.client("hub")
    assert hub.subscribe("ef/1/d/+/+/+")
    assert hub.subscribe("ef/1/fleet/+/+")
    device = TestDevice(site.services, site.home / "devices", "a")
    device.client.will_set("ef/1/d/b/up/state", b"forged", 1)
    device.connect()
    device.client.socket().shutdown(socket.SHUT_RDWR)
    until(device.closed.is_set, "the connection is gone")
    device.close()
    site.client("c").send("state", b"after")
    until(lambda: hub.payloads(topics.up("c", "state")), "the allowed message")
    assert hub.payloads("ef/1/d/b/up/state") == []


@pytest.mark.parametrize(
    "topic",
    ["ef/1/d/b/down/+", "ef/1/d/+/down/+", "ef/1/d/b/up/+", "ef/1/d/a/up/+", "#", "ef/1/#", "+/+"],
)
def test_a_device_reads_nothing_of_another(site, topic):
    assert not site.client("a").subscribe(topic)


@pytest.mark.parametrize("topic", ["$MQTT/#", "$MQTT/rmsgs/#", "$SYS/#", "$JS/#", "$MQTT/sub/x"])
def test_a_device_reads_nothing_of_the_brokers_own(site, topic):
    assert not site.client("a").subscribe(topic)


@pytest.mark.parametrize(
    "topic", ["ef/1/d/a/down/+", "ef/1/d/a/down/ack", "ef/1/fleet/meta/+", "ef/1/fleet/blob/+"]
)
@pytest.mark.parametrize("qos", [0, 1])
def test_a_device_reads_its_own_and_the_fleets(site, topic, qos):
    assert site.client("a").subscribe(topic, qos)


def test_a_device_cannot_throw_another_off_by_its_client_id(site):
    victim = site.client("b")
    assert victim.accepted
    for _ in range(3):
        assert site.client("b", identity="a").accepted is not True
    hub = site.client("hub")
    assert hub.subscribe(topics.ALL_UP)
    victim.send("state", b"still here")
    until(lambda: hub.payloads(topics.up("b", "state")), "the victim's message")
    assert not victim.closed.is_set()


@pytest.mark.parametrize("client_id", ["hub", "nobody", "A", "callout"])
def test_a_device_connects_under_no_name_but_its_own(site, client_id):
    assert site.client(client_id, identity="a").accepted is not True


def test_a_certificate_of_this_authority_that_was_never_enrolled_is_refused(site):
    folder = site.home / "devices"
    site.services.authority.issue_client("stranger", folder)
    assert site.client("stranger").accepted is not True


def test_another_certificate_for_the_hubs_name_is_refused(site):
    forged = site.services.authority.issue_client("hub", site.home / "forged")
    for path in (forged.certificate, forged.key):
        shutil.copy(path, site.home / "devices" / f"forged{path.suffix}")
    assert site.client("hub", identity="forged").accepted is not True


def test_a_certificate_of_another_authority_is_refused_by_tls(site):
    foreign = Authority.open(site.home / "foreign-ca", time.time)
    foreign.issue_client("foreign", site.home / "devices")
    client = TestDevice(site.services, site.home / "devices", "foreign")
    # TLS 1.3: the client's side of the handshake is done before the server looks at its
    # certificate, so the connection ends then or at the first answer.
    with contextlib.suppress(OSError):
        client.connect()
    assert client.accepted is None
    client.close()


def test_a_replaced_certificate_is_refused(site):
    for suffix in (".pem", ".key"):
        path = (site.home / "devices" / "c").with_suffix(suffix)
        shutil.copy(path, path.with_name(f"old{suffix}"))
    enrol(site.services, "c", site.home / "devices")
    assert site.client("c", identity="old").accepted is not True
    assert site.client("c").accepted


def test_a_revoked_device_is_thrown_out_at_the_next_round_and_stays_out(site):
    enrol(site.services, "d", site.home / "devices")
    device = site.client("d")
    with site.services.database.write() as session:
        devices.revoke(session, "d", time.time())
    site.broker.supervise()
    until(device.closed.is_set, "the connection is closed")
    assert site.client("d").accepted is not True


def test_without_the_auth_callout_nobody_gets_in_until_it_is_back(site):
    site.broker._callout.stop()
    client = TestDevice(site.services, site.home / "devices", "a")
    site.clients.append(client)
    assert client.connect().accepted is not True
    site.broker.supervise()
    assert site.client("a").accepted


def test_it_listens_where_it_was_told_and_else_on_loopback_alone(site):
    process = psutil.Process(site.broker._process.pid)
    listening = {
        (item.laddr.ip, item.laddr.port)
        for item in process.net_connections()
        if item.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert ("127.0.0.1", site.services.settings.mqtt_port) in listening
    assert len(listening) == 2


def test_the_client_port_lets_nobody_in_without_the_password(site):
    port = int(site.broker._url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b'CONNECT {"verbose":false,"user":"callout","pass":"guess"}\r\nPING\r\n')
        answer = b""
        while part := plain.recv(4096):
            answer += part
    assert b"Authorization Violation" in answer


def test_the_configuration_is_readable_by_its_owner_alone(site):
    assert site.broker.config_path.stat().st_mode & 0o777 == 0o600


# --- its life ---------------------------------------------------------------------------------


@pytest.fixture
def services(tmp_path: Path, migrated: Path) -> Iterator[Services]:
    opened = open_services(tmp_path, migrated=migrated)
    yield opened
    opened.database.close()


@pytest.fixture
def broker(services: Services) -> Iterator[EmbeddedBroker]:
    made = new_broker(services)
    yield made
    made.stop()


def test_retained_messages_survive_kill_9_and_supervise_starts_it_again(broker, services):
    broker.start()
    folder = services.settings.home
    enrol(services, "a", folder / "devices")
    hub = TestDevice(services, folder / "broker", "hub").connect()
    hub.client.publish(topics.down("a", "assignment"), b"kept", 1, True).wait_for_publish(10)
    process = broker._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(hub.closed.is_set, "the connection is gone")
    hub.close()
    until(lambda: (broker.supervise(), broker._process is not process)[1], "a new broker")
    device = TestDevice(services, folder / "devices", "a").connect().listen()
    until(lambda: device.payloads(topics.down("a", "assignment")) == [b"kept"], "retained")
    device.close()


def test_a_broker_that_keeps_dying_is_started_at_growing_intervals_up_to_30_s():
    backoff = Backoff()
    now, pauses = 1000.0, []
    for _ in range(9):
        backoff.started(now)
        begun = now
        while not backoff.may_start(now):
            now += 0.25
        pauses.append(now - begun)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_broker_that_ran_for_a_minute_is_started_again_at_once():
    backoff = Backoff()
    for start in (0.0, 1.0, 2.0):
        backoff.started(start)
    backoff.started(61.9)
    assert not backoff.may_start(61.9)
    backoff.started(61.9 + SETTLED_S)
    assert backoff.may_start(61.9 + SETTLED_S)


def test_a_broker_left_over_by_a_killed_hub_is_stopped_at_the_next_start(broker, services):
    broker.start()
    left = psutil.Process(broker._process.pid)
    broker._callout.stop()
    again = new_broker(services)
    try:
        again.start()
        until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE, "it is gone")
    finally:
        again.stop()


def test_a_killed_process_that_nobody_waits_for_counts_as_ended():
    # As in a container whose process 1 waits for nobody: it stays behind as a zombie.
    with subprocess.Popen(["sleep", "600"]) as left:
        embedded._end(psutil.Process(left.pid))
        assert psutil.Process(left.pid).status() == psutil.STATUS_ZOMBIE


def test_another_process_under_the_old_pid_is_left_alone(broker, services):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        folder = services.settings.home / "broker"
        folder.mkdir(parents=True)
        (folder / "nats.pid").write_text(str(other.pid))
        broker.start()
        assert other.poll() is None
    finally:
        other.communicate(b"\n")


def test_a_port_in_use_is_said_so_and_nothing_is_left_running(services):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", services.settings.mqtt_port))
        taken.listen()
        broker = new_broker(services)
        with pytest.raises(BrokerError, match="address already in use"):
            broker.start()
    assert broker._process is None
    assert not (services.settings.home / "broker" / "nats.pid").exists()


def test_a_lost_broker_folder_has_every_assignment_published_again(broker, services):
    folder = services.settings.home
    enrol(services, "a", folder / "devices")
    assignments.sign_due(
        services.database, services.store, services.director, services.settings, time.time()
    )
    with services.database.write() as session:
        session.get_one(DirectorRecord, "a").published = True
    broker.start()
    with services.database.read() as session:
        assert [device for device, _ in assignments.unpublished(session)] == ["a"]
        assert session.get_one(Device, "a").state == "enrolled"


def test_a_due_certificate_is_renewed_by_starting_anew(services):
    now = [time.time()]
    broker = new_broker(services, clock=lambda: now[0])
    try:
        broker.start()
        first = broker._process
        held = broker._pair.certificate.read_bytes()
        broker.supervise()
        assert broker._process is first
        broker._pair.certificate.write_bytes(b"")
        now[0] = broker._pair.renew_at
        broker.supervise()
        assert broker._process is not first
        assert broker._pair.certificate.read_bytes() != held
    finally:
        broker.stop()


def test_a_rotated_authority_is_taken_by_starting_anew_and_the_old_one_is_still_good(
    broker, services
):
    folder = services.settings.home
    enrol(services, "old", folder / "devices")
    broker.start()
    first = broker._process
    services.authority.rotate()
    broker.supervise()
    assert broker._process is not first
    enrol(services, "new", folder / "devices")
    for name, where in (("old", "devices"), ("new", "devices"), ("hub", "broker")):
        client = TestDevice(services, folder / where, name).connect()
        assert client.accepted, name
        client.close()
    broker.supervise()
    assert broker._process.poll() is None


def test_it_starts_within_two_seconds(broker):
    began = time.monotonic()
    broker.start()
    assert time.monotonic() - began < 2.0
