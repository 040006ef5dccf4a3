"""Runs queued jobs: called once a round by the scheduler, from one thread.

Rules:

1. A job is marked running, with this hub's boot id and one more attempt, before it is started.
2. A job's effect on the database and its state `succeeded` are one transaction.
3. An error that the work raised is final: the same input would raise it again.
4. A process that died is not the work's answer: the job is queued again, up to three attempts.
   So is a job marked running that this runner does not hold: the hub that started it is gone
   (two hubs cannot share a home), or its process could not be started.
5. A job that runs longer than its deadline is killed, and fails for good.
6. When the hub stops, its running jobs are queued again, and the attempt is not counted.
7. A job that somebody has cancelled is not running any more: its process is killed, and whatever
   that had to say is not heard.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Job, JobState
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import HubError
from edgefleet_cloud.jobs import service
from edgefleet_cloud.jobs.kinds import KINDS, Kind, load
from edgefleet_cloud.jobs.processes import LocalProcesses, Workers
from edgefleet_cloud.jobs.service import MAX_ATTEMPTS
from edgefleet_cloud.jobs.worker import Outcome, Task, read_progress
from edgefleet_cloud.storage import Store
from edgefleet_cloud.values import Json

# The longest conversions measured take minutes; an hour means that something hangs.
DEADLINE_S = 3600.0
logger = logging.getLogger(__name__)


@dataclass
class _Running:
    future: "Future[Outcome]"
    folder: Path
    deadline: float
    overdue: bool = False


class JobRunner:
    """Starts, watches and finishes jobs.

    Args:
        database: with the job rows.
        store: handed to the work and to `finish`.
        folder: scratch folders of running jobs.
        limit: jobs that run at once.
        clock: Unix seconds.
        kinds: what can be run.
        workers: where it runs; processes of this machine by default.
        deadline_s: the most that one attempt may take.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        folder: Path,
        *,
        limit: int,
        clock: Callable[[], float],
        kinds: Mapping[str, Kind] = KINDS,
        workers: Workers | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.boot = uuid4().hex
        self._database = database
        self._store = store
        self._folder = folder
        self._limit = limit
        self._clock = clock
        self._kinds = kinds
        self._workers: Workers = workers or LocalProcesses()
        self._deadline_s = deadline_s
        self._running: dict[int, _Running] = {}
        # Scratch that a killed hub left behind belongs to nobody.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)

    def tick(self) -> None:
        """Collect what has ended, persist progress, adopt orphans, start what fits."""
        self._stop_cancelled()
        for job_id, running in list(self._running.items()):
            if running.future.done():
                self._collect(job_id, running)
            elif self._clock() > running.deadline and not running.overdue:
                running.overdue = True
                self._workers.stop(job_id)
        self._persist_progress()
        self._adopt_orphans()
        while len(self._running) < self._limit and self._start_next():
            pass

    def close(self) -> None:
        """Stop: kill running attempts and queue their jobs again."""
        self._workers.close()
        with self._database.write() as session:
            for job_id, running in self._running.items():
                if job := _running_job(session, job_id):
                    job.state, job.owner, job.attempts = JobState.QUEUED, None, job.attempts - 1
                shutil.rmtree(running.folder, ignore_errors=True)
        self._running.clear()

    # --- starting -----------------------------------------------------------------------------

    def _start_next(self) -> bool:
        now = self._clock()
        with self._database.write() as session:
            job = session.scalar(
                select(Job).where(Job.state == JobState.QUEUED).order_by(Job.id).limit(1)
            )
            if job is None:
                return False
            kind = self._kinds.get(job.kind)
            if kind is None:
                job.state, job.finished_at = JobState.FAILED, now
                job.error = f"this hub knows no kind of job {job.kind!r}"
                return True
            job.state, job.owner, job.started_at = JobState.RUNNING, self.boot, now
            job.attempts += 1
            job.progress, job.step = 0.0, "starting"
        folder = self._folder / f"{job.id}-{job.attempts}"
        folder.mkdir(mode=0o700)
        task = Task(job.id, kind.work, job.arguments, folder, self._store.folder)
        self._running[job.id] = _Running(self._workers.submit(task), folder, now + self._deadline_s)
        return True

    def _adopt_orphans(self) -> None:
        # Of a hub that is gone; or of this one, where the process could not be started.
        orphans = select(Job).where(
            Job.state == JobState.RUNNING, Job.id.not_in(list(self._running))
        )
        with self._database.read() as session:
            if session.scalar(orphans.limit(1)) is None:
                return
        with self._database.write() as session:
            for job in session.scalars(orphans):
                self._requeue(session, job, "its process is gone")

    # --- watching -----------------------------------------------------------------------------

    def _stop_cancelled(self) -> None:
        if not self._running:
            return
        ended = select(Job.id).where(Job.id.in_(self._running), Job.state != JobState.RUNNING)
        with self._database.read() as session:
            for job_id in session.scalars(ended).all():
                self._workers.stop(job_id)

    def _persist_progress(self) -> None:
        said = {}
        for job_id, running in self._running.items():
            progress = read_progress(running.folder)
            if progress is not None:
                said[job_id] = progress
        if not said:
            return
        with self._database.read() as session:
            rows = session.scalars(
                select(Job).where(Job.id.in_(said), Job.state == JobState.RUNNING)
            )
            changed = [job.id for job in rows if (job.progress, job.step) != said[job.id]]
        if changed:
            with self._database.write() as session:
                for job_id in changed:
                    job = session.get_one(Job, job_id)
                    job.progress, job.step = said[job_id]

    # --- ending -------------------------------------------------------------------------------

    def _collect(self, job_id: int, running: _Running) -> None:
        error = running.future.exception()
        try:
            if running.overdue:
                self._fail(job_id, f"ran longer than {self._deadline_s:.0f} s and was stopped")
            elif isinstance(error, BrokenExecutor):
                with self._database.write() as session:
                    if job := _running_job(session, job_id):
                        self._requeue(session, job, "its process died")
            elif error is not None:
                logger.error("job %d could not be run", job_id, exc_info=error)
                self._fail(job_id, f"{type(error).__name__}: {error}")
            else:
                self._conclude(job_id, running.future.result())
        finally:
            # Also when the database could not take the outcome: `_running` keeps it until it can.
            self._workers.stop(job_id)
        del self._running[job_id]
        shutil.rmtree(running.folder, ignore_errors=True)

    def _conclude(self, job_id: int, outcome: Outcome) -> None:
        if outcome.result is None:
            logger.warning("job %d failed: %s\n%s", job_id, outcome.error, outcome.trace)
            self._fail(job_id, outcome.error or "the work gave no result")
            return
        try:
            self._succeed(job_id, outcome.result)
        except OperationalError:
            # The database is busy or away: the result is kept, and the next round tries again.
            raise
        except HubError as refused:
            logger.warning("job %d: its result was refused", job_id, exc_info=True)
            self._fail(job_id, str(refused))
        except Exception as error:
            # A fault in `finish` would come back every round: it ends the job, not the hub.
            logger.exception("job %d: its result could not be taken in", job_id)
            self._fail(job_id, f"{type(error).__name__}: {error}")

    def _succeed(self, job_id: int, result: Json) -> None:
        now = self._clock()
        with self._database.write() as session:
            job = _running_job(session, job_id)
            if job is None:
                return
            finish = load(self._kinds[job.kind].finish)
            job.result = finish(session, self._store, job, result, now)
            job.state, job.finished_at = JobState.SUCCEEDED, now
            job.progress, job.step, job.error = 1.0, "done", None

    def _fail(self, job_id: int, error: str) -> None:
        with self._database.write() as session:
            if job := _running_job(session, job_id):
                self._end_failed(session, job, error)

    def _requeue(self, session: Session, job: Job, why: str) -> None:
        if job.attempts >= MAX_ATTEMPTS:
            self._end_failed(session, job, f"{why}, {job.attempts} times")
            return
        logger.warning("job %d (%s) is queued again: %s", job.id, job.kind, why)
        job.state, job.owner = JobState.QUEUED, None

    def _end_failed(self, session: Session, job: Job, error: str) -> None:
        service.fail(session, job, error, self._clock(), self._kinds)


def _running_job(session: Session, job_id: int) -> Job | None:
    """Return a job; None if it has been cancelled."""
    job = session.get_one(Job, job_id)
    return job if job.state == JobState.RUNNING else None
