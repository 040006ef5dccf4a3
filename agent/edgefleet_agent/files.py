"""Files that survive a power cut, and the lock that gives a store one owner.

A file is replaced in four steps: write beside it, fsync, rename over it, fsync the folder. After a
crash at any instruction the old content is there, or the new one, never a part of either.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefleet_agent.errors import StoreError

# Suffix of a file that is not finished; whatever has it may be deleted at start.
PARTIAL = ".partial"


def replace(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Give `path` the content `data`, atomically and durably.

    Args:
        path: its folder must exist.
        data: the whole content.
        mode: permissions, set before any of the content is written.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    commit(partial, path)


def commit(partial: Path, path: Path) -> None:
    """Rename a finished, fsynced file to its own name and make the name durable."""
    partial.replace(path)
    sync_folder(path.parent)


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the store in `folder` alone; the kernel lets go of it when the process ends.

    Raises:
        StoreError: if the folder cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"store {folder} cannot be opened for writing: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreError(
            f"store {folder} is in use by another agent; stop it, or give this one its own store"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
