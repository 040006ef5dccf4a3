"""Room on disk: whether a download may begin, and what is deleted for it. Decisions only, no disk.

Rules:

1. The store stays within its quota, and leaves `keep_free_bytes` of the file system to others.
2. What serves, what a running attempt needs and what an unconfirmed release would go back to is
   never deleted.
3. The rest goes in this order, the oldest first: leftovers (unfinished parts, and files of attempts
   that have ended), then previous releases.
4. Nothing is deleted for a download that would not fit anyway.
5. Leftovers stay for the case that their version comes back, but never take more than
   `LEFTOVER_BYTES`, and never more than half of what would be free without them.
"""

from collections.abc import Iterable
from enum import IntEnum

from msgspec import Struct

from edgefleet_agent.config import Storage
from edgefleet_agent.errors import StoreError

# A version that was superseded in mid-download, or a model of usual size, twice.
LEFTOVER_BYTES = 256 * 1024 * 1024
_MIB = 1024 * 1024


class NoRoomError(StoreError):
    """A download does not fit on this disk; the text has the figures."""


class Why(IntEnum):
    """Why a file is on disk; the lowest is deleted first."""

    LEFTOVER = 0  # no release and no running attempt needs it
    PREVIOUS = 1  # of the release before a confirmed one
    NEEDED = 2  # serves, is being tried or fetched, or would be gone back to


class Held(Struct, frozen=True):
    """One file of the store.

    Attributes:
        name: path within the store.
        size_bytes: that it takes on disk.
        why: it is there.
        at: when it was written last, Unix seconds.
    """

    name: str
    size_bytes: int
    why: Why
    at: float = 0.0


class Disk(Struct, frozen=True):
    """What the file system says.

    Attributes:
        folder: of the store, for the text of a refusal.
        free_bytes: that this process may still use.
    """

    folder: str
    free_bytes: int


def room(needed_bytes: int, disk: Disk, storage: Storage, held: Iterable[Held]) -> list[str]:
    """Return what to delete so that `needed_bytes` more fit; empty if they fit as it is.

    Args:
        needed_bytes: that the download and what is unpacked from it will take beyond what is held.
        disk: that holds the store.
        storage: what the configuration allows.
        held: all files of the store's models.

    Raises:
        NoRoomError: if they do not fit even then.
    """
    held = list(held)
    used = sum(file.size_bytes for file in held)
    short = needed_bytes + storage.keep_free_bytes - disk.free_bytes
    if storage.max_bytes:
        short = max(short, used + needed_bytes - storage.max_bytes)
    spare = [file for file in held if file.why is not Why.NEEDED]
    spare_bytes = sum(file.size_bytes for file in spare)
    if short > spare_bytes:
        raise NoRoomError(_refusal(needed_bytes, disk, storage, used, spare_bytes))
    return _oldest_first(spare, short)


def surplus(disk: Disk, storage: Storage, held: Iterable[Held]) -> list[str]:
    """Return the leftovers that are to be deleted although nothing needs their place (rule 5)."""
    held = list(held)
    leftovers = [file for file in held if file.why is Why.LEFTOVER]
    taken = sum(file.size_bytes for file in leftovers)
    allowed = min(LEFTOVER_BYTES, (disk.free_bytes + taken - storage.keep_free_bytes) // 2)
    if storage.max_bytes:
        used = sum(file.size_bytes for file in held)
        allowed = min(allowed, storage.max_bytes - (used - taken))
    return _oldest_first(leftovers, taken - max(allowed, 0))


def _oldest_first(files: list[Held], needed_bytes: int) -> list[str]:
    """Return names of files that free `needed_bytes` together, in the order of rule 3."""
    chosen = []
    for file in sorted(files, key=lambda file: (file.why, file.at, file.name)):
        if needed_bytes <= 0:
            break
        chosen.append(file.name)
        needed_bytes -= file.size_bytes
    return chosen


def _refusal(needed_bytes: int, disk: Disk, storage: Storage, used: int, spare_bytes: int) -> str:
    kept = f" of which {_mib(storage.keep_free_bytes)} are kept free for others"
    text = (
        f"no room: {_mib(needed_bytes)} more are needed in {disk.folder};"
        f" {_mib(disk.free_bytes)} are free,{kept if storage.keep_free_bytes else ''}"
    ).rstrip(",")
    if storage.max_bytes:
        text += f"; the store takes {_mib(used)} of the {_mib(storage.max_bytes)} it may take"
    text += f"; {_mib(spare_bytes)} could be deleted. Free disk space"
    return text + (", or raise [storage] max_bytes" if storage.max_bytes else "")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
