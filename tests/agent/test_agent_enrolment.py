"""Enrolment against a real TLS server: the pinned CA, the checked answer, the exit codes."""

import json
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet_agent import cli
from edgefleet_agent.errors import ConfigError, EnrolmentError
from edgefleet_agent.testing import Repository
from edgefleet_agent.trusting import enrolment, identity

SECRET = "A" * 43


def certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, ca: bool = False) -> Any:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key if isinstance(key, ec.EllipticCurvePublicKey) else key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
            if ca
            else x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if ca:
        usage = x509.KeyUsage(*[name in (5, 6) for name in range(9)])
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(made: Any) -> bytes:
    data: bytes = made.public_bytes(serialization.Encoding.PEM)
    return data


@dataclass
class FakeHub:
    """The two endpoints, with an answer that a test may spoil."""

    url: str
    ca: Any
    ca_key: Any
    image: Repository
    director: Repository
    asked: list[dict[str, Any]] = field(default_factory=list)
    spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
    refuse: tuple[int, Any] | None = None

    @property
    def token(self) -> str:
        der = self.ca.public_bytes(serialization.Encoding.DER)
        return f"ef1.cam-1.{SECRET}.{sha256(der).hexdigest()}"

    def enrol(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        if self.refuse:
            return self.refuse
        request = x509.load_pem_x509_csr(body["csr"].encode())
        issued = certificate("cam-1", request.public_key(), "ca", self.ca_key)
        answer = {
            "device": "cam-1",
            "certificate": pem(issued).decode(),
            "ca": pem(self.ca).decode(),
            "mqtt_host": "127.0.0.1",
            "mqtt_port": 8883,
            "image_root": self.image.roots[0].decode(),
            "director_root": self.director.roots[0].decode(),
        }
        return 200, self.spoil(answer)


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[FakeHub]:
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = certificate("ca", ca_key, "ca", ca_key, ca=True)
    key = ec.generate_private_key(ec.SECP256R1())
    chain = tmp_path / "server.pem"
    chain.write_bytes(
        pem(certificate("hub", key, "ca", ca_key))
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, pem(fake.ca) if self.path == "/v1/ca" else b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = fake.enrol(body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self._send(status, data)

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://127.0.0.1:{server.server_address[1]}"
    fake = FakeHub(url, ca, ca_key, Repository(), Repository())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def enrol(hub: FakeHub, store: Path, token: str | None = None, *more: str) -> int:
    return cli.main(
        ["enroll", "--hub", hub.url, "--token", token or hub.token, "--store", str(store), *more]
    )


def test_a_claim_becomes_an_identity(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(hub_server, store, None, "--board", "rpi4") == 0
    assert capsys.readouterr().out.startswith("enrolled as cam-1 (rpi4) with https://127.0.0.1:")
    known = identity.load(store)
    assert known.hub == identity.Hub("cam-1", "127.0.0.1", 8883, hub_server.url)
    assert known.image_root == hub_server.image.roots[0]
    assert stat.S_IMODE(known.key.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(known.key.read_bytes(), None)
    issued = x509.load_pem_x509_certificate(known.certificate.read_bytes())
    assert issued.public_key() == key.public_key()
    (asked,) = hub_server.asked
    assert (asked["device"], asked["secret"], asked["board"]) == ("cam-1", SECRET, "rpi4")
    assert set(asked["runtimes"]) == {"onnxruntime", "litert"}
    assert asked["memory_bytes"] > 0
    assert "PRIVATE" not in json.dumps(asked)


@pytest.mark.parametrize(
    "token", ["", "hello", "ef1.cam-1.short.00", "ef2.cam-1." + SECRET + "." + "0" * 64]
)
def test_what_is_no_token_is_a_usage_error(
    hub_server: FakeHub, store: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(hub_server, store, token or " ") == 2
    assert "this is no claim token: expected ef1.DEVICE.SECRET.FINGERPRINT" in (
        capsys.readouterr().err
    )
    assert hub_server.asked == []


def test_a_hub_with_another_ca_is_given_nothing(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = f"ef1.cam-1.{SECRET}.{'0' * 64}"
    assert enrol(hub_server, store, token) == 1
    assert "is not the hub that made this token" in capsys.readouterr().err
    assert hub_server.asked == []
    assert not identity.is_enrolled(store)


def test_a_server_that_is_not_of_the_pinned_ca_is_given_nothing(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right CA certificate is public; only its own server may be told the secret."""
    other = ec.generate_private_key(ec.SECP256R1())
    hub_server.ca = certificate("ca", other, "ca", other, ca=True)
    assert enrol(hub_server, store) == 3
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
    assert hub_server.asked == []


def test_a_refused_claim_says_why(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_server.refuse = (403, {"error": "this claim has been used"})
    assert enrol(hub_server, store) == 4
    assert "the hub refused the claim: this claim has been used" in capsys.readouterr().err
    assert not identity.is_enrolled(store)


@pytest.mark.parametrize(
    ("status", "answer", "complaint"),
    [
        (422, {"error": "board is missing"}, "enrolment failed (422): board is missing"),
        (500, b"<html>oops</html>", "enrolment failed (500): <html>oops</html>"),
        (200, b"[]", "the hub's answer cannot be read: "),
        (200, b"x" * (1 << 20) + b"x", "answered with more than 1048576 bytes"),
    ],
)
def test_other_answers_are_failures_that_are_shown(
    hub_server: FakeHub,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    status: int,
    answer: Any,
    complaint: str,
) -> None:
    hub_server.refuse = (status, answer)
    assert enrol(hub_server, store) == 1
    assert complaint in capsys.readouterr().err


def test_a_hub_that_does_not_answer_has_its_own_exit_code(
    store: Path, hub_server: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    token = hub_server.token
    code = cli.main(
        ["enroll", "--hub", "https://127.0.0.1:1", "--token", token, "--store", str(store)]
    )
    assert code == 3
    assert "did not answer" in capsys.readouterr().err
    assert enrol(hub_server, store) == 0


def test_plain_http_is_refused(store: Path, hub_server: FakeHub) -> None:
    claim = enrolment.parse_claim(hub_server.token)
    with pytest.raises(ConfigError, match="expected https://HOST:PORT"):
        enrolment.enrol(store, "http://127.0.0.1:1", claim, enrolment.Machine("rpi4", {}, 1))


def other_certificate(hub: FakeHub, name: str) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    return {"certificate": pem(certificate(name, key, "ca", hub.ca_key)).decode()}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda hub: {"certificate": "none"}, "gave no readable certificate"),
        (lambda hub: {"device": "cam-2"}, "is not for this device, 'cam-1'"),
        (lambda hub: other_certificate(hub, "cam-2"), "is not for this device, 'cam-1'"),
        (lambda hub: other_certificate(hub, "cam-1"), "is for another key than this device's"),
        (lambda hub: {"image_root": "{}"}, "the image root cannot be trusted"),
        (lambda hub: {"director_root": "x"}, "the director root cannot be trusted"),
        (lambda hub: {"mqtt_port": 0}, "the hub's answer cannot be read"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_not_kept(
    hub_server: FakeHub,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[FakeHub], dict[str, Any]],
    complaint: str,
) -> None:
    hub_server.spoil = lambda answer: {**answer, **change(hub_server)}
    assert enrol(hub_server, store) == 1
    assert complaint in capsys.readouterr().err
    assert not identity.is_enrolled(store)


def test_an_enrolled_device_is_enrolled_again_only_by_force(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(hub_server, store) == 0
    before = identity.load(store)
    assert enrol(hub_server, store) == 1
    assert "this device is already enrolled" in capsys.readouterr().err
    (store / "models").mkdir()
    assert enrol(hub_server, store, None, "--force") == 0
    assert (store / "models").exists()  # the same hub: its models are still right
    assert identity.load(store).certificate.read_bytes() != before
    hub_server.director = Repository()
    assert enrol(hub_server, store, None, "--force") == 0
    assert not (store / "models").exists()  # another hub: nothing of the old one counts


def test_a_store_in_use_is_not_enrolled(
    hub_server: FakeHub, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgefleet_agent import files

    with files.locked(store):
        assert enrol(hub_server, store) == 1
    assert "is in use by another agent" in capsys.readouterr().err


def test_a_half_written_identity_does_not_count(hub_server: FakeHub, store: Path) -> None:
    assert enrol(hub_server, store) == 0
    (store / "identity" / "device.key").unlink()
    with pytest.raises(EnrolmentError, match=r"is damaged .* enrol again with --force"):
        identity.load(store)
    assert enrol(hub_server, store, None, "--force") == 0
