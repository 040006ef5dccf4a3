"""Renewal, revocation and statements at the hub, on real SQLite with real keys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from edgefleet_cloud.database.models import Certificate, Device, Incident, StatementRecord
from edgefleet_cloud.fleet import devices, enrolment, identities, renewal
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest
from edgefleet_cloud.fleet.ingest import Inbound, ingest
from edgefleet_cloud.fleet.renewal import Refused, RenewalRequest, Renewed
from edgefleet_cloud.fleet.testing import open_services, signing_request
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.identity import certificates, crl
from edgefleet_protocol import codec, statements, topics
from edgefleet_protocol.messages import Attested, Report, Slot, State
from edgefleet_protocol.statements import DeviceStatement

DAY_S = 86_400.0
SLOT = Slot("digits", "v1", 1, "onnx-fp32", "a" * 64)


@dataclass
class Holder:
    """A device's keys, as it would hold them."""

    services: Services
    clock: Any
    device: str = "cam-1"
    anchor: ec.EllipticCurvePrivateKey | None = None
    number: int = 0

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.serial = ""

    def enrol(self) -> "Holder":
        services, now = self.services, self.clock()
        with services.database.write() as session:
            token = enrolment.create_claim(session, self.device, {}, DAY_S, "0" * 64, now)
        csr = signing_request(self.device, self.key)
        proof, public = b"", b""
        if self.anchor:
            proof = sign(self.anchor, statements.signed_enrolment(csr.encode()))
            public = der(self.anchor)
        request = EnrolmentRequest(
            self.device, token.split(".")[2], csr, "rpi4", {}, 1, public, "tpm", proof
        )
        with services.database.write() as session:
            grant = enrolment.redeem(session, services, request, now)
        self.serial = serial_of(grant.certificate)
        return self

    def renew(
        self, signer: ec.EllipticCurvePrivateKey | None = None, nonce: bytes | None = None
    ) -> Renewed | Refused:
        fresh = ec.generate_private_key(ec.SECP256R1())
        csr = signing_request(self.device, fresh)
        if nonce is None:
            nonce = self.services.authority.freshness.issue("renewal", self.device, self.clock())
        signed = sign(signer or self.key, statements.signed_renewal(nonce, csr.encode()))
        with self.services.database.write() as session:
            outcome = renewal.renew(
                session,
                self.services,
                RenewalRequest(self.device, csr, nonce, signed),
                self.clock(),
            )
        if isinstance(outcome, Renewed):
            self.key, self.serial = fresh, serial_of(outcome.certificate)
        return outcome

    def admitted(self, serial: str) -> str:
        with self.services.database.write() as session:
            return certificates.admit(session, self.device, serial, self.clock())

    def swear(self, counter: int, store: str = "store-1", **changes: Any) -> None:
        """Report a signed statement."""
        signer = changes.pop("signer", self.anchor or self.key)
        fields: dict[str, Any] = {
            "device": self.device,
            "counter": counter,
            "at": self.clock(),
            "challenge": b"",
            "assignment": 1,
            "serving": [],
            "previous": [],
            "boot": 1,
            "sequence": 1,
            "time_attested": True,
            "attack": "",
            "agent_version": "0.1.0",
            "authorities": [],
            "certificate": self.serial,
        }
        data = msgspec.msgpack.encode(DeviceStatement(**fields | changes))
        self.report(Attested(data, sign(signer, statements.signed_statement(data))), store)

    def report(self, body: Attested, store: str = "store-1") -> None:
        self.number += 1
        report = Report(self.device, store, self.number, self.clock(), body)
        self.take("report", report)

    def state(self, serving: list[Slot], sequence: int = 1) -> None:
        said = State(self.device, 1, sequence, self.clock(), "0.1", "rpi4", {}, 1, 1, serving)
        self.take("state", said)

    def take(self, kind: str, message: msgspec.Struct) -> None:
        services, now = self.services, self.clock()
        inbound = Inbound(topics.up(self.device, kind), codec.encode(message))
        outcome = ingest(
            services.database,
            services.store,
            [inbound],
            now,
            challenge_age=lambda device, challenge: services.authority.freshness.age_s(
                "statement", device, challenge, now
            ),
        )
        assert outcome.malformed == []

    def incidents(self) -> list[str]:
        with self.services.database.read() as session:
            return [row.kind for row in session.scalars(select(Incident).order_by(Incident.id))]

    def sworn(self) -> list[int]:
        with self.services.database.read() as session:
            return list(session.scalars(select(StatementRecord.counter)))

    def ended(self) -> dict[str, str]:
        with self.services.database.read() as session:
            return {row.serial: row.ended for row in session.scalars(select(Certificate))}


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def serial_of(pem: str) -> str:
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"


