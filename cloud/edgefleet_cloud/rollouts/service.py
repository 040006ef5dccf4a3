"""Rollouts as the rest of the hub knows them: previewed, created, steered by an operator.

What happens by itself, tick by tick, is in `engine`; which device comes when is in `plan`; whether
a stage may go on is in `gate`. Rules kept here:

1. A rollout is fixed when it is created: its stages, its gate, its orders. What cannot be read is
   refused then.
2. A newer rollout of the same model takes over the devices that both have; an older one that has no
   device left to order is cancelled.
3. `cancel` orders no further device and leaves the others as they are; `roll_back` takes the
   release back.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Desired,
    Device,
    Release,
    ReportRecord,
    Rollout,
    RolloutDevice,
    RolloutState,
    Variant,
    Version,
    VersionState,
)
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import groups
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import engine, figures, gate, outcomes, plan
from edgefleet_cloud.rollouts.plan import Candidate, Plan
from edgefleet_cloud.rollouts.record import record
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.values import Json
from edgefleet_protocol.manifest import Needs
from edgefleet_protocol.profiles import DeviceProfile, misfits
from edgefleet_protocol.trust import SamplePolicy

# Ten heartbeats (agents send one every 30 s by default).
SILENT_S = 300.0


class OrderPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rollout may say to devices besides what to run; see `trust.DirectorTarget`."""

    window_rows: int | None = None
    confirm_rows: int | None = None
    confirm_deadline_s: int | None = None
    samples: SamplePolicy | None = None
    max_bytes: int | None = None
    urgent: bool | None = None


def create(
    session: Session,
    model: str,
    version: str,
    to: str,
    strategy: str,
    now: float,
    *,
    stages: Sequence[float] | None = None,
    gate: Mapping[str, Any] | None = None,
    order: Mapping[str, Any] | None = None,
    variant: str | None = None,
) -> Rollout:
    """Start to bring a version to a group of devices.

    The version is released, unless the model's newest release is of this version already.

    Args:
        session: in a write transaction.
        model: of the version.
        version: an approved one.
        to: group query (`fleet.groups`).
        strategy: direct | staged | canary.
        now: Unix seconds.
        stages: cumulative shares instead of the strategy's own.
        gate: thresholds (`gate.GatePolicy`); the defaults where not named.
        order: policy for the devices (`OrderPolicy`).
        variant: give all devices this one instead of the best for each.

    Raises:
        InvalidError: unreadable gate, order, stages or group, or no device can take the version.
        NotFoundError: no such version.
        ConflictError: the version is not approved, by two people where the model is of high risk.
    """
    policy = _policy(gate, strategy)
    held_order = _order(order)
    row = registry.get_version(session, model, version)
    if row.state != VersionState.APPROVED:
        raise ConflictError(
            f"{model} {version} is {row.state}; only an approved version is rolled out"
        )
    approvals.require(session, row)
    candidates = _candidates(session, row, to, variant, now)
    release = _release(session, row, f"rollout to {to} ({strategy})", now)
    made = plan.make(candidates, strategy, f"{model}/{release}", stages)
    rollout = Rollout(
        model=model,
        release=release,
        previous=_previous(session, row, candidates),
        strategy=strategy,
        stages=[
            {"name": stage.name, "devices": [device.device for device in stage.devices]}
            for stage in made.stages
        ],
        gate=msgspec.to_builtins(policy),
        order=held_order,
        state=RolloutState.RUNNING,
        watermark=session.scalar(select(func.max(ReportRecord.id))) or 0,
        checked_at=now,
        created_at=now,
    )
    rollout.stage, rollout.history, rollout.statistics = 0, [], {}
    session.add(rollout)
    session.flush()
    if rollout.previous is not None:
        back = session.get_one(Release, (model, rollout.previous))
        registry.sign_ahead(session, back, release, now)
    _add_parts(session, rollout, made, now)
    text = (
        f"{model} {version} as release {release} to {to}, {strategy},"
        f" {sum(len(s.devices) for s in made.stages)} devices in {len(made.stages)} stages"
    )
    record(rollout, now, "created", text, devices=[c.device for c in candidates if c.variant])
    _supersede(session, rollout, now)
    session.flush()
    return rollout


