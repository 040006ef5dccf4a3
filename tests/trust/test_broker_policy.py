"""Attacks on real brokers of both kinds: what a device, a thief or a stranger gets out of them.

Where a rule can be taken away, the same attack is shown to succeed without it.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import MQTTProtocolVersion

from edgefleet_cloud.broker import callout, policy
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_cloud.broker.selftest import answers_without_tls
from edgefleet_cloud.broker.testing import KINDS, Kind, Site, missing
from edgefleet_cloud.database.models import Device
from edgefleet_cloud.fleet import devices
from edgefleet_cloud.fleet.testing import TestDevice, enrol, signing_request, until
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_protocol import topics

pytestmark = pytest.mark.system

EVERYTHING = Allowed(
    publish=("ef/1/d/+/up/+", "ef/1/d/+/down/+", "ef/1/fleet/+/+"),
    read=("ef/1/d/+/up/+", "ef/1/d/+/down/+", "ef/1/fleet/+/+"),
)


def site_of(kind: Kind, home: Path, migrated: Path) -> Site:
    if kind == "mosquitto" and missing():
        pytest.skip(missing())
    return Site(home, kind, migrated)


@pytest.fixture(scope="module", params=KINDS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated: Path
) -> Iterator[Site]:
    """A broker that the tests leave as it was."""
    site = site_of(request.param, tmp_path_factory.mktemp("site"), migrated)
    try:
        site.start("a", "b", "c")
        yield site
    finally:
        site.stop()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    running.close_clients()


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path) -> Iterator[Site]:
    """A broker for one test alone, not started."""
    site = site_of(request.param, tmp_path, migrated)
    yield site
    site.stop()


def hub_of(site: Site) -> TestDevice:
    hub = site.connect("hub")
    assert hub.subscribe(topics.ALL_UP)
    return hub


def fence(site: Site, hub: TestDevice) -> None:
    """Return when what was published before has reached the hub, or never will."""
    client = site.connect("c")
    payload = str(time.monotonic_ns()).encode()
    client.send("state", payload)
    until(lambda: payload in hub.payloads(topics.up("c", "state")), "the allowed message")
    client.close()


def back(site: Site, device: str) -> TestDevice:
    """Connect a device whose last connection is gone or going.

    The embedded broker makes a client id wait that comes back within a second of a take-over.
    """
    came: list[TestDevice] = []

    def stays() -> bool:
        client = site.client(device)
        came.append(client)
        if not connected(client):
            return False
        client.client.publish(topics.up(device, "state"), b"back", 0)
        return granted(client, topics.down_all(device))

    until(stays, f"{device} is back")
    return came[-1]


def publish(client: TestDevice, topic: str, payload: bytes, retain: bool = False) -> None:
    """Publish at QoS 1; return when the broker has answered or closed."""
    info = client.client.publish(topic, payload, 1, retain)
    until(lambda: info.is_published() or client.closed.is_set(), "PUBACK or the end")


def granted(client: TestDevice, filter_: str) -> bool:
    """Subscribe; return whether the broker granted it and left the connection open."""
    before = len(client.granted)
    client.client.subscribe(filter_, 1)
    until(lambda: len(client.granted) > before or client.closed.is_set(), f"SUBACK of {filter_}")
    return not client.closed.is_set() and client.granted[-1]


def connected(client: TestDevice) -> bool:
    """Try to connect; return whether the broker accepted."""
    # TLS 1.3: the client is done before the server has looked at its certificate.
    with contextlib.suppress(OSError):
        client.connect()
    return client.accepted is True


def is_shut_out(site: Site, client: TestDevice, device: str, hub: TestDevice) -> bool:
    """Tell whether a client with a certificate of `device` can neither speak nor hear."""
    if not connected(client):
        return True
    words = str(time.monotonic_ns()).encode()
    heard = granted(client, topics.down_all(device))
    publish(client, topics.up(device, "state"), words)
    publish(hub, topics.down(device, "ack"), b"secret")
    fence(site, hub)
    said = words in hub.payloads(topics.up(device, "state"))
    return not heard and not said and client.received == []


# --- foreign topics -------------------------------------------------------------------------------

FOREIGN = [
    "ef/1/d/b/up/state",
    "ef/1/d/b/down/assignment",
    "ef/1/d/a/down/assignment",
    "ef/1/d/a/up/unknown",
    "ef/1/d/a/up",
    "ef/1/d/a/up/state/deeper",
    "ef/1/fleet/meta/root-1",
    "ef/1/fleet/blob/" + "ab" * 32,
    "ef/1/hub/marker",
    "$SYS/broker/uptime",
    "$CONTROL/dynamic-security/v1",
    "$MQTT/rmsgs/ef/1/fleet/meta/root-1",
    "$share/x/ef/1/d/b/up/state",
    "elsewhere",
]


@pytest.mark.parametrize("retain", [False, True])
def test_a_device_publishes_nowhere_but_on_its_own_up_topics(site, retain):
    hub = hub_of(site)
    victim = site.connect("b").listen()
    hub.received.clear()
    device = site.connect("a")
    for topic in FOREIGN:
        if device.closed.is_set():
            device = site.connect("a")
        publish(device, topic, b"forged", retain)
    fence(site, hub)
    victim.close()
    later = site.connect("b").listen()
    publish(hub, topics.down("b", "ack"), b"own")
    until(lambda: later.received, "what b may read")
    assert b"forged" not in [payload for _, payload, _ in hub.received]
    assert victim.received == []
    assert later.received == [(topics.down("b", "ack"), b"own", False)]


def test_a_devices_own_up_topics_are_the_only_ones_on_which_it_can_leave_retained_messages(site):
    device = site.connect("a")
    for kind in sorted(topics.UP_KINDS):
        publish(device, topics.up("a", kind), b"kept", True)
    hub = hub_of(site)
    until(lambda: len(hub.received) == len(topics.UP_KINDS), "what is retained")
    # The link passes them over: see test_broker_flood.
    assert all(retained for _, _, retained in hub.received)
    other = site.connect("b").listen()
    assert not granted(other, "ef/1/d/a/up/+")
    assert other.received == []
    for kind in sorted(topics.UP_KINDS):
        publish(device, topics.up("a", kind), b"", True)


WILDCARDS = [
    "#",
    "+",
    "+/#",
    "ef/#",
    "ef/1/#",
    "ef/1/d/#",
    "ef/1/d/+/#",
    "ef/1/d/+/down/+",
    "ef/1/d/b/down/+",
    "ef/1/d/b/down/ack",
    "ef/1/d/b/#",
    "ef/1/d/+/up/+",
    "ef/1/d/a/up/+",
    "ef/1/hub/marker",
    "$SYS/#",
    "$share/g/#",
    "$share/g/ef/1/d/b/down/+",
    "$share/g/ef/1/d/+/down/+",
    "$queue/#",
    "$MQTT/#",
    "$MQTT/rmsgs/#",
    "$MQTT/sub/#",
    "$JS/#",
    "$CONTROL/#",
]


def test_a_device_receives_nothing_of_others_whatever_it_subscribes_to(site):
    hub = hub_of(site)
    publish(hub, topics.down("b", "assignment"), b"secret, retained", True)
    for filter_ in WILDCARDS:
        spy = site.connect("a")
        granted(spy, filter_)
        publish(hub, topics.down("b", "ack"), b"secret")
        site.connect("b").send("state", b"secret")
        # Whatever was to come has come when an own message has; a closed spy has heard nothing.
        if not spy.closed.is_set():
            assert granted(spy, "ef/1/d/a/down/+"), filter_
            publish(hub, topics.down("a", "ack"), b"own")
            own = topics.down("a", "ack")
            until(lambda s=spy, t=own: s.payloads(t) or s.closed.is_set(), f"own after {filter_}")
        assert {payload for _, payload, _ in spy.received} <= {b"own"}, filter_
        site.close_clients()
        hub = hub_of(site)
    publish(hub, topics.down("b", "assignment"), b"", True)


def test_what_a_device_may_read_it_is_granted(site):
    device = site.connect("a")
    for filter_ in ("ef/1/d/a/down/+", "ef/1/d/a/down/ack", "ef/1/fleet/meta/+"):
        assert granted(device, filter_)
    assert granted(device, topics.fleet_blob("ab" * 32))


# --- named attacks --------------------------------------------------------------------------------


def forges_a_will(site: Site) -> bool:
    """Leave a last will on others' topics, and die; return whether one of them arrived."""
    hub = hub_of(site)
    victim = site.connect("b").listen()
    for topic in ("ef/1/d/b/up/state", "ef/1/d/b/down/ack", "ef/1/d/a/down/ack"):
        for retain in (False, True):
            dying = site.client("a", will=(topic, b"forged", retain))
            if connected(dying):
                dying.client.socket().shutdown(socket.SHUT_RDWR)
                # The same client again: the broker has done with the first one.
                back(site, "a").close()
    fence(site, hub)
    victim.close()
    later = site.connect("b").listen()
    publish(hub, topics.down("b", "ack"), b"own")
    until(lambda: b"own" in later.payloads(topics.down("b", "ack")), "what b may read")
    heard = [*hub.received, *victim.received, *later.received]
    return b"forged" in [payload for _, payload, _ in heard]


