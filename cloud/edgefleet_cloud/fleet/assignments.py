"""What each device is to run, from the wish to the signed message on its topic.

`Desired` holds one row a device and model, `ChallengerOrder` one for what runs beside it; together
they make the device's assignment. Every change raises `DirectorRecord.sequence`. Signing and
publishing then catch up with it:

    ordered (sequence raised) → signed (payload stored, not published) → published

Each arrow is a transaction of its own and may be lost or repeated: the records say what is still
due. Published is what the broker has acknowledged; that the *device* has it, only its state says,
and `ingest` marks the record unpublished again when the state says otherwise.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    ChallengerOrder,
    Desired,
    Device,
    DeviceState,
    DirectorRecord,
    Release,
    Variant,
    Version,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, DamagedError, InvalidError, NotFoundError
from edgefleet_cloud.registry import signatures
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_protocol.trust import DirectorTarget, target_path

# Signing takes about 0.3 ms a device; a round of the scheduler must stay short.
SIGN_AT_ONCE = 1000
PUBLISH_AT_ONCE = 500


@dataclass(frozen=True)
class _Due:
    """One assignment to sign, as read from the database."""

    device: str
    sequence: int
    version: int
    entries: list[DirectorEntry]


def order(
    session: Session,
    device_id: str,
    model: str,
    release: int,
    variant: str,
    order: Mapping[str, Any],
    rollout_id: int | None,
    now: float,
) -> int:
    """Let a device run a variant of a release.

    Args:
        session: in a write transaction.
        device_id: an enrolled device.
        model: of the release.
        release: number of the release.
        variant: name of one of its verified variants.
        order: policy part of `trust.DirectorTarget` (see `Desired.order`).
        rollout_id: on whose behalf, None for none.
        now: the time.

    Returns:
        The number of the attempt: the sequence of the assignment, so it grows with every order.

    Raises:
        NotFoundError: if there is no such device, release or verified variant.
        ConflictError: if the device is not enrolled, or the release waits for a signature.
        InvalidError: if `order` has an unknown field or a value out of its limits.
    """
    record = _enrolled_record(session, device_id)
    if waits := signatures.waits_for(session, model, release):
        raise ConflictError(f"{model} r{release} waits for the signature of {waits}")
    attempt = record.sequence + 1
    _target(session, model, release, variant, attempt, order)
    challenger = session.get(ChallengerOrder, (device_id, model))
    if challenger is not None and challenger.release == release:
        session.delete(challenger)  # it does not run beside itself
    desired = session.get(Desired, (device_id, model))
    if desired is None:
        desired = Desired(device_id=device_id, model=model)
        session.add(desired)
    desired.release, desired.variant, desired.attempt = release, variant, attempt
    desired.order, desired.rollout_id, desired.updated_at = dict(order), rollout_id, now
    record.sequence = attempt
    session.flush()
    return attempt


def challenge(
    session: Session,
    device_id: str,
    model: str,
    release: int,
    variant: str,
    order: Mapping[str, Any],
    challenge_id: int,
) -> int:
    """Let a device run a variant of a release beside the one that it serves.

    Where the release waits for its owner's signature, the device is told once it is signed.

    Args:
        session: in a write transaction.
        device_id: an enrolled device.
        model: that it serves.
        release: number of the release, another than it serves.
        variant: name of one of its verified variants.
        order: policy part of `trust.DirectorTarget`, with its `role`.
        challenge_id: on whose behalf.

    Returns:
        The number of the attempt, as for `order`.

    Raises:
        NotFoundError: if there is no such device, release or verified variant.
        ConflictError: if the device is not enrolled, or is to serve nothing or this very release.
        InvalidError: if `order` has an unknown field or a value out of its limits.
    """
    record = _enrolled_record(session, device_id)
    desired = session.get(Desired, (device_id, model))
    if desired is None or desired.release == release:
        held = "nothing" if desired is None else "this very release"
        raise ConflictError(f"device {device_id!r} is to serve {held} of {model}")
    attempt = record.sequence + 1
    _target(session, model, release, variant, attempt, order)
    row = session.get(ChallengerOrder, (device_id, model))
    if row is None:
        row = ChallengerOrder(device_id=device_id, model=model)
        session.add(row)
    row.release, row.variant, row.attempt = release, variant, attempt
    row.order, row.challenge_id = dict(order), challenge_id
    record.sequence = attempt
    session.flush()
    return attempt


def end_challenge(session: Session, device_id: str, model: str) -> None:
    """Take a challenger off a device's assignment; nothing happens if there is none."""
    row = session.get(ChallengerOrder, (device_id, model))
    if row is not None:
        session.delete(row)
        raise_sequence(session, device_id)
        session.flush()


