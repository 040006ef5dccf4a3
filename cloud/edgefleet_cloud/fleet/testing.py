"""Parts for tests of everything around devices: a hub's services in a folder, and a test device.

The device speaks real MQTT over mutual TLS and follows the protocol, but decides nothing: tests
say what it sends and look at what it was sent.
"""

import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Model, Release, Run, Variant, Version
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet import enrolment
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest, Grant
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.audit.checkpoints import Checkpoints
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_cloud.trust.repositories.images import ImageEntry
from edgefleet_cloud.trust.repositories.testing import founded
from edgefleet_protocol import manifest as manifests
from edgefleet_protocol import topics
from edgefleet_protocol.manifest import Lineage, Manifest, Measured, Needs, Signature, Tensor
from edgefleet_protocol.trust import Fleet, ImageTarget, target_path

DEADLINE_S = 20.0


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def open_services(
    home: Path,
    clock: Callable[[], float] = time.time,
    *,
    migrated: Path | None = None,
    **settings: Any,
) -> Services:
    """Return a hub's services in `home`, with the broker on a free port.

    Args:
        home: an empty folder.
        clock: the time now.
        migrated: an empty database at the newest migration, to copy instead of migrating.
        **settings: of the hub.
    """
    if migrated is not None:
        shutil.copy(migrated, home / "hub.db")
    configured = Settings(home=home, **({"mqtt_port": free_port()} | settings))
    database = Database(configured.sqlalchemy_url)
    authority = Authority.open(home / "ca", clock)
    audit = Checkpoints.open(database, home / "audit", clock)
    builder = SigningKey.open(home / "builder")
    fleet = Fleet(authority.authorities, [audit.key.public_pem], [builder.public_pem])
    repositories = founded(home / "trust", clock, msgspec.to_builtins(fleet))
    return Services(
        settings=configured,
        database=database,
        store=Store(home / "store"),
        authority=authority,
        images=repositories.images,
        director=repositories.director,
        audit=audit,
        builder=builder,
        clock=clock,
        wake=lambda: None,
    )


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: if it does not come true within `deadline_s`.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        threading.Event().wait(0.01)