def test_attack_forged_will(own, monkeypatch):
    own.start("a", "b", "c")
    assert not forges_a_will(own)
    own.close_clients()
    _take_the_policy_away(own, monkeypatch)
    assert forges_a_will(own)


def test_a_will_on_an_own_topic_is_delivered_to_the_hub_as_any_other_message(site):
    hub = hub_of(site)
    dying = site.client("a", will=("ef/1/d/a/up/state", b"last words", False)).connect()
    dying.client.socket().shutdown(socket.SHUT_RDWR)
    until(lambda: hub.payloads("ef/1/d/a/up/state") == [b"last words"], "the will")
    back(site, "a")


def takes_over(site: Site) -> bool:
    """Ask for the client id of another device; return whether that one is thrown off."""
    victim = site.connect("b")
    hub = hub_of(site)
    for client_id in ("b", "hub"):
        for _ in range(3):
            thief = site.client(client_id, identity="a")
            connected(thief)
    with contextlib.suppress(TimeoutError):
        until(lambda: victim.closed.is_set() or hub.closed.is_set(), "it falls", deadline_s=1.0)
    return victim.closed.is_set() or hub.closed.is_set()


def test_attack_client_id_take_over(own, monkeypatch):
    if own.kind == "embedded":
        own.start("a", "b", "c")
        assert not takes_over(own)
        own.close_clients()
        asked = callout.decide
        monkeypatch.setattr(
            callout,
            "decide",
            lambda question, *rest: (
                asked(question, *rest)
                if question.common_name == question.client_id
                else policy.of_device(question.common_name)
            ),
        )
        assert takes_over(own)
        return
    own.start("a", "b", "c")
    assert not takes_over(own)
    own.close_clients()
    own.process.kill()
    own.configure(replace=("use_username_as_clientid true", ""))
    own.process.start()
    assert takes_over(own)


