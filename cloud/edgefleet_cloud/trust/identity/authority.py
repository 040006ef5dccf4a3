"""The hub's certificate authority: who is a device of this fleet, and who is the hub.

Rules:

1. P-256 keys and certificates of 10 years, the first made at first start; `generations` has their
   succession. Devices in the field trust the certificates by their fingerprints.
2. A device makes its own key. Its request is checked (signature, kind of key, name) and nothing of
   it but the public key goes into the certificate.
3. Device and hub certificates differ in extended key usage (client, server), so that a device's
   certificate can never stand for the hub.
4. Servers send the cross-signed certificates of the authority along, so that a device that trusts
   only an older one still accepts them.
"""

import ipaddress
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.identity import generations
from edgefleet_cloud.trust.identity.freshness import Freshness
from edgefleet_cloud.trust.identity.generations import (
    BACKDATE_S,
    DAY_S,
    Generation,
    distinguished_name,
    fingerprint,
    key_pem,
    key_usage,
    moment,
    pem,
)

HUB_CERTIFICATE_LIFE_S = 365 * DAY_S
# Far above any real request (a P-256 one has about 500 bytes).
MAX_CSR_BYTES = 16_384

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class Issued:
    """A device's new certificate.

    Attributes:
        serial: in lower-case hexadecimal.
        public_key: that it certifies, SubjectPublicKeyInfo, DER.
        issuer: fingerprint of the authority that signed it.
    """

    certificate_pem: bytes
    serial: str
    expires_at: float
    public_key: bytes
    issuer: str


@dataclass(frozen=True)
class KeyPair:
    """PEM files of a certificate (and its chain) and its private key.

    Attributes:
        renew_at: when to ask for the pair again, which then makes a new one.
    """

    certificate: Path
    key: Path
    renew_at: float