def preview(
    session: Session,
    model: str,
    version: str,
    to: str,
    strategy: str,
    now: float,
    *,
    stages: Sequence[float] | None = None,
    gate: Mapping[str, Any] | None = None,
    order: Mapping[str, Any] | None = None,
    variant: str | None = None,
) -> Plan:
    """Return what `create` would do with the same arguments, and do nothing.

    A version that is not approved yet can be previewed too.

    Raises:
        InvalidError: as for `create`.
        NotFoundError: no such version.
    """
    _policy(gate, strategy)
    _order(order)
    row = registry.get_version(session, model, version)
    held = _releasable(session, row)
    newest = next(iter(registry.releases(session, model)), None)
    number = held.number if held else 1 + (newest.number if newest else 0)
    candidates = _candidates(session, row, to, variant, now)
    return plan.make(candidates, strategy, f"{model}/{number}", stages)


def advance(session: Session, now: float) -> None:
    """Bring every open rollout one tick further (`engine.advance`)."""
    engine.advance(session, now)


def get(session: Session, rollout_id: int) -> Rollout:
    """Return one rollout.

    Raises:
        NotFoundError: if there is none with this number.
    """
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFoundError("rollout", rollout_id)
    return rollout


def list_rollouts(
    session: Session, *, model: str | None = None, state: str | None = None, limit: int = 100
) -> list[Rollout]:
    """Return rollouts, newest first."""
    query = select(Rollout).order_by(Rollout.id.desc()).limit(limit)
    if model is not None:
        query = query.where(Rollout.model == model)
    if state is not None:
        query = query.where(Rollout.state == state)
    return list(session.scalars(query))


def pause(session: Session, rollout_id: int, now: float) -> Rollout:
    """Order no further device until it is resumed.

    Raises:
        ConflictError: if it is not running.
    """
    rollout = _in_state(session, rollout_id, "paused", RolloutState.RUNNING)
    engine.pause(rollout, "paused by an operator", now)
    return rollout


def resume(
    session: Session, rollout_id: int, now: float, *, gate: Mapping[str, Any] | None = None
) -> Rollout:
    """Let a paused rollout go on; failed devices of the running stage are ordered once more.

    The stage is judged anew from now on, so what made it pause has to happen again.

    Args:
        session: in a write transaction.
        rollout_id: which.
        now: Unix seconds.
        gate: thresholds to change.

    Raises:
        ConflictError: if it is not paused.
        InvalidError: if the thresholds cannot be read.
    """
    rollout = _in_state(session, rollout_id, "resumed", RolloutState.PAUSED)
    rollout.gate = msgspec.to_builtins(_policy({**rollout.gate, **(gate or {})}, ""))
    failed = [p for p in outcomes.parts(session, rollout.id, "failed") if p.stage == rollout.stage]
    for part in failed:
        part.state, part.attempt, part.reason, part.finished_at = "waiting", None, "", None
    rollout.state, rollout.reason = RolloutState.RUNNING, ""
    rollout.stage_started_at, rollout.statistics = now, {}
    record(rollout, now, "resumed", f"{len(failed)} failed devices are tried again")
    return rollout


def cancel(session: Session, rollout_id: int, now: float) -> Rollout:
    """Order no further device; what was ordered stays as it is.

    Raises:
        ConflictError: if it is neither running nor paused.
    """
    rollout = _in_state(session, rollout_id, "cancelled", RolloutState.RUNNING, RolloutState.PAUSED)
    _cancel(session, rollout, "cancelled", "cancelled by an operator", now)
    return rollout


def roll_back(session: Session, rollout_id: int, reason: str, now: float) -> Rollout:
    """Take a rollout's release back from every device that was given it.

    Raises:
        ConflictError: if it is being rolled back, or was.
    """
    states = (
        RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.COMPLETED, RolloutState.CANCELLED,
    )  # fmt: skip
    rollout = _in_state(session, rollout_id, "rolled back", *states)
    engine.begin_rollback(session, rollout, reason or "rolled back by an operator", now)
    return rollout


