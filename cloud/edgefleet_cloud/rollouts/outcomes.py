"""What devices say of a rollout's orders: their states and results, taken in once.

States of a device's part: `waiting → assigned → confirmed | failed`; after a rollback also
`… → reverting → reverted`; `skipped` from waiting or assigned. Rules:

1. A result counts if it names the attempt that was ordered. A state counts if it names that
   attempt, or shows that the device serves the wanted manifest by hash and is not still trying it:
   what a device runs is told by the hash, not by what was once reported.
2. A part that has ended stays as it ended. Only a new order (a new attempt) begins again.
3. A device whose attempt shows no progress for `silence_s` has failed. Silence is no success.
   One that says what it waits for (its maintenance window, its byte budget) is not silent.
4. A device is reverted only when it has accepted the order to go back (its assignment is at least
   that order's attempt), so a state that was under way before does not count.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Device, ResultRecord, Rollout, RolloutDevice
from edgefleet_cloud.rollouts.record import record
from edgefleet_protocol.messages import FINAL_STEPS, Attempt, State, Step

# States stamped shortly before the last look may have been committed after it.
OVERLAP_S = 5.0
UNDER_WAY = ("assigned", "reverting")
_ENDINGS = {
    Step.CONFIRMED: "confirmed",
    Step.FAILED: "failed",
    Step.ROLLED_BACK: "failed",
    Step.REJECTED: "failed",
}


def take(
    session: Session,
    rollout: Rollout,
    wanted: Mapping[str, str],
    silence_s: float | None,
    now: float,
) -> None:
    """Bring the parts of all devices under way up to what they have reported since the last time.

    Args:
        session: in a write transaction.
        rollout: whose parts.
        wanted: variant → digest of the manifest that devices are to run now; empty where the model
            is to be taken off.
        silence_s: without progress for so long, an assigned device has failed; None for no limit.
        now: Unix seconds.
    """
    _take_results(session, rollout, now)
    _take_states(session, rollout, wanted, now)
    session.flush()
    if silence_s is not None:
        _fail_silent(session, rollout, silence_s, now)
    rollout.checked_at = now


def read_state(device: Device) -> State | None:
    """Return what a device has reported, None before its first state."""
    return msgspec.convert(device.reported, State) if device.reported else None


def holds(state: State | None, model: str, manifest: str | None) -> bool:
    """Tell whether a device serves this manifest and is not still trying it."""
    if state is None or manifest is None:
        return False
    serving = any(slot.model == model and slot.manifest == manifest for slot in state.serving)
    trying = any(
        attempt.manifest == manifest and attempt.step not in FINAL_STEPS
        for attempt in state.attempts
        if attempt.model == model
    )
    return serving and not trying


def end(part: RolloutDevice, state: str, reason: str, now: float) -> None:
    """End a device's part."""
    part.state, part.reason, part.finished_at = state, reason, now


def _take_results(session: Session, rollout: Rollout, now: float) -> None:
    rows = session.execute(
        select(RolloutDevice, ResultRecord)
        .join(
            ResultRecord,
            (ResultRecord.device_id == RolloutDevice.device_id)
            & (ResultRecord.attempt == RolloutDevice.attempt),
        )
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state == "assigned",
            ResultRecord.model == rollout.model,
            ResultRecord.report_id > rollout.watermark,
        )
        .order_by(ResultRecord.report_id)
    )
    for part, result in rows:
        _end_attempt(rollout, part, Step(result.outcome), result.reason, now)


