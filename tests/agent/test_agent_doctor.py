"""The doctor: what it makes of what was seen, and whether it sees it."""

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet_agent import files
from edgefleet_agent.operating import doctor, health, offline, probes
from edgefleet_agent.operating.doctor import Finding
from edgefleet_agent.operating.facts import (
    Clock,
    Endpoint,
    Facts,
    Identity,
    Machine,
    Model,
    Process,
    Runtime,
    Store,
)
from edgefleet_agent.testing import Bundle, HubDouble, Rig
from edgefleet_agent.trusting import identity

MIB = 1024 * 1024
NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
STORE = Store(
    "/s", True, owner="ef", user="ef", writable=True, free_bytes=99 * MIB, keep_free_bytes=32 * MIB
)
HEALTHY = Facts(
    "",
    "/s/agent.toml",
    STORE,
    Identity(not_before=NOW - DAY_S, not_after=NOW + 60 * DAY_S),
    Clock(NOW, 0.4, NOW - 30),
    [Endpoint("hub", "hub:8443"), Endpoint("broker", "hub:8883")],
    [],
    [Runtime("onnxruntime", "1.20", needed_by=["colours"]), Runtime("litert")],
    Machine(1024 * MIB, 512 * MIB, 51.0, throttled=False),
    [Model("colours", 3, "confirmed")],
    Process(True, "active", watchdog=True, server=""),
)


def changed(part: str, **changes: object) -> Facts:
    value = msgspec.structs.replace(getattr(HEALTHY, part), **changes)
    return msgspec.structs.replace(HEALTHY, **{part: value})


def bad(facts: Facts) -> list[Finding]:
    return [finding for finding in doctor.findings(facts) if finding.severity != "ok"]


def test_a_healthy_device_has_one_good_line_for_each_part() -> None:
    found = doctor.findings(HEALTHY)
    assert {finding.severity for finding in found} == {"ok"}
    assert doctor.is_healthy(found)
    assert [finding.about for finding in found] == [
        *("configuration", "store", "identity", "clock", "network", "network", "runtimes"),
        *("board", "model colours", "agent", "server"),
    ]


@pytest.mark.parametrize(
    ("facts", "severity", "text"),
    [
        (Facts("no [logz]", "x"), "error", "no [logz]"),
        (changed("store", exists=False), "error", "/s does not exist"),
        (changed("store", closed="permission denied"), "note", "cannot be looked into as ef"),
        (changed("store", damaged=["outbox"]), "error", "outbox"),
        (changed("store", read_only=True, writable=False), "error", "is read-only"),
        (changed("store", writable=False), "error", "ef may not write to /s"),
        (changed("store", writable=False, user="pi"), "note", "pi may not write to /s"),
        (changed("store", free_bytes=32 * MIB - 1), "error", "32 MiB are kept free for others"),
        (changed("store", used_bytes=9 * MIB, max_bytes=9 * MIB - 1), "warning", "it takes 9 MiB"),
        (changed("identity", missing="not enrolled"), "error", "not enrolled"),
        (changed("identity", faults=["no key"]), "error", "no key"),
        (changed("identity", key_mode=0o640), "error", "read by others (mode 0640)"),
        (changed("identity", not_before=NOW + 1), "error", "before the certificate begins"),
        (changed("identity", not_after=NOW), "error", "the certificate expired on 2026-06-01"),
        (changed("identity", not_after=NOW + DAY_S / 4), "warning", "2026-06-01 (0 days)"),
        (changed("identity", authorities=2), "note", "2 authorities of the hub are trusted"),
        (changed("clock", offset_s=None), "note", "could not be asked for the time"),
        (changed("clock", offset_s=60.0), "warning", "60 seconds ahead of the hub's"),
        (changed("clock", offset_s=-3600.0), "error", "60 minutes behind the hub's"),
        (changed("clock", heard_at=None), "note", "has not acknowledged anything"),
        (changed("clock", heard_at=NOW - 3600.0), "warning", "heard last 60 minutes ago"),
        (changed("machine", free_bytes=51 * MIB), "warning", "only 51 MiB of 1024 MiB"),
        (changed("machine", temperature_c=80.0), "warning", "it is at 80 °C"),
        (changed("machine", throttled=True), "warning", "it slows itself down"),
        (changed("process", running=False), "error", "it does not run"),
        (changed("process", running=None), "note", "cannot be told as this user"),
        (changed("process", unit="failed"), "error", "has failed"),
        (changed("process", unit="inactive"), "warning", "was not started by its unit"),
        (changed("process", watchdog=False), "warning", "the unit has no watchdog"),
        (changed("process", server="nothing answers"), "error", "nothing answers"),
    ],
)
def test_each_trouble_has_a_line_and_nothing_else_does(
    facts: Facts, severity: str, text: str
) -> None:
    found = bad(facts)
    assert [finding.severity for finding in found][:1] == [severity]
    assert text in found[0].text
    assert doctor.is_healthy(found) == (severity != "error")
    assert found[0].remedy or severity == "note"


