"""Parts of a hub for tests: real SQLite, a real store, a clock that is moved by hand."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgefleet_cloud.api.testing import served
from edgefleet_cloud.database.models import Job
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet.testing import open_services, until
from edgefleet_cloud.jobs import service as jobs
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.services import Services
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training.testing import KINDS, InlineWorkers

JOB_DEADLINE_S = 200.0


class Clock:
    """Gives the time that it was set to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at the newest migration, to be copied: migrating takes half a second."""
    path = tmp_path_factory.mktemp("migrated") / "hub.db"
    database = Database(f"sqlite:///{path}")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated, tmp_path / "hub.db")
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@dataclass
class HubRig:
    """A hub without broker and scheduler: its API over HTTP, and its jobs done at once.

    Attributes:
        http: client of the whole API with the operator token.
        runner: ticked by a thread of its own.
    """

    services: Services
    http: httpx.Client
    runner: JobRunner

    def job(self, job_id: int) -> dict[str, Any]:
        """Return a job once it has ended."""
        until(
            lambda: self.http.get(f"/v1/jobs/{job_id}").json()["state"] in ("succeeded", "failed"),
            f"job {job_id}",
        )
        job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").json()
        return job


@pytest.fixture
def hub_rig(migrated: Path, tmp_path: Path, clock: Clock) -> Iterator[HubRig]:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "hub.db")
    services = open_services(home, clock, upload_limit_bytes=100_000)
    runner = JobRunner(
        services.database,
        services.store,
        home / "jobs",
        limit=2,
        clock=clock,
        kinds=KINDS,
        workers=InlineWorkers(),
    )
    stopping = threading.Event()

    def tick() -> None:
        while not stopping.wait(0.01):
            runner.tick()

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        with served(services) as http:
            yield HubRig(services, http, runner)
    finally:
        stopping.set()
        ticking.join()
        runner.close()
        services.database.close()


def finish(database: Database, runner: JobRunner, job_id: int) -> Job:
    """Let the runner work until a job has ended, and return it."""
    deadline = time.monotonic() + JOB_DEADLINE_S
    while True:
        runner.tick()
        with database.read() as session:
            job = jobs.get(session, job_id)
        if job.state in jobs.FINAL_STATES:
            return job
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