class Authority:
    """The hub's CA; open it with `Authority.open`. May be called from any thread.

    Attributes:
        freshness: makes and judges the challenges that renewals answer and statements repeat.
    """

    def __init__(
        self,
        folder: Path,
        held: list[Generation],
        freshness: Freshness,
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._held = held
        self._clock = clock
        self._changing = threading.Lock()
        self._issuing = threading.Lock()
        self._changes = 0
        self.freshness = freshness

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float]) -> "Authority":
        """Read the authority's files, or make them at first start.

        Args:
            folder: see `generations`.
            clock: the time now, Unix seconds.

        Raises:
            DamagedError: if they cannot be read or do not belong together.
        """
        held = generations.load(folder, clock)
        return cls(folder, held, Freshness.open(folder), clock)

    @property
    def authorities(self) -> list[str]:
        """Certificates (PEM) of all authorities that this hub trusts, the newest first."""
        return [pem(one.certificate).decode() for one in reversed(self._held)]

    @property
    def ca_pem(self) -> bytes:
        """The same in one file."""
        return "".join(self.authorities).encode()

    @property
    def fingerprint(self) -> str:
        """Of the authority that issues; part of every claim."""
        return self._newest.fingerprint

    @property
    def fingerprints(self) -> list[str]:
        """Of all authorities that this hub trusts, the newest first."""
        return [one.fingerprint for one in reversed(self._held)]

    @property
    def generation(self) -> int:
        """Grows whenever the authorities change: files made from them are then to be made anew."""
        return self._newest.number + self._changes

    @property
    def held(self) -> list[Generation]:
        """All authorities that this hub trusts, with their keys, oldest first."""
        return list(self._held)

    def rotate(self) -> str:
        """Make a new authority, which issues from now on; return its fingerprint.

        Raises:
            ConflictError: if there are too many already.
        """
        with self._changing:
            self._held = generations.add(self._folder, self._held, self._clock())
            self._changes += 1
        return self.fingerprint

    def retire(self, fingerprint: str) -> None:
        """Stop trusting an older authority, and delete its key.

        Raises:
            NotFoundError: if there is none of that fingerprint.
            ConflictError: if it is the one that issues.
        """
        with self._changing:
            self._held = generations.retire(self._folder, self._held, fingerprint)
            self._changes += 1

    def issue_challenge(self, device: str, now: float) -> bytes:
        """Return what a device is to repeat in its signed statements, 16 bytes."""
        return self.freshness.issue("statement", device, now)

    @property
    def _newest(self) -> Generation:
        return self._held[-1]

    def issue_device(
        self, csr_pem: bytes, device_id: str, ttl_s: float, *, named: str | None = None
    ) -> Issued:
        """Certify a device's key for connecting as a client.

        Args:
            csr_pem: the device's certificate signing request, untrusted.
            device_id: name in the certificate.
            ttl_s: life of the certificate.
            named: the one name that the request must carry; None for `device_id`.

        Raises:
            InvalidError: if the request is not readable, not signed by its own key, for another
                kind of key than P-256 or Ed25519, or for another name.
        """
        key = _requested_key(csr_pem, named or device_id)
        expires_at = self._clock() + ttl_s
        serial = x509.random_serial_number()
        # Brokers that know a client by the subject of its certificate (Mosquitto) thus tell apart
        # the certificates that a device has had.
        certificate = self._sign(
            key,
            distinguished_name(device_id, f"{serial:x}"),
            expires_at,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            names=[],
            serial=serial,
            # A short life is not to look two thirds over when it begins.
            backdate_s=min(BACKDATE_S, ttl_s / 10),
        )
        return Issued(
            # With its links, so that a broker that has not read the new authority yet takes it.
            certificate_pem=b"".join(pem(one) for one in (certificate, *self._newest.links)),
            serial=f"{certificate.serial_number:x}",
            # Certificates hold whole seconds; what is stored must not outlive them.
            expires_at=certificate.not_valid_after_utc.timestamp(),
            public_key=spki(key),
            issuer=fingerprint(self._newest.certificate),
        )

    def issue_server(self, name: str, hosts: list[str], folder: Path) -> KeyPair:
        """Return the files of a server certificate, made anew when due or when hosts changed.

        Args:
            name: its common name; also the stem of the files' names.
            hosts: host names and IP addresses that clients connect to.
            folder: where the files are kept.
        """
        return self._pair(
            folder, name, distinguished_name(name), ExtendedKeyUsageOID.SERVER_AUTH, _names(hosts)
        )

    def issue_client(self, name: str, folder: Path, *, file: str = "", mark: str = "") -> KeyPair:
        """Return the files of a client certificate of the hub's own, made anew when due.

        Args:
            name: its common name.
            folder: where the files are kept.
            file: stem of their names; the common name by default.
            mark: `serialNumber` of its subject, so that it is the same after a renewal.
        """
        subject = distinguished_name(name, mark)
        return self._pair(folder, file or name, subject, ExtendedKeyUsageOID.CLIENT_AUTH, names=[])

    def _pair(
        self,
        folder: Path,
        file: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> KeyPair:
        pair_path = folder / f"{file}.pem"
        key_path = folder / f"{file}.key"
        # Link and broker ask for the same pair, each in its thread: two writers at once would
        # leave the certificate of one beside the key of the other.
        with self._issuing:
            held = self._held_pair(pair_path, key_path, subject, names)
            if held is not None:
                return KeyPair(pair_path, key_path, held)
            key = ec.generate_private_key(ec.SECP256R1())
            expires_at = self._clock() + HUB_CERTIFICATE_LIFE_S
            certificate = self._sign(
                key.public_key(), subject, expires_at, usage=usage, names=names
            )
            chain = b"".join(pem(one) for one in (certificate, *self._newest.links))
            durable.write(key_path, key_pem(key), mode=durable.PRIVATE)
            durable.write(pair_path, chain, mode=durable.PUBLIC)
            return KeyPair(pair_path, key_path, expires_at - HUB_CERTIFICATE_LIFE_S / 2)

    def _held_pair(
        self,
        certificate_path: Path,
        key_path: Path,
        subject: x509.Name,
        names: list[x509.GeneralName],
    ) -> float | None:
        """Return when the held pair is to be renewed; None if it is missing, due or of no use.

        The hub's own pairs can be made anew at any time, so a pair that does not fit is replaced.
        """
        if not certificate_path.exists() or not key_path.exists():
            return None
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate.verify_directly_issued_by(self._newest.certificate)
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
            or certificate.subject != subject
            or held_names != names
            or renew_at <= self._clock()
        ):
            return None
        return renew_at

    def _sign(
        self,
        key: PublicKey,
        subject: x509.Name,
        expires_at: float,
        *,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
        serial: int | None = None,
        backdate_s: float = BACKDATE_S,
    ) -> x509.Certificate:
        issuer = self._newest
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number() if serial is None else serial)
            .not_valid_before(moment(self._clock() - backdate_s))
            .not_valid_after(min(moment(expires_at), issuer.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(issuer.key, hashes.SHA256())


def spki(key: PublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
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
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        InvalidSignature,
        x509.InvalidVersion,
    ) as error:
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


def _names(hosts: list[str]) -> list[x509.GeneralName]:
    """Return the alternative names: IP addresses as such, all else as DNS names, each once."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names
