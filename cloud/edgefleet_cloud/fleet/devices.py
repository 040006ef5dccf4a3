"""Devices as an operator sees them: what is wanted, what is reported, and how they are."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Claim,
    Desired,
    Device,
    DeviceState,
    DirectorRecord,
    RefusalRecord,
    ReportRecord,
    Variant,
    Version,
    WindowRecord,
)
from edgefleet_cloud.database.models import Release as ReleaseRow
from edgefleet_cloud.errors import InvalidError, NotFoundError
from edgefleet_cloud.fleet import assignments, groups
from edgefleet_cloud.fleet.enrolment import check_labels
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.identity import certificates

# A device says how it is every 30 s (its default); after three missed ones it counts as silent.
SILENT_AFTER_S = 90.0

Row = dict[str, Any]


def listing(
    session: Session, now: float, *, group: str | None = None, state: str | None = None
) -> list[Row]:
    """Return one row a device, sorted by id.

    Args:
        session: for reading.
        now: the time.
        group: a group query (see `groups`), which only finds enrolled devices.
        state: claimed, enrolled or revoked.

    Raises:
        InvalidError: if `group` or `state` is none.
    """
    if state is not None and state not in list(DeviceState):
        raise InvalidError(f"{state!r} is no device state: expected {', '.join(DeviceState)}")
    if group is not None:
        devices = groups.devices_in(session, group)
    else:
        devices = list(session.scalars(select(Device).order_by(Device.id)))
    return [_summary(device, now) for device in devices if state in (None, device.state)]


def describe(session: Session, device_id: str, now: float) -> Row:
    """Return everything known of one device.

    Raises:
        NotFoundError: if there is none of that name.
    """
    device = _device(session, device_id)
    record = session.get(DirectorRecord, device_id)
    reported = device.reported
    return _summary(device, now) | {
        "runtimes": device.runtimes,
        "memory_bytes": device.memory_bytes,
        "certificate_serial": device.certificate_serial,
        "certificate_expires_at": device.certificate_expires_at,
        "created_at": device.created_at,
        "assignment": {
            "wanted": record.sequence if record else 0,
            "signed": max(record.signed_sequence, 0) if record else 0,
            "published": bool(record and record.published),
            "accepted": reported.get("assignment", 0),
            "expires_at": record.expires_at if record and record.payload else None,
        },
        "models": _models(session, device),
        "attempts": reported.get("attempts", []),
        "health": _health(session, device_id),
    }


def relabel(session: Session, device_id: str, labels: Mapping[str, str], now: float) -> None:
    """Replace the labels of a device.

    Raises:
        NotFoundError: if there is none of that name.
        InvalidError: if a label has not the allowed form.
    """
    check_labels(labels)
    device = _device(session, device_id)
    before, device.labels = device.labels, dict(labels)
    audit.record(
        session,
        "device.label",
        device_id,
        now,
        before={"labels": before},
        after={"labels": device.labels},
    )


def revoke(session: Session, device_id: str, now: float) -> None:
    """Shut a device out: no certificate of it is accepted any more, its open claims are void.

    The broker closes its connection at the next round of the supervisor.

    Raises:
        NotFoundError: if there is none of that name.
    """
    device = _device(session, device_id)
    before, device.state = device.state, DeviceState.REVOKED
    session.execute(
        update(Claim)
        .where(Claim.device_id == device_id, Claim.used_at.is_(None), Claim.expires_at > now)
        .values(expires_at=now)
    )
    certificates.end(session, device_id, certificates.REVOKED, now)
    assignments.clear(session, device_id)
    audit.record(
        session,
        "device.revoke",
        device_id,
        now,
        before={"state": before},
        after={"state": device.state, "certificate": device.certificate_serial},
    )


def refusals(session: Session, *, device_id: str | None = None, limit: int = 100) -> list[Row]:
    """Return what devices refused, newest first."""
    statement = (
        select(RefusalRecord, ReportRecord.received_at)
        .join(ReportRecord, ReportRecord.id == RefusalRecord.report_id)
        .order_by(RefusalRecord.report_id.desc())
        .limit(limit)
    )
    if device_id is not None:
        statement = statement.where(RefusalRecord.device_id == device_id)
    return [
        {
            "device": refusal.device_id,
            "what": refusal.what,
            "reason": refusal.reason,
            "text": refusal.text,
            "digest": refusal.digest,
            "at": refusal.at,
            "received_at": received_at,
        }
        for refusal, received_at in session.execute(statement)
    ]


def _device(session: Session, device_id: str) -> Device:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError("device", device_id)
    return device


def _summary(device: Device, now: float) -> Row:
    silent_s = None if device.last_seen_at is None else max(now - device.last_seen_at, 0.0)
    heard = silent_s is not None and silent_s <= SILENT_AFTER_S
    return {
        "id": device.id,
        "state": device.state,
        "online": heard and device.state == DeviceState.ENROLLED,
        "board": device.board,
        "labels": device.labels,
        "agent_version": device.agent_version,
        "serving": [
            f"{slot['model']} {slot['version']} ({slot['variant']})"
            for slot in device.reported.get("serving", [])
        ],
        "last_seen_at": device.last_seen_at,
        "silent_s": silent_s,
    }


def _models(session: Session, device: Device) -> list[Row]:
    """Return desired beside reported for every model that is in either."""
    wanted = {
        row.model: {
            "version": row.version,
            "release": row.release,
            "variant": row.variant,
            "attempt": row.attempt,
            "manifest": row.manifest,
        }
        for row in session.execute(
            select(
                Desired.model,
                Desired.release,
                Desired.variant,
                Desired.attempt,
                Version.version,
                Variant.manifest,
            )
            .join(
                ReleaseRow,
                (ReleaseRow.model == Desired.model) & (ReleaseRow.number == Desired.release),
            )
            .join(Version, Version.id == ReleaseRow.version_id)
            .join(Variant, (Variant.version_id == Version.id) & (Variant.name == Desired.variant))
            .where(Desired.device_id == device.id)
        )
    }
    serving = {slot["model"]: slot for slot in device.reported.get("serving", [])}
    return [
        {
            "model": model,
            "desired": wanted.get(model),
            "reported": serving.get(model),
            # By hash and nothing else: names and numbers can lie, as after a power cut.
            "in_sync": (wanted.get(model) or {}).get("manifest")
            == (serving.get(model) or {}).get("manifest"),
        }
        for model in sorted(wanted.keys() | serving.keys())
    ]


def _health(session: Session, device_id: str) -> Row | None:
    window = session.scalar(
        select(WindowRecord)
        .where(WindowRecord.device_id == device_id)
        .order_by(WindowRecord.report_id.desc())
        .limit(1)
    )
    return None if window is None else window.health | {"at": window.end}
