"""The job's side: what runs in a worker process.

Errors come back as values: an exception with a constructor of its own may not survive pickling,
and would then look like a broken pool.
"""

import json
import logging
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from edgefleet_cloud.errors import HubError
from edgefleet_cloud.jobs.kinds import load
from edgefleet_cloud.storage import Store
from edgefleet_cloud.values import Json
from edgefleet_converters.errors import ConversionError
from edgefleet_protocol.errors import ProtocolError

# Errors whose text was written for a person; of any other the type is shown too.
_SPOKEN = (HubError, ConversionError, ProtocolError)
# Writing the progress file costs an fsync-free rename; more often than this nobody looks.
_PROGRESS_PAUSE_S = 0.1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One attempt at one job, as it travels to the worker.

    Attributes:
        work: `module:function`.
        folder: scratch of this attempt; `progress.json` in it is read by the hub.
        store: folder of the content-addressed store.
    """

    job_id: int
    work: str
    arguments: Json
    folder: Path
    store: Path


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: a result, or an error for a person.

    Attributes:
        trace: traceback of an error that the work did not foresee.
    """

    result: Json | None = None
    error: str | None = None
    trace: str = ""


class Context:
    """What a job's work gets: the store, a scratch folder, and a way to say how far it is."""

    def __init__(self, task: Task) -> None:
        self.store = Store(task.store)
        self.folder = task.folder
        self._next_at = 0.0

    def progress(self, fraction: float, step: str) -> None:
        """Say how far the work is.

        Args:
            fraction: share done, 0 to 1.
            step: what is being done now, in a few words.
        """
        now = time.monotonic()
        if now < self._next_at and fraction < 1.0:
            return
        self._next_at = now + _PROGRESS_PAUSE_S
        path = self.folder / "progress.json"
        draft = path.with_suffix(f".{os.getpid()}")
        said = {"fraction": fraction, "step": _without_folder(step, self.folder)}
        draft.write_text(json.dumps(said), encoding="utf-8")
        draft.replace(path)


def perform(task: Task) -> Outcome:
    """Do the work of `task` in this process."""
    try:
        result = load(task.work)(Context(task), **task.arguments)
    except _SPOKEN as error:
        return Outcome(error=_without_folder(str(error), task.folder))
    except Exception as error:
        # The boundary of the process: whatever the work raised becomes the job's outcome.
        text = f"{type(error).__name__}: {error}"
        return Outcome(error=text, trace=traceback.format_exc())
    return Outcome(result=result)


def read_progress(folder: Path) -> tuple[float, str] | None:
    """Return `(fraction, step)` as last said by the worker in `folder`, None before the first."""
    try:
        said = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return min(max(float(said["fraction"]), 0.0), 1.0), str(said["step"])[:200]


def _without_folder(text: str, folder: Path) -> str:
    """Return `text` without the scratch folder, so that files appear under their own names."""
    return text.replace(f"{folder}/", "")
