"""What a person at the device asks a running agent to do: files in the store, removed when done.

    rollback/{model}    go back from this release to the one before it

A request names the release that it wants to leave, so a request that is carried out twice (the
agent was killed before it could remove the file) changes nothing the second time.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from edgefleet_agent import files
from edgefleet_agent.errors import StoreError, TransitionError

if TYPE_CHECKING:
    # The command line asks, and must not load what only a running agent needs.
    from edgefleet_agent.updating.attempts import Attempts

log = logging.getLogger(__name__)

FOLDER = "rollback"
_MAX_BYTES = 4096


class Request(Struct, frozen=True):
    """One request.

    Attributes:
        release: that is to be left.
        reason: for the log and the hub.
    """

    model: str
    release: int
    reason: str


def ask(store: Path, request: Request) -> Path:
    """Leave a request for the agent; return the file, which is there until it was dealt with.

    Raises:
        OSError: if the store cannot be written.
    """
    path = store / FOLDER / request.model
    path.parent.mkdir(exist_ok=True)
    files.replace(path, msgspec.json.encode(request))
    return path


def heed(store: Path, attempts: "Attempts", now: float) -> None:
    """Go back to the previous release where a person at the device asks for it.

    Args:
        store: of the agent.
        attempts: of the running agent.
        now: monotonic seconds.

    Raises:
        StoreError: if a request cannot be read; it is removed.
    """
    for path, request in _pending(store):
        journal = attempts.journals.get(request.model)
        serving = journal.serving if journal else None
        try:
            if serving and serving.slot.release == request.release:
                attempts.go_back(request.model, request.reason, now)
        except TransitionError as error:
            log.warning("not rolled back by hand: %s", error)
        path.unlink()


def _pending(store: Path) -> Iterator[tuple[Path, Request]]:
    """Yield the requests that wait; the caller removes each file when it has dealt with it."""
    folder = store / FOLDER
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix == files.PARTIAL:
            continue  # being written, or left by a writer that was killed
        try:
            with path.open("rb") as file:
                request = msgspec.json.decode(file.read(_MAX_BYTES), type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            path.unlink()
            raise StoreError(f"request {path} cannot be read and was removed: {error}") from error
        yield path, request
