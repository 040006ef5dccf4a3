"""Letting a device in by its serial number, which an operator has announced.

For devices that nobody stands beside: a list of serial numbers is uploaded, and each may enrol
once, within its time. Rules:

1. A serial number is no secret: it is printed on the case. Who knows it and asks first would be the
   device. So either the expected *key* is announced too, as the fingerprint of a public key in the
   device's TPM or token, and nobody else can ask; or a person accepts the key that has asked, which
   the device shows. Only an operator who says so lets a serial number in without either.
2. A serial number that has enrolled and asks again is refused, and opens an incident: two devices
   have it, or one has lost its storage.
3. While one key waits to be accepted, another one that asks with the same serial number opens an
   incident; the first stays in question.
4. Who asks with a serial number that is not expected learns no more than that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Device, DeviceState, ExpectedDevice
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import enrolment, refusals
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest, Grant
from edgefleet_cloud.fleet.renewal import CLONED, Refused
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.identity.authority import MAX_CSR_BYTES, spki
from edgefleet_protocol import identifiers, statements
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.identifiers import digest_of

MAX_AT_ONCE = 10_000
MAX_SERIAL_LENGTH = 128
# 64 bits: a second key that begins like a given one cannot be found.
MIN_KEY_LENGTH = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """A device that an operator announces.

    Attributes:
        device: id that it gets; empty for one made of the serial number.
        key: fingerprint (SHA-256, hexadecimal) of the public key that must ask; empty for any.
        approval: whether a person has to accept the key that asks; None for what is safe: unless
            `key` is given.
    """

    serial: str
    device: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    board: str = ""
    key: str = ""
    approval: bool | None = None


@dataclass(frozen=True)
class Waiting:
    """The device has asked, and a person has to accept its key."""

    key: str


def announce(session: Session, expected: Sequence[Expected], ttl_s: float, now: float) -> list[Row]:
    """Let these serial numbers enrol; those that have not enrolled yet are replaced.

    Args:
        session: in a write transaction.
        expected: all or none of them are taken.
        ttl_s: for so long.
        now: the time.

    Raises:
        InvalidError: if one has not the allowed form.
        ConflictError: if a serial number has enrolled, or a device id is another one's.
    """
    if len(expected) > MAX_AT_ONCE:
        raise InvalidError(f"{len(expected)} serial numbers at once; at most {MAX_AT_ONCE}")
    rows = [_announce(session, one, now + ttl_s, now) for one in expected]
    session.flush()
    return [_row(row, now) for row in rows]


def listing(session: Session, now: float) -> list[Row]:
    """Return what is expected and what has come of it, by serial number."""
    rows = session.scalars(select(ExpectedDevice).order_by(ExpectedDevice.serial))
    return [_row(row, now) for row in rows]


def accept(session: Session, serial: str, key: str, now: float) -> Row:
    """Let in the key that has asked for a serial number.

    Args:
        session: in a write transaction.
        serial: that asked.
        key: fingerprint as the device shows it, or at least its first 16 characters.
        now: the time.

    Raises:
        NotFoundError: if that serial number is not expected.
        ConflictError: if it has not asked, or with another key.
    """
    expected = session.get(ExpectedDevice, serial)
    if expected is None:
        raise NotFoundError("expected serial number", serial)
    if not expected.asked_key or expected.used_at is not None:
        raise ConflictError(f"serial number {serial!r} is {_state(expected, now)}; none waits")
    if len(key) < MIN_KEY_LENGTH or not expected.asked_key.startswith(key.lower()):
        raise ConflictError(
            f"serial number {serial!r} was asked for by the key {expected.asked_key}, not"
            f" {key[:64]!r}: compare it with what the device shows"
        )
    expected.accepted_at = now
    expected.expires_at = max(expected.expires_at, now + 86_400.0)
    after = {"key": expected.asked_key, "device": expected.device_id}
    audit.record(session, "serial.accept", serial, now, after=after)
    return _row(expected, now)


def forget(session: Session, serial: str, now: float) -> None:
    """Expect a serial number no more; one that has enrolled may then be announced again.

    Raises:
        NotFoundError: if it is not expected.
    """
    expected = session.get(ExpectedDevice, serial)
    if expected is None:
        raise NotFoundError("expected serial number", serial)
    audit.record(session, "serial.forget", serial, now, before={"state": _state(expected, now)})
    session.delete(expected)


def ask(
    session: Session, services: Services, serial: str, request: EnrolmentRequest, now: float
) -> Grant | Waiting | Refused:
    """Let a device in by its serial number, or say what is missing.

    Args:
        session: in a write transaction, to be committed even after a refusal.
        services: sign, and know the roots and addresses.
        serial: as the device read or was told it.
        request: untrusted; its `device` and `secret` mean nothing here.
        now: the time.

    Raises:
        InvalidError: if the signing request or the proof of the anchor is refused.
    """
    statement = select(ExpectedDevice).where(ExpectedDevice.serial == serial).with_for_update()
    expected = session.scalar(statement)
    if expected is None or (expected.used_at is None and expected.expires_at <= now):
        return Refused(
            f"serial number {serial[:MAX_SERIAL_LENGTH]!r} is not expected; an operator announces"
            " it with: edgefleet devices expect FILE"
        )
    key = digest_of(request.anchor or _key_of(request.csr))
    if expected.used_at is not None:
        return _alarm(session, expected, key, "has enrolled already", now)
    if expected.key and expected.key != key:
        return _alarm(session, expected, key, "is expected with another key", now)
    if expected.approval:
        if not expected.asked_key:
            expected.asked_key, expected.asked_at = key, now
            expected.board = expected.board or request.board
        if expected.asked_key != key:
            return _alarm(session, expected, key, f"waits for key {expected.asked_key[:16]}", now)
        if expected.accepted_at is None:
            return Waiting(key)
    device = _device(session, expected, now)
    named = EnrolmentRequest(
        device=device.id,
        secret="",
        csr=request.csr,
        board=request.board,
        runtimes=request.runtimes,
        memory_bytes=request.memory_bytes,
        anchor=request.anchor,
        anchor_kind=request.anchor_kind,
        proof=request.proof,
    )
    grant = enrolment.let_in(session, services, device, named, now, named=statements.UNNAMED)
    expected.used_at, expected.asked_key = now, key
    return grant


def _announce(session: Session, one: Expected, expires_at: float, now: float) -> ExpectedDevice:
    serial, device_id = one.serial.strip(), one.device or device_id_of(one.serial)
    if not 0 < len(serial) <= MAX_SERIAL_LENGTH or not serial.isprintable():
        raise InvalidError(
            f"{serial[:40]!r} is no serial number: expected 1 to {MAX_SERIAL_LENGTH} characters"
        )
    enrolment.check_device_id(device_id)
    enrolment.check_labels(one.labels)
    try:
        key = identifiers.digest(one.key.lower()) if one.key else ""
    except MalformedError as error:
        raise InvalidError(
            f"serial number {serial!r}: the key is no fingerprint: {error}"
        ) from error
    known = session.get(ExpectedDevice, serial)
    if known is not None and known.used_at is not None:
        raise ConflictError(
            f"serial number {serial!r} has enrolled as {known.device_id!r}; forget it first if it"
            " is to enrol again"
        )
    other = session.scalar(select(ExpectedDevice).where(ExpectedDevice.device_id == device_id))
    if other is not None and other.serial != serial:
        raise ConflictError(f"device {device_id!r} is expected with serial number {other.serial!r}")
    row = known or ExpectedDevice(serial=serial)
    row.device_id, row.labels, row.board, row.key = device_id, dict(one.labels), one.board, key
    row.approval = not key if one.approval is None else one.approval
    row.asked_key, row.asked_at, row.accepted_at = "", None, None
    row.created_at, row.expires_at = now, expires_at
    session.add(row)
    session.flush()
    after = {"device": device_id, "labels": row.labels, "key": key, "approval": row.approval}
    audit.record(session, "serial.expect", serial, now, after=after)
    return row


def device_id_of(serial: str) -> str:
    """Return the id that a serial number gives a device: what an id may not hold becomes `-`."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in serial.strip())
    return f"sn-{kept}"[:64]


