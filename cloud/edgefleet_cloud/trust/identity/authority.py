"""The hub's certificate authority: who is a device of this fleet, and who is the hub.

Rules:

1. One P-256 key and a self-signed certificate of 10 years, made at first start. Half of the pair
   is never made anew: devices in the field trust the certificate by its fingerprint.
2. A device makes its own key. Its request is checked (signature, kind of key, name) and nothing of
   it but the public key goes into the certificate.
3. Device and hub certificates differ in extended key usage (client, server), so that a device's
   certificate can never stand for the hub.
"""

import datetime
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust import durable
from edgefleet_protocol.identifiers import digest_of

DAY_S = 86_400.0
AUTHORITY_LIFE_S = 10 * 365 * DAY_S
HUB_CERTIFICATE_LIFE_S = 365 * DAY_S
# Devices' clocks may be behind: certificates are valid from an hour before they are made.
BACKDATE_S = 3600.0
# Far above any real request (a P-256 one has about 500 bytes).
MAX_CSR_BYTES = 16_384

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class Issued:
    """A device's new certificate.

    Attributes:
        serial: in lower-case hexadecimal.
    """

    certificate_pem: bytes
    serial: str
    expires_at: float


@dataclass(frozen=True)
class KeyPair:
    """PEM files of a certificate and its private key.

    Attributes:
        renew_at: when to ask for the pair again, which then makes a new one.
    """

    certificate: Path
    key: Path
    renew_at: float


class Authority:
    """The hub's CA; open it with `Authority.open`.

    Attributes:
        ca_pem: its certificate.
        fingerprint: SHA-256 of the certificate's DER form, in hexadecimal; part of every claim.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        clock: Callable[[], float],
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self.ca_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.fingerprint = digest_of(certificate.public_bytes(serialization.Encoding.DER))

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float]) -> "Authority":
        """Read the authority's files, or make them at first start.

        Args:
            folder: holds `ca.pem` and `ca.key`.
            clock: the time now, Unix seconds.

        Raises:
            DamagedError: if they cannot be read or do not belong together.
        """
        certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
        if not certificate_path.exists():
            # The key is written first, so a key alone is a first start that was cut off.
            if key_path.exists():
                key = _read_key(key_path)
            else:
                key = ec.generate_private_key(ec.SECP256R1())
                durable.write(key_path, _key_pem(key), mode=durable.PRIVATE)
            certificate = _self_signed(key, clock())
            durable.write(
                certificate_path,
                certificate.public_bytes(serialization.Encoding.PEM),
                mode=durable.PUBLIC,
            )
            return cls(certificate, key, clock)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedError(_unreadable(certificate_path, error)) from error
        key = _read_key(key_path)
        if key.public_key() != certificate.public_key():
            raise DamagedError(f"{key_path} is not the key of {certificate_path}")
        return cls(certificate, key, clock)

    def issue_device(self, csr_pem: bytes, device_id: str, ttl_s: float) -> Issued:
        """Certify a device's key for connecting as a client.

        Args:
            csr_pem: the device's certificate signing request, untrusted.
            device_id: the one name that the request must carry.
            ttl_s: life of the certificate.

        Raises:
            InvalidError: if the request is not readable, not signed by its own key, for another
                kind of key than P-256 or Ed25519, or for another name.
        """
        key = _requested_key(csr_pem, device_id)
        expires_at = self._clock() + ttl_s
        certificate = self._sign(
            key, device_id, expires_at, usage=ExtendedKeyUsageOID.CLIENT_AUTH, names=[]
        )
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            f"{certificate.serial_number:x}",
            # Certificates hold whole seconds; what is stored must not outlive them.
            certificate.not_valid_after_utc.timestamp(),
        )

    def issue_server(self, common_name: str, hosts: list[str], folder: Path) -> KeyPair:
        """Return the files of a server certificate, made anew when due or when hosts changed.

        Args:
            common_name: also the stem of the files' names.
            hosts: host names and IP addresses that clients connect to.
            folder: where the files are kept.
        """
        return self._pair(folder, common_name, ExtendedKeyUsageOID.SERVER_AUTH, _names(hosts))

    def issue_client(self, common_name: str, folder: Path) -> KeyPair:
        """Return the files of a client certificate of the hub's own, made anew when due."""
        return self._pair(folder, common_name, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _pair(
        self,
        folder: Path,
        common_name: str,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> KeyPair:
        pair_path = folder / f"{common_name}.pem"
        key_path = folder / f"{common_name}.key"
        held = self._held(pair_path, key_path, names)
        if held is not None:
            return KeyPair(pair_path, key_path, held)
        key = ec.generate_private_key(ec.SECP256R1())
        expires_at = self._clock() + HUB_CERTIFICATE_LIFE_S
        certificate = self._sign(
            key.public_key(), common_name, expires_at, usage=usage, names=names
        )
        durable.write(key_path, _key_pem(key), mode=durable.PRIVATE)
        durable.write(
            pair_path,
            certificate.public_bytes(serialization.Encoding.PEM),
            mode=durable.PUBLIC,
        )
        return KeyPair(pair_path, key_path, expires_at - HUB_CERTIFICATE_LIFE_S / 2)

    def _held(
        self, certificate_path: Path, key_path: Path, names: list[x509.GeneralName]
    ) -> float | None:
        """Return when the held pair is to be renewed; None if it is missing, due or of no use.

        The hub's own pairs can be made anew at any time, so a pair that does not fit is replaced.
        """
        if not certificate_path.exists() or not key_path.exists():
            return None
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return None
        try:
            alternative = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            )
            held_names = list(alternative.value)
        except x509.ExtensionNotFound:
            held_names = []
        renew_at = certificate.not_valid_after_utc.timestamp() - HUB_CERTIFICATE_LIFE_S / 2
        if (
            key.public_key() != certificate.public_key()
            or held_names != names
            or renew_at <= self._clock()
        ):
            return None
        return renew_at

    def _sign(
        self,
        key: PublicKey,
        common_name: str,
        expires_at: float,
        *,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(self._clock() - BACKDATE_S))
            .not_valid_after(
                min(_moment(expires_at), self._certificate.not_valid_after_utc),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError(_unreadable(path, error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DamagedError(_unreadable(path, "expected a P-256 key"))
    return key


def _unreadable(path: Path, reason: object) -> str:
    return (
        f"{path} of the certificate authority cannot be read ({reason}); restore it from a backup:"
        " devices trust no other authority"
    )


def _requested_key(csr_pem: bytes, device_id: str) -> PublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidError(
            f"the certificate request of {device_id!r} has {len(csr_pem)} bytes;"
            f" at most {MAX_CSR_BYTES} are allowed"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        signed = request.is_signature_valid
        key = request.public_key()
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidError(
            f"the certificate request of {device_id!r} cannot be read: {error}"
        ) from error
    if not signed:
        raise InvalidError(f"the certificate request of {device_id!r} is not signed by its own key")
    named = [name.value for name in names]
    if named != [device_id]:
        raise InvalidError(f"the certificate request names {named}; expected {[device_id]}")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise InvalidError(
        f"the certificate request of {device_id!r} is for another kind of key;"
        " expected P-256 or Ed25519"
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, now: float) -> x509.Certificate:
    name = _name("edgefleet hub CA")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now - BACKDATE_S))
        .not_valid_after(_moment(now + AUTHORITY_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
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


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _names(hosts: list[str]) -> list[x509.GeneralName]:
    """Return the alternative names: IP addresses as such, all else as DNS names, each once."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _moment(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
