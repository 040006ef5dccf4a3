"""One tick of all rollouts: take in outcomes, judge the running stage, act on the verdict.

    running ──gate proceeds, last stage──▶ completed
       │ gate pauses / operator            ▲
       ├───────────────▶ paused ──resume───┘ (running again)
       ├──cancel, or superseded──▶ cancelled
       └──gate or operator──▶ rolling_back ──all back, or deadline──▶ rolled_back

Everything that is needed to go on lies in the database, so another process may take the next tick.
Orders are given in batches, so that no tick holds the database for long.
"""

import logging

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from edgefleet_cloud.database.models import (
    Desired,
    Device,
    DirectorRecord,
    Incident,
    ReportRecord,
    Rollout,
    RolloutDevice,
    RolloutState,
    WindowRecord,
)
from edgefleet_cloud.errors import HubError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.registry import signatures
from edgefleet_cloud.rollouts import figures, gate, outcomes
from edgefleet_cloud.rollouts.gate import GatePolicy, Judgement, StageStatistics
from edgefleet_cloud.rollouts.record import record
from edgefleet_protocol.profiles import DeviceProfile

# Giving an order takes about 3 ms; a tick must stay short.
ORDERS_A_TICK = 250
GIVEN = ("assigned", "confirmed", "failed")
logger = logging.getLogger(__name__)


def advance(session: Session, now: float) -> None:
    """Bring every open rollout one tick further.

    A rollout that cannot go on (a device or version that it needs is gone) is paused and says why;
    it does not hold up the others.

    Args:
        session: in a write transaction.
        now: Unix seconds.
    """
    open_states = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK)
    query = (
        select(Rollout)
        .where(Rollout.state.in_(open_states))
        .order_by(Rollout.id)
        .options(defer(Rollout.stages), defer(Rollout.history))
    )
    for rollout in list(session.scalars(query)):
        try:
            with session.begin_nested():
                _advance_one(session, rollout, now)
        except HubError as error:
            logger.exception("rollout %d cannot go on", rollout.id)
            if rollout.state == RolloutState.RUNNING:
                pause(rollout, f"cannot go on: {error}", now)
    _settle_late(session, now)
    session.flush()


def _advance_one(session: Session, rollout: Rollout, now: float) -> None:
    policy = msgspec.convert(rollout.gate, GatePolicy)
    ordered = rollout.reverts_to if rollout.state == RolloutState.ROLLING_BACK else rollout.release
    waits = signatures.waits_for(session, rollout.model, ordered) if ordered is not None else ""
    if waits and rollout.state == RolloutState.RUNNING:
        rollout.reason = f"waits for the signature of {waits}"
        return
    newest = session.scalar(select(func.max(ReportRecord.id))) or 0
    if rollout.state == RolloutState.ROLLING_BACK:
        _leave_taken_over(session, rollout, now)
        if waits:
            rollout.stage_started_at = now  # the devices' time to answer begins with the signature
        _order_back(session, rollout, now)
        outcomes.take(session, rollout, _way_back(session, rollout), policy.silence_s, now)
        _finish_rollback(session, rollout, policy, now)
    else:
        if rollout.state == RolloutState.RUNNING:
            _order_stage(session, rollout, now)
        wanted = figures.version_of(session, rollout.model, rollout.release).id
        manifests = figures.manifests(session, wanted)
        outcomes.take(session, rollout, manifests, policy.silence_s, now)
        _read_figures(session, rollout)
        if rollout.state == RolloutState.RUNNING:
            statistics = stage_statistics(session, rollout, now)
            _act(session, rollout, gate.judge(statistics, policy), statistics, now)
    rollout.watermark = newest


# --- forwards -------------------------------------------------------------------------------------


def _order_stage(session: Session, rollout: Rollout, now: float) -> None:
    if rollout.stage_started_at is None:
        rollout.stage_started_at = now
        stage = rollout.stages[rollout.stage]
        text = f"stage {stage['name']}: {len(stage['devices'])} devices"
        record(rollout, now, "stage_started", text, devices=stage["devices"])
    query = (
        select(RolloutDevice, Device)
        .join(Device, Device.id == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.stage == rollout.stage,
            RolloutDevice.state == "waiting",
        )
        .order_by(RolloutDevice.device_id)
        .limit(ORDERS_A_TICK)
    )
    rows = list(session.execute(query))
    if not rows:
        return
    version = figures.version_of(session, rollout.model, rollout.release)
    manifests = figures.manifests(session, version.id)
    for part, device in rows:
        _order(session, rollout, part, manifests.get(part.variant or ""), device, now)
    session.flush()