def _take_states(session: Session, rollout: Rollout, wanted: Mapping[str, str], now: float) -> None:
    rows = session.execute(
        select(RolloutDevice, Device)
        .join(Device, Device.id == RolloutDevice.device_id)
        .where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state.in_(UNDER_WAY),
            RolloutDevice.attempt.is_not(None),
            Device.last_seen_at >= rollout.checked_at - OVERLAP_S,
        )
    )
    for part, device in rows:
        state = read_state(device)
        if state is None:
            continue
        attempts = [a for a in state.attempts if a.model == rollout.model]
        ours = next((a for a in attempts if a.number == part.attempt), None)
        if ours is not None:
            _note_progress(part, ours, device.last_seen_at or now, now)
        manifest = wanted.get(part.variant or "")
        if part.state == "reverting":
            if _is_back(state, rollout.model, manifest, part.attempt or 0):
                end(part, "reverted", "", now)
        elif ours is not None and ours.step in FINAL_STEPS:
            _end_attempt(rollout, part, ours.step, ours.reason, now)
        elif holds(state, rollout.model, manifest):
            end(part, "confirmed", "", now)


def _is_back(state: State, model: str, manifest: str | None, attempt: int) -> bool:
    if state.assignment < attempt:
        return False
    if manifest is not None:
        return holds(state, model, manifest)
    return all(slot.model != model for slot in state.serving)


def _end_attempt(
    rollout: Rollout, part: RolloutDevice, step: Step, reason: str, now: float
) -> None:
    ending = _ENDINGS.get(step)
    # A superseded attempt has a newer order behind it, which ends the part in its own way.
    if part.state != "assigned" or ending is None:
        return
    end(part, ending, reason, now)
    if ending == "failed":
        text = f"{part.device_id}: {step}: {reason}"
        record(rollout, now, "device_failed", text, devices=[part.device_id])


def _note_progress(part: RolloutDevice, attempt: Attempt, heard_at: float, now: float) -> None:
    step = attempt.step.value
    if attempt.step is Step.FETCHING and attempt.total_bytes:
        step += f" {attempt.received_bytes}/{attempt.total_bytes}"
    waits_for = "" if attempt.step in FINAL_STEPS else attempt.reason
    if step != part.step:
        part.step, part.step_at = step, now
    elif waits_for:
        part.step_at = heard_at
    part.reason = waits_for


def _fail_silent(session: Session, rollout: Rollout, silence_s: float, now: float) -> None:
    limit = now - silence_s
    silent = session.scalars(
        select(RolloutDevice).where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state == "assigned",
            func.coalesce(RolloutDevice.step_at, RolloutDevice.assigned_at) <= limit,
        )
    )
    for part in silent:
        text = f"no progress for {silence_s:.0f} s" + (f" at {part.step}" if part.step else "")
        end(part, "failed", text, now)
        record(rollout, now, "device_failed", f"{part.device_id}: {text}", devices=[part.device_id])


def counts(session: Session, rollout_id: int, stage: int | None = None) -> dict[str, int]:
    """Return state → number of devices, of one stage or of all."""
    query = (
        select(RolloutDevice.state, func.count())
        .where(RolloutDevice.rollout_id == rollout_id)
        .group_by(RolloutDevice.state)
    )
    if stage is not None:
        query = query.where(RolloutDevice.stage == stage)
    return {row[0]: row[1] for row in session.execute(query)}


def parts(session: Session, rollout_id: int, *states: str, limit: int = 0) -> list[RolloutDevice]:
    """Return the parts of a rollout in any of these states (all without), by stage and device."""
    query = (
        select(RolloutDevice)
        .where(RolloutDevice.rollout_id == rollout_id)
        .order_by(RolloutDevice.stage, RolloutDevice.device_id)
    )
    if states:
        query = query.where(or_(*(RolloutDevice.state == state for state in states)))
    if limit:
        query = query.limit(limit)
    return list(session.scalars(query))


def rows_as_json(found: list[RolloutDevice]) -> list[dict[str, Any]]:
    """Return parts for the API."""
    fields = (
        "stage", "variant", "state", "attempt", "step", "step_at", "reason", "assigned_at",
        "finished_at",
    )  # fmt: skip
    return [
        {"device": part.device_id, **{name: getattr(part, name) for name in fields}}
        for part in found
    ]
