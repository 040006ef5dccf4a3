"""A folder of files named by their digest, written atomically and never changed.

Reading by range does not hash: every device checks each block against signed metadata itself
(docs/adr/0002). `verify` hashes, and is called when a device refuses what it was sent.
"""

import os
import tempfile
from pathlib import Path

from edgefleet_cloud.errors import DamagedError, NotFoundError
from edgefleet_protocol import identifiers


class Store:
    """Content-addressed store in one folder.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Return where the file with `digest` lies.

        Raises:
            NotFoundError: if the store does not have it.
        """
        path = self._place(digest)
        if not path.is_file():
            raise NotFoundError("stored file", digest)
        return path

    def has(self, digest: str) -> bool:
        """Tell whether the store has a file with `digest`."""
        return self._place(digest).is_file()

    def put(self, data: bytes) -> str:
        """Keep `data`; return its digest. Durable when this returns."""
        digest = identifiers.digest_of(data)
        place = self._place(digest)
        if place.is_file():
            return digest
        place.parent.mkdir(exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return digest

    def read(self, digest: str) -> bytes:
        """Return the whole file, its digest checked.

        Raises:
            NotFoundError: if the store does not have it.
            DamagedError: if its content differs from its name.
        """
        data = self.path(digest).read_bytes()
        if identifiers.digest_of(data) != digest:
            raise DamagedError(f"stored file {digest} is damaged: its content has another digest")
        return data

    def read_range(self, digest: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, unchecked (see the module's rules)."""
        with self.path(digest).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def size(self, digest: str) -> int:
        """Return the size of the file in bytes."""
        return self.path(digest).stat().st_size

    def verify(self, digest: str) -> bool:
        """Tell whether the file is there and still has its digest."""
        try:
            self.read(digest)
        except (NotFoundError, DamagedError):
            return False
        return True

    def _place(self, digest: str) -> Path:
        return self._folder / identifiers.digest(digest)[:2] / digest