def _order(
    session: Session,
    rollout: Rollout,
    part: RolloutDevice,
    manifest: str | None,
    device: Device,
    now: float,
) -> None:
    held = session.get(Desired, (part.device_id, rollout.model))
    part.previous_variant = held.variant if held else None
    try:
        part.attempt = assignments.order(
            session,
            part.device_id,
            rollout.model,
            rollout.release,
            part.variant or "",
            rollout.order,
            rollout.id,
            now,
        )
    except HubError as error:
        # The device was revoked since the plan was made; the others go on.
        outcomes.end(part, "skipped", str(error), now)
        return
    part.state, part.assigned_at, part.step, part.step_at = "assigned", now, "", None
    if outcomes.holds(outcomes.read_state(device), rollout.model, manifest):
        outcomes.end(part, "confirmed", "runs it already", now)


def _read_figures(session: Session, rollout: Rollout) -> None:
    """Read the stage's figures anew if windows have come in since the last time."""
    fresh = session.scalar(
        select(WindowRecord.report_id)
        .where(WindowRecord.report_id > rollout.watermark, WindowRecord.model == rollout.model)
        .limit(1)
    )
    if fresh is not None or not rollout.statistics:
        stage, control = figures.read(session, rollout)
        rollout.statistics = {
            "stage": msgspec.to_builtins(stage),
            "control": msgspec.to_builtins(control),
        }


def stage_statistics(session: Session, rollout: Rollout, now: float) -> StageStatistics:
    """Return the figures of the running stage as they stand now."""
    states = outcomes.counts(session, rollout.id, rollout.stage)
    started = rollout.stage_started_at if rollout.stage_started_at is not None else now
    last_end = session.scalar(
        select(func.max(RolloutDevice.finished_at)).where(
            RolloutDevice.rollout_id == rollout.id, RolloutDevice.stage == rollout.stage
        )
    )
    under_way = states.get("waiting", 0) + states.get("assigned", 0)
    soaked = 0.0 if under_way else now - max(last_end or started, started)
    fields = figures.with_times(rollout.statistics, states, now - started, soaked)
    return msgspec.convert(fields, StageStatistics)


def _act(
    session: Session,
    rollout: Rollout,
    judgement: Judgement,
    statistics: StageStatistics,
    now: float,
) -> None:
    rollout.reason = judgement.reason
    if judgement.verdict == "proceed":
        record(rollout, now, "stage_passed", judgement.reason, statistics=statistics)
        if rollout.stage + 1 < len(rollout.stages):
            rollout.stage += 1
            rollout.stage_started_at, rollout.statistics = None, {}
            _order_stage(session, rollout, now)
        else:
            rollout.state, rollout.finished_at = RolloutState.COMPLETED, now
            record(rollout, now, "completed", judgement.reason)
    elif judgement.verdict == "pause":
        pause(rollout, judgement.reason, now, statistics)
    elif judgement.verdict == "roll_back":
        begin_rollback(session, rollout, judgement.reason, now, statistics)


def pause(
    rollout: Rollout, reason: str, now: float, statistics: StageStatistics | None = None
) -> None:
    """Stop ordering devices until someone resumes."""
    rollout.state, rollout.reason = RolloutState.PAUSED, reason
    record(rollout, now, "paused", reason, statistics=statistics)


# --- backwards ------------------------------------------------------------------------------------


def begin_rollback(
    session: Session,
    rollout: Rollout,
    reason: str,
    now: float,
    statistics: StageStatistics | None = None,
) -> None:
    """Begin to take a release back from every device that was given it.

    The way back is a new release of the previous version, because a device's release counter never
    goes back; where an owner has to sign it, the one that was signed ahead. Without a previous
    version, or if that one may not be released any more, the model is taken off.
    """
    rollout.reverts_to, way = None, "is taken off the devices"
    if rollout.previous is not None:
        version = figures.version_of(session, rollout.model, rollout.previous)
        try:
            made = registry.signed_ahead(session, version, rollout.release) or registry.release(
                session,
                rollout.model,
                version.version,
                f"rollback of release {rollout.release} (rollout {rollout.id}): {reason}",
                now,
                way_back=True,
            )
            rollout.reverts_to = made.number
            way = f"goes back to version {version.version} as release {made.number}"
            if made.waits_for:
                way += f", once {made.waits_for} has signed it"
                reason += f" (the way back waits for the signature of {made.waits_for})"
        except HubError as error:
            way = f"is taken off the devices, because {error}"
    for part in outcomes.parts(session, rollout.id, "waiting"):
        outcomes.end(part, "skipped", "the rollout was rolled back", now)
    reverting = _given(session, rollout)
    for part in reverting:
        part.state, part.attempt, part.step, part.step_at = "reverting", None, "", None
        part.reason, part.finished_at = "", None
    rollout.state, rollout.reason, rollout.finished_at = RolloutState.ROLLING_BACK, reason, None
    rollout.stage_started_at = now
    text = f"{reason}; {rollout.model} {way}"
    devices = [part.device_id for part in reverting]
    record(rollout, now, "rolling_back", text, devices=devices, statistics=statistics)
    session.flush()
    _order_back(session, rollout, now)


