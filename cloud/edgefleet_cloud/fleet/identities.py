"""What each device is known by, and which authorities the fleet trusts."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Certificate,
    Device,
    DeviceIdentity,
    DeviceState,
    StatementRecord,
)
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.fleet import statements
from edgefleet_protocol.identifiers import digest_of

Row = dict[str, Any]


def describe(session: Session, device_id: str) -> Row:
    """Return a device's certificates (newest first), keys and newest statement.

    Raises:
        NotFoundError: if there is none of that name.
    """
    if session.get(Device, device_id) is None:
        raise NotFoundError("device", device_id)
    identity = session.get(DeviceIdentity, device_id)
    sworn = statements.newest(session, device_id)
    rows = session.scalars(
        select(Certificate)
        .where(Certificate.device_id == device_id)
        .order_by(Certificate.issued_at.desc())
    )
    return {
        "device": device_id,
        "key": identity.anchor_kind if identity else "file",
        "anchor": digest_of(identity.anchor) if identity and identity.anchor else "",
        "authorities": sworn.authorities if sworn else [],
        "statement": _statement(sworn) if sworn else None,
        "certificates": [
            {
                "serial": row.serial,
                "issuer": row.issuer,
                "issued_at": row.issued_at,
                "expires_at": row.expires_at,
                "seen_at": row.seen_at,
                "ended_at": row.ended_at,
                "ended": row.ended,
            }
            for row in rows
        ],
    }


def without_authority(session: Session, fingerprint: str) -> list[str]:
    """Return enrolled devices that have not said that they trust an authority, sorted."""
    newest = (
        select(StatementRecord.device_id, func.max(StatementRecord.report_id).label("report_id"))
        .group_by(StatementRecord.device_id)
        .subquery()
    )
    rows = session.execute(
        select(Device.id, StatementRecord.authorities)
        .outerjoin(newest, newest.c.device_id == Device.id)
        .outerjoin(StatementRecord, StatementRecord.report_id == newest.c.report_id)
        .where(Device.state == DeviceState.ENROLLED)
        .order_by(Device.id)
    )
    return [device for device, trusted in rows if fingerprint not in _listed(trusted)]


def _listed(trusted: Sequence[Any] | None) -> Sequence[Any]:
    return trusted or []


def _statement(sworn: StatementRecord) -> Row:
    return {
        "counter": sworn.counter,
        "at": sworn.at,
        "received_at": sworn.received_at,
        "challenge_age_s": sworn.challenge_age_s,
        "time_attested": sworn.time_attested,
        "assignment": sworn.assignment,
        "serving": sworn.serving,
        "attack": sworn.attack,
        "agent_version": sworn.agent_version,
        "certificate": sworn.certificate,
        "differs": sworn.differs,
    }
