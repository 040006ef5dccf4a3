"""Drift, performance and incidents over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Hub, RowId, allow
from edgefleet_cloud.database.models import Incident
from edgefleet_cloud.monitoring import incidents, service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["monitoring"])
Limit = Annotated[int, Query(ge=1, le=1000)]


class VerdictAnswer(BaseModel):
    """What was said of a model version at one time."""

    id: int
    model: str
    version: str
    at: float = Field(description="Unix seconds, as all times here.")
    scope: str = Field(description="none, device, cohort or fleet: the widest found.")
    findings: list[dict[str, Any]] = Field(
        description="scope, kind, devices, features with psi, effect and ks, text, since, label."
    )
    rows: int
    devices: int = Field(description="That report on this version.")


class DeviceDrift(BaseModel):
    """A device on a model version."""

    device: str
    state: str = Field(description="learning, steady, unlike, shifted or stuck.")
    shifted: list[str] = Field(description="Features that have changed, to values new to it.")
    unlike: list[str] = Field(description="Features unlike training since the beginning.")
    stuck: list[str] = Field(description="Features that do not move any more.")
    rows: int
    malformed: int = Field(description="Window reports that could not be used.")
    looked_at: float | None
    reporting: bool
    psi: list[float] | None = Field(description="Of each feature, in the newest window.")
    health: dict[str, Any] | None = Field(description="At the end of the newest window.")


class DriftAnswer(BaseModel):
    """The state of a model version on the fleet."""

    model: str
    version: str
    features: list[str]
    verdict: VerdictAnswer | None = Field(description="The newest; None before the first look.")
    devices: list[DeviceDrift]


class Served(BaseModel):
    """What a version has served in one time bucket."""

    version: str
    at: float = Field(description="Start of the bucket.")
    device: str | None = None
    devices: int
    rows: int
    errors: int
    labelled: int
    correct: int
    accuracy: float | None = Field(description="None without labelled rows.")


class IncidentAnswer(BaseModel):
    """Something that a person, or a retraining, has to act on."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    model: str
    version: str
    kind: str
    scope: str
    devices: list[str]
    features: list[str]
    text: str
    opened_at: float
    closed_at: float | None


@router.get(
    "/models/{model}/drift", dependencies=allow(Permission.READ), response_model=DriftAnswer
)
def show_drift(hub: Hub, model: str, version: str | None = None) -> dict[str, Any]:
    """Show the newest verdict and every device's state; of the champion without `version`."""
    with hub.database.read() as session:
        return service.drift(session, hub.store, model, version, hub.clock())


@router.get(
    "/models/{model}/verdicts",
    dependencies=allow(Permission.READ),
    response_model=list[VerdictAnswer],
)
def list_verdicts(hub: Hub, model: str, limit: Limit = 100) -> list[dict[str, Any]]:
    """List what was said of a model's versions, newest first."""
    with hub.database.read() as session:
        found = service.verdicts(session, model, limit=limit)
        return [service.verdict_as_json(verdict) for verdict in found]


@router.get(
    "/models/{model}/performance", dependencies=allow(Permission.READ), response_model=list[Served]
)
def show_performance(
    hub: Hub,
    model: str,
    since: Annotated[float | None, Query(ge=0)] = None,
    bucket_s: Annotated[float | None, Query(gt=0)] = None,
    by_device: bool = False,
) -> list[dict[str, Any]]:
    """Show rows, errors and accuracy by version over time, oldest first."""
    with hub.database.read() as session:
        return service.performance(
            session, model, since=since, bucket_s=bucket_s, by_device=by_device
        )


@router.get("/incidents", dependencies=allow(Permission.READ), response_model=list[IncidentAnswer])
def list_incidents(
    hub: Hub,
    model: str | None = None,
    kind: str | None = None,
    only_open: bool = False,
    limit: Limit = 100,
) -> list[Incident]:
    """List incidents, newest first."""
    with hub.database.read() as session:
        return incidents.list_incidents(
            session, model=model, kind=kind, only_open=only_open, limit=limit
        )


@router.post(
    "/incidents/{incident_id}/close",
    dependencies=allow(Permission.OPERATE),
    response_model=IncidentAnswer,
)
def close_incident(hub: Hub, incident_id: RowId) -> Incident:
    """Close an incident; a drift or a device fault then makes its devices learn anew."""
    with hub.database.write() as session:
        return incidents.close(session, incident_id, hub.clock())
