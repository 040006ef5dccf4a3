"""What a device refused, and what the hub does about it.

Rules:

1. A refused artifact has the hub look at its own copy, and opens an incident that says whether that
   copy is damaged.
2. A refused assignment opens an incident, and the right one is published again: what the device
   saw may have been replayed or damaged on the way.
3. Refused image metadata likewise.
4. A device that has left its confirmed release (a person at the device went back, or it crashed
   again and again) opens an incident: it runs something else than it is to run.
5. What a device says of its own storage or agent (a damaged journal, work that hangs) opens an
   incident too.
6. At most one incident is open for a kind, device and digest, however often it is reported. A
   device that refuses the right assignment too is not sent it more often than every 30 s.
"""

from collections.abc import Mapping
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Incident, RefusalRecord, ReportRecord
from edgefleet_cloud.storage import Store
from edgefleet_protocol.messages import Refusal

ASSIGNMENT = "assignment"
IMAGE_METADATA = "image metadata"
PUBLISH_AGAIN_S = 30.0

Copy = Literal["intact", "damaged", "absent"]
_METADATA = {ASSIGNMENT: "refused-assignment", IMAGE_METADATA: "refused-metadata"}
_ARTIFACT = {"artifact block": "refused-artifact", "bundle": "refused-artifact"}
_RELEASE = "release"
_KINDS = _METADATA | _ARTIFACT | {_RELEASE: "device-went-back", "agent": "device-agent"}
_OTHER_KIND = "device-storage"


def examine(store: Store, digest: str) -> Copy:
    """Tell how the hub's own copy of a file is (reads and hashes all of it)."""
    if not store.has(digest):
        return "absent"
    return "intact" if store.verify(digest) else "damaged"


def recently_refused(session: Session, device_id: str, what: str, now: float) -> bool:
    """Tell whether the device has reported such a refusal within the last 30 s."""
    newest = session.scalar(
        select(func.max(ReportRecord.received_at))
        .join(RefusalRecord, RefusalRecord.report_id == ReportRecord.id)
        .where(RefusalRecord.device_id == device_id, RefusalRecord.what == what)
    )
    return newest is not None and newest > now - PUBLISH_AGAIN_S


def record(
    session: Session,
    device_id: str,
    refusal: Refusal,
    copies: Mapping[str, Copy],
    now: float,
) -> None:
    """Open an incident for a refusal, unless one is open.

    Args:
        session: in a write transaction.
        device_id: who refused.
        refusal: what it said.
        copies: digest → how the hub's own copy is.
        now: the time.
    """
    kind = _KINDS.get(refusal.what, _OTHER_KIND)
    alarm(session, kind, device_id, refusal.digest, _text(device_id, refusal, copies), now)


def discard(session: Session, device_id: str, reason: str, now: float) -> None:
    """Open an incident for a report that cannot be true, unless one of the device is open.

    Args:
        session: in a write transaction.
        device_id: whose report it was.
        reason: why it cannot be true.
        now: the time.
    """
    text = f"a report of device {device_id!r} was discarded, because it cannot be true: {reason}"
    alarm(session, "malformed-report", device_id, "was discarded", text, now)


def alarm(session: Session, kind: str, device_id: str, subject: str, text: str, now: float) -> None:
    """Open an incident, unless one of that kind and device is open whose text has the subject."""
    still_open = session.scalars(
        select(Incident).where(Incident.kind == kind, Incident.closed_at.is_(None))
    )
    # Devices of an incident are JSON, whose query functions differ between databases.
    if any(incident.devices == [device_id] and subject in incident.text for incident in still_open):
        return
    session.add(Incident(kind=kind, scope="device", devices=[device_id], text=text, opened_at=now))


def _text(device_id: str, refusal: Refusal, copies: Mapping[str, Copy]) -> str:
    if refusal.what == _RELEASE:
        return (
            f"device {device_id!r} has left its release ({refusal.reason}): {refusal.text}. It"
            f" runs the one before. Roll out a version that is right there. {refusal.digest}"
        )
    if refusal.what == "agent":
        return f"device {device_id!r}: {refusal.text}. Look at the agent's log there"
    said = f"device {device_id!r} refused {refusal.what} ({refusal.reason}): {refusal.text}"
    if refusal.what in _METADATA:
        return f"{said}. The right one is published again."
    if refusal.what not in _ARTIFACT:
        return f"{said}. Look at the device's storage."
    if not refusal.digest:
        return f"{said}. It did not say which file it was."
    verdict = {
        "intact": "The hub's own copy is intact: it was changed on the way, or on the device",
        "damaged": "The hub's own copy is damaged: restore it from a backup",
        "absent": "The hub has no such file: something else than the hub sent it",
    }[copies.get(refusal.digest, "absent")]
    return f"{said}. {verdict}. File {refusal.digest}"
