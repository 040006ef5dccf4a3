"""Reading what a stage and its control group have served, for the gate.

Only the newest `MAX_WINDOWS` windows of a side are added up, found through the index
`windows_by_model`; of those, `MAX_DETAILED` give latencies and predicted classes. So the cost does
not grow with the fleet, nor with the length of a soak.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Incident,
    Release,
    Rollout,
    RolloutDevice,
    Variant,
    Version,
    WindowRecord,
)
from edgefleet_cloud.rollouts.gate import GroupStatistics

MAX_WINDOWS = 20_000
MAX_DETAILED = 500


def read(session: Session, rollout: Rollout) -> tuple[GroupStatistics, GroupStatistics]:
    """Return the figures of the running stage and of its control group.

    The stage: windows of its confirmed devices on the new version since it began. Control: windows
    of devices outside the stage on the previous version, received since then. Devices under an
    open device fault are in neither: they tell nothing about a version.
    """
    version = version_of(session, rollout.model, rollout.release)
    previous = (
        version_of(session, rollout.model, rollout.previous)
        if rollout.previous is not None
        else None
    )
    in_stage = select(RolloutDevice.device_id).where(
        RolloutDevice.rollout_id == rollout.id, RolloutDevice.stage == rollout.stage
    )
    confirmed = in_stage.where(RolloutDevice.state == "confirmed")
    since = rollout.stage_started_at or 0.0
    stage = group(session, version, since, WindowRecord.device_id.in_(confirmed))
    if previous is None or previous.id == version.id:
        return stage, GroupStatistics()
    return stage, group(session, previous, since, WindowRecord.device_id.not_in(in_stage))


def version_of(session: Session, model: str, release: int) -> Version:
    """Return the version that a release made available."""
    row = session.get_one(Release, (model, release))
    return session.get_one(Version, row.version_id)


def manifests(session: Session, version_id: int) -> dict[str, str]:
    """Return variant → digest of its manifest, of the verified variants."""
    rows = session.execute(
        select(Variant.name, Variant.manifest).where(
            Variant.version_id == version_id, Variant.state == "verified"
        )
    )
    return {name: manifest for name, manifest in rows if manifest}


def faulty_devices(session: Session, model: str) -> list[str]:
    """Return the devices under an open device fault."""
    found = session.scalars(
        select(Incident.devices).where(
            Incident.kind == "device-fault", Incident.model == model, Incident.closed_at.is_(None)
        )
    )
    return sorted({device for devices in found for device in devices})


def group(
    session: Session, version: Version, since: float, members: ColumnElement[bool]
) -> GroupStatistics:
    """Return what devices have served with a version, by windows received since a time.

    Args:
        session: for reading.
        version: that answered.
        since: Unix seconds.
        members: which windows count.
    """
    newest = _newest(session, version, since, members)
    held = newest.limit(MAX_WINDOWS).subquery()
    sums = session.execute(
        select(
            func.count(func.distinct(held.c.device_id)),
            *(
                func.coalesce(func.sum(held.c[name]), 0)
                for name in ("rows", "errors", "labelled", "correct")
            ),
        )
    ).one()
    names = {digest: name for name, digest in manifests(session, version.id).items()}
    predictions: list[int] = []
    latency: dict[str, list[int]] = {}
    for window in session.execute(newest.limit(MAX_DETAILED)):
        predictions = _add(predictions, window.predictions)
        variant = names.get(window.manifest)
        if variant is not None:
            latency[variant] = _add(latency.get(variant, []), window.latency_us)
    devices, rows, errors, labelled, correct = (int(total) for total in sums)
    return GroupStatistics(devices, rows, errors, labelled, correct, predictions, latency)


def _newest(
    session: Session, version: Version, since: float, members: ColumnElement[bool]
) -> Select[Any]:
    columns = (
        "device_id", "manifest", "rows", "errors", "labelled", "correct", "predictions",
        "latency_us",
    )  # fmt: skip
    return (
        select(*(getattr(WindowRecord, name) for name in columns))
        .where(
            WindowRecord.model == version.model,
            WindowRecord.version == version.version,
            WindowRecord.received_at >= since,
            WindowRecord.device_id.not_in(faulty_devices(session, version.model)),
            members,
        )
        .order_by(WindowRecord.received_at.desc())
    )


def _add(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]


def with_times(
    raw: Mapping[str, Any], counts: Mapping[str, int], elapsed_s: float, soaked_s: float
) -> dict[str, Any]:
    """Return the fields of `gate.StageStatistics` from stored figures and the present."""
    states = {name: counts.get(name, 0) for name in ("waiting", "assigned", "confirmed", "failed")}
    return {**raw, **states, "elapsed_s": elapsed_s, "soaked_s": soaked_s}
