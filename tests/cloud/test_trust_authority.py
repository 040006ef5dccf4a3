"""The certificate authority: what it issues, to whom, and what it refuses."""

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.fleet.testing import signing_request
from edgefleet_cloud.trust.identity.authority import HUB_CERTIFICATE_LIFE_S, Authority
from edgefleet_protocol.identifiers import digest_of

NOW = 1_800_000_000.0
YEAR_S = 365 * 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.open(tmp_path / "ca", clock)


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def request(key: object, *names: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def test_an_authority_is_the_same_after_a_restart(tmp_path, clock, authority):
    again = Authority.open(tmp_path / "ca", clock)
    assert again.ca_pem == authority.ca_pem
    assert again.fingerprint == authority.fingerprint
    der = certificate(authority.ca_pem).public_bytes(serialization.Encoding.DER)
    assert authority.fingerprint == digest_of(der)


def test_the_key_is_readable_by_its_owner_alone(tmp_path, authority):
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600


def test_the_authority_lives_for_ten_years_and_may_sign_its_successors(authority):
    held = certificate(authority.ca_pem)
    basic = held.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.value.ca, basic.value.path_length, basic.critical) == (True, 8, True)
    assert held.not_valid_after_utc.timestamp() == NOW + 10 * YEAR_S


def test_a_cut_off_first_start_is_completed_with_the_same_key(tmp_path, clock, authority):
    (tmp_path / "ca" / "ca.pem").unlink()
    again = Authority.open(tmp_path / "ca", clock)
    assert certificate(again.ca_pem).public_key() == certificate(authority.ca_pem).public_key()


@pytest.mark.parametrize("content", [b"", b"no key"])
def test_a_damaged_key_stops_the_hub_instead_of_being_made_anew(
    tmp_path, clock, authority, content
):
    (tmp_path / "ca" / "ca.key").write_bytes(content)
    with pytest.raises(DamagedError, match="restore it from a backup"):
        Authority.open(tmp_path / "ca", clock)


def test_a_key_of_another_authority_is_refused(tmp_path, clock, authority):
    Authority.open(tmp_path / "other", clock)
    (tmp_path / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(DamagedError, match="is not the key of"):
        Authority.open(tmp_path / "ca", clock)


def test_a_device_certificate_is_for_a_client_of_that_name(authority):
    issued = authority.issue_device(signing_request("cam-1").encode(), "cam-1", 3600.0)
    held = certificate(issued.certificate_pem)
    assert held.subject.rfc4514_string() == f"2.5.4.5={issued.serial},CN=cam-1"
    usage = held.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not held.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.serial == f"{held.serial_number:x}"
    assert issued.expires_at == NOW + 3600.0 == held.not_valid_after_utc.timestamp()
    held.verify_directly_issued_by(certificate(authority.ca_pem))


def test_nothing_of_a_request_but_its_key_goes_into_the_certificate(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cam-1")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hub")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    issued = authority.issue_device(asked.public_bytes(serialization.Encoding.PEM), "cam-1", 3600.0)
    extensions = certificate(issued.certificate_pem).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_an_ed25519_key_is_certified(authority):
    key = ed25519.Ed25519PrivateKey.generate()
    issued = authority.issue_device(request(key, "cam-1"), "cam-1", 60.0)
    assert certificate(issued.certificate_pem).public_key() == key.public_key()


def test_requests_for_another_name_are_refused(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    for names in (("cam-2",), ("cam-1", "cam-2"), ()):
        with pytest.raises(InvalidError, match=r"expected \['cam-1'\]"):
            authority.issue_device(request(key, *names), "cam-1", 60.0)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "RSA"],
)
def test_requests_for_other_kinds_of_keys_are_refused(authority, key):
    with pytest.raises(InvalidError, match="expected P-256 or Ed25519"):
        authority.issue_device(request(key, "cam-1"), "cam-1", 60.0)


def test_a_request_not_signed_by_its_own_key_is_refused(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.load_pem_x509_csr(request(key, "cam-1"))
    der = bytearray(asked.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InvalidError, match="not signed by its own key"):
        authority.issue_device(forged, "cam-1", 60.0)


@pytest.mark.parametrize("junk", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\n", b"\xff" * 100])
def test_an_unreadable_request_is_refused(authority, junk):
    with pytest.raises(InvalidError, match="cannot be read"):
        authority.issue_device(junk, "cam-1", 60.0)


def test_a_request_is_refused_by_its_size_before_it_is_parsed(authority):
    with pytest.raises(InvalidError, match="16385 bytes; at most 16384"):
        authority.issue_device(b"x" * 16_385, "cam-1", 60.0)


def test_a_server_certificate_is_accepted_for_its_names_and_addresses(tmp_path, authority):
    pair = authority.issue_server("broker", ["hub.example", "127.0.0.1", "::1"], tmp_path)
    held = certificate(pair.certificate.read_bytes())
    store = Store([certificate(authority.ca_pem)])
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    for subject in (
        x509.DNSName("hub.example"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ):
        verifier = PolicyBuilder().store(store).time(moment).build_server_verifier(subject)
        assert verifier.verify(held, [])
    assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600


def test_a_pair_is_kept_until_half_its_life_and_then_made_anew(tmp_path, clock, authority):
    first = authority.issue_client("hub", tmp_path)
    held = first.certificate.read_bytes()
    assert first.renew_at == NOW + HUB_CERTIFICATE_LIFE_S / 2
    clock.now = first.renew_at - 1
    assert authority.issue_client("hub", tmp_path).certificate.read_bytes() == held
    clock.now = first.renew_at
    assert authority.issue_client("hub", tmp_path).certificate.read_bytes() != held


def test_a_pair_is_made_anew_when_its_hosts_change_or_its_halves_do_not_fit(tmp_path, authority):
    first = authority.issue_server("api", ["a"], tmp_path).certificate.read_bytes()
    second = authority.issue_server("api", ["a", "b"], tmp_path).certificate.read_bytes()
    assert first != second
    other = authority.issue_server("other", ["a", "b"], tmp_path)
    (tmp_path / "api.key").write_bytes(other.key.read_bytes())
    assert authority.issue_server("api", ["a", "b"], tmp_path).certificate.read_bytes() != second
