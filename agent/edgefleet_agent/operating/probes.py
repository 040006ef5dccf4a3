"""Looking at this device for `doctor`: files, sockets and child processes, each within a time.

Nothing is changed, and nothing is said to the hub that a running agent would notice: its broker is
asked for a TLS handshake, never for a session.
"""

import http.client
import os
import pwd
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from edgefleet_agent import runtimes
from edgefleet_agent.config import CONFIG_NAME, Config, load, store_of
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import ConfigError, EnrolmentError, StoreError
from edgefleet_agent.operating import facts, health, offline
from edgefleet_agent.server import address
from edgefleet_agent.trusting import identity
from edgefleet_protocol import profiles
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.manifest import Runtime

CONNECT_TIMEOUT_S = 5.0
# A server that refuses a client certificate says so after the handshake of TLS 1.3.
REFUSAL_WAIT_S = 1.0
IMPORT_TIMEOUT_S = 30.0
SYSTEMD_TIMEOUT_S = 3.0
UNIT = "edgefleet-agent.service"
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_MODULES: dict[Runtime, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai_edge_litert", "tflite_runtime"),
}


def look(
    config_path: Path | None,
    overrides: Mapping[str, str | None],
    *,
    deep: bool = False,
    clock: Callable[[], float] = time.time,
) -> facts.Facts:
    """Look at everything.

    Args:
        config_path: of `agent.toml`; None for the one in the store.
        overrides: of the command line.
        deep: hash the files of all releases too, which takes long.
        clock: Unix seconds.
    """
    if config_path is None:
        closed = _closed(Path(store_of(overrides)))
        if closed:
            return facts.Facts("", "", closed)
    try:
        config = load(config_path, overrides=overrides)
    except ConfigError as error:
        return facts.Facts(str(error), str(config_path or ""))
    in_store = config.folder / CONFIG_NAME
    used = config_path or (in_store if in_store.is_file() else "defaults, no agent.toml")
    store = _store(config)
    seen = facts.Facts("", str(used), store, machine=_machine())
    if not store.exists or store.closed:
        return seen
    known, held = _identity(config.folder)
    needs, models = _models(config.folder, deep)
    endpoints, offset_s = _network(known, clock) if known else ([], None)
    contact = health.last_contact(config.folder)
    return facts.Facts(
        "",
        str(used),
        store,
        held,
        facts.Clock(clock(), offset_s, contact.at if contact else None),
        endpoints,
        sorted(name for name in _PROXIES if os.environ.get(name)),
        _runtimes(config, needs),
        seen.machine,
        models,
        _process(config),
    )


def _closed(folder: Path) -> facts.Store | None:
    """Return what can be said of a store that this user may not look into, None if it may."""
    user, owner = _name_of(os.geteuid()), ""
    try:
        owner = _name_of(folder.stat().st_uid)
        next(folder.iterdir(), None)
    except PermissionError as error:
        closed = (error.strerror or str(error)).lower()
        return facts.Store(str(folder), exists=True, closed=closed, owner=owner, user=user)
    except FileNotFoundError:
        return None  # said as such
    return None


def _store(config: Config) -> facts.Store:
    folder = config.folder
    user = _name_of(os.geteuid())
    closed = _closed(folder)
    if closed:
        return closed
    if not folder.exists():
        return facts.Store(str(folder), exists=False, user=user)
    owner = _name_of(folder.stat().st_uid)
    disk = os.statvfs(folder)
    return facts.Store(
        str(folder),
        exists=True,
        owner=owner,
        user=user,
        writable=os.access(folder, os.W_OK),
        read_only=bool(disk.f_flag & os.ST_RDONLY),
        free_bytes=disk.f_bavail * disk.f_frsize,
        keep_free_bytes=config.storage.keep_free_bytes,
        used_bytes=_used_bytes(folder),
        max_bytes=config.storage.max_bytes,
        damaged=_damaged(folder),
    )


def _used_bytes(folder: Path) -> int:
    total = 0
    for name in ("files", "parts"):
        for path in (folder / name).glob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue  # deleted or installed by the agent in this moment
    return total