def order_signed(session: Session, releases: Iterable[tuple[str, int]]) -> None:
    """Have the challengers put on their devices' assignments that waited for a signature.

    Args:
        session: in a write transaction.
        releases: model and number of those that are signed now.
    """
    for model, number in releases:
        waiting = select(ChallengerOrder.device_id).where(
            ChallengerOrder.model == model, ChallengerOrder.release == number
        )
        for device_id in session.scalars(waiting).all():
            raise_sequence(session, device_id)


def withdraw(
    session: Session,
    device_id: str,
    model: str,
    now: float,  # noqa: ARG001  # as for `order`: callers state when they decided
) -> None:
    """Take a model off a device's assignment; nothing happens if it is not on it."""
    desired = session.get(Desired, (device_id, model))
    if desired is None:
        return
    challenger = session.get(ChallengerOrder, (device_id, model))
    if challenger is not None:
        session.delete(challenger)
    session.delete(desired)
    raise_sequence(session, device_id)
    session.flush()


def raise_sequence(session: Session, device_id: str) -> None:
    """Have a device's assignment signed and published anew."""
    record = _record(session, device_id)
    record.sequence += 1
    session.flush()


def sign_due(
    database: Database, store: Store, director: Director, settings: Settings, now: float
) -> list[str]:
    """Sign what has changed, what has lived half of its life, and all of it under a new root.

    Signing happens outside of any transaction. Its result is stored only if nobody else has
    signed for the device meanwhile, so a version is never used twice.

    Returns:
        The devices that were signed for.

    Raises:
        DamagedError: if some could not be signed; all others were.
    """
    with database.read() as session:
        due, faults = _due(
            session, store, now + settings.assignment_ttl_s / 2, director.root_version
        )
    ttl_s = settings.assignment_ttl_s
    signed = [
        (item, director.sign(item.device, item.sequence, item.version, item.entries, ttl_s))
        for item in due
    ]
    if signed:
        with database.write() as session:
            for item, result in signed:
                session.execute(
                    update(DirectorRecord)
                    .where(
                        DirectorRecord.device_id == item.device,
                        DirectorRecord.version == item.version - 1,
                    )
                    .values(
                        version=item.version,
                        signed_sequence=item.sequence,
                        payload=result.payload,
                        expires_at=result.expires_at,
                        root_version=result.root_version,
                        published=False,
                    )
                )
    if faults:
        raise DamagedError(
            f"{len(faults)} assignments could not be signed; first: {'; '.join(faults[:5])}"
        )
    return [item.device for item, _ in signed]


def unpublished(session: Session, limit: int = PUBLISH_AT_ONCE) -> list[tuple[str, bytes]]:
    """Return up to `limit` devices with the payload to publish for them.

    An empty payload means: take the retained message away (the device was revoked).
    """
    rows = session.execute(
        select(DirectorRecord.device_id, DirectorRecord.payload)
        .where(DirectorRecord.published.is_(False), DirectorRecord.payload.is_not(None))
        .order_by(DirectorRecord.device_id)
        .limit(limit)
    )
    return [(device, payload) for device, payload in rows if payload is not None]


def mark_published(session: Session, device_id: str, payload: bytes) -> None:
    """Note that the broker has taken `payload`; an older one than the newest changes nothing."""
    session.execute(
        update(DirectorRecord)
        .where(DirectorRecord.device_id == device_id, DirectorRecord.payload == payload)
        .values(published=True)
    )


def publish_again(session: Session, device_ids: list[str]) -> None:
    """Have the assignments of these devices published once more."""
    session.execute(
        update(DirectorRecord)
        .where(DirectorRecord.device_id.in_(device_ids))
        .values(published=False)
    )


