"""Rollouts over HTTP: previewed, created, watched and steered."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.api.policies import ORDER
from edgefleet_cloud.database.models import RolloutState
from edgefleet_cloud.rollouts import service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["rollouts"])
Limit = Annotated[int, Query(ge=1, le=1000)]


class RolloutRequest(BaseModel):
    """A rollout to create, or to preview."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str = Field(description="An approved version; a preview takes any.")
    to: str = Field(description="Devices: `all`, `device:a,b`, `label:site=north`, `board:rpi4`.")
    strategy: Literal["direct", "staged", "canary"] = "staged"
    stages: list[float] | None = Field(
        None, description="Cumulative shares rising to 1, instead of the strategy's own."
    )
    gate: dict[str, Any] | None = Field(
        None,
        description=(
            "Thresholds: max_failed_share, min_executed, silence_s, min_rows, min_labelled,"
            " min_reporting, min_soak_s, decide_within_s, max_error_rate, max_accuracy_drop,"
            " max_latency_ratio, max_prediction_shift, on_breach (`roll_back` or `pause`)."
        ),
    )
    order: dict[str, Any] | None = Field(None, description=ORDER)
    variant: str | None = Field(None, description="For all devices, instead of the best for each.")


class ResumeRequest(BaseModel):
    """How to go on."""

    model_config = ConfigDict(extra="forbid")
    gate: dict[str, Any] | None = Field(None, description="Thresholds to change.")


class RollBackRequest(BaseModel):
    """Why a release is taken back."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=300)


class CandidateAnswer(BaseModel):
    """A device of the group."""

    device: str
    variant: str | None = Field(description="None if no variant fits.")
    transfer_bytes: int = Field(description="0 if the device holds it already.")
    reason: str
    sound: bool = Field(description="Neither silent nor under an open device fault.")


class StageAnswer(BaseModel):
    """Devices that would be ordered together."""

    name: str
    devices: list[CandidateAnswer]


class PlanAnswer(BaseModel):
    """What a rollout would do."""

    strategy: str
    stages: list[StageAnswer]
    skipped: list[CandidateAnswer]
    transfer_bytes: int = Field(description="To all devices together.")


class RolloutSummary(BaseModel):
    """A rollout in a few figures."""

    id: int
    model: str
    version: str
    release: int
    previous: int | None = Field(description="Release that the devices had before.")
    reverts_to: int | None = Field(description="Release of the way back, once it is rolled back.")
    strategy: str
    state: RolloutState
    stage: int = Field(description="Index of the running stage.")
    stage_count: int
    states: dict[str, int] = Field(description="State of a device's part → how many.")
    reason: str = Field(description="What the gate said last.")
    created_at: float = Field(description="Unix seconds, as all times here.")
    stage_started_at: float | None
    finished_at: float | None


class RolloutAnswer(RolloutSummary):
    """A rollout with all that belongs to it."""

    previous_version: str | None
    stages: list[dict[str, Any]] = Field(description="name, index, devices, states.")
    devices: list[dict[str, Any]] = Field(
        description="device, stage, variant, state, attempt, step, reason and times of each part."
    )
    gate: dict[str, Any]
    order: dict[str, Any]
    statistics: dict[str, Any] | None = Field(
        description="Of the running stage and its control group; None before it began."
    )
    history: list[dict[str, Any]] = Field(description="at, event, stage, text, …; newest last.")


@router.post(
    "/rollouts",
    status_code=201,
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=RolloutAnswer,
)
def create_rollout(hub: Hub, asker: Asker, body: RolloutRequest) -> dict[str, Any]:
    """Release a version to a group of devices, stage by stage."""
    check(asker, Permission.OPERATE, body.model)
    now = hub.clock()
    with hub.database.write() as session:
        rollout = service.create(session, now=now, **body.model_dump())
        answer = service.view(session, rollout, now)
    hub.wake()
    return answer


@router.post("/rollouts/preview", dependencies=allow(Permission.READ), response_model=PlanAnswer)
def preview_rollout(hub: Hub, body: RolloutRequest) -> dict[str, Any]:
    """Show every stage, device, variant, byte and reason of a rollout, and do nothing."""
    with hub.database.read() as session:
        plan = service.preview(session, now=hub.clock(), **body.model_dump())
    return {**msgspec.to_builtins(plan), "transfer_bytes": plan.transfer_bytes}


@router.get("/rollouts", dependencies=allow(Permission.READ), response_model=list[RolloutSummary])
def list_rollouts(
    hub: Hub,
    model: str | None = None,
    state: RolloutState | None = None,
    limit: Limit = 100,
) -> list[dict[str, Any]]:
    """List rollouts, newest first."""
    with hub.database.read() as session:
        found = service.list_rollouts(session, model=model, state=state, limit=limit)
        return [service.summary(session, rollout) for rollout in found]


@router.get(
    "/rollouts/{rollout_id}", dependencies=allow(Permission.READ), response_model=RolloutAnswer
)
def show_rollout(hub: Hub, rollout_id: RowId) -> dict[str, Any]:
    """Show one rollout with its devices, figures and history."""
    with hub.database.read() as session:
        return service.view(session, service.get(session, rollout_id), hub.clock())


@router.post(
    "/rollouts/{rollout_id}/pause",
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=RolloutSummary,
)
def pause_rollout(hub: Hub, asker: Asker, rollout_id: RowId) -> dict[str, Any]:
    """Order no further device until it is resumed."""
    with hub.database.write() as session:
        check(asker, Permission.OPERATE, service.get(session, rollout_id).model)
        return service.summary(session, service.pause(session, rollout_id, hub.clock()))


@router.post(
    "/rollouts/{rollout_id}/resume",
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=RolloutSummary,
)
def resume_rollout(
    hub: Hub, asker: Asker, rollout_id: RowId, body: ResumeRequest | None = None
) -> dict[str, Any]:
    """Go on; the stage is judged anew, and its failed devices are ordered once more."""
    gate = body.gate if body else None
    with hub.database.write() as session:
        check(asker, Permission.OPERATE, service.get(session, rollout_id).model)
        rollout = service.resume(session, rollout_id, hub.clock(), gate=gate)
        answer = service.summary(session, rollout)
    hub.wake()
    return answer


@router.post(
    "/rollouts/{rollout_id}/cancel",
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=RolloutSummary,
)
def cancel_rollout(hub: Hub, asker: Asker, rollout_id: RowId) -> dict[str, Any]:
    """Order no further device; what was ordered stays as it is."""
    with hub.database.write() as session:
        check(asker, Permission.OPERATE, service.get(session, rollout_id).model)
        return service.summary(session, service.cancel(session, rollout_id, hub.clock()))


@router.post(
    "/rollouts/{rollout_id}/rollback",
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=RolloutSummary,
)
def roll_back_rollout(
    hub: Hub, asker: Asker, rollout_id: RowId, body: RollBackRequest | None = None
) -> dict[str, Any]:
    """Take the release back from every device that was given it."""
    reason = body.reason if body else ""
    with hub.database.write() as session:
        check(asker, Permission.OPERATE, service.get(session, rollout_id).model)
        rollout = service.roll_back(session, rollout_id, reason, hub.clock())
        answer = service.summary(session, rollout)
    hub.wake()
    return answer