@pytest.mark.parametrize(
    "facts",
    [
        changed("store", free_bytes=32 * MIB),
        changed("identity", not_before=NOW, not_after=NOW + 14 * DAY_S + 1),
        changed("clock", offset_s=-59.9, heard_at=NOW - 3599.0),
        changed("machine", free_bytes=52 * MIB, temperature_c=79.9, throttled=None),
    ],
)
def test_just_below_the_limits_all_is_well(facts: Facts) -> None:
    assert bad(facts) == []


@pytest.mark.parametrize("year", [1970, 2040])
def test_a_clock_that_was_never_set_is_the_first_suspect(year: int) -> None:
    now = datetime(year, 1, 1, tzinfo=UTC).timestamp()
    found = bad(changed("clock", now=now, heard_at=None))
    assert f"the clock says {year}-01-01" in next(f.text for f in found if f.about == "clock")


@pytest.mark.parametrize(
    ("runtimes", "severity", "text"),
    [
        ([Runtime("litert", "", needed_by=["m"]), Runtime("onnxruntime", "1")], "error", "by m"),
        ([Runtime("litert", "2", "no libedge")], "warning", "cannot be imported: no libedge"),
        ([Runtime("litert", "2", "no libedge", ["m"])], "error", "cannot be imported: no libedge"),
        (
            [Runtime("litert", "2.14", "no libedge", [], "tflite-runtime")],
            "warning",
            "tflite-runtime 2.14 cannot be imported",
        ),
        ([Runtime("litert"), Runtime("onnxruntime")], "error", "no inference runtime"),
    ],
)
def test_a_runtime_counts_by_who_needs_it(
    runtimes: list[Runtime], severity: str, text: str
) -> None:
    found = bad(msgspec.structs.replace(HEALTHY, runtimes=runtimes))
    assert [finding.severity for finding in found] == [severity]
    assert text in found[0].text + found[0].remedy


@pytest.mark.parametrize(
    ("model", "severity", "text"),
    [
        (Model("m", 3, absent=["model"]), "error", "files of release 3 are missing"),
        (Model("m", None, "fetching", "waits for room"), "warning", "fetching, waits for room"),
        (Model("m", 2, "rejected", "golden"), "warning", "the last update rejected: golden"),
    ],
)
def test_a_model_says_what_serves_and_why_not_more(model: Model, severity: str, text: str) -> None:
    found = bad(msgspec.structs.replace(HEALTHY, models=[model]))
    assert [finding.severity for finding in found] == [severity]
    assert text in found[0].text


def test_a_proxy_is_only_named_where_the_network_fails() -> None:
    proxied = msgspec.structs.replace(HEALTHY, proxy=["https_proxy"])
    assert bad(proxied) == []
    cut = [Endpoint("hub", "hub:8443", "connection", "timed out")]
    found = bad(msgspec.structs.replace(proxied, endpoints=cut))
    assert [(f.severity, f.about) for f in found] == [("error", "network"), ("note", "network")]


# -- looking -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import runtimes in children only where that is what is tested: it takes seconds."""
    if "import" not in request.node.name:
        monkeypatch.setattr(probes, "import_fault", lambda modules: "")


