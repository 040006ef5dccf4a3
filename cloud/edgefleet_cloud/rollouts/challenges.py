"""Challenges: a version beside the champion on the same devices, on the same rows.

As a `shadow` it sees every row and its answers go nowhere; as a `split` it answers a share of the
calls (A/B). Both report windows, so that challenger and champion are compared as the stage and
the control group of a rollout are. Rules:

1. A challenge never changes what a device serves: it has a release of its own, which does not make
   a champion. Rolling that version out takes the release up, and devices switch without a download.
2. One challenge a model at a time. Starting one where another runs is refused; stop that first.
3. It runs on the devices of the group that serve the model when it starts and can take a variant.
   The others are named with the reason.
"""

from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import (
    Challenge,
    ChallengerOrder,
    Desired,
    Device,
    Version,
    VersionState,
    WindowRecord,
)
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import assignments, groups
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import figures, gate, outcomes
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.values import Json
from edgefleet_protocol.messages import State
from edgefleet_protocol.profiles import DeviceProfile
from edgefleet_protocol.trust import Role

ROLES = ("shadow", "split")
# Any difference counts, if it is significant: nothing is released by a verdict.
MARGIN = 0.0


def start(
    session: Session,
    model: str,
    version: str,
    to: str,
    role: Role,
    now: float,
    *,
    share_percent: int = 50,
    window_rows: int | None = None,
) -> Challenge:
    """Let an approved version run beside what devices serve.

    Args:
        session: in a write transaction.
        model: of the version.
        version: an approved one.
        to: group query (`fleet.groups`).
        role: `shadow` or `split`.
        now: Unix seconds.
        share_percent: of the calls that a `split` answers.
        window_rows: rows in one report window; None for the devices' default.

    Raises:
        NotFoundError: no such version.
        ConflictError: it is not approved, or another challenge of the model runs.
        InvalidError: unreadable group or role, or no device of the group can take it.
    """
    if role not in ROLES:
        raise InvalidError(f"role {role!r}: expected one of {', '.join(ROLES)}")
    row = registry.get_version(session, model, version)
    if row.state != VersionState.APPROVED:
        raise ConflictError(f"{model} {version} is {row.state}; only an approved version may run")
    running = session.scalar(
        select(Challenge).where(Challenge.model == model, Challenge.state == "running")
    )
    if running is not None:
        raise ConflictError(f"challenge {running.id} of {model} runs; stop it first")
    takers = _takers(session, row, to)
    order: Json = {"role": role, "share_percent": share_percent}
    if window_rows is not None:
        order["window_rows"] = window_rows
    made = registry.release(session, model, version, f"{role} on {to}", now, challenge=True)
    challenge = Challenge(
        model=model,
        release=made.number,
        role=role,
        share_percent=share_percent,
        to=to,
        state="running",
        created_at=now,
    )
    session.add(challenge)
    session.flush()
    for device, variant in takers.items():
        assignments.challenge(session, device, model, made.number, variant, order, challenge.id)
    audit.record(
        session,
        "challenge.start",
        str(challenge.id),
        now,
        after={
            "model": model,
            "version": version,
            "release": made.number,
            "to": to,
            "order": order,
            "devices": takers,
        },
    )
    return challenge


def stop(session: Session, challenge_id: int, reason: str, now: float) -> Challenge:
    """Take the challenger off its devices; one that has ended stays as it ended.

    Raises:
        NotFoundError: no such challenge.
    """
    challenge = get(session, challenge_id)
    if challenge.state != "running":
        return challenge
    for device in _devices(session, challenge):
        assignments.end_challenge(session, device, challenge.model)
    challenge.state, challenge.reason, challenge.ended_at = "stopped", reason[:300], now
    session.flush()
    audit.record(
        session,
        "challenge.stop",
        str(challenge.id),
        now,
        before={"state": "running"},
        after={"state": "stopped", "model": challenge.model, "release": challenge.release},
        reason=reason,
    )
    return challenge


def get(session: Session, challenge_id: int) -> Challenge:
    """Return one challenge.

    Raises:
        NotFoundError: if there is none of this number.
    """
    challenge = session.get(Challenge, challenge_id)
    if challenge is None:
        raise NotFoundError("challenge", str(challenge_id))
    return challenge


def listing(session: Session, model: str | None = None) -> list[Challenge]:
    """Return challenges, newest first."""
    query = select(Challenge).order_by(Challenge.id.desc())
    if model is not None:
        query = query.where(Challenge.model == model)
    return list(session.scalars(query))


