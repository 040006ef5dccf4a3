"""Where jobs run: one fresh process a job on this machine.

Every job gets a `ProcessPoolExecutor` of one worker and one task. So a worker that dies breaks the
pool of its own job only, and nobody has to guess which of several jobs was to blame; a job never
inherits the memory, the imports or the random state of the one before.

The *lifeline* is a pipe whose writing end only the hub holds. When it closes, because the hub
stops the job or because the hub itself was killed, the worker kills its whole process group,
conversion children included. No orphan goes on working for a hub that is gone.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Protocol

from edgefleet_cloud.jobs.worker import Outcome, Task, perform


class Workers(Protocol):
    """Where attempts run; another engine (a cluster) implements these three calls.

    All calls come from the one thread that runs the job runner.
    """

    def submit(self, task: Task) -> "Future[Outcome]":
        """Start an attempt; the future fails with `BrokenExecutor` if its process dies."""

    def stop(self, job_id: int) -> None:
        """Kill the attempt of one job if it still runs, and let go of what it held."""

    def close(self) -> None:
        """Kill all attempts and wait until they are gone."""


class LocalProcesses:
    """Runs each attempt in a process of its own on this machine."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._held: dict[int, tuple[ProcessPoolExecutor, Connection]] = {}

    def submit(self, task: Task) -> "Future[Outcome]":
        """Start an attempt in a fresh process."""
        worker_end, lifeline = self._context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            max_workers=1, mp_context=self._context, initializer=_hold, initargs=(worker_end,)
        )
        self._held[task.job_id] = (pool, lifeline)
        future = pool.submit(perform, task)
        # `submit` has spawned the worker, which has its own copy of this end.
        worker_end.close()
        return future

    def stop(self, job_id: int) -> None:
        """Kill the attempt of one job if it still runs, and let go of what it held."""
        if job_id in self._held:
            pool, lifeline = self._held.pop(job_id)
            lifeline.close()
            pool.shutdown(wait=False)

    def close(self) -> None:
        """Kill all attempts and wait until they are gone."""
        entries = list(self._held.values())
        self._held.clear()
        for _, lifeline in entries:
            lifeline.close()
        for pool, _ in entries:
            pool.shutdown(wait=True)


def _hold(lifeline: Connection) -> None:
    """Prepare the worker: its own process group, which dies with the lifeline."""
    os.setpgid(0, 0)
    # Ctrl-C is for the hub, which then closes the lifeline in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()


def _watch(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