def _key_of(csr: str) -> bytes:
    """Return the public key of a signing request; the authority checks all of it later."""
    if len(csr) > MAX_CSR_BYTES:
        raise InvalidError(f"the certificate request has {len(csr)} bytes; at most {MAX_CSR_BYTES}")
    try:
        key = x509.load_pem_x509_csr(csr.encode()).public_key()
        # Whatever kind of key it is: `Authority.issue_device` refuses what it does not certify.
        return spki(key)  # type: ignore[arg-type]  # see above
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"the certificate request cannot be read: {error}") from error


def _device(session: Session, expected: ExpectedDevice, now: float) -> Device:
    device = session.get(Device, expected.device_id)
    if device is None:
        device = Device(id=expected.device_id, state=DeviceState.CLAIMED, labels={}, created_at=now)
        session.add(device)
        session.flush()
    if expected.labels:
        device.labels = dict(expected.labels)
    return device


def _alarm(session: Session, expected: ExpectedDevice, key: str, why: str, now: float) -> Refused:
    text = (
        f"serial number {expected.serial!r} (device {expected.device_id!r}) was asked for by key"
        f" {key[:16]}, and {why}: a second device has this serial number, or the device has lost"
        " its storage. Forget the serial number and announce it again if that is what happened"
    )
    refusals.alarm(session, CLONED, expected.device_id, key[:16], text, now)
    return Refused(f"serial number {expected.serial!r} {why}; the operator has been told")


def _state(expected: ExpectedDevice, now: float) -> str:
    if expected.used_at is not None:
        return "enrolled"
    if expected.expires_at <= now:
        return "expired"
    if expected.accepted_at is not None:
        return "accepted"
    return "asking" if expected.asked_key else "expected"


def _row(expected: ExpectedDevice, now: float) -> Row:
    return {
        "serial": expected.serial,
        "device": expected.device_id,
        "state": _state(expected, now),
        "labels": expected.labels,
        "board": expected.board,
        "key": expected.key,
        "approval": expected.approval,
        "asked_key": expected.asked_key,
        "asked_at": expected.asked_at,
        "expires_at": expected.expires_at,
    }