@pytest.fixture
def services(tmp_path: Path, clock: Any, migrated: Path) -> Any:
    opened = open_services(tmp_path, clock, migrated=migrated)
    yield opened
    opened.database.close()


@pytest.fixture
def holder(services: Services, clock: Any) -> Holder:
    return Holder(services, clock).enrol()


def test_old_and_new_are_good_until_the_new_one_is_seen(holder: Holder) -> None:
    first = holder.serial
    assert holder.admitted(first) == ""
    assert isinstance(holder.renew(), Renewed)
    assert holder.admitted(first) == ""
    assert holder.admitted(holder.serial) == ""
    assert "has been replaced" in holder.admitted(first)


def test_a_renewal_whose_answer_was_lost_is_done_again(holder: Holder) -> None:
    first, key = holder.serial, holder.key
    holder.renew()
    lost, holder.key = holder.serial, key
    assert isinstance(holder.renew(), Renewed)
    assert holder.ended() == {first: "", lost: "superseded", holder.serial: ""}
    assert "has been superseded" in holder.admitted(lost)


def test_a_certificate_that_expired_long_ago_is_renewed_and_one_older_is_not(
    holder: Holder, clock: Any
) -> None:
    settings = holder.services.settings
    clock.now += settings.certificate_ttl_s + settings.renew_expired_s
    assert "has expired" in holder.admitted(holder.serial)
    assert isinstance(holder.renew(), Renewed)
    clock.now += settings.certificate_ttl_s + settings.renew_expired_s + 1.0
    refused = holder.renew()
    assert isinstance(refused, Refused)
    assert "longer than this hub allows" in refused.reason


def test_a_revoked_device_renews_nothing(holder: Holder) -> None:
    with holder.services.database.write() as session:
        devices.revoke(session, "cam-1", holder.clock())
    refused = holder.renew()
    assert isinstance(refused, Refused)
    assert "not enrolled here" in refused.reason
    assert holder.ended()[holder.serial] == "revoked"


def test_enrolling_again_revokes_what_was_given_before(holder: Holder) -> None:
    old_key, first = holder.key, holder.serial
    holder.key = ec.generate_private_key(ec.SECP256R1())
    holder.enrol()
    assert holder.ended() == {first: "revoked", holder.serial: ""}
    assert isinstance(holder.renew(signer=old_key), Refused)
    assert holder.incidents() == ["cloned-device"]


def test_a_key_that_was_replaced_renews_nothing_and_is_told(holder: Holder) -> None:
    """A copy of the device's storage renewed; now the true device, or the other copy, asks."""
    old_key = holder.key
    holder.renew()
    holder.admitted(holder.serial)
    refused = holder.renew(signer=old_key)
    assert isinstance(refused, Refused)
    assert "has been replaced" in refused.reason
    assert holder.incidents() == ["cloned-device"]


def test_a_challenge_is_for_one_device_and_five_minutes(holder: Holder, clock: Any) -> None:
    freshness = holder.services.authority.freshness
    for nonce in (
        bytes(16),
        b"",
        freshness.issue("renewal", "cam-2", clock()),
        freshness.issue("statement", "cam-1", clock()),
        freshness.issue("renewal", "cam-1", clock() - 301),
        freshness.issue("renewal", "cam-1", clock() + 61),
    ):
        refused = holder.renew(nonce=nonce)
        assert isinstance(refused, Refused)
        assert "challenge" in refused.reason
    assert isinstance(
        holder.renew(nonce=freshness.issue("renewal", "cam-1", clock() - 300)), Renewed
    )


def test_a_stranger_s_signature_renews_nothing(holder: Holder) -> None:
    refused = holder.renew(signer=ec.generate_private_key(ec.SECP256R1()))
    assert isinstance(refused, Refused)
    assert "not signed by a key of this device" in refused.reason
    assert holder.incidents() == []


def test_with_an_anchor_the_key_of_the_certificate_is_not_enough(
    services: Services, clock: Any
) -> None:
    """A stolen disk without its TPM."""
    anchored = Holder(services, clock, anchor=ec.generate_private_key(ec.SECP256R1())).enrol()
    assert isinstance(anchored.renew(signer=anchored.key), Refused)
    assert isinstance(anchored.renew(signer=anchored.anchor), Renewed)
    anchored.swear(1, signer=anchored.key)
    assert anchored.incidents() == ["false-statement"]
    anchored.swear(1)
    assert anchored.sworn() == [1]


def test_the_revocation_list_has_what_ended_and_not_what_expired(
    holder: Holder, clock: Any
) -> None:
    first = holder.serial
    holder.renew()
    holder.admitted(holder.serial)

    def listed() -> list[str]:
        with holder.services.database.read() as session:
            lists = crl.current(session, holder.services.authority, clock())
        read = x509.load_pem_x509_crl(lists)
        issuer = x509.load_pem_x509_certificate(holder.services.authority.ca_pem)
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert read.is_signature_valid(key)
        return [f"{one.serial_number:x}" for one in read]

    assert listed() == [first]
    clock.now += holder.services.settings.certificate_ttl_s
    assert listed() == []


