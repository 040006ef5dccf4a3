"""Files that survive a power cut, and the lock that gives a store one owner.

A file is replaced in four steps: write beside it, fsync, rename over it, fsync the folder. After a
crash at any instruction the old content is there, or the new one, never a part of either.

Cards fail in other ways too: they give back zeros, or content of another time. So what the agent
cannot do without is *kept*: each file has a checksum in its last line, and the generation before it
stays beside it, for the case that the newest one cannot be read.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import msgspec

from edgefleet_agent.errors import AgentError, StoreError

# Suffix of a file that is not finished; whatever has it may be deleted at start.
PARTIAL = ".partial"
# Suffix of the generation before the newest one.
BEFORE = ".before"
_LOOK_S = 0.05

# How long a glance at the lock by another process may take.
_GLANCE_S = 0.2

T = TypeVar("T")


def replace(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Give `path` the content `data`, atomically and durably.

    Args:
        path: its folder must exist.
        data: the whole content.
        mode: permissions, set before any of the content is written.
    """
    commit(_write_partial(path, data, mode), path)


def commit(partial: Path, path: Path) -> None:
    """Rename a finished, fsynced file to its own name and make the name durable."""
    partial.replace(path)
    sync_folder(path.parent)


def write_kept(path: Path, data: bytes) -> None:
    """Replace a file as `replace` does, and keep the generation before it.

    Args:
        path: its folder must exist.
        data: the whole content, without a line end in it.
    """
    checksum = sha256(data).hexdigest().encode("ascii")
    partial = _write_partial(path, data + b"\n" + checksum + b"\n", 0o644)
    if path.exists():
        # Between the two renames only the generation before is there, and is what is read then.
        path.replace(path.with_name(path.name + BEFORE))
    commit(partial, path)


def read_kept(path: Path, decode: Callable[[bytes], T]) -> tuple[T | None, str]:
    """Read the newest generation that is intact.

    Args:
        path: as given to `write_kept`.
        decode: raises `AgentError` or `msgspec.DecodeError` if the content cannot be used.

    Returns:
        What `decode` made of it, None if there is none; and a sentence on each generation that is
        there and could not be read.
    """
    complaints: list[str] = []
    for generation in (path, path.with_name(path.name + BEFORE)):
        try:
            data, _, checksum = generation.read_bytes().rstrip(b"\n").rpartition(b"\n")
            if sha256(data).hexdigest().encode("ascii") != checksum:
                raise ValueError("its checksum is wrong")
            return decode(data), "; ".join(complaints)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AgentError, msgspec.DecodeError) as error:
            complaints.append(f"{generation.name} cannot be read: {error}")
    return None, "; ".join(complaints)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make the content of every file directly in `folder` durable, and their names."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _write_partial(path: Path, data: bytes, mode: int) -> Path:
    """Put content on disk beside `path`; leave nothing there if that fails."""
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return partial


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the store in `folder` alone; the kernel lets go of it when the process ends.

    A store that has become read-only is held too: what it serves can still be served.

    Raises:
        StoreError: if the folder cannot be opened, or another process holds it.
    """
    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            descriptor = os.open(lock, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"store {folder} cannot be opened for writing: {error}") from error
    until = time.monotonic() + _GLANCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(_GLANCE_S / 20)  # `is_locked` of another process may be looking
                continue
            os.close(descriptor)
            raise StoreError(
                f"store {folder} is in use by another agent; stop it, or give this one its own"
                " store"
            ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds the store; it is held by nobody afterwards that was not before.

    Raises:
        StoreError: if this user may not look.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"lock of {folder} cannot be read: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