@pytest.mark.parametrize(
    "client_id",
    ["", "b ", "b/up", "ef/1/d/b", "#", "+", "b\n", "ü", "B", "b" * 1000, "hub", "$SYS"],
)
def test_an_odd_client_id_gives_a_device_nothing(site, client_id):
    victim = site.connect("b")
    hub = hub_of(site)
    thief = site.client(client_id, identity="a")
    if connected(thief):
        assert not granted(thief, "ef/1/d/b/down/+")
        publish(thief, "ef/1/d/b/up/state", b"forged")
    fence(site, hub)
    assert hub.payloads("ef/1/d/b/up/state") == []
    assert not victim.closed.is_set()


def leaks_retained(site: Site) -> bool:
    """Look for what is retained for another device; return whether some of it comes."""
    hub = hub_of(site)
    publish(hub, topics.down("b", "assignment"), b"secret", True)
    spy = site.connect("a")
    for filter_ in ("ef/1/d/+/down/+", "ef/1/d/b/down/assignment", "ef/1/#", "#"):
        granted(spy, filter_)
    if not spy.closed.is_set():
        granted(spy, "ef/1/d/a/down/+")
        publish(hub, topics.down("a", "ack"), b"own")
        until(lambda: spy.payloads(topics.down("a", "ack")) or spy.closed.is_set(), "own")
    return b"secret" in [payload for _, payload, _ in spy.received]


def test_attack_retained_message_leak(own, monkeypatch):
    own.start("a", "b", "c")
    assert not leaks_retained(own)
    own.close_clients()
    _take_the_policy_away(own, monkeypatch)
    assert leaks_retained(own)