def _given(session: Session, rollout: Rollout) -> list[RolloutDevice]:
    """Return the parts of devices that were ordered, and by nobody else since."""
    query = (
        select(RolloutDevice)
        .join(Desired, Desired.device_id == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state.in_(GIVEN),
            Desired.model == rollout.model,
            Desired.rollout_id == rollout.id,
        )
        .order_by(RolloutDevice.device_id)
    )
    return list(session.scalars(query))


def _leave_taken_over(session: Session, rollout: Rollout, now: float) -> None:
    """End the parts of devices that somebody else has ordered since: they are on their way."""
    query = (
        select(RolloutDevice, Desired.rollout_id)
        .join(Desired, Desired.device_id == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state == "reverting",
            Desired.model == rollout.model,
            func.coalesce(Desired.rollout_id, 0) != rollout.id,
        )
    )
    for part, other in session.execute(query):
        outcomes.end(part, "reverted", f"taken over by rollout {other}", now)
    session.flush()


def _order_back(session: Session, rollout: Rollout, now: float) -> None:
    back = rollout.reverts_to
    if back is not None and signatures.waits_for(session, rollout.model, back):
        return
    rows = list(
        session.execute(
            select(RolloutDevice, Device)
            .join(Device, Device.id == RolloutDevice.device_id)
            .where(
                RolloutDevice.rollout_id == rollout.id,
                RolloutDevice.state == "reverting",
                RolloutDevice.attempt.is_(None),
            )
            .order_by(RolloutDevice.device_id)
            .limit(ORDERS_A_TICK)
        )
    )
    for part, device in rows:
        _order_device_back(session, rollout, part, device, now)
    session.flush()


def _order_device_back(
    session: Session, rollout: Rollout, part: RolloutDevice, device: Device, now: float
) -> None:
    part.assigned_at = now
    release = rollout.reverts_to
    profile = DeviceProfile(device.board, device.runtimes, device.memory_bytes)
    fitting = registry.variants_for(session, rollout.model, release, profile) if release else []
    try:
        if release and fitting:
            names = [variant.name for variant in fitting]
            # What the device ran before is still on it and is known to work there.
            part.variant = part.previous_variant if part.previous_variant in names else names[0]
            part.attempt = assignments.order(
                session, device.id, rollout.model, release, part.variant, rollout.order,
                rollout.id, now,
            )  # fmt: skip
            return
        part.variant = None
        assignments.withdraw(session, device.id, rollout.model, now)
        part.attempt = session.get_one(DirectorRecord, device.id).sequence
    except HubError as error:
        # A revoked device has no assignment any more, so nothing of the release is left on it.
        outcomes.end(part, "reverted", str(error), now)


def _way_back(session: Session, rollout: Rollout) -> dict[str, str]:
    if rollout.reverts_to is None:
        return {}
    version = figures.version_of(session, rollout.model, rollout.reverts_to)
    return figures.manifests(session, version.id)


def _finish_rollback(session: Session, rollout: Rollout, policy: GatePolicy, now: float) -> None:
    left = [part.device_id for part in outcomes.parts(session, rollout.id, "reverting")]
    began = rollout.stage_started_at if rollout.stage_started_at is not None else now
    if left and now - began < policy.silence_s:
        return
    rollout.state, rollout.finished_at = RolloutState.ROLLED_BACK, now
    if not left:
        record(rollout, now, "rolled_back", f"{rollout.reason}; every device is back")
        return
    text = f"{len(left)} devices have not said within {policy.silence_s:.0f} s that they are back"
    record(rollout, now, "rolled_back", text, devices=left)
    version = figures.version_of(session, rollout.model, rollout.release)
    session.add(
        Incident(
            model=rollout.model,
            version=version.version,
            kind="rollback",
            scope="device" if len(left) == 1 else "cohort",
            devices=left,
            text=f"rollout {rollout.id} was rolled back: {text}. Their orders stand",
            opened_at=now,
        )
    )


def _settle_late(session: Session, now: float) -> None:
    """Close the incidents of rollbacks whose last devices have come back after the deadline."""
    still_open = select(Incident).where(Incident.kind == "rollback", Incident.closed_at.is_(None))
    incidents = list(session.scalars(still_open))
    if not incidents:
        return
    late = select(Rollout).where(
        Rollout.state == RolloutState.ROLLED_BACK,
        Rollout.id.in_(select(RolloutDevice.rollout_id).where(RolloutDevice.state == "reverting")),
    )
    missing: set[tuple[str, str]] = set()
    for rollout in list(session.scalars(late)):
        outcomes.take(session, rollout, _way_back(session, rollout), None, now)
        session.flush()
        left = outcomes.parts(session, rollout.id, "reverting")
        missing.update((rollout.model, part.device_id) for part in left)
    for incident in incidents:
        if not any((incident.model, device) in missing for device in incident.devices):
            incident.closed_at = now