def view(session: Session, rollout: Rollout, now: float) -> Json:
    """Return a rollout as the API shows it: with its stages, their states, and the figures."""
    stages = []
    for index, stage in enumerate(rollout.stages):
        states = outcomes.counts(session, rollout.id, index)
        stages.append({**stage, "index": index, "states": states})
    version = figures.version_of(session, rollout.model, rollout.release).version
    previous = (
        figures.version_of(session, rollout.model, rollout.previous).version
        if rollout.previous is not None
        else None
    )
    statistics = engine.stage_statistics(session, rollout, now) if rollout.statistics else None
    return {
        **summary(session, rollout),
        "version": version,
        "previous_version": previous,
        "stages": stages,
        "devices": outcomes.rows_as_json(outcomes.parts(session, rollout.id)),
        "gate": rollout.gate,
        "order": rollout.order,
        "statistics": msgspec.to_builtins(statistics),
        "history": rollout.history,
    }


def summary(session: Session, rollout: Rollout) -> Json:
    """Return a rollout in a few figures."""
    fields = (
        "id", "model", "release", "previous", "reverts_to", "strategy", "state", "stage", "reason",
        "created_at", "stage_started_at", "finished_at",
    )  # fmt: skip
    return {
        **{name: getattr(rollout, name) for name in fields},
        "version": figures.version_of(session, rollout.model, rollout.release).version,
        "stage_count": len(rollout.stages),
        "states": outcomes.counts(session, rollout.id),
    }


# --- creation -------------------------------------------------------------------------------------


def _policy(given: Mapping[str, Any] | None, strategy: str) -> gate.GatePolicy:
    # With one stage nothing comes after the gate: it is done when every device has confirmed.
    base: dict[str, Any] = {"min_rows": 0} if strategy == "direct" else {}
    return gate.read_policy({**base, **(given or {})})


def _order(given: Mapping[str, Any] | None) -> Json:
    values = dict(given or {})
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidError(f"order: {name} is {value}; expected a number")
    try:
        msgspec.convert(values, OrderPolicy)
    except msgspec.ValidationError as error:
        raise InvalidError(f"order: {error}") from error
    return values


def _candidates(
    session: Session, version: Version, to: str, variant: str | None, now: float
) -> list[Candidate]:
    devices = groups.devices_in(session, to)
    if not devices:
        raise InvalidError(f"the group {to!r} has no enrolled device")
    offered = registry.variants(session, version.id)
    if variant is not None:
        offered = [item for item in offered if item.name == variant]
        if not any(item.state == "verified" for item in offered):
            raise InvalidError(f"{version.model} {version.version} has no variant {variant!r}")
    faulty = set(figures.faulty_devices(session, version.model))
    # Thousands of devices share a few profiles.
    known: dict[tuple[Any, ...], tuple[Variant | None, str]] = {}
    candidates = []
    for device in devices:
        profile = DeviceProfile(device.board, device.runtimes, device.memory_bytes)
        key = (device.board, tuple(sorted(device.runtimes.items())), device.memory_bytes)
        if key not in known:
            known[key] = _choose(offered, profile)
        chosen, reason = known[key]
        silent = device.last_seen_at is None or now - device.last_seen_at > SILENT_S
        candidates.append(
            Candidate(
                device.id,
                chosen.name if chosen else None,
                _bytes(device, version.model, chosen),
                reason,
                not silent and device.id not in faulty,
            )
        )
    return candidates


def _choose(offered: list[Variant], profile: DeviceProfile) -> tuple[Variant | None, str]:
    fitting = registry.fitting(offered, profile)
    if fitting:
        return fitting[0], f"best of {len(fitting)} variants that fit"
    verified = [item for item in offered if item.state == "verified"]
    reasons = [
        f"{item.name}: {', '.join(misfits(msgspec.convert(item.needs, Needs), profile))}"
        for item in verified
    ]
    return None, "; ".join(reasons) or "no variant is verified"


def _bytes(device: Device, model: str, chosen: Variant | None) -> int:
    if chosen is None:
        return 0
    held = outcomes.holds(outcomes.read_state(device), model, chosen.manifest)
    return 0 if held else chosen.transfer_bytes


