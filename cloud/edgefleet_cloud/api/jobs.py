"""Background jobs over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.database.models import Job, JobState
from edgefleet_cloud.jobs import service
from edgefleet_cloud.trust.people.roles import Permission

router = APIRouter(prefix="/v1", tags=["jobs"])


class JobAnswer(BaseModel):
    """A background job."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    kind: str
    arguments: dict[str, Any]
    state: JobState
    attempts: int = Field(description="How often it was started.")
    progress: float = Field(description="Share done, 0 to 1.")
    step: str = Field(description="What is being done now.")
    result: dict[str, Any] = Field(description="Empty until the job has succeeded.")
    error: str | None = Field(description="Why it failed.")
    created_at: float = Field(description="Unix seconds, as all times here.")
    started_at: float | None
    finished_at: float | None


@router.get("/jobs", dependencies=allow(Permission.READ), response_model=list[JobAnswer])
def list_jobs(
    hub: Hub,
    state: JobState | None = None,
    kind: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Job]:
    """List jobs, newest first."""
    with hub.database.read() as session:
        return service.list_jobs(session, state=state, kind=kind, limit=limit)


@router.get("/jobs/{job_id}", dependencies=allow(Permission.READ), response_model=JobAnswer)
def show_job(hub: Hub, job_id: RowId) -> Job:
    """Show one job."""
    with hub.database.read() as session:
        return service.get(session, job_id)


@router.post(
    "/jobs/{job_id}/cancel",
    dependencies=allow(Permission.MAKE, model_in_body=True),
    response_model=JobAnswer,
)
def cancel_job(hub: Hub, asker: Asker, job_id: RowId) -> Job:
    """End a job that is wanted no more: it fails, makes no version, and its process is killed."""
    with hub.database.write() as session:
        check(asker, Permission.MAKE, service.get(session, job_id).arguments["model"])
        job = service.cancel(session, job_id, hub.clock())
    hub.wake()
    return job