def publish_all_again(session: Session) -> None:
    """Have every assignment published once more: the broker has lost its retained messages."""
    session.execute(
        update(DirectorRecord).where(DirectorRecord.payload.is_not(None)).values(published=False)
    )


def clear(session: Session, device_id: str) -> None:
    """Take everything off a device's assignment and off its retained topic: it was revoked."""
    for table in (Desired, ChallengerOrder):
        session.execute(delete(table).where(table.device_id == device_id))
    record = _record(session, device_id)
    record.sequence += 1
    # Raised too, so that a signing under way now is thrown away.
    record.version += 1
    record.payload, record.published = b"", False
    session.flush()


def _enrolled_record(session: Session, device_id: str) -> DirectorRecord:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError("device", device_id)
    if device.state != DeviceState.ENROLLED:
        raise ConflictError(f"device {device_id!r} is {device.state}; only an enrolled one can run")
    return _record(session, device_id)


def _record(session: Session, device_id: str) -> DirectorRecord:
    record = session.get(DirectorRecord, device_id)
    if record is None:
        record = DirectorRecord(
            device_id=device_id, sequence=0, signed_sequence=-1, version=0, expires_at=0.0
        )
        session.add(record)
    return record


def _due(
    session: Session, store: Store, half_life_at: float, root_version: int
) -> tuple[list[_Due], list[str]]:
    records = session.scalars(
        select(DirectorRecord)
        .join(Device, Device.id == DirectorRecord.device_id)
        .where(
            Device.state == DeviceState.ENROLLED,
            or_(
                DirectorRecord.signed_sequence < DirectorRecord.sequence,
                DirectorRecord.expires_at <= half_life_at,
                DirectorRecord.root_version < root_version,
            ),
        )
        .order_by(DirectorRecord.expires_at)
        .limit(SIGN_AT_ONCE)
    )
    due, faults = [], []
    for record in records:
        try:
            entries = _entries(session, store, record.device_id)
        except (NotFoundError, InvalidError) as error:
            faults.append(f"device {record.device_id!r}: {error}")
            continue
        due.append(_Due(record.device_id, record.sequence, record.version + 1, entries))
    return due, faults


def _entries(session: Session, store: Store, device_id: str) -> list[DirectorEntry]:
    rows: list[Desired | ChallengerOrder] = list(
        session.scalars(
            select(Desired).where(Desired.device_id == device_id).order_by(Desired.model)
        )
    )
    rows += session.scalars(
        select(ChallengerOrder)
        .join(
            Release,
            and_(Release.model == ChallengerOrder.model, Release.number == ChallengerOrder.release),
        )
        .where(ChallengerOrder.device_id == device_id, Release.waits_for == "")
        .order_by(ChallengerOrder.model)
    )
    entries = []
    for row in rows:
        target, manifest = _target(
            session, row.model, row.release, row.variant, row.attempt, row.order
        )
        path = target_path(row.model, row.release, row.variant)
        entries.append(DirectorEntry(path, store.size(manifest), manifest, target))
    return entries


def _target(
    session: Session,
    model: str,
    release: int,
    variant: str,
    attempt: int,
    order: Mapping[str, Any],
) -> tuple[DirectorTarget, str]:
    """Return the signed custom field and the manifest's digest of one order."""
    row = session.execute(
        select(Version.version, Variant.runtime, Variant.manifest)
        .join(Version, Version.id == Variant.version_id)
        .join(Release, Release.version_id == Version.id)
        .where(Release.model == model, Release.number == release, Variant.name == variant)
    ).one_or_none()
    if row is None or row.manifest is None:
        raise NotFoundError("verified variant", f"{variant} of release {release} of {model}")
    fields = {
        "model": model,
        "version": row.version,
        "variant": variant,
        "release": release,
        "runtime": row.runtime,
        "attempt": attempt,
    }
    unknown = sorted(set(order) - set(DirectorTarget.__struct_fields__) | set(order) & set(fields))
    if unknown:
        raise InvalidError(f"an order has no field {unknown[0]!r}")
    try:
        target = msgspec.convert(fields | dict(order), DirectorTarget)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the order for {model} cannot be read: {error}") from error
    return target, row.manifest