def test_who_subscribed_before_being_let_in_has_nothing_of_it_afterwards(own):
    own.start("a", "b", "c")
    enrol(own.services, "early", own.devices)
    # Mosquitto lets it connect before the hub has told it of the device.
    early = own.connect("early")
    subscribed = granted(early, "ef/1/d/+/down/+")
    assert not subscribed
    own.broker.supervise()
    hub = hub_of(own)
    publish(hub, topics.down("b", "ack"), b"secret")
    publish(hub, topics.down("early", "ack"), b"not asked for")
    again = own.connect("early")
    assert granted(again, "ef/1/d/early/down/+")
    publish(hub, topics.down("early", "ack"), b"own")
    until(lambda: again.payloads(topics.down("early", "ack")) == [b"own"], "own")
    assert early.received == []


def test_what_waits_in_the_session_of_a_revoked_device_is_never_delivered(own):
    own.start("a", "b", "c")
    own.keep_certificate("a", "stolen")
    device = own.client("a", clean_session=False).connect()
    assert granted(device, "ef/1/d/a/down/+")
    device.client.socket().shutdown(socket.SHUT_RDWR)
    until(device.closed.is_set, "the device is away")
    hub = hub_of(own)
    publish(hub, topics.down("a", "ack"), b"waits")
    with own.services.database.write() as session:
        devices.revoke(session, "a", time.time())
    own.broker.supervise()
    thief = own.client("a", "stolen", clean_session=False)
    if connected(thief):
        assert not granted(thief, "ef/1/d/a/down/+")
    fence(own, hub)
    assert thief.received == []


def test_attack_stolen_device_certificate_after_revocation(own, monkeypatch):
    own.start("a", "b", "c")
    own.keep_certificate("a", "stolen")
    hub = hub_of(own)
    # Before: a thief is the device.
    assert not is_shut_out(own, own.client("a", "stolen"), "a", hub)
    with own.services.database.write() as session:
        devices.revoke(session, "a", time.time())
    own.broker.supervise()
    assert is_shut_out(own, own.client("a", "stolen"), "a", hub)
    # Without the rule, the broker goes by the authority's signature alone.
    with own.services.database.read() as session:
        serial = session.get_one(Device, "a").certificate_serial
    monkeypatch.setattr(certificates, "admit", lambda *_: "")
    monkeypatch.setattr(certificates, "valid_serials", lambda *_: {"a": {serial}, "b": set()})
    if own.kind == "mosquitto":
        own.broker.supervise()
    else:
        monkeypatch.setattr(certificates, "valid_serials", lambda *_: {})
    thief = own.connect("a", "stolen")
    thief.send("state", b"as if nothing had happened")
    until(lambda: hub.payloads("ef/1/d/a/up/state")[-1:] == [b"as if nothing had happened"], "it")


# --- certificates ---------------------------------------------------------------------------------