class Authority:
    """A small CA, for a TLS server and a device."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("authority", self.key, ca=True)

    def issue(self, name: str, days: float = 90.0) -> tuple[bytes, bytes]:
        """Return key and certificate in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, days=days)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem, certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, days: float = 90.0, ca: bool = False
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        now = datetime.now(UTC)
        public, own = key.public_key(), self.key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=100))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
            .add_extension(_usage(ca=ca), critical=True)
            .sign(self.key, hashes.SHA256())
        )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class TlsServer:
    """Answers each connection with what it is told to; asks for client certificates if told to."""

    def __init__(self, folder: Path, authority: Authority, *, clients: Authority | None) -> None:
        key, certificate = authority.issue("localhost")
        path = folder / f"server-{os.urandom(4).hex()}.pem"
        path.write_bytes(key + certificate)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(path)
        if clients:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(cadata=clients.pem.decode())
        self.answer = b""
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain:
                try:
                    with self._context.wrap_socket(plain, server_side=True) as way:
                        if self.answer:
                            way.recv(4096)
                            way.sendall(self.answer)
                        else:
                            way.recv(1)  # as a broker: it waits for the client to speak
                except OSError:
                    continue


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., TlsServer]]:
    servers: list[TlsServer] = []

    def make(authority: Authority, clients: Authority | None = None) -> TlsServer:
        servers.append(TlsServer(tmp_path, authority, clients=clients))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def enrol(
    store: Path, authority: Authority, ports: tuple[int, int], days: float = 90.0
) -> identity.Identity:
    key, certificate = authority.issue("cam-1", days)
    identity.save(
        store,
        identity.Hub("cam-1", "localhost", ports[1], f"https://localhost:{ports[0]}"),
        key=key,
        certificate=certificate,
        ca=authority.pem,
        image_root=b"{}",
        director_root=b"{}",
    )
    return identity.load(store)


def look(store: Path) -> Facts:
    return probes.look(None, {"store": str(store)})


def test_a_hub_that_is_there_is_seen_with_its_time(
    tmp_path: Path, authority: Authority, serving: Callable[..., TlsServer]
) -> None:
    hub, broker = serving(authority), serving(authority, authority)
    hub.answer = b"HTTP/1.1 405 No\r\nDate: Mon, 01 Jun 2026 00:00:00 GMT\r\n\r\n"
    store = tmp_path / "store"
    enrol(store, authority, (hub.port, broker.port))
    facts = probes.look(None, {"store": str(store)}, clock=lambda: NOW + 5)
    assert [(e.name, e.failed) for e in facts.endpoints] == [("hub", None), ("broker", None)]
    assert facts.clock == Clock(NOW + 5, 5.0, None)


def test_a_broker_that_does_not_know_the_certificate_is_seen(
    tmp_path: Path, authority: Authority, serving: Callable[..., TlsServer]
) -> None:
    hub, broker = serving(authority), serving(authority, Authority())
    hub.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    enrol(tmp_path / "store", authority, (hub.port, broker.port))
    facts = look(tmp_path / "store")
    assert [endpoint.failed for endpoint in facts.endpoints] == [None, "certificate"]
    assert "refuses this device's certificate" in facts.endpoints[1].reason
    assert facts.clock is not None
    assert facts.clock.offset_s is None


def test_somebody_else_s_hub_and_a_closed_port_are_told_apart(
    tmp_path: Path, authority: Authority, serving: Callable[..., TlsServer]
) -> None:
    with socket.create_server(("localhost", 0)) as nobody:
        closed = nobody.getsockname()[1]
    enrol(tmp_path / "store", authority, (serving(Authority()).port, closed))
    hub, broker = look(tmp_path / "store").endpoints
    assert (hub.failed, broker.failed) == ("tls", "connection")
    assert "not to be trusted" in hub.reason
    assert "refused" in broker.reason


def test_what_identity_files_say_is_seen(tmp_path: Path, authority: Authority) -> None:
    store = tmp_path / "store"
    known = enrol(store, authority, (1, 1), days=-1.0)
    known.key.chmod(0o644)
    found = {finding.text.split(" (")[0] for finding in bad(look(store))}
    assert "the private key can be read by others" in found
    assert any(text.startswith("the certificate expired on") for text in found)
    known.key.write_bytes(authority.issue("x")[0])
    known.ca.write_bytes(Authority().pem)
    held = look(store).identity
    assert held is not None
    assert held.faults == [
        "the private key is not that of the certificate",
        "the certificate was not issued by the hub's authority",
    ]
    known.key.write_bytes(b"no key")
    held = look(store).identity
    assert held is not None
    assert "cannot be read" in held.faults[0]


