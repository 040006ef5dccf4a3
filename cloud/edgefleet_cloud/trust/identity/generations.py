"""The hub's authorities, one after another: made, cross-signed, retired (docs/adr/0012).

Rules:

1. Generation 1 is made at first start (`ca.pem`, `ca.key`); generation N lies in a folder `N`. It
   counts from the moment when its certificate is there: the key and the cross-signed certificates
   are written before.
2. The newest generation issues. A new one is signed by itself and by the one before
   (`N/crossed.pem`). Sent along, these links lead from what the newest one issues to every older
   authority. (One link from each older authority to the newest instead would not do: OpenSSL takes
   the first that fits the name, and does not try another.)
3. A generation that is retired is trusted by this hub no more, and its key is deleted, so that it
   can be stolen no more. The links stay, for devices that slept.
4. A damaged file is never made anew: devices trust no other authority.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet_cloud.errors import ConflictError, DamagedError, NotFoundError
from edgefleet_cloud.trust import durable
from edgefleet_protocol.identifiers import digest_of

DAY_S = 86_400.0
AUTHORITY_LIFE_S = 10 * 365 * DAY_S
# Devices' clocks may be behind: certificates are valid from an hour before they are made.
BACKDATE_S = 3600.0
# As many as fit into the signed list of authorities (`protocol.trust.Fleet`), and as many links as
# may stand between an authority and what its last successor issues.
MAX_TRUSTED = 8
RETIRED, CROSSED = "retired.json", "crossed.pem"


@dataclass(frozen=True)
class Generation:
    """One authority.

    Attributes:
        links: its key as the one before has certified it, and so on back to the first one.
    """

    number: int
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    links: tuple[x509.Certificate, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER form, in hexadecimal."""
        return fingerprint(self.certificate)


def load(folder: Path, clock: Callable[[], float]) -> list[Generation]:
    """Read all generations that are not retired, oldest first; make the first at first start.

    Args:
        folder: of the authority.
        clock: the time now, Unix seconds.

    Raises:
        DamagedError: if one cannot be read, or its halves do not belong together.
    """
    if not (folder / "ca.pem").exists():
        _make_first(folder, clock())
    numbers = [1]
    while (_folder(folder, numbers[-1] + 1) / "ca.pem").exists():
        numbers.append(numbers[-1] + 1)
    retired = _retired(folder)
    links: tuple[x509.Certificate, ...] = ()
    held = []
    for number in numbers:
        if number > 1:
            links = (_read_certificate(_folder(folder, number) / CROSSED), *links)
        if number not in retired:
            held.append(_read(folder, number, links))
    return held


def add(folder: Path, held: list[Generation], now: float) -> list[Generation]:
    """Make the next generation, signed by itself and by the newest that is held.

    Args:
        folder: of the authority.
        held: from `load`.
        now: Unix seconds.

    Raises:
        ConflictError: if there are too many, or the newest may not sign authorities.
    """
    if len(held) >= MAX_TRUSTED:
        raise ConflictError(
            f"{len(held)} authorities are trusted, as many as devices take; retire an old one first"
        )
    before = held[-1]
    if not _may_sign_authorities(before.certificate):
        raise ConflictError(
            f"authority {before.number} was made by an older edgefleet and may not sign another"
            " authority; enrol the devices at a new hub instead"
        )
    number = before.number + 1
    own = _folder(folder, number)
    # A key without a certificate is a rotation that was cut off: it is finished with that key.
    key_path = own / "ca.key"
    key = read_key(key_path) if key_path.exists() else _new_key(key_path)
    crossed = _authority(number, key, before.certificate, before.key, now)
    durable.write(own / CROSSED, pem(crossed), mode=durable.PUBLIC)
    itself = _authority(number, key, None, key, now)
    durable.write(own / "ca.pem", pem(itself), mode=durable.PUBLIC)
    return [*held, _read(folder, number, (crossed, *before.links))]


def retire(folder: Path, held: list[Generation], print_: str) -> list[Generation]:
    """Stop trusting an authority, and delete its key.

    Args:
        folder: of the authority.
        held: from `load`.
        print_: fingerprint of the one to retire.

    Raises:
        NotFoundError: if none that is held has it.
        ConflictError: if it is the newest, which issues certificates.
    """
    found = next((one for one in held if one.fingerprint == print_), None)
    if found is None:
        raise NotFoundError("authority", print_)
    if found is held[-1]:
        raise ConflictError("this authority issues certificates; rotate to a new one first")
    numbers = sorted(_retired(folder) | {found.number})
    durable.write(folder / RETIRED, json.dumps(numbers).encode(), mode=durable.PUBLIC)
    (_folder(folder, found.number) / "ca.key").unlink(missing_ok=True)
    return [one for one in held if one is not found]


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's DER form, in hexadecimal."""
    return digest_of(certificate.public_bytes(serialization.Encoding.DER))


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key of an authority.

    Raises:
        DamagedError: if it is not a readable P-256 key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError(_unreadable(path, error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DamagedError(_unreadable(path, "expected a P-256 key"))
    return key


def moment(at: float) -> datetime.datetime:
    """Return a time as certificates hold it, in whole seconds."""
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def distinguished_name(name: str, mark: str = "") -> x509.Name:
    """Return the name of an authority or of who was certified: `CN`, and `serialNumber` if any."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if mark:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, mark))
    return x509.Name(attributes)


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return what a key may be used for."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _folder(folder: Path, number: int) -> Path:
    return folder if number == 1 else folder / str(number)


def _make_first(folder: Path, now: float) -> None:
    # The key is written first, so a key alone is a first start that was cut off.
    path = folder / "ca.key"
    key = read_key(path) if path.exists() else _new_key(path)
    certificate = _authority(1, key, None, key, now)
    durable.write(folder / "ca.pem", pem(certificate), mode=durable.PUBLIC)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    durable.write(path, key_pem(key), mode=durable.PRIVATE)
    return key


def _read(folder: Path, number: int, links: tuple[x509.Certificate, ...]) -> Generation:
    own = _folder(folder, number)
    key = read_key(own / "ca.key")
    certificate = _read_certificate(own / "ca.pem")
    for one in (certificate, *links[:1]):
        if key.public_key() != one.public_key():
            raise DamagedError(f"{own / 'ca.key'} is not the key of the certificates beside it")
    return Generation(number, certificate, key, links)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(_unreadable(path, error)) from error


def _retired(folder: Path) -> set[int]:
    path = folder / RETIRED
    if not path.exists():
        return set()
    try:
        return {int(number) for number in json.loads(path.read_bytes())}
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(_unreadable(path, error)) from error


def _authority(
    number: int,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: float,
) -> x509.Certificate:
    """Return an authority's certificate, signed by `issuer`, or by itself if that is None."""
    # A name of its own: software that finds issuers by name must not take one for the other.
    own = distinguished_name("edgefleet hub CA" if number == 1 else f"edgefleet hub CA {number}")
    until = moment(now + AUTHORITY_LIFE_S)
    return (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(now - BACKDATE_S))
        .not_valid_after(until if issuer is None else min(until, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=MAX_TRUSTED), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _may_sign_authorities(certificate: x509.Certificate) -> bool:
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    return basic.path_length is None or basic.path_length >= 1


def _unreadable(path: Path, reason: object) -> str:
    return (
        f"{path} of the certificate authority cannot be read ({reason}); restore it from a backup:"
        " devices trust no other authority"
    )