def signing_request(device_id: str, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    """Return a P-256 certificate signing request in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = request.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def enrol(services: Services, device_id: str, folder: Path) -> Grant:
    """Claim and enrol a device; its key and certificate go to `folder`."""
    now = services.clock()
    fingerprint = services.authority.fingerprint
    with services.database.write() as session:
        token = enrolment.create_claim(session, device_id, {}, 3600.0, fingerprint, now)
    key = ec.generate_private_key(ec.SECP256R1())
    request = EnrolmentRequest(
        device=device_id,
        secret=token.split(".")[2],
        csr=signing_request(device_id, key),
        board="generic-x86_64",
        runtimes={"onnxruntime": "1.20.0"},
        memory_bytes=1 << 30,
    )
    with services.database.write() as session:
        grant = enrolment.redeem(session, services, request, now)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{device_id}.pem").write_text(grant.certificate)
    (folder / f"{device_id}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return grant


@dataclass(frozen=True)
class Bundle:
    """A released bundle: its path as a target, its manifest's digest, and its blobs by digest."""

    path: str
    manifest: str
    entry: ImageEntry
    blobs: dict[str, bytes] = field(default_factory=dict)


def release_bundle(
    session: Session, store: Store, model: str, version: str, release: int, content: bytes
) -> Bundle:
    """Register and release a version with one variant, `onnx-fp32`, whose model is `content`."""
    files, blobs = [], {}
    for role, data in (("model", content), ("reference", b"edges"), ("golden", b"rows")):
        file, blob = manifests.describe_file(role, data)  # type: ignore[arg-type]  # literals
        files.append(file)
        blobs[store.put(blob)] = blob
    manifest = Manifest(
        model=model,
        model_version=version,
        variant="onnx-fp32",
        files=files,
        signature=Signature(
            task="classification",
            inputs=[Tensor(name="x", dtype="float32", shape=[None, 1], columns=["a"])],
            outputs=[Tensor(name="p", dtype="float32", shape=[None, 2])],
            score_output="p",
        ),
        needs=Needs("onnxruntime", "1.16"),
        measured=Measured(0.0, 1.0, 1.0),
        lineage=Lineage(),
    )
    encoded = manifests.encode(manifest)
    digest = store.put(encoded)
    if session.get(Model, model) is None:
        session.add(Model(name=model, task="classification", created_at=0.0))
        session.flush()
    run = Run(
        model=model,
        trainer="import",
        parameters={},
        seed=0,
        code="test",
        environment={},
        state="succeeded",
        created_at=0.0,
    )
    session.add(run)
    session.flush()
    row = Version(
        model=model,
        version=version,
        run_id=run.id,
        state="approved",
        reference="0" * 64,
        metrics={},
        lineage={},
        created_at=0.0,
    )
    session.add(row)
    session.flush()
    session.add(
        Variant(
            version_id=row.id,
            name="onnx-fp32",
            runtime="onnxruntime",
            state="verified",
            measured={},
            needs={},
            model_bytes=len(content),
            transfer_bytes=manifest.transfer_bytes,
            manifest=digest,
        )
    )
    session.add(
        Release(model=model, number=release, version_id=row.id, reason="test", created_at=0.0)
    )
    session.flush()
    target = ImageTarget(
        model=model, version=version, variant="onnx-fp32", release=release, runtime="onnxruntime"
    )
    path = target_path(model, release, "onnx-fp32")
    return Bundle(path, digest, ImageEntry(len(encoded), digest, target), blobs)


class TestDevice:
    """A device's MQTT connection.

    Args:
        services: of the hub.
        folder: holds key and certificate, as `enrol` left them.
        client_id: of the MQTT connection.
        identity: whose certificate to show; the same device's by default.
        version: of MQTT.
        clean_session: whether the broker is to forget an earlier session of this client.
    """

    # Not a test, whatever its name says to pytest.
    __test__ = False

    def __init__(
        self,
        services: Services,
        folder: Path,
        client_id: str,
        identity: str | None = None,
        *,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        clean_session: bool = True,
    ) -> None:
        self.id = client_id
        self.received: list[tuple[str, bytes, bool]] = []
        self.granted: list[bool] = []
        self.accepted: bool | None = None
        self.closed = threading.Event()
        context = ssl.create_default_context(cadata=services.authority.ca_pem.decode())
        stem = folder / (identity or client_id)
        context.load_cert_chain(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            # A matter of MQTT 3 alone.
            clean_session=None if version == MQTTProtocolVersion.MQTTv5 else clean_session,
            protocol=version,
            reconnect_on_failure=False,
        )
        self.client.tls_set_context(context)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_disconnect = lambda *_: self.closed.set()
        self.client.on_message = self._on_message
        self._port = services.settings.mqtt_port

    def connect(self) -> "TestDevice":
        """Connect; return when the broker has answered, or closed the connection."""
        self.client.connect("127.0.0.1", self._port, keepalive=30)
        self.client.loop_start()
        until(lambda: self.accepted is not None or self.closed.is_set(), "CONNACK")
        return self

    def listen(self) -> "TestDevice":
        """Subscribe to what a device reads."""
        for topic in (topics.down_all(self.id), topics.FLEET_META_ALL):
            assert self.subscribe(topic)
        return self

    def subscribe(self, topic: str, qos: int = 0) -> bool:
        """Subscribe; return whether the broker granted it."""
        before = len(self.granted)
        self.client.subscribe(topic, qos)
        until(lambda: len(self.granted) > before, f"SUBACK for {topic}")
        return self.granted[-1]

    def send(self, kind: str, payload: bytes, qos: int = 1) -> None:
        """Publish on an own up-topic; at QoS 1 return when the broker has it."""
        info = self.client.publish(topics.up(self.id, kind), payload, qos)
        info.wait_for_publish(DEADLINE_S)

    def payloads(self, topic: str) -> list[bytes]:
        """Return what has come on a topic, oldest first."""
        return [payload for name, payload, _ in list(self.received) if name == topic]

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, _c: Any, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        self.accepted = not code.is_failure

    def _on_subscribe(self, _c: Any, _d: Any, _mid: Any, codes: Any, _p: Any) -> None:
        self.granted += [not code.is_failure for code in codes]

    def _on_message(self, _c: Any, _d: Any, message: mqtt.MQTTMessage) -> None:
        self.received.append((message.topic, bytes(message.payload), message.retain))
