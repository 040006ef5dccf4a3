"""Targets of trust: identities, signed statements, sign-in tokens, drafts, and the audit log."""

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from joserfc.jwk import KeySet, OKPKey

from edgefleet_agent.errors import AgentError, EnrolmentError
from edgefleet_agent.testing import HubDouble
from edgefleet_agent.trusting import enrolment, hubcalls, keyholder
from edgefleet_cloud.errors import InvalidError, UnknownCallerError
from edgefleet_cloud.fleet.testing import open_services, signing_request
from edgefleet_cloud.trust.audit import export, log, verification
from edgefleet_cloud.trust.audit.checkpoints import Checkpoints
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_cloud.trust.identity import signatures
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_cloud.trust.people import id_tokens, provider
from edgefleet_cloud.trust.repositories import drafts
from edgefleet_protocol import attesting, statements
from edgefleet_protocol.errors import ProtocolError
from tests.fuzz import forms
from tests.fuzz.oracle import Bounds, Take
from tests.fuzz.targets import Target, pure
from tests.fuzz.values import values_of

DEVICE = "cam-1"
NOW = 1_800_000_000.0
_ISSUER, _CLIENT, _NONCE = "https://id.example", "hub", "n" * 32


# --- statements -----------------------------------------------------------------------------------


def _take_time(data: bytes) -> None:
    """An attested time whose signature was right: by whoever has the director's key."""
    attesting.read_time(data, DEVICE, b"n" * 16)


def _time_seeds() -> list[bytes]:
    statement = attesting.TimeStatement(DEVICE, b"n" * 16, NOW, b"c" * 16)
    return [msgspec.msgpack.encode(statement)]


def _statement_seeds() -> list[bytes]:
    return [msgspec.msgpack.encode(value) for value in values_of(statements.DeviceStatement)]


@cache
def _device_keys() -> list[tuple[bytes, bytes]]:
    """Return (public key, signature of `data`) of both kinds of keys."""
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    signed = [curve.sign(b"data", ec.ECDSA(hashes.SHA256())), edwards.sign(b"data")]
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    keys = [key.public_key().public_bytes(*form) for key in (curve, edwards)]
    return list(zip(keys, signed, strict=True))


def _take_signature(data: bytes) -> None:
    """A key and a signature as they come in an enrolment and in a statement."""
    size = data[0] if data else 0
    signatures.is_signed(data[1 : 1 + size], data[1 + size :], b"data")


def _signature_seeds() -> list[bytes]:
    return [bytes([len(key)]) + key + signature for key, signature in _device_keys()]


# --- what a hub answers a device that enrols ------------------------------------------------------


@cache
def _enrolling() -> tuple[ec.EllipticCurvePrivateKey, dict[str, object], bytes, str]:
    """Return a device's key, a right answer to it, the hub's CA and the CA's fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        authority = Authority.open(Path(folder), lambda: NOW)
        issued = authority.issue_device(signing_request(DEVICE, key).encode(), DEVICE, 3600.0)
    hub = HubDouble()
    granted = {
        "device": DEVICE,
        "certificate": issued.certificate_pem.decode(),
        "ca": authority.ca_pem.decode(),
        "mqtt_host": "localhost",
        "mqtt_port": 8883,
        "image_root": hub.image.roots[0].decode(),
        "director_root": hub.director.roots[0].decode(),
    }
    return key, granted, authority.ca_pem, authority.fingerprint


@contextmanager
def _asking(answers: Callable[[str, bytes], tuple[int, bytes]]) -> Iterator[Take]:
    """Enrol a device whose hub says what `answers` makes of the input."""
    key, _, _, fingerprint = _enrolling()
    claim = enrolment.Claim(DEVICE, "s" * 43, fingerprint)
    machine = enrolment.Machine("rpi4", {}, 1)
    said = b""

    def exchange(_pool: object, method: str, _url: str, _body: object = None) -> tuple[int, bytes]:
        return answers(method, said)

    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:

        def take(data: bytes) -> None:
            nonlocal said
            said = data
            with (
                mock.patch.object(hubcalls, "exchange", exchange),
                mock.patch.object(keyholder, "new_key", return_value=key),
            ):
                enrolment.enrol(Path(folder), "https://hub", claim, machine, force=True)

        yield take


def _granted() -> AbstractContextManager[Take]:
    """What comes with the certificate."""
    ca = _enrolling()[2]
    return _asking(lambda method, data: (200, ca if method == "GET" else data))


def _authority() -> AbstractContextManager[Take]:
    """What comes before anything is believed: the hub's CA, over an unverified connection."""
    granted = json.dumps(_enrolling()[1]).encode()
    return _asking(lambda method, data: (200, data if method == "GET" else granted))