def _releasable(session: Session, version: Version) -> Release | None:
    """Return the release of a version that can be rolled out as it is, None if it needs a new one.

    That is the newest regular release, or the newest of all if it was made for a challenge.
    """
    released = registry.releases(session, version.model)
    regular = next((row for row in released if not row.challenge), None)
    for row in (regular, *released[:1]):
        if row is not None and row.version_id == version.id:
            return row
    return None


def _release(session: Session, version: Version, reason: str, now: float) -> int:
    held = _releasable(session, version)
    if held is not None:
        held.challenge = False  # what was made for a challenge is taken up
        return held.number
    return registry.release(session, version.model, version.version, reason, now).number


def _previous(session: Session, version: Version, candidates: Sequence[Candidate]) -> int | None:
    """Return the release to go back to: what most of the devices are to run now.

    Releases of other versions come first; if all devices run this very version, in another variant
    perhaps, it is theirs.
    """
    members = {candidate.device for candidate in candidates}
    rows = session.execute(
        select(Desired.device_id, Desired.release, Release.version_id)
        .join(Release, (Release.model == Desired.model) & (Release.number == Desired.release))
        .where(Desired.model == version.model)
    )
    held = Counter(
        (version_id != version.id, release)
        for device, release, version_id in rows
        if device in members
    )
    best = max(held, key=lambda item: (item[0], held[item], item[1]), default=None)
    return None if best is None else best[1]


def _add_parts(session: Session, rollout: Rollout, made: Plan, now: float) -> None:
    session.add_all(
        RolloutDevice(
            rollout_id=rollout.id,
            device_id=device.device,
            stage=index,
            variant=device.variant,
            state="waiting",
            reason="",
        )
        for index, stage in enumerate(made.stages)
        for device in stage.devices
    )
    session.add_all(
        RolloutDevice(
            rollout_id=rollout.id,
            device_id=device.device,
            stage=len(made.stages) - 1,
            variant=None,
            state="skipped",
            reason=device.reason,
            finished_at=now,
        )
        for device in made.skipped
    )
    session.flush()


# --- steering -------------------------------------------------------------------------------------


def _supersede(session: Session, rollout: Rollout, now: float) -> None:
    mine = select(RolloutDevice.device_id).where(
        RolloutDevice.rollout_id == rollout.id, RolloutDevice.state == "waiting"
    )
    older = session.scalars(
        select(Rollout).where(
            Rollout.model == rollout.model,
            Rollout.id != rollout.id,
            Rollout.state.in_((RolloutState.RUNNING, RolloutState.PAUSED)),
        )
    )
    for other in list(older):
        taken = session.scalars(
            select(RolloutDevice).where(
                RolloutDevice.rollout_id == other.id,
                RolloutDevice.state.in_(("waiting", "assigned")),
                RolloutDevice.device_id.in_(mine),
            )
        )
        text = f"taken over by rollout {rollout.id}"
        names = []
        for part in taken:
            outcomes.end(part, "skipped", text, now)
            names.append(part.device_id)
        if not names:
            continue
        session.flush()
        record(other, now, "superseded", f"{len(names)} devices {text}", devices=names)
        if not outcomes.parts(session, other.id, "waiting", "assigned", limit=1):
            _cancel(session, other, "cancelled", f"superseded by rollout {rollout.id}", now)


def _cancel(session: Session, rollout: Rollout, event: str, reason: str, now: float) -> None:
    for part in outcomes.parts(session, rollout.id, "waiting"):
        outcomes.end(part, "skipped", reason, now)
    rollout.state, rollout.reason, rollout.finished_at = RolloutState.CANCELLED, reason, now
    record(rollout, now, event, reason)


def _in_state(session: Session, rollout_id: int, wish: str, *allowed: RolloutState) -> Rollout:
    rollout = get(session, rollout_id)
    if rollout.state not in allowed:
        expected = ", ".join(allowed)
        raise ConflictError(
            f"rollout {rollout_id} is {rollout.state} and cannot be {wish}; expected {expected}"
        )
    return rollout
