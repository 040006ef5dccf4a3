"""What lies on disk for the models: journals, content-addressed files, and unfinished downloads.

    models/{model}.json   journal of one model (`update.Journal`)
    files/{digest}        manifest, model, reference, golden: whole, and checked when written
    parts/{digest}        a transfer blob that is still arriving

Rules:

1. A file gets its name only after its size and digest were checked and its content is on disk.
2. A part needs no list of what it holds: its blocks are hashed against the manifest when it is
   opened, so what survived a power cut is used again and what did not is asked for again.
3. Nothing is held in memory as a whole, the manifest (4 MiB at most) excepted.
4. A journal that cannot be read is set aside and told about; it is never taken for "no model".
"""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec
import zstandard

from edgefleet_agent import files
from edgefleet_agent.errors import StoreError
from edgefleet_agent.update import FORMAT, Journal
from edgefleet_protocol import blocks, manifest
from edgefleet_protocol.errors import MalformedError, TooLargeError
from edgefleet_protocol.manifest import File, Manifest

# What a device runs; the model card is for people and stays at the hub.
ROLES = ("model", "reference", "golden")
_COPY_BYTES = 1024 * 1024
# zstd level 19 uses windows of 8 MiB at most; a hostile frame may declare gigabytes.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024


class Part:
    """A transfer blob that arrives block by block, into a file of its final size."""

    def __init__(self, path: Path, size_bytes: int, block_digests: list[str]) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._digests = block_digests
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            held = os.fstat(self._descriptor).st_size
            if size_bytes:
                # Room is claimed at once, so a full disk is found before the download.
                os.posix_fallocate(self._descriptor, 0, size_bytes)
            os.ftruncate(self._descriptor, size_bytes)
            self.missing = {
                index
                for index in range(len(block_digests))
                if index * blocks.BLOCK_BYTES >= held or not self._holds(index)
            }
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, index: int, payload: bytes) -> bool:
        """Write a block if its digest is right; return whether it was.

        Raises:
            MalformedError: if the blob has no block of that index and length.
        """
        if len(payload) != blocks.block_length(self.size_bytes, index):
            raise MalformedError(
                f"block {index} has {len(payload)} bytes;"
                f" expected {blocks.block_length(self.size_bytes, index)}"
            )
        if sha256(payload).hexdigest() != self._digests[index]:
            return False
        os.pwrite(self._descriptor, payload, index * blocks.BLOCK_BYTES)
        self.missing.discard(index)
        return True

    def close(self) -> None:
        """Put everything on disk and let go of the file."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _holds(self, index: int) -> bool:
        length = blocks.block_length(self.size_bytes, index)
        data = os.pread(self._descriptor, length, index * blocks.BLOCK_BYTES)
        return sha256(data).hexdigest() == self._digests[index]


class Slots:
    """The folders above, for one store. Used by one thread at a time for each model."""

    def __init__(self, store: Path) -> None:
        self._models = store / "models"
        self._files = store / "files"
        self._parts = store / "parts"
        self._encoder = msgspec.json.Encoder()

    def prepare(self) -> None:
        """Make the folders and clear away what an interrupted write left. For the store's owner.

        Raises:
            StoreError: if the store cannot be written.
        """
        try:
            for folder in (self._models, self._files, self._parts):
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.glob(f"*{files.PARTIAL}"):
                    path.unlink()
        except OSError as error:
            raise StoreError(f"store cannot be written: {error}") from error

    def journals(self) -> tuple[dict[str, Journal], list[str]]:
        """Read all journals.

        Returns:
            Journals by model, and a sentence for each one that was damaged and set aside.
        """
        held: dict[str, Journal] = {}
        complaints = []
        for path in sorted(self._models.glob("*.json")):
            try:
                held[path.stem] = _read_journal(path)
            except StoreError as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                complaints.append(f"{error}; kept as {aside.name}")
        return held, complaints

    def peek(self) -> dict[str, Journal]:
        """Read all journals and change nothing. For a process that does not own the store.

        Raises:
            StoreError: if one cannot be read.
        """
        return {path.stem: _read_journal(path) for path in sorted(self._models.glob("*.json"))}

    def save(self, journal: Journal) -> None:
        """Put a journal on disk, as a whole and for good."""
        files.replace(self._models / f"{journal.model}.json", self._encoder.encode(journal))

    def path(self, digest: str) -> Path:
        """Return where the file with `digest` is, or would be."""
        return self._files / digest

    def has(self, digest: str) -> bool:
        """Tell whether a file with that name is there (not whether its content is intact)."""
        return self.path(digest).is_file()

    def save_manifest(self, digest: str, data: bytes) -> None:
        """Keep a manifest whose signed digest was checked."""
        files.replace(self.path(digest), data)

    def manifest(self, digest: str) -> Manifest:
        """Read a manifest and check its digest.

        Raises:
            StoreError: if it is missing or damaged.
            MalformedError: if it is intact and yet no manifest.
        """
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise StoreError(f"manifest {digest} cannot be read: {error}") from error
        if sha256(data).hexdigest() != digest:
            raise StoreError(f"manifest {digest} is damaged on disk")
        return manifest.decode(data)

    def read(self, file: File) -> bytes:
        """Return the content of a small file, its digest checked.

        Raises:
            StoreError: if it is missing or damaged.
        """
        try:
            data = self.path(file.digest).read_bytes()
        except OSError as error:
            raise StoreError(f"{file.role} file {file.digest} cannot be read: {error}") from error
        if sha256(data).hexdigest() != file.digest:
            raise StoreError(f"{file.role} file {file.digest} is damaged on disk")
        return data

    def needed(self, bundle: Manifest) -> list[File]:
        """Return the files of a bundle that a device keeps."""
        return [file for file in bundle.files if file.role in ROLES]

    def absent(self, bundle: Manifest) -> list[File]:
        """Return the needed files that are not on disk."""
        return [file for file in self.needed(bundle) if not self.has(file.digest)]

    def drop_damaged(self, bundle: Manifest) -> list[str]:
        """Hash every needed file that is there; delete and name those that are damaged."""
        bad = []
        for file in self.needed(bundle):
            path = self.path(file.digest)
            if path.is_file() and _digest_of(path) != file.digest:
                path.unlink()
                bad.append(f"{file.role} file {file.digest}")
        return bad

    def has_part(self, file: File) -> bool:
        """Tell whether the transfer blob of a file is on disk (not whether it is complete)."""
        return (self._parts / file.transfer.digest).is_file()

    def open_part(self, file: File) -> Part:
        """Open the download of a file's transfer blob, with what an earlier run left of it."""
        transfer = file.transfer
        return Part(self._parts / transfer.digest, transfer.size_bytes, transfer.blocks)

    def install(self, file: File) -> None:
        """Turn a complete part into the file it carries.

        Raises:
            MalformedError: if the blob or the file in it is not what the manifest says.
        """
        part, path = self._parts / file.transfer.digest, self.path(file.digest)
        partial = path.with_name(path.name + files.PARTIAL)
        try:
            if _digest_of(part) != file.transfer.digest:
                raise MalformedError(f"{file.role} blob differs from {file.transfer.digest}")
            if file.transfer.encoding == "zstd":
                _unpack(part, partial, file)
            else:
                part.replace(partial)
            if partial.stat().st_size != file.size_bytes or _digest_of(partial) != file.digest:
                raise MalformedError(f"{file.role} file differs from its digest {file.digest}")
        except MalformedError:
            part.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
            raise
        files.commit(partial, path)
        part.unlink(missing_ok=True)

    def collect(self, journals: Iterable[Journal]) -> list[str]:
        """Delete every file and part that no journal needs; return their names."""
        keep: set[str] = set()
        for digest in {digest for journal in journals for digest in journal.manifests}:
            keep.add(digest)
            try:
                bundle = self.manifest(digest)
            except (StoreError, MalformedError):
                continue  # not fetched yet, or about to be fetched again: it names nothing yet
            keep.update(file.digest for file in self.needed(bundle))
            keep.update(file.transfer.digest for file in self.absent(bundle))
        gone = []
        for path in (*self._files.iterdir(), *self._parts.iterdir()):
            # A partial file belongs to a step that is running; the next start removes leftovers.
            if path.name not in keep and path.suffix != files.PARTIAL:
                path.unlink()
                gone.append(path.name)
        return gone


def _read_journal(path: Path) -> Journal:
    try:
        journal = msgspec.json.decode(path.read_bytes(), type=Journal)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"journal {path.name} cannot be read: {error}") from error
    if journal.format != FORMAT or journal.model != path.stem:
        raise StoreError(
            f"journal {path.name} is of {journal.model!r} in format {journal.format};"
            f" expected format {FORMAT}"
        )
    return journal


def _digest_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(blob: Path, target: Path, file: File) -> None:
    """Unpack one zstd frame in pieces; stop as soon as it is longer than it may be."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    written = 0
    try:
        with blob.open("rb") as source, target.open("wb") as sink:
            for chunk in unpacker.read_to_iter(source, read_size=_COPY_BYTES):
                written += len(chunk)
                if written > file.size_bytes:
                    raise TooLargeError(f"{file.role} file", written, file.size_bytes)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except (zstandard.ZstdError, TooLargeError) as error:
        raise MalformedError(f"{file.role} blob cannot be unpacked: {error}") from error
