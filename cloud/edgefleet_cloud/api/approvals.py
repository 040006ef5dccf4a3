"""Approvals over HTTP: what waits for a second person, and their answers."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.database.models import ApprovalState
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["approvals"])


class AskBody(BaseModel):
    """A version that people shall approve."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str
    reason: str = Field("", max_length=approvals.MAX_REASON_LENGTH)


class VoiceBody(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")
    digest: str = Field(
        description="Of what was looked at, as the question names it.", max_length=64
    )
    reason: str = Field("", max_length=approvals.MAX_REASON_LENGTH)


class RiskBody(BaseModel):
    """How risky a model is."""

    model_config = ConfigDict(extra="forbid")
    risk: Literal["standard", "high"]
    reason: str = Field("", max_length=approvals.MAX_REASON_LENGTH)


class VoiceAnswer(BaseModel):
    """What one person said."""

    account: str
    yes: bool
    reason: str
    at: float


class ApprovalAnswer(BaseModel):
    """A question to people."""

    id: int
    kind: str = Field(description="release, or lower-risk.")
    model: str
    version: str = Field(description="Empty for lower-risk.")
    digest: str = Field(description="Of exactly what is asked about.")
    asked_by: str
    makers: list[str] = Field(description="Who has no voice.")
    reason: str
    state: ApprovalState
    needed: int = Field(description="How many people have to say yes.")
    voices: list[VoiceAnswer]
    rollout_id: int | None = Field(description="Of the rollout that it started.")
    outcome: str
    created_at: float
    decided_at: float | None


class RiskAnswer(BaseModel):
    """A model's risk, and the question about lowering it, if one waits."""

    model: str
    risk: str
    approval: ApprovalAnswer | None


@router.get("/approvals", dependencies=allow(Permission.READ))
def list_approvals(
    hub: Hub,
    state: ApprovalState | None = None,
    model: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[ApprovalAnswer]:
    """List questions, newest first."""
    with hub.database.read() as session:
        rows = approvals.listing(session, state=state, model=model, limit=limit)
        return [ApprovalAnswer(**approvals.view(session, row)) for row in rows]


@router.get("/approvals/{approval_id}", dependencies=allow(Permission.READ))
def show_approval(hub: Hub, approval_id: RowId) -> ApprovalAnswer:
    """Show one question with what was said to it."""
    with hub.database.read() as session:
        return ApprovalAnswer(**approvals.view(session, approvals.get(session, approval_id)))


@router.post(
    "/approvals", status_code=201, dependencies=allow(Permission.RELEASE, model_in_body=True)
)
def ask_for_approval(hub: Hub, asker: Asker, body: AskBody) -> ApprovalAnswer | None:
    """Ask two people about a version of a high-risk model; null if nobody has to be asked."""
    check(asker, Permission.RELEASE, body.model)
    with hub.database.write() as session:
        version = registry.get_version(session, body.model, body.version)
        asked = approvals.ask(session, version, hub.clock(), reason=body.reason)
        return None if asked is None else ApprovalAnswer(**approvals.view(session, asked))


@router.post("/approvals/{approval_id}/approve", dependencies=allow(Permission.APPROVE))
def approve(hub: Hub, asker: Asker, approval_id: RowId, body: VoiceBody) -> ApprovalAnswer:
    """Say yes, as a person who had no part in it."""
    return _speak(hub, asker, approval_id, body, yes=True)


@router.post("/approvals/{approval_id}/refuse", dependencies=allow(Permission.APPROVE))
def refuse(hub: Hub, asker: Asker, approval_id: RowId, body: VoiceBody) -> ApprovalAnswer:
    """Say no, which ends the question."""
    return _speak(hub, asker, approval_id, body, yes=False)


@router.put("/models/{model}/risk", dependencies=allow(Permission.RELEASE))
def set_risk(hub: Hub, model: str, body: RiskBody) -> RiskAnswer:
    """Make a model high-risk at once, or ask two people to make it standard again."""
    with hub.database.write() as session:
        asked = approvals.set_risk(session, model, body.risk, body.reason, hub.clock())
        view: dict[str, Any] | None = None if asked is None else approvals.view(session, asked)
        return RiskAnswer(
            model=model,
            risk=registry.get_model(session, model).risk,
            approval=None if view is None else ApprovalAnswer(**view),
        )


def _speak(
    hub: Hub, asker: Asker, approval_id: int, body: VoiceBody, *, yes: bool
) -> ApprovalAnswer:
    with hub.database.write() as session:
        asked = approvals.speak(
            session,
            approval_id,
            asker,
            yes=yes,
            digest=body.digest,
            reason=body.reason,
            now=hub.clock(),
        )
        answer = ApprovalAnswer(**approvals.view(session, asked))
    hub.wake()
    return answer