def _damaged(folder: Path) -> list[str]:
    found = []
    try:
        offline.reports_waiting(folder)
    except StoreError as error:
        found.append(str(error))
    try:
        Slots(folder).peek()
    except StoreError as error:
        found.append(str(error))
    found += [
        f"{path.relative_to(folder)} was damaged and set aside"
        for pattern in ("models/*.damaged", "damaged-*")
        for path in sorted(folder.glob(pattern))
    ]
    return found


def _identity(folder: Path) -> tuple[identity.Identity | None, facts.Identity]:
    if not identity.is_enrolled(folder):
        return None, facts.Identity(missing="this device is not enrolled")
    try:
        known = identity.load(folder)
        place = identity.anchor(known.folder)
    except EnrolmentError as error:
        return None, facts.Identity(faults=[str(error)])
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    faults = []
    mode = stat.S_IMODE(known.key.stat().st_mode)
    try:
        certificate = x509.load_pem_x509_certificate(known.certificate.read_bytes())
        trusted = x509.load_pem_x509_certificates(known.ca.read_bytes())
        key = load_pem_private_key(known.key.read_bytes(), None)
    except (ValueError, TypeError):
        # The library's own text is about its parser.
        text = "key, certificate or authority cannot be read: a file in identity/ is damaged"
        return None, facts.Identity(faults=[text], key_mode=mode)
    if key.public_key() != certificate.public_key():
        faults.append("the private key is not that of the certificate")
    # One of another name may be a newer authority, which the signed metadata will tell of.
    for authority in (one for one in trusted if one.subject == certificate.issuer):
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            faults.append("the certificate was not issued by the hub's authority")
    return known, facts.Identity(
        faults=faults,
        key_mode=mode,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        key=place.kind if place else "file",
        authorities=len(trusted),
    )


def _network(
    known: identity.Identity, clock: Callable[[], float]
) -> tuple[list[facts.Endpoint], float | None]:
    """Try both ways to the hub; return how far they came and the offset of the clock."""
    hub = known.hub
    url = urlsplit(hub.api_url)
    host, port = url.hostname or "", url.port or 443
    api, way = _connect("hub", host, port, known)
    offset_s = None
    if way is not None:
        with way:
            offset_s = _ask_time(way, host, clock)
    broker, way = _connect("broker", hub.mqtt_host, hub.mqtt_port, known, with_certificate=True)
    if way is not None:
        with way:
            refusal = _refusal(way)
        if refusal:
            broker = facts.Endpoint(broker.name, broker.address, "certificate", refusal)
    return [api, broker], offset_s


def _connect(
    name: str, host: str, port: int, known: identity.Identity, *, with_certificate: bool = False
) -> tuple[facts.Endpoint, ssl.SSLSocket | None]:
    place = f"{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(known.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if with_certificate:
            context.load_cert_chain(str(known.certificate), str(known.key))
        plain = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
    except socket.gaierror as error:
        return facts.Endpoint(name, place, "name", f"unknown host name ({error.strerror})"), None
    except ssl.SSLError as error:
        return facts.Endpoint(name, place, "certificate", str(error)), None
    except OSError as error:
        return facts.Endpoint(name, place, "connection", error.strerror or str(error)), None
    try:
        return facts.Endpoint(name, place), context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        reason = f"its certificate is not to be trusted: {error.verify_message}"
    except OSError as error:
        reason = f"no TLS: {error.strerror or error}"
    plain.close()
    return facts.Endpoint(name, place, "tls", reason), None


def _refusal(way: ssl.SSLSocket) -> str:
    """Return why the other side ends the connection, empty if it waits for a client to speak."""
    way.settimeout(REFUSAL_WAIT_S)
    try:
        if way.recv(1):
            return ""
    except TimeoutError:
        return ""
    except OSError as error:
        return f"it refuses this device's certificate: {error.strerror or error}"
    return "it ended the connection after seeing this device's certificate"


