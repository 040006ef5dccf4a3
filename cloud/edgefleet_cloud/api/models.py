"""Models, their versions and their releases over HTTP."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from edgefleet_cloud.api.context import Asker, Hub, allow
from edgefleet_cloud.api.datasets import DatasetAnswer
from edgefleet_cloud.api.runs import RunAnswer
from edgefleet_cloud.database.models import Model, Release, Version, VersionState
from edgefleet_cloud.registry import service
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.values import Json

router = APIRouter(prefix="/v1", tags=["models"])


class VariantAnswer(BaseModel):
    """One compiled form of a version."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    runtime: str
    state: str = Field(description="verified or refused; only a verified one is ever released.")
    reason: str | None = Field(description="Why it was refused.")
    measured: dict[str, Any] = Field(description="Score, parity, latency; see the manifest.")
    needs: dict[str, Any] = Field(description="What a device must offer.")
    model_digest: str | None
    model_bytes: int
    transfer_bytes: int = Field(description="Of the whole bundle as sent.")
    manifest: str | None = Field(description="Digest of the manifest.")
    recipe: str = Field(description="That made it, as YAML; empty for a finished bundle.")


class VersionAnswer(BaseModel):
    """One version of a model."""

    model: str
    version: str
    state: VersionState
    run_id: int
    reference: str = Field(description="Digest of the reference profile.")
    metrics: dict[str, float] = Field(description="Of the original model on held-out rows.")
    lineage: dict[str, Any]
    decision: dict[str, Any] = Field(description="Why it was approved or refused.")
    variants: list[VariantAnswer]
    releases: list[int] = Field(description="Release numbers of this version.")
    created_at: float


class VersionDetail(VersionAnswer):
    """One version with everything it was made of."""

    run: RunAnswer
    datasets: list[DatasetAnswer] = Field(description="All that had a part, nearest first.")


class ModelAnswer(BaseModel):
    """A named model."""

    name: str
    task: str
    risk: str = Field(description="standard, or high: two people approve each release.")
    created_at: float
    versions: int
    release: int | None = Field(description="Newest release number.")
    champion: str | None = Field(description="Version of the newest release.")


class ModelDetail(ModelAnswer):
    """A named model with its versions, newest first."""

    history: list[VersionAnswer]


class DecisionBody(BaseModel):
    """Why a version is approved, refused or retired."""

    reason: str = Field("", max_length=500)


class ReleaseBody(BaseModel):
    """Why a version is released."""

    reason: str = Field("by the operator", max_length=500)


class ReleaseAnswer(BaseModel):
    """A version made available to devices."""

    model: str
    number: int
    version: str
    reason: str
    created_at: float


@router.get("/models", dependencies=allow(Permission.READ))
def list_models(hub: Hub) -> list[ModelAnswer]:
    """List all models by name."""
    with hub.database.read() as session:
        return [ModelAnswer(**_model(session, row)) for row in service.list_models(session)]


@router.get("/models/{model}", dependencies=allow(Permission.READ))
def show_model(hub: Hub, model: str) -> ModelDetail:
    """Show a model and its versions."""
    with hub.database.read() as session:
        row = service.get_model(session, model)
        history = [VersionAnswer(**_version(session, v)) for v in service.versions(session, model)]
        return ModelDetail(**_model(session, row), history=history)


@router.get("/models/{model}/versions/{version}", dependencies=allow(Permission.READ))
def show_version(hub: Hub, model: str, version: str) -> VersionDetail:
    """Show one version with its variants, its run, and the data behind it."""
    with hub.database.read() as session:
        row = service.get_version(session, model, version)
        ancestry = service.ancestry(session, row)
        return VersionDetail(
            **_version(session, row),
            run=RunAnswer.model_validate(ancestry.run),
            datasets=[DatasetAnswer.model_validate(item) for item in ancestry.datasets],
        )


@router.post("/models/{model}/versions/{version}/approve", dependencies=allow(Permission.RELEASE))
def approve_version(
    hub: Hub, asker: Asker, model: str, version: str, body: DecisionBody
) -> VersionAnswer:
    """Allow a version to be released."""
    return _decide(hub, asker, model, version, VersionState.APPROVED, body)


@router.post("/models/{model}/versions/{version}/refuse", dependencies=allow(Permission.RELEASE))
def refuse_version(
    hub: Hub, asker: Asker, model: str, version: str, body: DecisionBody
) -> VersionAnswer:
    """Keep a version from being released."""
    return _decide(hub, asker, model, version, VersionState.REFUSED, body)


@router.post("/models/{model}/versions/{version}/retire", dependencies=allow(Permission.RELEASE))
def retire_version(
    hub: Hub, asker: Asker, model: str, version: str, body: DecisionBody
) -> VersionAnswer:
    """Withdraw an approved version: it is not released again."""
    return _decide(hub, asker, model, version, VersionState.RETIRED, body)


@router.post(
    "/models/{model}/versions/{version}/release",
    status_code=201,
    dependencies=allow(Permission.RELEASE),
)
def release_version(hub: Hub, model: str, version: str, body: ReleaseBody) -> ReleaseAnswer:
    """Make an approved version available under the next release number; no device gets it yet."""
    with hub.database.write() as session:
        made = service.release(session, model, version, body.reason, hub.clock())
        answer = _release(made, version)
    hub.wake()
    return answer


def _decide(
    hub: Hub, asker: Asker, model: str, version: str, state: VersionState, body: DecisionBody
) -> VersionAnswer:
    now = hub.clock()
    decision: Json = {"by": asker.name, "reason": body.reason, "at": now}
    with hub.database.write() as session:
        row = service.decide(session, model, version, state, decision, now)
        return VersionAnswer(**_version(session, row))


def _release(row: Release, version: str) -> ReleaseAnswer:
    return ReleaseAnswer(
        model=row.model,
        number=row.number,
        version=version,
        reason=row.reason,
        created_at=row.created_at,
    )


def _model(session: Session, row: Model) -> dict[str, Any]:
    releases = service.releases(session, row.name)
    champion = service.champion(session, row.name)
    return {
        "name": row.name,
        "task": row.task,
        "risk": row.risk,
        "created_at": row.created_at,
        "versions": len(service.versions(session, row.name)),
        "release": releases[0].number if releases else None,
        "champion": None if champion is None else champion.version,
    }


def _version(session: Session, row: Version) -> dict[str, Any]:
    releases = service.releases(session, row.model)
    return {
        "model": row.model,
        "version": row.version,
        "state": row.state,
        "run_id": row.run_id,
        "reference": row.reference,
        "metrics": row.metrics,
        "lineage": row.lineage,
        "decision": row.decision,
        "variants": [
            VariantAnswer.model_validate(item) for item in service.variants(session, row.id)
        ],
        "releases": sorted(item.number for item in releases if item.version_id == row.id),
        "created_at": row.created_at,
    }