def issue(site: Site, authority: Authority, device: str, name: str, ttl_s: float) -> str:
    """Make a certificate for a device's name; return its serial."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_device(signing_request(device, key).encode(), device, ttl_s)
    (site.devices / f"{name}.pem").write_bytes(issued.certificate_pem)
    (site.devices / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with site.services.database.write() as session:
        if authority is site.services.authority:
            certificates.record(session, session.get_one(Device, device), issued, time.time())
    return issued.serial


def test_a_certificate_of_another_authority_gets_nobody_in(site):
    foreign = Authority.open(site.home / "foreign", time.time)
    issue(site, foreign, "a", "foreign", 3600.0)
    assert not connected(site.client("a", "foreign"))


def test_a_certificate_that_has_expired_gets_nobody_in(site):
    past = Authority.open(site.home / "ca", lambda: time.time() - 7200.0)
    issue(site, past, "a", "expired", 3600.0)
    assert not connected(site.client("a", "expired"))


def test_a_certificate_that_this_hub_did_not_put_on_record_gets_nobody_in(site):
    same = Authority.open(site.home / "ca", time.time)
    issue(site, same, "a", "unrecorded", 3600.0)
    assert is_shut_out(site, site.client("a", "unrecorded"), "a", hub_of(site))
    issue(site, same, "nobody", "nobody", 3600.0)
    assert is_shut_out(site, site.client("nobody"), "nobody", hub_of(site))


def test_another_certificate_with_the_hubs_name_is_not_the_hub(site):
    same = Authority.open(site.home / "ca", time.time)
    issue(site, same, "hub", "forged", 3600.0)
    forger = TestDevice(site.services, site.devices, "hub", "forged")
    if connected(forger):
        assert not granted(forger, topics.ALL_UP)
        assert not granted(forger, "$CONTROL/dynamic-security/v1/response")
        publish(forger, topics.down("a", "assignment"), b"forged", True)
    forger.close()
    assert site.connect("a").listen().received == []


def test_without_a_certificate_nobody_connects(site):
    context = ssl.create_default_context(cadata=site.services.authority.ca_pem.decode())
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        _tls(context, site.services.settings.mqtt_port) as line,
    ):
        line.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x1e\x00\x01a")
        answer = line.recv(1)
    assert answer == b""


def test_without_tls_nobody_connects(site):
    assert not answers_without_tls("127.0.0.1", site.services.settings.mqtt_port)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")  # what is tried
def test_tls_below_1_2_is_refused(site):
    port = site.services.settings.mqtt_port
    context = ssl.create_default_context(cadata=site.services.authority.ca_pem.decode())
    context.load_cert_chain(site.devices / "a.pem", site.devices / "a.key")
    # Else this side would not even try.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _tls(context, port)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with _tls(context, port) as line:
        assert line.version() == "TLSv1.2"


def _tls(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


# --- closing of live connections ------------------------------------------------------------------


def closes_within(site: Site, client: TestDevice, seconds: float) -> float:
    """Return how long it takes the broker, at the hub's next rounds, to close a connection."""
    began = time.monotonic()

    def gone() -> bool:
        site.broker.supervise()
        return client.closed.is_set()

    until(gone, "the connection is closed", deadline_s=seconds)
    return time.monotonic() - began


def test_revocation_closes_the_live_connection_and_no_other_within_a_second(own, record_property):
    own.start("a", "b", "c")
    other = own.connect("b")
    took = []
    for _ in range(3):
        enrol(own.services, "a", own.devices)
        own.broker.supervise()
        device = own.connect("a").listen()
        with own.services.database.write() as session:
            devices.revoke(session, "a", time.time())
        took.append(closes_within(own, device, 5.0))
    record_property("revoked_to_closed_ms", [round(one * 1000, 1) for one in took])
    assert max(took) < 1.0
    assert not other.closed.is_set()


def test_a_replaced_certificate_loses_its_live_connection_and_gets_nobody_in(own):
    own.start("a", "b", "c")
    own.keep_certificate("a", "old")
    thief = own.connect("a", "old").listen()
    enrol(own.services, "a", own.devices)
    closes_within(own, thief, 5.0)
    assert is_shut_out(own, own.client("a", "old"), "a", hub_of(own))
    assert own.connect("a").listen().accepted


def test_a_renewed_certificate_and_the_one_before_are_both_good_until_the_new_one_is_seen(own):
    own.start("a", "b", "c")
    own.keep_certificate("a", "old")
    with own.services.database.write() as session:
        serial = session.get_one(Device, "a").certificate_serial
        assert certificates.admit(session, "a", serial, time.time()) == ""
    serial = issue(own, own.services.authority, "a", "new", 3600.0)
    own.broker.supervise()
    old = own.connect("a", "old").listen()
    own.broker.supervise()
    assert not old.closed.is_set()
    if own.kind == "embedded":
        # The hub sees with which certificate a device comes; there is one session of a client id.
        old.close()
        new = own.connect("a", "new").listen()
    else:
        # It does not: a statement signed with the new key tells it. Both may be connected.
        new = own.connect("a", "new").listen()
        assert not old.closed.is_set()
        with own.services.database.write() as session:
            assert certificates.admit(session, "a", serial, time.time()) == ""
        closes_within(own, old, 5.0)
    own.broker.supervise()
    assert not new.closed.is_set()
    assert is_shut_out(own, own.client("a", "old"), "a", hub_of(own))


