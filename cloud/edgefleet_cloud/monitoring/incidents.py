"""Incidents of monitoring: opened, kept up to date, and closed, at most one a kind and subject.

| kind | subject | what a person does |
|---|---|---|
| `device-fault` | model and device | repair the device; its data is kept out of retraining |
| `drift` | model and version | retrain (a trigger does it), or accept the new data |
| `unlike-training` | model and version | look at preprocessing and the choice of training data |
| `malformed-report` | model and device | look at the agent: its reports cannot be used |

Rules:

1. A drift incident grows with its devices: from a cohort to the fleet it stays one incident.
2. A device fault outlives the version on which it was seen: it closes when the device is judged
   sound, on that version or a newer one.
3. Data unlike the training data is said once a version: it does not come back when closed.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Incident, Watch
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.monitoring import watch
from edgefleet_cloud.monitoring.verdict import SCOPES, Finding
from edgefleet_cloud.trust.audit import log as audit

DEVICE_FAULT, DRIFT, UNLIKE, MALFORMED = (
    "device-fault",
    "drift",
    "unlike-training",
    "malformed-report",
)
# Closing one of these accepts the devices' present data as their new baseline.
_RELEARN = (DEVICE_FAULT, DRIFT)


def sync(
    session: Session,
    model: str,
    version: str,
    findings: Sequence[Finding],
    reporting: Sequence[str],
    now: float,
) -> None:
    """Make the open incidents of a version say what its findings say.

    Args:
        session: in a write transaction.
        model: of the version.
        version: that was judged.
        findings: all that is wrong now.
        reporting: devices that report on this version now.
        now: Unix seconds.
    """
    faults = {f.devices[0]: f for f in findings if f.scope == "device" and _is_fault(f)}
    for device, finding in faults.items():
        held = _open_one(session, DEVICE_FAULT, model, device=device)
        _write(session, held, DEVICE_FAULT, model, version, [finding], now)
    for incident in _open(session, DEVICE_FAULT, model):
        device = incident.devices[0]
        if device not in faults and device in reporting and _is_sound(session, incident, version):
            incident.closed_at = now
    wide = [f for f in findings if f.scope in ("cohort", "fleet")]
    drift = [f for f in wide if f.kind == "shift"]
    _sync_one(session, DRIFT, model, version, drift, now)
    unlike = [f for f in wide if f.kind == "unlike-training"]
    if not unlike or not _was_closed(session, UNLIKE, model, version):
        _sync_one(session, UNLIKE, model, version, unlike, now)
    session.flush()


def malformed(
    session: Session, model: str, version: str, device: str, count: int, reason: str, now: float
) -> None:
    """Say that windows of a device were refused."""
    text = f"device {device}: {count} window reports cannot be used; the last: {reason}"
    held = _open_one(session, MALFORMED, model, device=device)
    if held is None:
        held = Incident(
            model=model,
            kind=MALFORMED,
            scope="device",
            devices=[device],
            features=[],
            opened_at=now,
        )
        session.add(held)
    held.version, held.text = version, text


def close_silent(session: Session, now: float) -> None:
    """Close what was said of versions that no device reports on any more."""
    for kind in (DRIFT, UNLIKE):
        for incident in _open(session, kind):
            alive = session.scalar(
                select(Watch.device_id)
                .where(
                    Watch.model == incident.model,
                    Watch.version == incident.version,
                    Watch.quiet_after >= now,
                )
                .limit(1)
            )
            if alive is None:
                incident.closed_at = now


def close(session: Session, incident_id: int, now: float) -> Incident:
    """Close an incident by hand.

    Closing a drift or a device fault accepts what the devices see now: they learn a new baseline,
    and what was different before is no longer called a change.

    Raises:
        NotFoundError: if there is none with this number.
        ConflictError: if it is closed.
    """
    incident = session.get(Incident, incident_id)
    if incident is None:
        raise NotFoundError("incident", incident_id)
    if incident.closed_at is not None:
        raise ConflictError(f"incident {incident_id} is closed already")
    incident.closed_at = now
    if incident.kind in _RELEARN:
        watches = session.scalars(
            select(Watch).where(
                Watch.model == incident.model,
                Watch.version == incident.version,
                Watch.device_id.in_(incident.devices),
            )
        )
        for held in watches:
            held.memory = msgspec.msgpack.encode(watch.Memory())
            held.flags, held.state = {}, "learning"
    session.flush()
    audit.record(
        session,
        "incident.close",
        str(incident_id),
        now,
        before={"kind": incident.kind, "model": incident.model, "text": incident.text},
        after={"closed_at": now},
    )
    return incident


def list_incidents(
    session: Session,
    *,
    model: str | None = None,
    kind: str | None = None,
    only_open: bool = False,
    limit: int = 100,
) -> list[Incident]:
    """Return incidents, newest first."""
    query = select(Incident).order_by(Incident.id.desc()).limit(limit)
    if model is not None:
        query = query.where(Incident.model == model)
    if kind is not None:
        query = query.where(Incident.kind == kind)
    if only_open:
        query = query.where(Incident.closed_at.is_(None))
    return list(session.scalars(query))


def _is_fault(finding: Finding) -> bool:
    return finding.kind in ("stuck", "apart", "shift")


def _is_sound(session: Session, incident: Incident, version: str) -> bool:
    """Tell whether the device has been judged sound on `version` by its own baseline."""
    held = session.get(Watch, (incident.devices[0], incident.model, version))
    return held is not None and held.state in ("steady", "unlike")


def _sync_one(
    session: Session, kind: str, model: str, version: str, findings: list[Finding], now: float
) -> None:
    held = next((i for i in _open(session, kind, model) if i.version == version), None)
    if findings:
        _write(session, held, kind, model, version, findings, now)
    elif held is not None:
        held.closed_at = now


def _write(
    session: Session,
    held: Incident | None,
    kind: str,
    model: str,
    version: str,
    findings: list[Finding],
    now: float,
) -> None:
    if held is None:
        held = Incident(model=model, kind=kind, opened_at=now)
        session.add(held)
    values = {
        "version": version,
        "scope": max((f.scope for f in findings), key=SCOPES.index),
        "devices": sorted({device for f in findings for device in f.devices}),
        "features": sorted({figure.name for f in findings for figure in f.features}),
        "text": "; ".join(f.text for f in findings),
    }
    for name, value in values.items():
        if getattr(held, name) != value:
            setattr(held, name, value)


def _open(session: Session, kind: str, model: str | None = None) -> list[Incident]:
    query = select(Incident).where(Incident.kind == kind, Incident.closed_at.is_(None))
    if model is not None:
        query = query.where(Incident.model == model)
    return list(session.scalars(query))


def _open_one(session: Session, kind: str, model: str, *, device: str) -> Incident | None:
    return next((i for i in _open(session, kind, model) if i.devices == [device]), None)


def _was_closed(session: Session, kind: str, model: str, version: str) -> bool:
    query = select(Incident.id).where(
        Incident.kind == kind,
        Incident.model == model,
        Incident.version == version,
        Incident.closed_at.is_not(None),
    )
    return session.scalar(query.limit(1)) is not None
