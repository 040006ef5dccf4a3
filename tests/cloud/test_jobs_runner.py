"""The runner with real processes: their ends, their crashes, and the hub's own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from edgefleet_cloud.database.models import Job, JobState
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.jobs import runner as runner_module
from edgefleet_cloud.jobs import service
from edgefleet_cloud.jobs.kinds import Kind
from edgefleet_cloud.jobs.processes import LocalProcesses
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.storage import Store

DEADLINE_S = 30.0

# The functions live in a module of their own, because workers import them by name.
WORK = """
import os, signal, time
from pathlib import Path
from edgefleet_cloud.errors import InvalidError, NotFoundError

FINISHED = []

def double(context, *, number):
    context.progress(0.5, "doubling")
    return {"number": 2 * number, "pid": os.getpid(), "digest": context.store.put(b"result")}

def wait_for(context, *, path):
    context.progress(0.25, f"waiting for {context.folder}/model.joblib")
    while not Path(path).exists():
        time.sleep(0.01)
    return {}

def refuse(context, **_):
    raise NotFoundError("thing", context.folder / "x.csv")

def break_down(context, **_):
    raise ZeroDivisionError("no such number")

def die(context, *, count):
    path = Path(count)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(context, *, count):
    path = Path(count)
    if not path.exists():
        path.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"second": True}

def take(session, store, job, result, now):
    return {**result, "taken_at": now}

def take_badly(session, store, job, result, now):
    job.step = "half done"
    raise InvalidError("the model is of another task")

def take_wrongly(session, store, job, result, now):
    raise KeyError("missing")

def note(session, job, error, now):
    job.result = {"noted": error}
"""


def kind(work: str, finish: str = "take") -> Kind:
    return Kind(f"job_work:{work}", f"job_work:{finish}", "job_work:note")


KINDS = {
    name: kind(name) for name in ("double", "wait_for", "refuse", "break_down", "die", "die_once")
} | {"badly": kind("double", "take_badly"), "wrongly": kind("double", "take_wrongly")}


class Rig:
    """A database, a runner, and a clock that stands still until it is moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.database = Database(f"sqlite:///{folder / 'hub.db'}")
        self.store = Store(folder / "store")
        self.runner = self.new_runner()

    def new_runner(self, limit: int = 2) -> JobRunner:
        return JobRunner(
            self.database,
            self.store,
            self.folder / "jobs",
            limit=limit,
            clock=lambda: self.now,
            kinds=KINDS,
            deadline_s=60.0,
        )

    def cancel(self, job_id: int) -> None:
        with self.database.write() as session:
            service.cancel(session, job_id, self.now, KINDS)

    def submit(self, name: str, **arguments: object) -> int:
        with self.database.write() as session:
            return service.submit(session, name, arguments, self.now).id

    def job(self, job_id: int) -> Job:
        with self.database.read() as session:
            return service.get(session, job_id)

    def tick_until(self, condition: Callable[[], bool], runner: JobRunner | None = None) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            (runner or self.runner).tick()
            if condition():
                return
            assert time.monotonic() < deadline, "not within the deadline"
            time.sleep(0.01)

    def run(self, name: str, **arguments: object) -> Job:
        job_id = self.submit(name, **arguments)
        self.tick_until(lambda: self.job(job_id).state in service.FINAL_STATES)
        return self.job(job_id)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "job_work.py").write_text(WORK)
    # A spawned process gets this process's path.
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setattr(service, "KINDS", KINDS)
    rig = Rig(tmp_path)
    yield rig
    rig.runner.close()
    rig.database.close()
    sys.modules.pop("job_work", None)


def worker_of(rig: Rig) -> psutil.Process:
    """Return the process of the one running job."""
    (running,) = [
        child
        for child in psutil.Process().children()
        if "spawn_main" in " ".join(child.cmdline()) and child.is_running()
    ]
    return running


def test_a_job_runs_in_another_process_and_keeps_its_result(rig: Rig) -> None:
    job = rig.run("double", number=21)
    assert job.state == JobState.SUCCEEDED
    assert job.result["number"] == 42
    assert job.result["taken_at"] == 1000.0
    assert job.result["pid"] != os.getpid()
    assert rig.store.read(job.result["digest"]) == b"result"
    assert (job.attempts, job.progress, job.step, job.error) == (1, 1.0, "done", None)
    assert list((rig.folder / "jobs").iterdir()) == []


