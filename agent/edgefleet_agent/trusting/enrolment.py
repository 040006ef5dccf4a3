"""Enrolment: a one-time claim token becomes a device identity.

1. The token names the device and the fingerprint of the hub's CA, so it is also the trust anchor.
2. The CA is fetched over an unverified connection and must have that fingerprint; everything after
   it is verified against it.
3. The private key is made here and never leaves the device; only a signing request does.
4. What comes back is checked (the certificate carries this device's name and key, the roots are
   TUF roots) before anything is written.
"""

import json
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
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Meta, Struct

from edgefleet_agent.errors import (
    ClaimRefusedError,
    ConfigError,
    EnrolmentError,
    HubUnreachableError,
)
from edgefleet_agent.trusting import identity
from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import ProtocolError

# The answer holds two certificates and two TUF roots, each a few kilobytes.
MAX_ANSWER_BYTES = 1024 * 1024
TIMEOUT_S = 15.0
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}=?")


class Claim(Struct, frozen=True):
    """A parsed claim token: `ef1.<device>.<secret>.<SHA-256 of the CA certificate>`."""

    device: str
    secret: str
    fingerprint: str


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


def enrol(
    store: Path,
    hub_url: str,
    claim: Claim,
    *,
    board: str,
    runtimes: Mapping[str, str],
    memory_bytes: int,
    force: bool = False,
) -> identity.Hub:
    """Redeem `claim` and write the device's identity into `store`.

    Args:
        store: the agent's folder.
        hub_url: `https://host:port`.
        claim: from `parse_claim`.
        board: of this device.
        runtimes: family → version, as installed.
        memory_bytes: of the machine.
        force: replace the identity of a device that is enrolled already.

    Raises:
        EnrolmentError: already enrolled, wrong CA, or an answer that cannot be trusted.
        ClaimRefusedError: the hub does not accept the claim.
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
    ca_pem = _pinned_ca(url, claim.fingerprint)
    key = ec.generate_private_key(ec.SECP256R1())
    request = {
        "device": claim.device,
        "secret": claim.secret,
        "csr": _signing_request(key, claim.device).decode(),
        "board": board,
        "runtimes": dict(runtimes),
        "memory_bytes": memory_bytes,
    }
    granted = _redeem(url, ca_pem, request)
    _check_granted(granted, claim.device, key.public_key())
    _forget_other_hub(store, granted.director_root.encode())
    hub = identity.Hub(granted.device, granted.mqtt_host, granted.mqtt_port, url)
    identity.save(
        store,
        hub,
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate=granted.certificate.encode(),
        ca=ca_pem.encode(),
        image_root=granted.image_root.encode(),
        director_root=granted.director_root.encode(),
    )
    return hub


def _pinned_ca(url: str, fingerprint: str) -> str:
    # Unverified on purpose: nothing is sent, and the fingerprint decides whether to believe it.
    with (
        urllib3.PoolManager(cert_reqs="CERT_NONE", assert_hostname=False, retries=False) as pool,
        # urllib3 warns of each unverified request; this one is verified by its fingerprint.
        warnings.catch_warnings(
            action="ignore", category=urllib3.exceptions.InsecureRequestWarning
        ),
    ):
        status, body = _exchange(pool, "GET", f"{url}/v1/ca")
    if status != 200:
        raise EnrolmentError(f"{url}/v1/ca answered {status}: is this an edgefleet hub?")
    try:
        certificate = x509.load_pem_x509_certificate(body)
    except ValueError as error:
        raise EnrolmentError(f"{url}/v1/ca holds no certificate: {error}") from error
    found = sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    if found != fingerprint:
        raise EnrolmentError(
            f"{url} is not the hub that made this token: its CA has the fingerprint {found},"
            f" the token names {fingerprint}"
        )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _signing_request(key: ec.EllipticCurvePrivateKey, device: str) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _redeem(url: str, ca_pem: str, request: dict[str, Any]) -> _Granted:
    with urllib3.PoolManager(ca_cert_data=ca_pem, retries=False) as pool:
        status, body = _exchange(pool, "POST", f"{url}/v1/enrol", request)
    if status == 403:
        raise ClaimRefusedError(f"the hub refused the claim: {_error_text(body)}")
    if status != 200:
        raise EnrolmentError(f"enrolment failed ({status}): {_error_text(body)}")
    try:
        return msgspec.json.decode(body, type=_Granted)
    except msgspec.DecodeError as error:
        raise EnrolmentError(f"the hub's answer cannot be read: {error}") from error


def _exchange(
    pool: urllib3.PoolManager, method: str, url: str, body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    try:
        response = pool.request(method, url, json=body, timeout=TIMEOUT_S, preload_content=False)
        try:
            data = response.read(MAX_ANSWER_BYTES + 1)
        finally:
            response.release_conn()
    except urllib3.exceptions.LocationParseError as error:
        raise ConfigError(f"hub URL {url!r} cannot be read: {error}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise HubUnreachableError(f"the hub at {url} did not answer: {error}") from error
    if len(data) > MAX_ANSWER_BYTES:
        raise EnrolmentError(f"{url} answered with more than {MAX_ANSWER_BYTES} bytes")
    return response.status, data


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "no reason given"


def _check_granted(granted: _Granted, device: str, key: ec.EllipticCurvePublicKey) -> None:
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root
    from tuf.api.serialization import DeserializationError

    try:
        certificate = x509.load_pem_x509_certificate(granted.certificate.encode())
    except ValueError as error:
        raise EnrolmentError(f"the hub gave no readable certificate: {error}") from error
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if granted.device != device or [name.value for name in names] != [device]:
        raise EnrolmentError(f"the hub's certificate is not for this device, {device!r}")
    if certificate.public_key() != key:
        raise EnrolmentError("the hub's certificate is for another key than this device's")
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
