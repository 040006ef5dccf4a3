"""What devices swear to: signatures checked, counters followed, contradictions told.

Rules:

1. A statement counts only if it is signed by the device's anchor, or by the key of a certificate
   that the hub gave this device and has not revoked. Any other opens an incident and is not kept.
2. A counter names one statement. Another one with the same counter comes from an old copy of the
   device's storage, or from a second device with the same key: an incident. They may arrive in any
   order; one that has not come an hour after its successor is missing, which is told: whoever runs
   the broker can acknowledge reports in the hub's name.
3. A challenge in it must be one that this hub gave this device; its age is kept, since a statement
   may have waited in the outbox while the device was offline.
4. What it says it serves is compared with the unsigned state of the same (boot, sequence), which
   must say the same. Where the hub holds another state, only a second statement in a row that
   differs is told: the first may just be ahead.
5. Outboxes have random names. One that reports again after another has taken its place means two
   storages behind one identity: an incident.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Certificate,
    Device,
    DeviceIdentity,
    StatementRecord,
)
from edgefleet_cloud.fleet import refusals
from edgefleet_cloud.fleet.renewal import CLONED
from edgefleet_cloud.trust.identity import certificates, signatures
from edgefleet_protocol import statements
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Attested
from edgefleet_protocol.statements import DeviceStatement

FALSE_STATEMENT = "false-statement"
MISSING = "statement-missing"
# Outboxes send again after a minute at most.
LATE_S = 3600.0
STATE_DIFFERS = "state-differs"
# Of one enrolment; a storage that is replaced so often is told about by itself.
MAX_STORES = 32

# (device, challenge) → seconds since the hub gave it to the device, None if it never did.
ChallengeAge = Callable[[str, bytes], float | None]


@dataclass(frozen=True)
class _Refused:
    kind: str
    subject: str
    text: str


def take(
    session: Session,
    report_id: int,
    device_id: str,
    body: Attested,
    challenge_age: ChallengeAge,
    now: float,
) -> None:
    """Take in one statement that has arrived as a report.

    Args:
        session: in a write transaction.
        report_id: of the report.
        device_id: who reported, as the broker has bound it to a certificate.
        body: untrusted, but readable (`plausible`).
        challenge_age: see `ChallengeAge`.
        now: the time.
    """
    statement = statements.read_statement(body.statement)
    device = session.get_one(Device, device_id)
    identity = session.get(DeviceIdentity, device_id)
    certificate = session.get(Certificate, statement.certificate)
    known = _known(session, identity, statement)
    if known == digest_of(body.statement):
        return  # the very same statement, reported once more
    if certificate is not None and identity is not None and certificate.issued_at < identity.since:
        return  # of an enrolment that is over; it waited in the outbox
    refused = _refusal(identity, certificate, statement, body, device_id, known, challenge_age)
    if refused is not None:
        text = f"device {device_id!r}: {refused.text}"
        refusals.alarm(session, refused.kind, device_id, refused.subject, text, now)
        return
    assert identity is not None  # found by `_refusal`, as the certificate was
    assert certificate is not None
    identity.counter = max(statement.counter, identity.counter)
    certificates.see(session, certificate, now)
    differs = _differs(session, device, statement, now)
    session.add(
        StatementRecord(
            report_id=report_id,
            device_id=device_id,
            counter=statement.counter,
            digest=digest_of(body.statement),
            at=statement.at,
            challenge_age_s=(
                challenge_age(device_id, statement.challenge) if statement.challenge else None
            ),
            assignment=statement.assignment,
            serving=msgspec.to_builtins(statement.serving),
            time_attested=statement.time_attested,
            attack=statement.attack,
            agent_version=statement.agent_version,
            authorities=list(statement.authorities),
            certificate=statement.certificate,
            differs=differs,
            received_at=now,
        )
    )
    session.flush()
    _tell_missing(session, identity, now)


def newest(session: Session, device_id: str) -> StatementRecord | None:
    """Return the newest statement of a device's present enrolment."""
    identity = session.get(DeviceIdentity, device_id)
    if identity is None or not identity.counter:
        return None
    return session.scalar(
        select(StatementRecord)
        .where(StatementRecord.device_id == device_id, StatementRecord.counter == identity.counter)
        .order_by(StatementRecord.report_id.desc())
        .limit(1)
    )


