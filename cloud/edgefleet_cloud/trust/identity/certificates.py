"""Which certificates of a device are good: given, seen, replaced, revoked.

Rules:

1. Every certificate is on record before the device has it.
2. A device that renews has two good certificates: the new one, and the one before. When the new
   one is seen, by the broker or in a signed statement, the others are *replaced*.
3. A certificate that was never seen is *superseded* by the next renewal.
4. Revoking or enrolling a device again ends all of its certificates at once.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Certificate, Device, DeviceState
from edgefleet_cloud.trust.identity.authority import Issued

REVOKED, REPLACED, SUPERSEDED = "revoked", "replaced", "superseded"


def record(session: Session, device: Device, issued: Issued, now: float) -> None:
    """Note a certificate that a device is about to be given."""
    session.add(
        Certificate(
            serial=issued.serial,
            device_id=device.id,
            public_key=issued.public_key,
            issuer=issued.issuer,
            issued_at=now,
            expires_at=issued.expires_at,
        )
    )
    device.certificate_serial = issued.serial
    device.certificate_expires_at = issued.expires_at


def admit(session: Session, device_id: str, serial: str, now: float) -> str:
    """Say why a device may not connect with a certificate; empty if it may.

    Args:
        session: in a write transaction: the first time that a renewed certificate comes, it
            replaces the ones before.
        device_id: as the certificate names it.
        serial: of the certificate, lower-case hexadecimal.
        now: Unix seconds.
    """
    device = session.get(Device, device_id)
    if device is None or device.state != DeviceState.ENROLLED:
        state = "unknown" if device is None else device.state
        return f"device {device_id!r} is {state}, not enrolled"
    certificate = session.get(Certificate, serial)
    if certificate is None or certificate.device_id != device_id:
        return f"device {device_id!r} came with a certificate that it was not given"
    if certificate.ended_at is not None:
        return f"device {device_id!r} came with a certificate that has been {certificate.ended}"
    if certificate.expires_at <= now:
        return f"device {device_id!r} came with a certificate that has expired"
    see(session, certificate, now)
    return ""


def see(session: Session, certificate: Certificate, now: float) -> None:
    """Note that a device holds a certificate (rule 2)."""
    if certificate.seen_at is not None:
        return
    certificate.seen_at = now
    # An old one may be seen for the first time after a newer one was given: that one stays good.
    until = certificate.issued_at
    end(session, certificate.device_id, REPLACED, now, but=certificate.serial, until=until)


def end(
    session: Session,
    device_id: str,
    why: str,
    now: float,
    *,
    but: str = "",
    until: float = math.inf,
) -> None:
    """Accept a device's certificates no more.

    Args:
        session: in a write transaction.
        device_id: whose.
        why: `REVOKED`, `REPLACED` or `SUPERSEDED`; the last ends only what was never seen.
        now: Unix seconds.
        but: serial of the one that stays good.
        until: what was issued after this time stays good, too.
    """
    statement = update(Certificate).where(
        Certificate.device_id == device_id,
        Certificate.ended_at.is_(None),
        Certificate.serial != but,
    )
    if until < math.inf:
        statement = statement.where(Certificate.issued_at <= until)
    if why == SUPERSEDED:
        statement = statement.where(Certificate.seen_at.is_(None))
    session.execute(statement.values(ended_at=now, ended=why))


def valid_serials(session: Session, now: float) -> dict[str, set[str]]:
    """Return enrolled device → serials with which it may be connected now."""
    serials: dict[str, set[str]] = defaultdict(set)
    rows = session.execute(
        select(Certificate.device_id, Certificate.serial)
        .join(Device, Device.id == Certificate.device_id)
        .where(
            Device.state == DeviceState.ENROLLED,
            Certificate.ended_at.is_(None),
            Certificate.expires_at > now,
        )
    )
    for device_id, serial in rows:
        serials[device_id].add(serial)
    return serials


def ended(session: Session, issuers: Iterable[str], now: float) -> list[Certificate]:
    """Return what these authorities have signed, has ended, and has not expired yet."""
    return list(
        session.scalars(
            select(Certificate)
            .where(
                Certificate.issuer.in_(list(issuers)),
                Certificate.ended_at.is_not(None),
                Certificate.expires_at > now,
            )
            .order_by(Certificate.ended_at)
        )
    )


def still_needed(session: Session, issuer: str, now: float) -> list[str]:
    """Return enrolled devices whose only good certificates are of an authority."""
    others: set[str] = set()
    needing: set[str] = set()
    rows = session.execute(
        select(Certificate.device_id, Certificate.issuer)
        .join(Device, Device.id == Certificate.device_id)
        .where(
            Device.state == DeviceState.ENROLLED,
            Certificate.ended_at.is_(None),
            Certificate.expires_at > now,
            Certificate.seen_at.is_not(None),
        )
    )
    for device_id, signed_by in rows:
        (needing if signed_by == issuer else others).add(device_id)
    return sorted(needing - others)