def view(session: Session, challenge: Challenge) -> dict[str, Any]:
    """Return a challenge with its devices and both sides' figures, for the API."""
    version = figures.version_of(session, challenge.model, challenge.release)
    devices = _states(session, challenge)
    champion = registry.champion(session, challenge.model)
    statistics = _compare(session, challenge, version, champion)
    return {
        **{column.name: getattr(challenge, column.name) for column in Challenge.__table__.columns},
        "version": version.version,
        "champion": None if champion is None else champion.version,
        "devices": devices,
        "challenger": msgspec.to_builtins(statistics.stage),
        "control": msgspec.to_builtins(statistics.control),
        "verdict": verdict(statistics),
    }


def verdict(statistics: gate.StageStatistics) -> str:
    """Say in one sentence how the challenger (`stage`) compares with the champion (`control`).

    Better or worse is said only where a one-sided two-proportion test at 99 % says it.
    """
    challenger, champion = statistics.stage, statistics.control
    drop = gate.accuracy_drop(statistics, MARGIN)
    if drop is None:
        shift = gate.prediction_shift(statistics)
        if shift is None:
            return f"{challenger.rows} rows seen, none labelled on both sides"
        return f"no labels on both sides; predictions differ by PSI {max(shift, 0.0):.3f}"
    words = (
        f"accuracy {challenger.accuracy:.3f} of {challenger.labelled} rows against"
        f" {champion.accuracy:.3f} of {champion.labelled}"
    )
    if drop[1] > gate.Z_99:
        return f"worse (99 %): {words}"
    if drop[1] < -gate.Z_99:
        return f"better (99 %): {words}"
    return f"not decided: {words}"


def _takers(session: Session, version: Version, to: str) -> dict[str, str]:
    """Return device → variant of the devices that serve the model and can take the version."""
    devices = groups.devices_in(session, to)
    offered = registry.variants(session, version.id)
    serving = set(session.scalars(select(Desired.device_id).where(Desired.model == version.model)))
    takers, reasons = {}, []
    for device in devices:
        profile = DeviceProfile(device.board, device.runtimes, device.memory_bytes)
        fitting = registry.fitting(offered, profile)
        if device.id not in serving:
            reasons.append(f"{device.id} does not serve {version.model}")
        elif not fitting:
            reasons.append(f"{device.id} can take no variant")
        else:
            takers[device.id] = fitting[0].name
    if not takers:
        listed = "; ".join(reasons[:5]) or "it has no enrolled device"
        raise InvalidError(f"no device of {to!r} can run the challenger: {listed}")
    return takers


def _devices(session: Session, challenge: Challenge) -> list[str]:
    return list(
        session.scalars(
            select(ChallengerOrder.device_id)
            .where(ChallengerOrder.challenge_id == challenge.id)
            .order_by(ChallengerOrder.device_id)
        )
    )


def _states(session: Session, challenge: Challenge) -> list[dict[str, Any]]:
    rows = session.execute(
        select(ChallengerOrder, Device)
        .join(Device, Device.id == ChallengerOrder.device_id)
        .where(ChallengerOrder.challenge_id == challenge.id)
        .order_by(ChallengerOrder.device_id)
    )
    found = []
    for order, device in rows:
        state = outcomes.read_state(device)
        step, reason = _step(state, order)
        found.append(
            {"device": device.id, "variant": order.variant, "step": step, "reason": reason}
        )
    return found


def _step(state: State | None, order: ChallengerOrder) -> tuple[str, str]:
    for attempt in state.attempts if state else ():
        if attempt.lane == "challenger" and attempt.number == order.attempt:
            return attempt.step.value, attempt.reason
    return "ordered", ""


def _compare(
    session: Session, challenge: Challenge, version: Version, champion: Version | None
) -> gate.StageStatistics:
    since = challenge.created_at
    ended = WindowRecord.received_at <= (challenge.ended_at or float("inf"))
    seen = select(WindowRecord.device_id).where(
        WindowRecord.model == challenge.model,
        WindowRecord.release == challenge.release,
        WindowRecord.received_at >= since,
    )
    stage = figures.group(
        session, version, since, ended & (WindowRecord.release == challenge.release)
    )
    if champion is None or champion.id == version.id:
        return gate.StageStatistics(stage=stage)
    control = figures.group(session, champion, since, ended & WindowRecord.device_id.in_(seen))
    return gate.StageStatistics(stage=stage, control=control)
