"""Triggers and retrainings over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.database.models import Retraining, Trigger
from edgefleet_cloud.retraining import service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["retraining"])
RECIPE = (
    "trainer, parameters, purpose, min_samples, base, holdout_share, seed, variants, min_gain,"
    " max_loss, auto_release, strategy, to, stages, gate, order."
)


class TriggerRequest(BaseModel):
    """A rule: drift of the model's champion starts a retraining."""

    model_config = ConfigDict(extra="forbid")
    model: str
    recipe: dict[str, Any] = Field(description=RECIPE)


class TriggerAnswer(BaseModel):
    """A rule that starts retrainings."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    model: str
    kind: str
    recipe: dict[str, Any]
    enabled: bool
    fired_at: float | None = Field(description="Unix seconds, as all times here.")
    fired_version: str | None = Field(description="The champion that it challenged last.")


class RetrainingRequest(BaseModel):
    """A retraining to start now."""

    model_config = ConfigDict(extra="forbid")
    model: str
    recipe: dict[str, Any] = Field(description=RECIPE)
    since: float = Field(0.0, ge=0, description="Use samples that came in from then on.")


class RetrainingAnswer(BaseModel):
    """A challenge of a model's champion."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    model: str
    trigger_id: int | None
    incident_id: int | None
    job_id: int
    champion: str | None
    version: str | None = Field(description="The challenger, once it is registered.")
    recipe: dict[str, Any]
    state: str = Field(description="running, approved, refused or failed.")
    reason: str
    decision: dict[str, Any] = Field(description="Scores, gain and p-value of both.")
    rollout_id: int | None
    created_at: float
    finished_at: float | None


@router.post(
    "/triggers",
    status_code=201,
    dependencies=allow(Permission.RELEASE, model_in_body=True),
    response_model=TriggerAnswer,
)
def add_trigger(hub: Hub, asker: Asker, body: TriggerRequest) -> Trigger:
    """Have drift of a model's champion start a retraining."""
    check(asker, Permission.RELEASE, body.model)
    with hub.database.write() as session:
        return service.add_trigger(session, body.model, body.recipe, hub.clock())


@router.get("/triggers", dependencies=allow(Permission.READ), response_model=list[TriggerAnswer])
def list_triggers(hub: Hub, model: str | None = None) -> list[Trigger]:
    """List triggers, newest first."""
    with hub.database.read() as session:
        return service.list_triggers(session, model=model)


@router.post(
    "/triggers/{trigger_id}/disable",
    dependencies=allow(Permission.RELEASE, model_in_body=True),
    response_model=TriggerAnswer,
)
def disable_trigger(hub: Hub, asker: Asker, trigger_id: RowId) -> Trigger:
    """Let a trigger start nothing any more."""
    with hub.database.write() as session:
        check(asker, Permission.RELEASE, service.get_trigger(session, trigger_id).model)
        return service.disable_trigger(session, trigger_id, hub.clock())


@router.post(
    "/retrainings",
    status_code=201,
    dependencies=allow(Permission.RELEASE, model_in_body=True),
    response_model=RetrainingAnswer,
)
def start_retraining(hub: Hub, asker: Asker, body: RetrainingRequest) -> Retraining:
    """Retrain a model now, from the labelled samples of the field."""
    check(asker, Permission.RELEASE, body.model)
    with hub.database.write() as session:
        made = service.start(
            session, hub.store, body.model, body.recipe, hub.clock(), since=body.since
        )
    hub.wake()
    return made


@router.get(
    "/retrainings", dependencies=allow(Permission.READ), response_model=list[RetrainingAnswer]
)
def list_retrainings(
    hub: Hub,
    model: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Retraining]:
    """List retrainings, newest first."""
    with hub.database.read() as session:
        return service.list_retrainings(session, model=model, limit=limit)


@router.get(
    "/retrainings/{retraining_id}",
    dependencies=allow(Permission.READ),
    response_model=RetrainingAnswer,
)
def show_retraining(hub: Hub, retraining_id: RowId) -> Retraining:
    """Show one retraining with its decision."""
    with hub.database.read() as session:
        return service.get(session, retraining_id)