def _ask_time(way: ssl.SSLSocket, host: str, clock: Callable[[], float]) -> float | None:
    """Return the device's clock minus the hub's, by the Date of any answer (RFC 9110, 6.6.1)."""
    way.settimeout(CONNECT_TIMEOUT_S)
    try:
        way.sendall(
            f"HEAD /v1/ca HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        answer = http.client.HTTPResponse(way, method="HEAD")
        answer.begin()
        date = answer.getheader("Date")
        return clock() - parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, ValueError, http.client.HTTPException):
        return None  # said as "could not be asked"


def _runtimes(config: Config, needs: Mapping[str, list[str]]) -> list[facts.Runtime]:
    installed = runtimes.available(config.runtimes)
    found = []
    for family, modules in _MODULES.items():
        # Of each family one is reported, under a name of its own.
        name = next((one for one in profiles.FAMILIES[family] if one in installed), "")
        broken = import_fault(modules) if name else ""
        users = needs.get(family, [])
        found.append(facts.Runtime(family, installed.get(name, ""), broken, users, name))
    return found


def import_fault(modules: tuple[str, ...]) -> str:
    """Import the first of `modules` that is there; return why it fails, empty if it does not.

    In a child, because a library for another processor ends its process.
    """
    code = (
        "import importlib, importlib.util as u\n"
        f"importlib.import_module(next(m for m in {modules!r} if u.find_spec(m)))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {IMPORT_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return last or f"the process ended with code {done.returncode}"


def _machine() -> facts.Machine:
    return facts.Machine(
        health.total_memory_bytes(),
        health.free_memory_bytes(),
        health.hottest_c(),
        health.throttled_now(),
    )


def _models(folder: Path, deep: bool) -> tuple[dict[str, list[str]], list[facts.Model]]:
    """Return runtime → models that need it, and how each lane stands."""
    slots = Slots(folder)
    try:
        journals = slots.peek()
    except StoreError:
        return {}, []  # told with the store
    needs: dict[str, list[str]] = {}
    models = []
    for key, journal in sorted(journals.items()):
        serving, attempt = journal.serving, journal.attempt
        absent: list[str] = []
        if serving:
            try:
                bundle = slots.manifest(serving.slot.manifest)
            except (StoreError, ProtocolError) as error:
                absent.append(str(error))
            else:
                needs.setdefault(bundle.needs.runtime, []).append(key)
                absent += [file.role for file in slots.absent(bundle)]
                if deep:
                    absent += slots.damaged(bundle)
        if serving or (attempt and not attempt.is_final):
            models.append(
                facts.Model(
                    key,
                    serving.slot.release if serving else None,
                    str(attempt.step) if attempt else "",
                    offline.reason_of(journal),
                    absent,
                )
            )
    return needs, models


def _process(config: Config) -> facts.Process:
    running = offline.is_running(config.folder)
    unit, watchdog = _unit()
    server = _server_fault(config.server.listen) if config.server.listen else None
    return facts.Process(running, unit, watchdog, server)


def _unit() -> tuple[str, bool]:
    """Return the state of the systemd unit, empty if there is none, and whether it is watched."""
    asked = ["systemctl", "show", UNIT, "--property=LoadState,ActiveState,WatchdogUSec"]
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=SYSTEMD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", False  # no systemd here
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if told.get("LoadState") != "loaded":
        return "", False
    return told.get("ActiveState", ""), told.get("WatchdogUSec", "0") not in ("0", "infinity")


def _server_fault(listen: str) -> str:
    """Ask the local server whether it lives; return what is wrong with that."""
    place = address.parse(listen)
    if isinstance(place, address.Tcp) and place.port == 0:
        return ""  # a port that only the agent knows
    try:
        if isinstance(place, address.Tcp):
            way = socket.create_connection((place.host, place.port), timeout=CONNECT_TIMEOUT_S)
        else:
            way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            way.settimeout(CONNECT_TIMEOUT_S)
            way.connect(str(place.path))
        with way:
            way.sendall(
                b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            answer = http.client.HTTPResponse(way)
            answer.begin()
            return "" if answer.status == 200 else f"{place} answers {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"nothing answers at {place}: {error}"


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
