"""The one program that uses the device's keys while the agent runs; see `renewal`.

    python -m edgefleet_agent.trusting.keyholder

Request on standard input, answer on standard output. Rules of a renewal:

1. A new key each time. An answer that is lost is asked for again, with another key; the hub ends
   what nobody has come with.
2. The request is signed by the anchor, or by the key of the newest certificate that is held.
3. What comes back is kept only if it certifies the new key for this device.
"""

import base64
import sys
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import msgspec
import urllib3
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

from edgefleet_agent.errors import AgentError, EnrolmentError, HubUnreachableError, StoreError
from edgefleet_agent.trusting import anchors, hubcalls, identity
from edgefleet_agent.trusting.renewal import (
    MAX_TEXT,
    Answer,
    Facts,
    Failure,
    Look,
    Renew,
    Request,
    Sign,
)
from edgefleet_protocol import statements

T = TypeVar("T")


class HubRefusedError(EnrolmentError):
    """The hub does not renew this device's certificate."""


class _Challenge(Struct, frozen=True):
    nonce: str


class _Renewed(Struct, frozen=True):
    certificate: str


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        EnrolmentError: if it is none of this program's.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnrolmentError(f"{path} holds no private key that can be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnrolmentError(f"{path} holds a key of another kind than this device's")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey, device: str) -> bytes:
    """Return the request for a certificate of this name, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def check_certificate(text: str, device: str, key: ec.EllipticCurvePublicKey) -> None:
    """Refuse a certificate that is not for this device and key.

    Raises:
        EnrolmentError: saying what is wrong with it.
    """
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        certified = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise EnrolmentError(f"the hub gave no readable certificate: {error}") from error
    if [name.value for name in names] != [device]:
        raise EnrolmentError(f"the hub's certificate is not for this device, {device!r}")
    if certified != key:
        raise EnrolmentError("the hub's certificate is for another key than this device's")


def look(folder: Path, credential: identity.Credential) -> Facts:
    """Return what a certificate says, and which authorities are trusted.

    Raises:
        EnrolmentError: if they cannot be read.
    """
    place = identity.anchor(folder)
    try:
        certificate = x509.load_pem_x509_certificate(credential.certificate.read_bytes())
        trusted = x509.load_pem_x509_certificates((folder / identity.CA).read_bytes())
    except (OSError, ValueError) as error:
        raise EnrolmentError(f"the identity in {folder} cannot be read: {error}") from error
    return Facts(
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        authorities=[
            sha256(one.public_bytes(serialization.Encoding.DER)).hexdigest() for one in trusted
        ],
        key=place.kind if place else "file",
    )


def sign(folder: Path, credential: identity.Credential, data: bytes) -> bytes:
    """Sign with the anchor if there is one, else with the key of the certificate.

    Raises:
        EnrolmentError: if the key cannot be used.
    """
    place = identity.anchor(folder)
    if place:
        return anchors.sign(place, data)
    return load_key(credential.key).sign(data, ec.ECDSA(hashes.SHA256()))


def renew(request: Renew) -> Facts:
    """Get a new certificate from the hub and keep it in `identity/next`.

    Raises:
        HubRefusedError: the hub says no.
        HubUnreachableError: no answer.
        EnrolmentError: the answer cannot be used, or the present key cannot.
        StoreError: the store cannot be written.
    """
    folder = Path(request.folder)
    known = identity.Identity(identity.Hub(request.device, "", 1, request.url), folder, b"", b"")
    key = new_key()
    csr = signing_request(key, request.device)
    with hubcalls.trusting(folder / identity.CA, without_dates=request.without_dates) as pool:
        asked = {"device": request.device}
        challenge = _post(pool, f"{request.url}/v1/renew/challenge", asked, _Challenge)
        try:
            nonce = base64.b64decode(challenge.nonce, validate=True)
        except ValueError as error:
            raise EnrolmentError(f"the hub's challenge cannot be read: {error}") from error
        signature = sign(folder, known.credentials()[0], statements.signed_renewal(nonce, csr))
        asked |= {
            "csr": csr.decode(),
            "nonce": challenge.nonce,
            "signature": base64.b64encode(signature).decode(),
        }
        renewed = _post(pool, f"{request.url}/v1/renew", asked, _Renewed)
    check_certificate(renewed.certificate, request.device, key.public_key())
    identity.keep(folder, key_pem(key), renewed.certificate.encode())
    return look(folder, known.credentials()[0])


def answer(request: Request) -> Answer:
    """Do what is asked; errors become part of the answer."""
    folder = Path(request.folder)
    known = identity.Identity(identity.Hub("", "", 1, ""), folder, b"", b"")
    try:
        match request:
            case Look():
                return Answer(facts=look(folder, known.credentials()[0]))
            case Sign():
                signature = sign(folder, known.credentials()[0], request.data)
                return Answer(signature=signature)
            case Renew():
                return Answer(facts=renew(request))
    except AgentError as error:
        return Answer(_failure(error), str(error)[:MAX_TEXT])
    except OSError as error:
        return Answer("store", str(error)[:MAX_TEXT])


def _failure(error: AgentError) -> Failure:
    kinds: list[tuple[type[AgentError], Failure]] = [
        (HubRefusedError, "refused"),
        (HubUnreachableError, "unreachable"),
        (StoreError, "store"),
    ]
    return next((failure for kind, failure in kinds if isinstance(error, kind)), "damaged")


def _post(pool: urllib3.PoolManager, url: str, body: dict[str, str], kind: type[T]) -> T:
    status, data = hubcalls.exchange(pool, "POST", url, body)
    if status in (403, 422):
        raise HubRefusedError(f"the hub does not renew: {hubcalls.error_text(data)}")
    if status != 200:
        # Too many requests, a database that restarts: the hub may answer later.
        raise HubUnreachableError(f"{url} answered {status}: {hubcalls.error_text(data)}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentError(f"the hub's answer cannot be read: {error}") from error


def main() -> int:
    """Answer one request."""
    # `Request` is a union, which the decoder takes like a type.
    request: Request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer(request)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
