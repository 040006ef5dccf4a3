"""Challenges over HTTP: versions beside the champion, as a shadow or for a share of the calls."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.rollouts import challenges as service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["challenges"])


class ChallengeRequest(BaseModel):
    """A challenge to start."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str = Field(description="An approved version of the model.")
    to: str = Field(description="`all`, `device:a,b`, `label:site=north`, `board:rpi4`.")
    role: Literal["shadow", "split"] = Field(
        description="`shadow` sees every row and answers none; `split` answers some calls."
    )
    share_percent: int = Field(default=50, ge=1, le=99, description="Of the calls, for a `split`.")
    window_rows: int | None = Field(None, ge=1, description="Rows in one of its windows.")


class StopRequest(BaseModel):
    """Why a challenge ends."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=300)


class ChallengeAnswer(BaseModel):
    """A challenge with both sides' figures."""

    id: int
    model: str
    version: str
    release: int
    champion: str | None = Field(description="Version that it is compared with.")
    role: str
    share_percent: int
    to: str
    state: str = Field(description="running or stopped.")
    reason: str
    created_at: float
    ended_at: float | None
    devices: list[dict[str, Any]] = Field(
        description="device, variant, step and reason, while the challenge runs."
    )
    challenger: dict[str, Any] = Field(description="What it has served since it began.")
    control: dict[str, Any] = Field(description="What the champion has, on the same devices.")
    verdict: str


@router.post(
    "/challenges",
    status_code=201,
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=ChallengeAnswer,
)
def start_challenge(hub: Hub, asker: Asker, body: ChallengeRequest) -> dict[str, Any]:
    """Let a version run beside the champion on some devices."""
    check(asker, Permission.OPERATE, body.model)
    with hub.database.write() as session:
        challenge = service.start(session, now=hub.clock(), **body.model_dump())
        answer = service.view(session, challenge)
    hub.wake()
    return answer


@router.get(
    "/challenges", dependencies=allow(Permission.READ), response_model=list[ChallengeAnswer]
)
def list_challenges(hub: Hub, model: str | None = None) -> list[dict[str, Any]]:
    """List challenges, newest first."""
    with hub.database.read() as session:
        return [service.view(session, row) for row in service.listing(session, model)]


@router.get(
    "/challenges/{challenge}", dependencies=allow(Permission.READ), response_model=ChallengeAnswer
)
def show_challenge(hub: Hub, challenge: RowId) -> dict[str, Any]:
    """Show how a challenger compares with the champion."""
    with hub.database.read() as session:
        return service.view(session, service.get(session, challenge))


@router.post(
    "/challenges/{challenge}/stop",
    dependencies=allow(Permission.OPERATE, model_in_body=True),
    response_model=ChallengeAnswer,
)
def stop_challenge(hub: Hub, asker: Asker, challenge: RowId, body: StopRequest) -> dict[str, Any]:
    """Take the challenger off its devices. What was compared stays."""
    with hub.database.write() as session:
        check(asker, Permission.OPERATE, service.get(session, challenge).model)
        answer = service.view(session, service.stop(session, challenge, body.reason, hub.clock()))
    hub.wake()
    return answer