def note_store(session: Session, device_id: str, store: str, now: float) -> None:
    """Note that a device has sent a new report of an outbox (rule 5)."""
    identity = session.get(DeviceIdentity, device_id)
    if identity is None or (identity.stores and identity.stores[-1] == store):
        return
    if store in identity.stores:
        text = (
            f"device {device_id!r}: its storages {store} and {identity.stores[-1]} report in turn."
            " Two devices use one identity: find out which is the true one, revoke, and enrol it"
            " again"
        )
        refusals.alarm(session, CLONED, device_id, "storages", text, now)
    others = [name for name in identity.stores if name != store]
    identity.stores = [*others, store][-MAX_STORES:]


def _refusal(
    identity: DeviceIdentity | None,
    certificate: Certificate | None,
    statement: DeviceStatement,
    body: Attested,
    device_id: str,
    known: str,
    challenge_age: ChallengeAge,
) -> _Refused | None:
    """Apply rules 1 to 3."""
    if statement.device != device_id:
        return _Refused(FALSE_STATEMENT, "names", f"a statement names {statement.device!r}")
    if identity is None or certificate is None or certificate.device_id != device_id:
        return _Refused(
            FALSE_STATEMENT, "certificate", "a statement names a certificate that it was not given"
        )
    if certificate.ended == certificates.REVOKED:
        return _Refused(
            FALSE_STATEMENT, "certificate", "a statement is signed with a revoked certificate"
        )
    key = identity.anchor or certificate.public_key
    signed = statements.signed_statement(body.statement)
    if not key or not signatures.is_signed(key, body.signature, signed):
        return _Refused(
            FALSE_STATEMENT,
            "signature",
            "the signature of a statement is not by its key: somebody else made or altered it",
        )
    if known:
        return _Refused(
            CLONED,
            "counter",
            f"two signed statements have the counter {statement.counter}: a second device uses its"
            " identity, or its storage was set back. Find out which is the true one, revoke, and"
            " enrol it again",
        )
    if statement.challenge and challenge_age(device_id, statement.challenge) is None:
        return _Refused(
            FALSE_STATEMENT,
            "challenge",
            "a signed statement holds a challenge that this hub did not give it",
        )
    return None


def _known(session: Session, identity: DeviceIdentity | None, statement: DeviceStatement) -> str:
    """Return the digest of the statement of this enrolment that has the counter, "" if none."""
    if identity is None:
        return ""
    digest = session.scalar(
        select(StatementRecord.digest).where(
            StatementRecord.device_id == identity.device_id,
            StatementRecord.counter == statement.counter,
            StatementRecord.received_at >= identity.since,
        )
    )
    return digest or ""


def _tell_missing(session: Session, identity: DeviceIdentity, now: float) -> None:
    """Open an incident if a statement has not come though its successors came long ago."""
    ours = (
        StatementRecord.device_id == identity.device_id,
        StatementRecord.received_at >= identity.since,
    )
    settled = session.scalar(
        select(func.max(StatementRecord.counter)).where(
            *ours, StatementRecord.received_at <= now - LATE_S
        )
    )
    if settled is None:
        return
    first, count = session.execute(
        select(func.min(StatementRecord.counter), func.count()).where(
            *ours, StatementRecord.counter <= settled
        )
    ).one()
    missing = settled - first + 1 - count
    if missing:
        text = (
            f"device {identity.device_id!r}: {missing} of its signed statements up to number"
            f" {settled} never arrived: its outbox was lost or cut off, or somebody else"
            " acknowledged them in the hub's name"
        )
        refusals.alarm(session, MISSING, identity.device_id, f"{missing} of its", text, now)


def _differs(session: Session, device: Device, statement: DeviceStatement, now: float) -> bool:
    """Apply rule 4; called before the statement is stored."""
    sworn = _running(msgspec.to_builtins(statement.serving))
    said = _running(device.reported.get("serving", []))
    if sworn == said:
        return False
    before = session.scalar(
        select(StatementRecord.differs)
        .where(StatementRecord.device_id == device.id)
        .order_by(StatementRecord.report_id.desc())
        .limit(1)
    )
    same_moment = (device.boot, device.sequence) == (statement.boot, statement.sequence)
    if same_moment or before:
        text = (
            f"device {device.id!r} swears that it serves {_words(sworn)}, and its state says"
            f" {_words(said)}: one of the two was altered on the way, or its agent lies"
        )
        refusals.alarm(session, STATE_DIFFERS, device.id, _words(sworn), text, now)
    return True


def _running(slots: list[Any]) -> dict[str, str]:
    return {slot["model"]: slot["manifest"] for slot in slots}


def _words(running: dict[str, str]) -> str:
    return (
        ", ".join(f"{model} {digest[:12]}" for model, digest in sorted(running.items())) or "none"
    )