def test_an_old_certificate_that_comes_late_does_not_end_the_newer_one(own):
    own.start("a", "b", "c")
    own.keep_certificate("a", "old")
    serial = issue(own, own.services.authority, "a", "new", 3600.0)
    own.broker.supervise()
    old = own.connect("a", "old").listen()
    old.close()
    with own.services.database.read() as session:
        assert serial in certificates.valid_serials(session, time.time())["a"]
    assert own.connect("a", "new").listen().accepted


def test_a_certificate_that_expires_loses_its_live_connection(own):
    own.start("a", "b", "c")
    issue(own, own.services.authority, "a", "short", 3.0)
    own.broker.supervise()
    device = own.connect("a", "short").listen()
    closes_within(own, device, 10.0)
    assert not connected(own.client("a", "short"))


def test_a_hub_that_was_away_closes_what_was_revoked_meanwhile(own):
    own.start("a", "b", "c")
    device, other = own.connect("a").listen(), own.connect("b").listen()
    if own.kind == "embedded":
        # The broker lives and dies with its hub; what may go alone is the service that decides.
        own.broker._callout.stop()
    else:
        own.broker.stop()
    with own.services.database.write() as session:
        devices.revoke(session, "a", time.time())
    if own.kind == "mosquitto":
        own.broker = own.open_broker()
        own.broker.start()
    closes_within(own, device, 5.0)
    assert not other.closed.is_set()


# --- abuse of the protocol ------------------------------------------------------------------------


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv5])
def test_another_version_of_mqtt_gives_no_more_rights(site, version):
    hub = hub_of(site)
    client = site.client("a", version=version)
    if connected(client):
        # Version 3.1 has no word for "not granted": what counts is what comes.
        for filter_ in ("ef/1/d/b/down/+", "$share/g/ef/1/d/b/down/+", "#"):
            granted(client, filter_)
        publish(hub, topics.down("b", "ack"), b"secret")
        publish(client, "ef/1/d/b/up/state", b"forged")
    fence(site, hub)
    assert client.received == []
    assert b"forged" not in hub.payloads("ef/1/d/b/up/state")


def test_an_oversized_packet_ends_its_connection_and_harms_nobody(site):
    hub = hub_of(site)
    other = site.connect("b")
    device = site.connect("a")
    device.client.publish("ef/1/d/a/up/report", bytes(9 * 1024 * 1024), 0)
    until(device.closed.is_set, "the connection is closed")
    other.send("state", b"still here")
    until(lambda: hub.payloads("ef/1/d/b/up/state") == [b"still here"], "the other")
    assert hub.payloads("ef/1/d/a/up/report") == []
    assert site.is_alive()


def test_what_is_no_mqtt_ends_its_connection_and_harms_nobody(site):
    context = ssl.create_default_context(cadata=site.services.authority.ca_pem.decode())
    context.load_cert_chain(site.devices / "a.pem", site.devices / "a.key")
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x10\xff\xff\xff\x7f" + b"x" * 64):
        with _tls(context, site.services.settings.mqtt_port) as line:
            line.settimeout(15.0)
            line.sendall(junk)
            with contextlib.suppress(ssl.SSLError, ConnectionError, TimeoutError):
                assert line.recv(16) == b""
    assert site.connect("b").accepted
    assert site.is_alive()


def test_a_devices_two_sessions_are_one(site):
    first = site.client("a", clean_session=False).connect()
    assert granted(first, "ef/1/d/a/down/+")
    second = site.client("a", clean_session=True).connect()
    until(first.closed.is_set, "the first is closed")
    second = back(site, "a") if second.closed.is_set() else second
    hub = hub_of(site)
    publish(hub, topics.down("a", "ack"), b"to nobody")
    assert granted(second, "ef/1/d/a/down/+")
    publish(hub, topics.down("a", "ack"), b"own")
    until(lambda: b"own" in second.payloads(topics.down("a", "ack")), "own")
    assert second.payloads(topics.down("a", "ack")) == [b"own"]


def _take_the_policy_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every device do everything, and have the broker know."""
    monkeypatch.setattr(policy, "of_device", lambda _: EVERYTHING)
    monkeypatch.setattr(policy, "of_device_alone", lambda _: EVERYTHING)
    if site.kind == "mosquitto":
        enrol(site.services, "a", site.devices)
        site.broker._valid = None
        site.broker.supervise()
