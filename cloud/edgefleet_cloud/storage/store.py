"""A folder of files named by their digest, written atomically and never changed.

Reading by range does not hash: every device checks each block against signed metadata itself
(docs/adr/0002). `verify` hashes, and is called when a device refuses what it was sent.
"""

import os
import tempfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from edgefleet_cloud.errors import DamagedError, NotFoundError
from edgefleet_protocol import identifiers

_CHUNK_BYTES = 1 << 20


class Store:
    """Content-addressed store in one folder.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """Keep `data`; return its digest. Durable when this returns.

        A file that is there and whole is left alone; a damaged one is replaced.
        """
        digest = identifiers.digest_of(data)
        return digest if self.verify(digest) else self.put_stream(BytesIO(data))

    def put_file(self, path: Path) -> str:
        """Keep a copy of the file at `path`, of any size; return its digest."""
        with path.open("rb") as file:
            return self.put_stream(file)

    def put_stream(self, source: BinaryIO) -> str:
        """Keep what `source` gives from here to its end; return its digest."""
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
        try:
            digest = sha256()
            with os.fdopen(handle, "wb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            place = self._place(digest.hexdigest())
            place.parent.mkdir(exist_ok=True, mode=0o700)
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        for folder in (place.parent, self.folder):
            _sync(folder)
        return place.name

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
        return self.folder / identifiers.digest(digest)[:2] / digest


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
