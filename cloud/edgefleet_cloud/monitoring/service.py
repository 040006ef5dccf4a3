"""New windows in, verdicts and incidents out; and what the API shows of it.

Each tick takes the windows that came in since the last one (the newest report in any `Watch` is
the mark, so a restart loses and repeats nothing), adds them to what is remembered of their devices
(`watch`), and judges the fleet anew where something is flagged (`verdict`).
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session, undefer

from edgefleet_cloud.database.models import (
    Device,
    Incident,
    Verdict,
    Version,
    Watch,
    WindowRecord,
)
from edgefleet_cloud.errors import HubError, NotFoundError
from edgefleet_cloud.monitoring import incidents, merge, verdict, watch
from edgefleet_cloud.monitoring.merge import Profile, Profiles, Sketch
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.storage import Store
from edgefleet_cloud.values import Json
from edgefleet_protocol.errors import MalformedError, ProtocolError

# A window of 64 features takes about 4 ms; a tick must stay short.
WINDOWS_A_TICK = 250
# So many flagged devices give figures and are compared with each other (0.4 ms each).
MAX_COMPARED = 64
# A window that claims to be longer was not; the device's clock was set in the middle of it.
MAX_WINDOW_S = 86_400.0
# Up to here a verdict's list of devices is always exact.
LISTED_DEVICES = 50
# For figures over time.
MAX_WINDOWS = 50_000
BUCKETS = 60
logger = logging.getLogger(__name__)

Key = tuple[str, str]


def evaluate(session: Session, store: Store, now: float) -> list[Verdict]:
    """Take in the windows that are new, and judge what they show.

    Args:
        session: in a write transaction.
        store: holds the reference profiles.
        now: Unix seconds.

    Returns:
        A verdict for each model version of which something else can be said than before.
    """
    mark = session.scalar(select(func.max(Watch.report_id))) or 0
    windows: dict[Key, list[WindowRecord]] = defaultdict(list)
    query = (
        select(WindowRecord)
        .where(WindowRecord.report_id > mark)
        .order_by(WindowRecord.report_id)
        .limit(WINDOWS_A_TICK)
    )
    for window in session.scalars(query):
        windows[window.model, window.version].append(window)
    verdicts = []
    for (model, version), found in windows.items():
        profile = _take_in(session, store, model, version, found, now)
        if profile is not None:
            made = _judge_fleet(session, model, version, profile, now)
            verdicts += [made] if made else []
    incidents.close_silent(session, now)
    session.flush()
    return verdicts


def newest_verdict(session: Session, model: str, version: str) -> Verdict | None:
    """Return what was last said of a model version."""
    return session.scalar(
        select(Verdict)
        .where(Verdict.model == model, Verdict.version == version)
        .order_by(Verdict.id.desc())
        .limit(1)
    )


# --- windows --------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _profiles(store: Store) -> Profiles:
    return Profiles(store)


def _take_in(
    session: Session,
    store: Store,
    model: str,
    version: str,
    windows: Sequence[WindowRecord],
    now: float,
) -> Profile | None:
    """Add windows to what is remembered; return the profile if there was a whole look."""
    profile, fault = _profile(session, store, model, version)
    by_device: dict[str, list[WindowRecord]] = defaultdict(list)
    for window in windows:
        by_device[window.device_id].append(window)
    looks: dict[str, list[Sketch]] = {}
    held: dict[str, Watch] = {}
    for device, own in by_device.items():
        row = held[device] = _watch(session, device, model, version)
        sketches, faults = _decode(profile, own, fault)
        row.report_id = own[-1].report_id
        row.rows += sum(sketch.rows for sketch in sketches)
        if faults:
            row.malformed += len(faults)
            logger.warning("device %s: window of %s %s: %s", device, model, version, faults[-1])
            incidents.malformed(session, model, version, device, row.malformed, faults[-1], now)
        if profile is not None and sketches:
            memory = _memory(row)
            memory, looks[device] = watch.take(memory, sketches, profile)
            row.memory = msgspec.msgpack.encode(memory)
    session.flush()
    if profile is None or not any(looks.values()):
        return None
    _look(session, profile, held, looks)
    return profile


def _look(
    session: Session, profile: Profile, held: dict[str, Watch], looks: dict[str, list[Sketch]]
) -> None:
    """Judge looks, the first of each device together, then the second, and so on."""
    any_row = next(iter(held.values()))
    devices = session.scalar(
        select(func.count()).where(Watch.model == any_row.model, Watch.version == any_row.version)
    )
    for turn in range(max(map(len, looks.values()))):
        compared = [
            watch.compare(device, _memory(held[device]), own[turn], profile)
            for device, own in looks.items()
            if len(own) > turn
        ]
        judged = watch.judge(compared, profile, devices or 0)
        for item, look in zip(compared, judged, strict=True):
            row = held[item.device]
            memory = watch.remember(_memory(row), item.sketch, look, profile)
            found = watch.flags(memory, _flags(row))
            row.memory = msgspec.msgpack.encode(memory)
            row.flags = msgspec.to_builtins(found) if found else {}
            row.state = watch.state(memory, found)
            row.looked_at, row.quiet_after = look.end, watch.quiet_after(memory)
    session.flush()


def _profile(
    session: Session, store: Store, model: str, version: str
) -> tuple[Profile | None, str]:
    digest = session.scalar(
        select(Version.reference).where(Version.model == model, Version.version == version)
    )
    if digest is None:
        return None, f"there is no version {version!r} of {model!r}"
    try:
        return _profiles(store).get(digest), ""
    except (HubError, ProtocolError) as error:
        logger.exception("reference profile of %s %s", model, version)
        return None, f"the hub cannot read its reference profile: {error}"


def _decode(
    profile: Profile | None, windows: Sequence[WindowRecord], fault: str
) -> tuple[list[Sketch], list[str]]:
    if profile is None:
        return [], [fault] * len(windows)
    sketches, faults = [], []
    for window in windows:
        try:
            sketch = merge.decode(
                profile,
                reference=window.reference,
                # The hub's time: a device's clock may be wrong by years.
                start=window.received_at - min(max(window.end - window.start, 0.0), MAX_WINDOW_S),
                end=window.received_at,
                rows=window.rows,
                counts=window.counts,
                moments=window.moments,
            )
        except MalformedError as error:
            faults.append(str(error))
        else:
            sketches.append(sketch)
    return sketches, faults


def _watch(session: Session, device: str, model: str, version: str) -> Watch:
    row = session.get(Watch, (device, model, version), options=[undefer(Watch.memory)])
    if row is None:
        row = Watch(
            device_id=device,
            model=model,
            version=version,
            report_id=0,
            state="learning",
            memory=msgspec.msgpack.encode(watch.Memory()),
            flags={},
            # Counts as reporting from its first look on.
            quiet_after=0.0,
            rows=0,
            malformed=0,
        )
        session.add(row)
    return row


def _memory(row: Watch) -> watch.Memory:
    return msgspec.msgpack.decode(row.memory, type=watch.Memory)


def _flags(row: Watch) -> watch.Flags | None:
    return msgspec.convert(row.flags, watch.Flags) if row.flags else None


# --- the fleet ------------------------------------------------------------------------------------


def _judge_fleet(
    session: Session, model: str, version: str, profile: Profile, now: float
) -> Verdict | None:
    last = newest_verdict(session, model, version)
    if last is not None and not last.findings and not _anything(session, model, version):
        return None
    views, rows = _views(session, model, version, profile, now)
    findings = verdict.judge(views, profile)
    incidents.sync(session, model, version, findings, [view.device for view in views], now)
    told = (
        [_essence(msgspec.convert(item, verdict.Finding)) for item in last.findings]
        if last
        else None
    )
    if told == [_essence(finding) for finding in findings]:
        return None
    made = Verdict(
        model=model,
        version=version,
        at=now,
        scope=verdict.scope_of(findings),
        findings=[msgspec.to_builtins(finding) for finding in findings],
        rows=rows,
        devices=len(views),
    )
    session.add(made)
    session.flush()
    return made


def _anything(session: Session, model: str, version: str) -> bool:
    """Tell whether a device is flagged, or an incident open, so that the fleet must be judged."""
    flagged = select(Watch.device_id).where(
        Watch.model == model,
        Watch.version == version,
        Watch.state.in_(("stuck", "shifted", "unlike")),
    )
    kinds = (incidents.DEVICE_FAULT, incidents.DRIFT, incidents.UNLIKE)
    still_open = select(Incident.id).where(
        Incident.model == model, Incident.kind.in_(kinds), Incident.closed_at.is_(None)
    )
    return any(session.scalar(query.limit(1)) is not None for query in (flagged, still_open))


def _views(
    session: Session, model: str, version: str, profile: Profile, now: float
) -> tuple[list[verdict.View], int]:
    members = (
        Watch.model == model,
        Watch.version == version,
        Watch.quiet_after >= now,
        Watch.looked_at.is_not(None),
    )
    columns = (Watch.device_id, Watch.state, Watch.flags, Watch.looked_at, Watch.rows)
    found = session.execute(
        select(*columns, Device.labels, Device.board)
        .join(Device, Device.id == Watch.device_id)
        .where(*members)
        .order_by(Watch.device_id)
    ).all()
    # Of these the figures are shown, and the shifted ones are compared with each other; stuck
    # ones first, because there are few of them.
    flagged = select(Watch.device_id, Watch.memory).where(
        *members, Watch.state.in_(("stuck", "shifted", "unlike"))
    )
    sketches = {}
    order = (
        case((Watch.state == "stuck", 0), (Watch.state == "shifted", 1), else_=2),
        Watch.device_id,
    )
    for device, packed in session.execute(flagged.order_by(*order).limit(MAX_COMPARED)):
        latest = msgspec.msgpack.decode(packed, type=watch.Memory).latest
        if latest is not None:
            sketches[device] = merge.unpack(latest, profile)
    views = [
        verdict.View(
            row.device_id,
            {**row.labels, "board": row.board},
            row.state not in ("learning", "stuck"),
            msgspec.convert(row.flags, watch.Flags) if row.flags else None,
            row.looked_at,
            sketches.get(row.device_id),
        )
        for row in found
    ]
    return views, sum(row.rows for row in found)


def _essence(finding: verdict.Finding) -> tuple[Any, ...]:
    """Return what makes a finding another one, worth a verdict of its own.

    Figures and features change a little with every look, and a large group by a device at a time:
    it counts as another one when it has grown or shrunk by about a quarter.
    """
    head = (finding.scope, finding.kind, finding.label)
    if len(finding.devices) <= LISTED_DEVICES:
        return *head, tuple(finding.devices)
    return *head, round(math.log(len(finding.devices)) / math.log(1.25))


# --- what the API shows ---------------------------------------------------------------------------


def drift(session: Session, store: Store, model: str, version: str | None, now: float) -> Json:
    """Return the state of a model version on every device that has reported on it.

    Args:
        session: to read with.
        store: holds the reference profile.
        model: of the version.
        version: the champion if None.
        now: Unix seconds.

    Raises:
        NotFoundError: no such version, or none released.
    """
    row = (
        registry.get_version(session, model, version)
        if version is not None
        else registry.champion(session, model)
    )
    if row is None:
        raise NotFoundError("released version of model", model)
    names = _profiles(store).get(row.reference).names
    last = newest_verdict(session, model, row.version)
    found = session.execute(
        select(Watch, WindowRecord.psi, WindowRecord.health)
        .outerjoin(WindowRecord, WindowRecord.report_id == Watch.report_id)
        .where(Watch.model == model, Watch.version == row.version)
        .order_by(Watch.device_id)
    )
    return {
        "model": model,
        "version": row.version,
        "features": names,
        "verdict": None if last is None else verdict_as_json(last),
        "devices": [_device_as_json(item, psi, health, names, now) for item, psi, health in found],
    }


def verdict_as_json(row: Verdict) -> Json:
    """Return a verdict for the API."""
    fields = ("id", "model", "version", "at", "scope", "findings", "rows", "devices")
    return {name: getattr(row, name) for name in fields}


def verdicts(session: Session, model: str, *, limit: int = 100) -> list[Verdict]:
    """Return the verdicts of all versions of a model, newest first."""
    query = select(Verdict).where(Verdict.model == model).order_by(Verdict.id.desc()).limit(limit)
    return list(session.scalars(query))


def performance(
    session: Session,
    model: str,
    *,
    since: float | None = None,
    bucket_s: float | None = None,
    by_device: bool = False,
) -> list[Json]:
    """Return what a model has served and how well, by version and time.

    Args:
        session: to read with.
        model: whose windows.
        since: Unix seconds; all that is kept if None.
        bucket_s: length of a time bucket; a sixtieth of the time covered if None.
        by_device: tell the devices apart.

    Returns:
        Oldest first: {"version", "at" (start of the bucket), "device" (with `by_device`),
        "devices", "rows", "errors", "labelled", "correct", "accuracy" (None without labels)}.
    """
    columns = ("version", "device_id", "received_at", "rows", "errors", "labelled", "correct")
    query = (
        select(*(getattr(WindowRecord, name) for name in columns))
        .where(or_(*_per_version(session, model)), WindowRecord.received_at >= (since or 0.0))
        .order_by(WindowRecord.received_at.desc())
        .limit(MAX_WINDOWS)
    )
    windows = session.execute(query).all()
    if not windows:
        return []
    first, last = windows[-1].received_at, windows[0].received_at
    width = bucket_s or max((last - first) / BUCKETS, 1.0)
    groups: dict[tuple[str, float, str], list[Any]] = defaultdict(list)
    for window in windows:
        at = math.floor(window.received_at / width) * width
        groups[window.version, at, window.device_id if by_device else ""].append(window)
    return [
        _served(version, at, device, groups[version, at, device])
        for version, at, device in sorted(groups, key=lambda key: (key[1], key[0], key[2]))
    ]


def _per_version(session: Session, model: str) -> list[Any]:
    """Return conditions that let the index on (model, version, received_at) be used."""
    names = session.scalars(select(Version.version).where(Version.model == model))
    found = [(WindowRecord.model == model) & (WindowRecord.version == name) for name in names]
    return found or [WindowRecord.model == model]


def _served(version: str, at: float, device: str, windows: Sequence[Any]) -> Json:
    sums: Json = {
        name: sum(getattr(window, name) for window in windows)
        for name in ("rows", "errors", "labelled", "correct")
    }
    head = {"version": version, "at": at, **({"device": device} if device else {})}
    accuracy = sums["correct"] / sums["labelled"] if sums["labelled"] else None
    devices = len({window.device_id for window in windows})
    return {**head, "devices": devices, **sums, "accuracy": accuracy}


def _device_as_json(
    row: Watch, psi: list[float] | None, health: Json | None, names: list[str], now: float
) -> Json:
    flags = _flags(row)
    flagged = {
        kind: [names[index] for index in getattr(flags, kind)] if flags else []
        for kind in ("shifted", "unlike", "stuck")
    }
    return {
        "device": row.device_id,
        "state": row.state,
        **flagged,
        "rows": row.rows,
        "malformed": row.malformed,
        "looked_at": row.looked_at,
        "reporting": row.quiet_after >= now,
        "psi": psi,
        "health": health,
    }