@pytest.fixture
def device(rig: Callable[..., Rig], hub: HubDouble, bundle: Callable[..., Bundle]) -> Rig:
    made = rig()
    hub.send_all(made.link, hub.release(bundle(), 1))
    made.settle(acknowledge=False)
    return made


def test_models_and_files_of_a_store_are_seen(device: Rig, bundle: Callable[..., Bundle]) -> None:
    (model,) = look(device.store).models
    assert (model.name, model.release, model.step, model.absent) == ("colours", 1, "confirmed", [])
    path = device.store / "files" / bundle().manifest.file("model").digest
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert look(device.store).models[0].absent == []
    facts = probes.look(None, {"store": str(device.store)}, deep=True)
    assert facts.models[0].absent == [f"model file {path.name}"]
    assert path.exists()  # looking changes nothing
    path.unlink()
    assert look(device.store).models[0].absent == ["model"]


def test_runtimes_are_imported_in_a_child_and_counted_for_the_models(device: Rig) -> None:
    facts = look(device.store)
    (onnx,) = [runtime for runtime in facts.runtimes if runtime.family == "onnxruntime"]
    assert onnx.needed_by == ["colours"]
    assert onnx.broken == ""
    assert onnx.version


def test_an_import_that_fails_or_ends_its_process_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    (tmp_path / "foreign.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probes.import_fault(("nothing_here", "lacking")) == (
        "ImportError: libgomp.so.1 is missing"
    )
    assert probes.import_fault(("foreign",)) == "the process ended with code -4"
    assert probes.import_fault(("json",)) == ""


def test_a_running_agent_is_seen_by_its_lock(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert files.is_locked(store) is False
    with files.locked(store):
        assert files.is_locked(store) is True
        process = look(store).process
        assert process is not None
        assert process.running is True
    assert files.is_locked(store) is False


def test_a_server_that_is_configured_and_not_there_is_seen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    (tmp_path / "agent.toml").write_text(f'[server]\nlisten = "127.0.0.1:{port}"\n')
    process = look(tmp_path).process
    assert process is not None
    assert process.server is not None
    assert process.server.startswith(f"nothing answers at 127.0.0.1:{port}: ")


def test_a_damaged_outbox_and_what_was_set_aside_are_seen(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "models").mkdir(parents=True)
    (store / "outbox.sqlite").write_bytes(b"no database at all" * 100)
    (store / "models/colours.damaged").write_bytes(b"")
    facts = look(store)
    assert facts.store is not None
    first, second = facts.store.damaged
    assert "outbox.sqlite cannot be read" in first
    assert second == "models/colours.damaged was damaged and set aside"


def test_a_store_that_is_not_there_ends_the_search(tmp_path: Path) -> None:
    facts = look(tmp_path / "none")
    assert facts.identity is None
    assert [finding.about for finding in bad(facts)] == ["store"]


def test_a_configuration_that_cannot_be_used_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("heartbeats = 1")
    (finding,) = bad(look(tmp_path))
    assert "did you mean `heartbeat_s`?" in finding.text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user: run it as root")
def test_another_user_is_told_what_it_may_not_see() -> None:
    # Not in pytest's folder, which other users may not even pass.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Path(folder) / "store"
        store.mkdir(mode=0o700)
        os.seteuid(65_534)
        try:
            facts = look(store)
        finally:
            os.seteuid(0)
    (finding,) = bad(facts)
    assert finding.severity == "note"
    assert "cannot be looked into as nobody" in finding.text
    assert finding.remedy == "sudo -u root edgefleet-agent doctor"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user: run it as root")
def test_whether_an_agent_runs_is_not_guessed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with files.locked(Path(folder)):
            os.seteuid(65_534)
            try:
                assert offline.is_running(Path(folder)) is None
            finally:
                os.seteuid(0)
            assert offline.is_running(Path(folder)) is True


def test_the_last_contact_is_taken_from_the_store(tmp_path: Path) -> None:
    health.HealthMeter(tmp_path, lambda: 1000.0).hub_time(999.0)
    clock = look(tmp_path).clock
    assert clock is not None
    assert clock.heard_at == 1000.0