def test_a_statement_is_kept_with_the_age_of_its_challenge(holder: Holder, clock: Any) -> None:
    challenge = holder.services.authority.issue_challenge("cam-1", clock() - 7.0)
    holder.swear(1, challenge=challenge, authorities=["b" * 64], attack="assignment: rollback")
    with holder.services.database.read() as session:
        described = identities.describe(session, "cam-1")
        assert identities.without_authority(session, "b" * 64) == []
        assert identities.without_authority(session, "c" * 64) == ["cam-1"]
    assert described["statement"]["challenge_age_s"] == 7.0
    assert described["statement"]["attack"] == "assignment: rollback"
    assert holder.incidents() == []


def test_a_counter_that_does_not_grow_means_a_copy(holder: Holder) -> None:
    holder.swear(1)
    holder.swear(2)
    holder.swear(2, attack="other content")
    assert holder.sworn() == [1, 2]
    assert holder.incidents() == ["cloned-device"]


def test_statements_may_arrive_in_any_order_and_one_that_never_does_is_told(
    holder: Holder, clock: Any
) -> None:
    for counter in (2, 1, 4):
        holder.swear(counter)
    assert holder.incidents() == []
    clock.now += 3599.0
    holder.swear(5)
    assert holder.incidents() == []
    clock.now += 1.0
    holder.swear(6)
    assert holder.incidents() == ["statement-missing"]
    holder.swear(3)
    assert sorted(holder.sworn()) == [1, 2, 3, 4, 5, 6]


def test_a_statement_of_an_enrolment_that_is_over_says_nothing(holder: Holder, clock: Any) -> None:
    old_key, old_serial = holder.key, holder.serial
    clock.now += 1.0
    holder.key = ec.generate_private_key(ec.SECP256R1())
    holder.enrol()
    holder.swear(7, signer=old_key, certificate=old_serial)
    assert (holder.sworn(), holder.incidents()) == ([], [])


def test_an_older_certificate_that_is_seen_late_does_not_end_the_newer_one(
    holder: Holder, clock: Any
) -> None:
    key, first = holder.key, holder.serial
    clock.now += 1.0
    with holder.services.database.write() as session:
        session.get_one(Certificate, first).seen_at = None
    holder.renew(signer=key)
    with holder.services.database.write() as session:
        session.get_one(Certificate, first).seen_at = None
    assert holder.admitted(first) == ""
    assert holder.admitted(holder.serial) == ""


def test_the_very_same_statement_may_come_twice(holder: Holder) -> None:
    holder.swear(1)
    holder.swear(1)
    assert holder.sworn() == [1]
    assert holder.incidents() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": ec.generate_private_key(ec.SECP256R1())},
        {"device": "cam-2"},
        {"certificate": "0"},
        {"challenge": b"x" * 16},
    ],
    ids=["another key", "another device", "unknown certificate", "foreign challenge"],
)
def test_a_false_statement_is_told_and_not_kept(holder: Holder, changes: dict[str, Any]) -> None:
    holder.swear(1, **changes)
    assert holder.sworn() == []
    assert holder.incidents() == ["false-statement"]


def test_an_altered_state_does_not_agree_with_the_signed_one(holder: Holder) -> None:
    holder.state([])
    holder.swear(1, serving=[SLOT])
    assert holder.incidents() == ["state-differs"]


def test_a_statement_that_is_ahead_of_the_state_is_told_only_the_second_time(
    holder: Holder,
) -> None:
    holder.state([], sequence=1)
    holder.swear(1, serving=[SLOT], sequence=2)
    assert holder.incidents() == []
    holder.swear(2, serving=[SLOT], sequence=3)
    assert holder.incidents() == ["state-differs"]


def test_two_storages_that_report_in_turn_are_told(holder: Holder) -> None:
    holder.swear(1, store="one")
    holder.swear(2, store="two")
    assert holder.incidents() == []
    holder.swear(3, store="one")
    assert holder.incidents() == ["cloned-device"]


def test_a_statement_shows_that_the_new_certificate_is_held(holder: Holder) -> None:
    """As on a broker that does not ask the hub about connections."""
    first = holder.serial
    holder.renew()
    holder.swear(1)
    assert holder.ended()[first] == "replaced"
    with holder.services.database.read() as session:
        assert certificates.valid_serials(session, holder.clock()) == {"cam-1": {holder.serial}}
        assert session.get_one(Device, "cam-1").certificate_serial == holder.serial
