"""Enrolment: a one-time claim token, or an expected serial number, becomes a device identity.

1. The token names the device and the fingerprint of the hub's CA, so it is also the trust anchor.
   With a serial number, the fingerprint is given beside it.
2. The CA is fetched over an unverified connection and must have that fingerprint; everything after
   it is verified against it.
3. Private keys are made here, or in the device's TPM or token, and never leave it; only a signing
   request does, signed by the anchor too where there is one.
4. What comes back is checked (the certificate carries this device's name and key, the roots are
   TUF roots) before anything is written.
5. While a person has to accept a serial number's key, that key is kept (`identity/asking.key`), so
   that what was accepted is what asks again.
"""

import base64
import re
import shutil
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta, Struct

from edgefleet_agent import files
from edgefleet_agent.errors import (
    ApprovalPendingError,
    ClaimRefusedError,
    ConfigError,
    EnrolmentError,
)
from edgefleet_agent.trusting import anchors, hubcalls, identity, keyholder
from edgefleet_protocol import identifiers, statements
from edgefleet_protocol.errors import ProtocolError

_SECRET = re.compile(r"[A-Za-z0-9_-]{43}=?")
_ASKING = "asking.key"
DEVICE_TREE_SERIAL = Path("/proc/device-tree/serial-number")


class Claim(Struct, frozen=True):
    """A parsed claim token: `ef1.<device>.<secret>.<SHA-256 of the CA certificate>`."""

    device: str
    secret: str
    fingerprint: str


class Announced(Struct, frozen=True):
    """A serial number that the hub expects, and the fingerprint of the hub's CA certificate."""

    serial: str
    fingerprint: str


class Machine(Struct, frozen=True):
    """What a device says of itself.

    Attributes:
        runtimes: name → version, as installed (`profiles`).
        memory_bytes: of the machine.
    """

    board: str
    runtimes: Mapping[str, str]
    memory_bytes: int


class _Waiting(Struct, frozen=True):
    key: str


class _Granted(Struct, frozen=True):
    device: str
    certificate: str
    ca: str
    mqtt_host: Annotated[str, Meta(min_length=1, max_length=253)]
    mqtt_port: Annotated[int, Meta(ge=1, le=65_535)]
    image_root: str
    director_root: str


def parse_claim(token: str) -> Claim:
    """Read a claim token.

    Raises:
        ConfigError: if it does not have the form of one.
    """
    parts = token.strip().split(".")
    if len(parts) != 4 or parts[0] != "ef1" or not _SECRET.fullmatch(parts[2]):
        raise ConfigError(
            "this is no claim token: expected ef1.DEVICE.SECRET.FINGERPRINT,"
            " as `edgefleet devices claim` prints it"
        )
    try:
        return Claim(
            identifiers.device_id(parts[1]), parts[2], identifiers.digest(parts[3].lower())
        )
    except ProtocolError as error:
        raise ConfigError(f"this is no claim token: {error}") from error


def parse_announced(serial: str, fingerprint: str) -> Announced:
    """Check a serial number and the fingerprint of the hub's CA.

    Raises:
        ConfigError: if one of them cannot be what it is said to be.
    """
    if not serial or len(serial) > 128 or not serial.isprintable():
        raise ConfigError(f"{serial[:40]!r} is no serial number: expected 1 to 128 characters")
    try:
        return Announced(serial, identifiers.digest(fingerprint.lower().replace(":", "")))
    except ProtocolError as error:
        raise ConfigError(
            f"--ca-fingerprint: {error}; `edgefleet devices expect` prints it"
        ) from error


def read_serial(path: Path = DEVICE_TREE_SERIAL) -> str:
    """Return the serial number of this board.

    Raises:
        ConfigError: if it has none that can be read.
    """
    try:
        serial = path.read_bytes().rstrip(b"\0\n").decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"this board tells no serial number ({error}); give it with --serial"
        ) from error
    return serial


def enrol(
    store: Path,
    hub_url: str,
    ticket: Claim | Announced,
    machine: Machine,
    *,
    anchor: identity.AnchorPlace | None = None,
    force: bool = False,
) -> identity.Hub:
    """Redeem `ticket` and write the device's identity into `store`.

    Args:
        store: the agent's folder.
        hub_url: `https://host:port`.
        ticket: from `parse_claim` or `parse_announced`.
        machine: what the device says of itself.
        anchor: where a key in hardware is, or is to be made; None for none.
        force: replace the identity of a device that is enrolled already.

    Raises:
        EnrolmentError: already enrolled, wrong CA, or an answer that cannot be trusted.
        ApprovalPendingError: a person has to accept this device's key first.
        ClaimRefusedError: the hub does not accept the claim or the serial number.
        HubUnreachableError: no answer.
    """
    if identity.is_enrolled(store) and not force:
        raise EnrolmentError(
            f"this device is already enrolled ({store / identity.FOLDER});"
            " use --force to replace its identity"
        )
    url = hub_url.rstrip("/")
    if not url.startswith("https://"):
        raise ConfigError(f"hub URL {hub_url!r}: expected https://HOST:PORT")
    ca_pem = _pinned_ca(url, ticket.fingerprint)
    key = _key(store, ticket)
    if anchor:
        anchors.make(anchor)
    granted = _redeem(url, ca_pem, ticket, _request(ticket, key, machine, anchor))
    device = ticket.device if isinstance(ticket, Claim) else granted.device
    _check_granted(granted, device, key.public_key())
    _forget_other_hub(store, granted.director_root.encode())
    hub = identity.Hub(granted.device, granted.mqtt_host, granted.mqtt_port, url)
    identity.save(
        store,
        hub,
        key=keyholder.key_pem(key),
        certificate=granted.certificate.encode(),
        ca=granted.ca.encode(),
        image_root=granted.image_root.encode(),
        director_root=granted.director_root.encode(),
        anchor=anchor,
    )
    (store / identity.FOLDER / _ASKING).unlink(missing_ok=True)
    return hub


