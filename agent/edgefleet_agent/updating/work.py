"""Slow work beside the engine's thread: hashing, trials, loading.

Rules:

1. A piece of work comes back as a `Done`, and counts only while somebody waits for it.
2. Nobody waits longer than a step's deadline. What does not come back by then is *given up*: told
   to stop, and left alone, because a thread cannot be killed.
3. While `MAX_GIVEN_UP` pieces that were given up are still running, no more are started: the disk
   or a runtime hangs, and more threads would hang beside them. What serves goes on.
"""

import itertools
import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

from edgefleet_agent.downloading.fetching import Opened
from edgefleet_agent.downloading.slots import Heed
from edgefleet_agent.errors import AgentError, CancelledError
from edgefleet_agent.inference.serving import Served
from edgefleet_agent.updating.update import Event
from edgefleet_protocol.errors import ProtocolError, RefusedError
from edgefleet_protocol.messages import Refusal, Slot, Step, Tried

log = logging.getLogger(__name__)

MAX_GIVEN_UP = 4
BUNDLE = "bundle"


class Task(StrEnum):
    """Kinds of work."""

    OPEN = "open"  # look at what is on disk of a download
    VERIFY = "verify"
    TRY = "try"
    ACTIVATE = "activate"  # load the candidate into this process
    RESTORE = "restore"  # load the confirmed release into this process


# The step at which an attempt needs a kind of work; a restoring belongs to no attempt.
STEPS = {
    Step.FETCHING: Task.OPEN,
    Step.VERIFYING: Task.VERIFY,
    Step.TRYING: Task.TRY,
    Step.ACTIVE: Task.ACTIVATE,
}


class Token(Struct, frozen=True):
    """One piece of work.

    Attributes:
        key: lane that it is for.
        slot: release that it is about.
        serial: tells it from all others of this process.
    """

    key: str
    task: Task
    slot: Slot
    serial: int


class Done(Struct, frozen=True):
    """A piece of work has ended: with an event for the table, or with what it made.

    Attributes:
        max_latency_us: budget of one row of what was loaded, 0 for none.
        tried: figures of a trial.
    """

    token: Token
    event: Event | None = None
    reason: str = ""
    refusal: Refusal | None = None
    served: Served | None = None
    max_latency_us: int = 0
    opened: Opened | None = None
    tried: Tried | None = None

    def discard(self) -> None:
        """Let go of what nobody waits for any more."""
        if self.opened:
            self.opened.close()


Work = Callable[[Token, Heed], Done]


class _Job(Struct):
    token: Token
    began_at: float
    cancelled: threading.Event

    def heed(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError(f"{self.token.task} for {self.token.key} is not wanted any more")


class Workers:
    """All work of one agent that runs now: at most one of a kind for each lane."""

    def __init__(
        self, start: Callable[[Callable[[], None]], None], deliver: Callable[[Done], None]
    ) -> None:
        """Make an empty place.

        Args:
            start: runs something on a thread of its own.
            deliver: queues a `Done` for the engine's thread.
        """
        self._start = start
        self._deliver = deliver
        self._serials = itertools.count(1)
        self._jobs: dict[tuple[str, Task], _Job] = {}
        self._given_up: dict[int, _Job] = {}

    def start(self, key: str, task: Task, slot: Slot, work: Work, now: float) -> bool:
        """Start a piece of work, unless the same is running already.

        Returns:
            False if too much hangs (rule 3).
        """
        running = self._jobs.get((key, task))
        if running and running.token.slot == slot:
            return True
        if running:
            self.give_up(key, task)
        # What serves is loaded whatever hangs.
        if task is not Task.RESTORE and len(self._given_up) >= MAX_GIVEN_UP:
            return False
        job = _Job(Token(key, task, slot, next(self._serials)), now, threading.Event())
        self._jobs[key, task] = job
        try:
            self._start(lambda: self._deliver(_guarded(work, job)))
        except RuntimeError as error:  # the system has no thread left for us
            self._deliver(Done(job.token, Event.BROKE, f"no thread for {task}: {error}"))
        return True

    def take(self, done: Done) -> bool:
        """Hear that a piece of work has ended; return whether somebody still waits for it."""
        token = done.token
        job = self._jobs.get((token.key, token.task))
        if job and job.token == token:
            del self._jobs[token.key, token.task]
            return True
        if self._given_up.pop(token.serial, None):
            log.info("%s for %s has ended after it was given up", token.task, token.key)
        return False

    def began_at(self, key: str, task: Task) -> float | None:
        """Return since when a kind of work runs for a lane, None if it does not."""
        job = self._jobs.get((key, task))
        return job.began_at if job else None

    def keys(self, task: Task) -> list[str]:
        """Return the lanes for which a kind of work runs."""
        return [key for key, running in self._jobs if running is task]

    def give_up(self, key: str, *tasks: Task) -> None:
        """Tell work of a lane to stop, and wait for it no more. No task stands for all."""
        for at in [(key, task) for task in tasks or tuple(Task)]:
            job = self._jobs.pop(at, None)
            if job:
                job.cancelled.set()
                self._given_up[job.token.serial] = job

    @property
    def hanging(self) -> list[Token]:
        """Work that was given up and has not come back."""
        return [job.token for job in self._given_up.values()]

    def close(self) -> None:
        """Tell everything to stop."""
        for key, task in list(self._jobs):
            self.give_up(key, task)


def _guarded(work: Work, job: _Job) -> Done:
    """Run a piece of work; whatever it raises becomes an event for the table."""
    token = job.token
    try:
        return work(token, job.heed)
    except RefusedError as error:
        refusal = Refusal(BUNDLE, error.reason, str(error), token.slot.manifest)
        return Done(token, Event.REFUSED, f"{error.reason}: {error}", refusal)
    except ProtocolError as error:
        refusal = Refusal(BUNDLE, "malformed", str(error), token.slot.manifest)
        return Done(token, Event.REFUSED, f"malformed: {error}", refusal)
    except (AgentError, OSError) as error:
        return Done(token, Event.BROKE, str(error))
    except Exception as error:
        # A defect of ours must end the attempt, not the thread that would report it.
        log.exception("work for %s failed", token)
        return Done(token, Event.BROKE, f"internal error: {error!r}")
