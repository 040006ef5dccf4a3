"""Job rows: submitted, found, and moved along their one table of states.

`queued → running → succeeded | failed`; `running → queued` when the job's process or its hub died,
at most `MAX_ATTEMPTS` times. Running them is the runner's part (`jobs.runner`). A person may cancel
a job before it has ended: it has failed then, and the runner lets go of its process.
"""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Job, JobState
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.jobs.kinds import KINDS, Kind, load
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.values import Json

# A process may die through no fault of its job (memory taken by a neighbour); not three times.
MAX_ATTEMPTS = 3
OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)
FINAL_STATES = (JobState.SUCCEEDED, JobState.FAILED)


def submit(session: Session, kind: str, arguments: Json, now: float) -> Job:
    """Queue a job; it runs once the caller's transaction is committed.

    Args:
        session: in a write transaction.
        kind: name in `jobs.kinds.KINDS`.
        arguments: JSON, as that kind's work takes them.
        now: Unix seconds.

    Raises:
        InvalidError: if there is no such kind.
    """
    if kind not in KINDS:
        raise InvalidError(f"{kind!r} is no kind of job; expected one of {sorted(KINDS)}")
    job = Job(kind=kind, arguments=arguments, state=JobState.QUEUED, created_at=now)
    session.add(job)
    session.flush()
    return job


def get(session: Session, job_id: int) -> Job:
    """Return one job.

    Raises:
        NotFoundError: if there is none with this number.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError("job", job_id)
    return job


def fail(
    session: Session, job: Job, error: str, now: float, kinds: Mapping[str, Kind] = KINDS
) -> None:
    """End a job that has failed for good, in the caller's write transaction."""
    job.state, job.error, job.finished_at = JobState.FAILED, error, now
    load(kinds[job.kind].fail)(session, job, error, now)


def cancel(session: Session, job_id: int, now: float, kinds: Mapping[str, Kind] = KINDS) -> Job:
    """End a job that is wanted no more; the runner kills its process in its next round.

    Raises:
        NotFoundError: if there is none with this number.
        ConflictError: if it has ended.
    """
    job = get(session, job_id)
    if job.state in FINAL_STATES:
        raise ConflictError(f"job {job_id} has {job.state} already")
    before = job.state
    fail(session, job, f"cancelled by {acting.now().name}", now, kinds)
    what = {"kind": job.kind, "model": job.arguments.get("model")}
    audit.record(session, "job.cancel", str(job_id), now, before={"state": before}, after=what)
    return job


def list_jobs(
    session: Session, *, state: str | None = None, kind: str | None = None, limit: int = 100
) -> list[Job]:
    """Return jobs, newest first."""
    query = select(Job).order_by(Job.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    return list(session.scalars(query))
