"""The succession of authorities: who is trusted by whom, by OpenSSL's own verification."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgefleet_cloud.database.models import Certificate
from edgefleet_cloud.errors import ConflictError, DamagedError, NotFoundError
from edgefleet_cloud.fleet.testing import signing_request
from edgefleet_cloud.trust.identity import crl, generations
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair


@pytest.fixture
def authority(tmp_path: Path, clock: Any) -> Authority:
    return Authority.open(tmp_path / "ca", clock)


def trusts(ca: str, pair: KeyPair, tmp_path: Path) -> bool:
    """Tell whether a TLS client that trusts `ca` alone completes a handshake with this server."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=ca)
    server.load_cert_chain(pair.certificate, pair.key)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    # The injected clock is not OpenSSL's.
    client.verify_flags |= ssl.VerifyFlags(0x200000)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = server.wrap_bio(to_server, to_client, server_side=True)
    b = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for side in (b, a):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_a_device_that_trusts_the_old_authority_accepts_the_new_server(
    authority: Authority, tmp_path: Path
) -> None:
    old = authority.ca_pem.decode()
    first = authority.issue_server("api", ["localhost"], tmp_path).certificate.read_bytes()
    fingerprint = authority.rotate()
    pair = authority.issue_server("api", ["localhost"], tmp_path)
    assert pair.certificate.read_bytes() != first
    new = authority.authorities[0]
    assert authority.fingerprint == fingerprint == authority.fingerprints[0]
    assert trusts(old, pair, tmp_path)
    assert trusts(new, pair, tmp_path)
    assert authority.authorities == [new, old]


def test_after_the_old_one_is_retired_a_sleeper_still_accepts_the_server(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    old, retired = authority.ca_pem.decode(), authority.fingerprint
    authority.rotate()
    generation = authority.generation
    authority.retire(retired)
    assert authority.generation == generation + 1
    assert not (tmp_path / "ca" / "ca.key").exists()
    again = Authority.open(tmp_path / "ca", clock)
    assert again.fingerprints == authority.fingerprints == [authority.fingerprint]
    assert trusts(old, again.issue_server("api", ["localhost"], tmp_path), tmp_path)


def test_a_third_authority_is_accepted_by_who_trusts_any_before_it(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    first = authority.ca_pem.decode()
    authority.rotate()
    authority.rotate()
    pair = authority.issue_server("api", ["localhost"], tmp_path)
    for ca in authority.authorities:
        assert trusts(ca, pair, tmp_path)
    authority.retire(authority.fingerprints[-1])
    authority.retire(authority.fingerprints[-1])
    again = Authority.open(tmp_path / "ca", clock)
    assert len(again.held) == 1
    assert trusts(first, again.issue_server("api", ["localhost"], tmp_path), tmp_path)


def test_an_authority_of_elsewhere_is_not_trusted(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    foreign = Authority.open(tmp_path / "foreign", clock)
    pair = authority.issue_server("api", ["localhost"], tmp_path)
    assert not trusts(foreign.ca_pem.decode(), pair, tmp_path)


def test_a_rotation_that_was_cut_off_is_finished_with_the_same_key(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    before = authority.fingerprints
    authority.rotate()
    key = (tmp_path / "ca" / "2" / "ca.key").read_bytes()
    # Its certificate is written last.
    (tmp_path / "ca" / "2" / "ca.pem").unlink()
    again = Authority.open(tmp_path / "ca", clock)
    assert again.fingerprints == before
    again.rotate()
    assert (tmp_path / "ca" / "2" / "ca.key").read_bytes() == key


def test_the_authority_that_issues_is_not_retired_nor_an_unknown_one(authority: Authority) -> None:
    with pytest.raises(ConflictError, match="issues certificates"):
        authority.retire(authority.fingerprint)
    with pytest.raises(NotFoundError):
        authority.retire("0" * 64)


def test_no_more_authorities_are_trusted_than_devices_take(authority: Authority) -> None:
    for _ in range(generations.MAX_TRUSTED - 1):
        authority.rotate()
    with pytest.raises(ConflictError, match="retire an old one first"):
        authority.rotate()


def test_a_damaged_generation_stops_the_hub(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    authority.rotate()
    (tmp_path / "ca" / "2" / "crossed.pem").write_bytes(b"no certificate")
    with pytest.raises(DamagedError, match="restore it from a backup"):
        Authority.open(tmp_path / "ca", clock)


def test_openssl_refuses_a_device_whose_certificate_is_on_the_list(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.ca_pem)
    command = ["openssl", "verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem"]
    verdicts = []
    for name, ended in (("good", None), ("bad", clock() + 1.0)):
        issued = authority.issue_device(signing_request(name).encode(), name, 86_400.0)
        row = Certificate(
            serial=issued.serial, issuer=issued.issuer, ended_at=ended, ended="revoked"
        )
        (tmp_path / "device.pem").write_bytes(issued.certificate_pem)
        (tmp_path / "crl.pem").write_bytes(crl.build(authority.held[0], [row], clock()))
        done = subprocess.run(
            [*command, "-attime", str(int(clock()) + 2), "device.pem"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        verdicts.append((done.returncode == 0, "certificate revoked" in done.stderr))
    assert verdicts == [(True, False), (False, True)]