def test_progress_is_persisted_while_the_job_runs(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.submit("wait_for", path=str(tmp_path / "go"))
    rig.tick_until(lambda: rig.job(job_id).step == "waiting for model.joblib")
    assert (rig.job(job_id).progress, rig.job(job_id).state) == (0.25, JobState.RUNNING)
    (tmp_path / "go").touch()
    rig.tick_until(lambda: rig.job(job_id).state == JobState.SUCCEEDED)


def test_an_error_of_the_work_is_final_and_names_no_scratch_folder(rig: Rig) -> None:
    job = rig.run("refuse")
    assert (job.state, job.attempts) == (JobState.FAILED, 1)
    assert job.error == "there is no thing PosixPath('x.csv')"
    assert job.result == {"noted": job.error}


def test_an_unforeseen_error_is_shown_with_its_type(rig: Rig) -> None:
    assert rig.run("break_down").error == "ZeroDivisionError: no such number"


def test_a_result_that_is_refused_fails_the_job_and_leaves_nothing(rig: Rig) -> None:
    job = rig.run("badly", number=1)
    assert (job.state, job.error) == (JobState.FAILED, "the model is of another task")
    assert job.step != "half done"


def test_a_fault_in_finish_fails_the_job_and_not_the_runner(rig: Rig) -> None:
    assert rig.run("wrongly", number=1).error == "KeyError: 'missing'"
    assert rig.run("double", number=1).state == JobState.SUCCEEDED


def test_a_busy_database_keeps_the_result_for_the_next_round(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit("double", number=1)
    original = JobRunner._succeed
    refused = []

    def busy(self: JobRunner, number: int, result: dict[str, object]) -> None:
        monkeypatch.setattr(JobRunner, "_succeed", original)
        refused.append(number)
        raise OperationalError("BEGIN IMMEDIATE", None, Exception("database is locked"))

    monkeypatch.setattr(JobRunner, "_succeed", busy)
    with pytest.raises(OperationalError):
        rig.tick_until(lambda: rig.job(job_id).state in service.FINAL_STATES)
    rig.tick_until(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert (refused, rig.job(job_id).attempts) == ([job_id], 1)


def test_a_job_whose_process_dies_is_tried_three_times(rig: Rig, tmp_path: Path) -> None:
    job = rig.run("die", count=str(tmp_path / "count"))
    assert (tmp_path / "count").read_text() == "xxx"
    assert (job.state, job.attempts) == (JobState.FAILED, 3)
    assert job.error == "its process died, 3 times"
    assert job.result == {"noted": job.error}


def test_a_job_whose_process_died_once_succeeds_at_the_second_attempt(
    rig: Rig, tmp_path: Path
) -> None:
    job = rig.run("die_once", count=str(tmp_path / "count"))
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)


def test_a_killed_worker_does_not_disturb_the_job_beside_it(rig: Rig, tmp_path: Path) -> None:
    innocent = rig.submit("wait_for", path=str(tmp_path / "go"))
    guilty = rig.submit("die", count=str(tmp_path / "count"))
    rig.tick_until(lambda: rig.job(guilty).state == JobState.FAILED)
    (tmp_path / "go").touch()
    rig.tick_until(lambda: rig.job(innocent).state == JobState.SUCCEEDED)
    assert rig.job(innocent).attempts == 1


def test_no_more_jobs_run_at_once_than_allowed(rig: Rig, tmp_path: Path) -> None:
    jobs = [rig.submit("wait_for", path=str(tmp_path / "go")) for _ in range(3)]
    rig.runner.tick()
    assert [rig.job(j).state for j in jobs] == ["running", "running", "queued"]
    (tmp_path / "go").touch()
    rig.tick_until(lambda: rig.job(jobs[2]).state == JobState.SUCCEEDED)


def test_a_job_past_its_deadline_is_killed_and_fails(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.submit("wait_for", path=str(tmp_path / "never"))
    rig.tick_until(lambda: rig.job(job_id).step == "waiting for model.joblib")
    rig.now += 60.0
    rig.runner.tick()
    assert rig.job(job_id).state == JobState.RUNNING
    rig.now += 0.1
    rig.tick_until(lambda: rig.job(job_id).state == JobState.FAILED)
    assert rig.job(job_id).error == "ran longer than 60 s and was stopped"


def test_a_cancelled_job_has_failed_and_its_process_is_gone(rig: Rig, tmp_path: Path) -> None:
    job = rig.submit("wait_for", path=str(tmp_path / "never"))
    rig.tick_until(lambda: rig.job(job).step.startswith("waiting for"))
    process = worker_of(rig)
    rig.cancel(job)
    assert rig.job(job).error == "cancelled by hub"
    assert rig.job(job).result == {"noted": "cancelled by hub"}
    rig.tick_until(lambda: not list((tmp_path / "jobs").iterdir()))
    process.wait(DEADLINE_S)
    assert (rig.job(job).state, rig.job(job).attempts) == (JobState.FAILED, 1)


def test_a_cancelled_job_in_the_queue_never_starts(rig: Rig, tmp_path: Path) -> None:
    job = rig.submit("wait_for", path=str(tmp_path / "never"))
    rig.cancel(job)
    rig.runner.tick()
    assert (rig.job(job).state, rig.job(job).attempts) == (JobState.FAILED, 0)


def test_the_result_of_a_job_that_was_cancelled_meanwhile_is_not_heard(
    rig: Rig, tmp_path: Path
) -> None:
    job = rig.submit("wait_for", path=str(tmp_path / "go"))
    rig.tick_until(lambda: rig.job(job).step.startswith("waiting for"))
    (tmp_path / "go").touch()
    (running,) = rig.runner._running.values()
    running.future.result(DEADLINE_S)
    rig.cancel(job)
    rig.tick_until(lambda: not list((tmp_path / "jobs").iterdir()))
    assert rig.job(job).result == {"noted": "cancelled by hub"}


def test_a_job_that_has_ended_is_not_cancelled(rig: Rig) -> None:
    job = rig.submit("double", number=1)
    rig.tick_until(lambda: rig.job(job).state == JobState.SUCCEEDED)
    with pytest.raises(ConflictError, match=f"job {job} has succeeded already"):
        rig.cancel(job)


def test_a_cancelled_job_stays_so_when_the_hub_stops(rig: Rig, tmp_path: Path) -> None:
    job = rig.submit("wait_for", path=str(tmp_path / "never"))
    rig.tick_until(lambda: rig.job(job).step.startswith("waiting for"))
    rig.cancel(job)
    rig.runner.close()
    assert rig.job(job).state == JobState.FAILED


def test_stopping_the_hub_kills_its_workers_and_queues_their_jobs_again(
    rig: Rig, tmp_path: Path
) -> None:
    job_id = rig.submit("wait_for", path=str(tmp_path / "go"))
    rig.tick_until(lambda: rig.job(job_id).step == "waiting for model.joblib")
    worker = worker_of(rig)
    rig.runner.close()
    assert not worker.is_running()
    assert (rig.job(job_id).state, rig.job(job_id).attempts) == (JobState.QUEUED, 0)


def test_a_running_job_of_a_hub_that_is_gone_is_queued_again(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.submit("double", number=2)
    with rig.database.write() as session:
        job = service.get(session, job_id)
        job.state, job.owner, job.attempts = JobState.RUNNING, "a hub before", 1
    rig.tick_until(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert (rig.job(job_id).attempts, rig.job(job_id).result["number"]) == (2, 4)


def test_a_job_that_has_brought_down_three_hubs_is_not_started_again(rig: Rig) -> None:
    job_id = rig.submit("double", number=2)
    with rig.database.write() as session:
        job = service.get(session, job_id)
        job.state, job.owner, job.attempts = JobState.RUNNING, "a hub before", 3
    rig.runner.tick()
    assert rig.job(job_id).state == JobState.FAILED
    assert rig.job(job_id).error == "its process is gone, 3 times"


def test_a_job_whose_process_cannot_be_started_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit("double", number=2)

    def fail(*_: object) -> None:
        raise OSError("no process")

    with monkeypatch.context() as patch:
        patch.setattr(LocalProcesses, "submit", fail)
        with pytest.raises(OSError, match="no process"):
            rig.runner.tick()
    rig.tick_until(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert rig.job(job_id).attempts == 2


def test_a_job_of_a_kind_that_this_hub_does_not_know_fails(rig: Rig) -> None:
    with rig.database.write() as session:
        job = Job(kind="compress", arguments={}, state=JobState.QUEUED, created_at=0.0)
        session.add(job)
    rig.runner.tick()
    assert rig.job(job.id).error == "this hub knows no kind of job 'compress'"


def test_workers_end_when_the_hub_is_killed(rig: Rig, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(tmp_path / "modules")!r})
        from edgefleet_cloud.jobs.processes import LocalProcesses
        from edgefleet_cloud.jobs.worker import Task

        if __name__ == "__main__":
            folder = Path({str(tmp_path)!r})
            task = Task(1, "job_work:wait_for", {{"path": str(folder / "never")}}, folder, folder)
            workers = LocalProcesses()
            workers.submit(task).result()
    """)
    (tmp_path / "hub.py").write_text(script)
    hub = subprocess.Popen([sys.executable, str(tmp_path / "hub.py")])
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (tmp_path / "progress.json").exists():
            assert time.monotonic() < deadline
            assert hub.poll() is None
            time.sleep(0.01)
        children = psutil.Process(hub.pid).children(recursive=True)
        assert children
    finally:
        hub.send_signal(signal.SIGKILL)
        hub.wait()
    _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
    assert alive == []


def test_scratch_of_a_killed_hub_is_removed_at_the_start(rig: Rig) -> None:
    left = rig.folder / "jobs" / "7-1"
    left.mkdir()
    rig.new_runner()
    assert not left.exists()


def test_the_deadline_of_a_job_is_an_hour() -> None:
    assert runner_module.DEADLINE_S == 3600.0