def _key(store: Path, ticket: Claim | Announced) -> ec.EllipticCurvePrivateKey:
    """Return the key to ask with: a new one, or the one that waits to be accepted (rule 5)."""
    if isinstance(ticket, Claim):
        return keyholder.new_key()
    folder = store / identity.FOLDER
    path = folder / _ASKING
    if path.exists():
        return keyholder.load_key(path)
    key = keyholder.new_key()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.replace(path, keyholder.key_pem(key), mode=0o600)
    return key


def _request(
    ticket: Claim | Announced,
    key: ec.EllipticCurvePrivateKey,
    machine: Machine,
    anchor: identity.AnchorPlace | None,
) -> dict[str, Any]:
    # With a serial number, the hub gives the device its name.
    named = ticket.device if isinstance(ticket, Claim) else statements.UNNAMED
    csr = keyholder.signing_request(key, named)
    request: dict[str, Any] = {
        "csr": csr.decode(),
        "board": machine.board,
        "runtimes": dict(machine.runtimes),
        "memory_bytes": machine.memory_bytes,
    }
    if isinstance(ticket, Claim):
        request |= {"device": ticket.device, "secret": ticket.secret}
    else:
        request |= {"serial": ticket.serial}
    if anchor:
        proof = anchors.sign(anchor, statements.signed_enrolment(csr))
        request |= {
            "anchor": base64.b64encode(anchors.public_key(anchor)).decode(),
            "anchor_kind": anchor.kind,
            "proof": base64.b64encode(proof).decode(),
        }
    return request


def _pinned_ca(url: str, fingerprint: str) -> str:
    # Unverified on purpose: nothing is sent, and the fingerprint decides whether to believe it.
    with (
        urllib3.PoolManager(cert_reqs="CERT_NONE", assert_hostname=False, retries=False) as pool,
        # urllib3 warns of each unverified request; this one is verified by its fingerprint.
        warnings.catch_warnings(
            action="ignore", category=urllib3.exceptions.InsecureRequestWarning
        ),
    ):
        status, body = hubcalls.exchange(pool, "GET", f"{url}/v1/ca")
    if status != 200:
        raise EnrolmentError(f"{url}/v1/ca answered {status}: is this an edgefleet hub?")
    found = {}
    for certificate in _certificates(f"{url}/v1/ca", body):
        der = certificate.public_bytes(serialization.Encoding.DER)
        found[sha256(der).hexdigest()] = certificate
    if fingerprint not in found:
        raise EnrolmentError(
            f"{url} is not the hub that made this token: its CA has the fingerprint"
            f" {', '.join(found)}, the token names {fingerprint}"
        )
    return found[fingerprint].public_bytes(serialization.Encoding.PEM).decode()


def _certificates(what: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise EnrolmentError(f"{what} holds no certificate: {error}") from error


def _redeem(url: str, ca_pem: str, ticket: Claim | Announced, request: dict[str, Any]) -> _Granted:
    path, what = ("enrol", "claim") if isinstance(ticket, Claim) else ("enrol/serial", "serial")
    with urllib3.PoolManager(ca_cert_data=ca_pem, retries=False) as pool:
        status, body = hubcalls.exchange(pool, "POST", f"{url}/v1/{path}", request)
    if status == 403:
        raise ClaimRefusedError(f"the hub refused the {what}: {hubcalls.error_text(body)}")
    try:
        if status == 202:
            waiting = msgspec.json.decode(body, type=_Waiting)
            raise ApprovalPendingError(
                f"a person has to accept this device's key: {waiting.key}. Compare it and accept it"
                f" with: edgefleet devices accept SERIAL {waiting.key[:16]}, then enrol again, or"
                " use --wait"
            )
        if status != 200:
            raise EnrolmentError(f"enrolment failed ({status}): {hubcalls.error_text(body)}")
        return msgspec.json.decode(body, type=_Granted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(f"the hub's answer cannot be read: {error}") from error


def _check_granted(granted: _Granted, device: str, key: ec.EllipticCurvePublicKey) -> None:
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root
    from tuf.api.serialization import DeserializationError

    if granted.device != device:
        raise EnrolmentError(f"the hub's certificate is not for this device, {device!r}")
    keyholder.check_certificate(granted.certificate, device, key)
    _certificates("the hub's list of authorities", granted.ca.encode())
    for what, text in (("image", granted.image_root), ("director", granted.director_root)):
        try:
            root = Metadata[Root].from_bytes(text.encode())
            root.verify_delegate(Root.type, root)
        except (RepositoryError, DeserializationError, ValueError) as error:
            raise EnrolmentError(f"the {what} root cannot be trusted: {error}") from error


def _forget_other_hub(store: Path, director_root: bytes) -> None:
    """Drop models, counters and waiting reports if they belong to another hub than the new one.

    Sequences and release numbers of two hubs have nothing to do with one another.
    """
    known = store / identity.FOLDER / identity.DIRECTOR_ROOT
    if known.is_file() and known.read_bytes() == director_root:
        return
    for name in ("trust", "models", "files", "parts"):
        shutil.rmtree(store / name, ignore_errors=True)
    for path in store.glob("outbox.sqlite*"):
        path.unlink()