@contextmanager
def _refused() -> Iterator[Take]:
    """Why the hub says no, for a person to read."""
    ca = _enrolling()[2]
    with _asking(lambda method, data: (200, ca) if method == "GET" else (422, data)) as asking:

        def take(data: bytes) -> None:
            try:
                asking(data)
            except EnrolmentError as error:
                if len(str(error)) > 1000:
                    raise AssertionError(f"{len(str(error))} characters of the hub's") from error

        yield take


# --- signing in -----------------------------------------------------------------------------------


@cache
def _provider_key() -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": "k", "use": "sig"})


def _part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@contextmanager
def _id_token() -> Iterator[Take]:
    """A header and claims, signed by the provider's own key."""
    key = _provider_key()
    keys = KeySet([key])
    private = key.get_op_key("sign")
    expected = id_tokens.Expected(_ISSUER, _CLIENT, _NONCE, "name", "groups")

    def take(data: bytes) -> None:
        header, _, claims = data.partition(b"\n")
        signed = _part(header) + b"." + _part(claims)
        token = signed + b"." + _part(private.sign(signed))
        id_tokens.read(token.decode("ascii"), keys, expected, NOW)

    yield take


def _id_token_seeds() -> list[bytes]:
    claims = {
        "iss": _ISSUER,
        "aud": [_CLIENT],
        "azp": _CLIENT,
        "exp": NOW + 60,
        "iat": NOW,
        "nbf": NOW,
        "nonce": _NONCE,
        "sub": "1",
        "name": "ann",
        "groups": ["ops"],
    }
    head = {"alg": "EdDSA", "kid": "k", "typ": "JWT"}
    return [json.dumps(head).encode() + b"\n" + json.dumps(claims).encode()]


def _id_token_form() -> forms.Form:
    def read(data: bytes) -> object:
        head, _, claims = data.partition(b"\n")
        return [json.loads(head), json.loads(claims)]

    return forms.Form(read, forms.HEADED.write)


def _take_keys(data: bytes) -> None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise provider.ProviderError("no JSON: refused before") from error
    if isinstance(said, dict):
        provider._read_keys(said)


def _key_seeds() -> list[bytes]:
    rsa = {
        "kty": "RSA",
        "kid": "r",
        "use": "sig",
        "e": "AQAB",
        "n": _part(bytes(range(1, 255))).decode(),
    }
    return [json.dumps({"keys": [_provider_key().as_dict(private=False), rsa]}).encode()]


# --- drafts and the log ---------------------------------------------------------------------------


def _draft_seeds() -> list[bytes]:
    hub = HubDouble()
    return [hub.image.roots[0], hub.image.publish({})["targets"]]


@cache
def _log() -> tuple[bytes, SigningKey]:
    """Return an exported log and the key that signs it."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        services = open_services(Path(folder), lambda: NOW)
        try:
            with services.database.write() as session:
                for number in range(3):
                    log.record(session, "device.claim", f"cam-{number}", NOW, after={"n": number})
            folder_of_key = Path(folder) / "audit"
            Checkpoints.open(services.database, folder_of_key, lambda: NOW).sign()
            key = SigningKey.open(folder_of_key)
            with services.database.read() as session:
                lines = "".join(export.lines(session, export.Wanted()))
        finally:
            services.database.close()
    return lines.encode(), key


@contextmanager
def _verified_log() -> Iterator[Take]:
    key = _log()[1]
    public = [key.signer.public_key]
    yield lambda data: verification.verify(data.splitlines(keepends=True), public)


TARGETS = [
    Target(
        "trust-attested-time",
        pure(_take_time),
        (ProtocolError,),
        _time_seeds,
        forms.MSGPACK,
        guided=True,
    ),
    Target(
        "trust-device-statement",
        pure(statements.read_statement),
        (ProtocolError,),
        _statement_seeds,
        forms.MSGPACK,
        guided=True,
    ),
    Target("trust-device-signature", pure(_take_signature), (InvalidError,), _signature_seeds),
    Target(
        "trust-enrolment-answer",
        _granted,
        (AgentError,),
        lambda: [json.dumps(_enrolling()[1]).encode()],
        forms.JSON,
    ),
    Target(
        "trust-enrolment-refusal",
        _refused,
        (),
        lambda: [b'{"error": "no"}'],
        forms.JSON,
    ),
    Target("trust-authority-answer", _authority, (AgentError,), lambda: [_enrolling()[2]]),
    Target("trust-id-token", _id_token, (UnknownCallerError,), _id_token_seeds, _id_token_form()),
    Target(
        "trust-provider-keys", pure(_take_keys), (provider.ProviderError,), _key_seeds, forms.JSON
    ),
    Target("trust-draft", pure(drafts.parse), (ValueError,), _draft_seeds, forms.JSON),
    Target(
        "trust-audit-log",
        _verified_log,
        (verification.BrokenError,),
        lambda: [_log()[0]],
        bounds=Bounds(floor_bytes=4 << 20),
    ),
]
