"""What lies on disk for the models: journals, content-addressed files, and unfinished downloads.

    models/{key}.json     journal of one lane (`journal.Journal`), and the generation before it
    files/{digest}        manifest, model, reference, golden: whole, and checked when written
    parts/{digest}        a transfer blob that is still arriving
    engines/{digest}/     what a GPU's runtime built of a model file (`runtimes.engines`)

Rules:

1. A file gets its name only after its size and digest were checked and its content is on disk.
2. A part needs no list of what it holds: its blocks are hashed against the manifest when it is
   opened, so what survived a power cut is used again and what did not is asked for again. It is
   made durable when it is complete, before it becomes a file.
3. Nothing is held in memory as a whole, the manifest (4 MiB at most) excepted.
4. A journal that cannot be read is told about, and the generation before it is taken. Only where
   both are gone is it set aside; it is never taken for "no model" without a word.
5. What no journal needs stays as a leftover while there is room for it (`storage`), so that a
   version that comes back, or shares a file or a blob, goes on where the other one stopped.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import zstandard

from edgefleet_agent import files
from edgefleet_agent.config import Storage
from edgefleet_agent.downloading import storage
from edgefleet_agent.downloading.storage import Disk, Held, Why
from edgefleet_agent.errors import StoreError
from edgefleet_agent.updating.journal import FORMAT, Journal
from edgefleet_protocol import blocks, manifest
from edgefleet_protocol.errors import MalformedError, TooLargeError
from edgefleet_protocol.manifest import File, Manifest

# What a device runs; the model card is for people and stays at the hub.
ROLES = ("model", "reference", "golden")
FILES, PARTS = "files", "parts"
_COPY_BYTES = 1024 * 1024
# zstd level 19 uses windows of 8 MiB at most; a hostile frame may declare gigabytes.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
# Called between pieces of slow work; it raises what is to end the work.
Heed = Callable[[], None]


def go_on() -> None:
    """Heed nothing."""


class Part:
    """A transfer blob that arrives block by block, into a file of its final size."""

    def __init__(
        self, path: Path, size_bytes: int, block_digests: list[str], heed: Heed = go_on
    ) -> None:
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
                if index * blocks.BLOCK_BYTES >= held or not self._holds(index, heed)
            }
        except BaseException:
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
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _holds(self, index: int, heed: Heed) -> bool:
        heed()
        length = blocks.block_length(self.size_bytes, index)
        data = os.pread(self._descriptor, length, index * blocks.BLOCK_BYTES)
        return sha256(data).hexdigest() == self._digests[index]


class Slots:
    """The folders above, for one store. Used by one thread at a time for each model."""

    def __init__(self, store: Path, storage: Storage | None = None) -> None:
        self._models = store / "models"
        self._files = store / FILES
        self._parts = store / PARTS
        self.engines = store / "engines"
        self._storage = storage or Storage()
        self._encoder = msgspec.json.Encoder()

    def prepare(self) -> None:
        """Make the folders and clear away what an interrupted write left. For the store's owner.

        Raises:
            StoreError: if the folders cannot be made.
        """
        try:
            for folder in (self._models, self._files, self._parts):
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.glob(f"*{files.PARTIAL}"):
                    # What serves on a store that has become read-only goes on serving.
                    with contextlib.suppress(OSError):
                        path.unlink()
        except OSError as error:
            raise StoreError(f"store cannot be written: {error}") from error

    def journals(self) -> tuple[dict[str, Journal], list[str]]:
        """Read all journals.

        Returns:
            Journals by key, and a sentence for each one that was damaged.
        """
        held: dict[str, Journal] = {}
        complaints = []
        for path in self._journal_paths():
            journal, complaint = _read_journal(path)
            if journal:
                held[path.stem] = journal
            elif complaint:
                for damaged in self._models.glob(f"{path.name}*"):
                    aside = damaged.with_name(f"damaged-{damaged.name}")
                    # On a store that cannot be written it stays, and is told about at each start.
                    with contextlib.suppress(OSError):
                        damaged.replace(aside)
                complaint += f"; kept as damaged-{path.name}"
            if complaint:
                complaints.append(complaint)
        return held, complaints

    def peek(self) -> dict[str, Journal]:
        """Read all journals and change nothing. For a process that does not own the store.

        Raises:
            StoreError: if one cannot be read.
        """
        held = {}
        for path in self._journal_paths():
            journal, complaint = _read_journal(path)
            if journal is None:
                raise StoreError(complaint)
            held[path.stem] = journal
        return held

    def save(self, journal: Journal) -> None:
        """Put a journal on disk, as a whole and for good."""
        files.write_kept(self._models / f"{journal.key}.json", self._encoder.encode(journal))

    def _journal_paths(self) -> list[Path]:
        """Return where journals are: of some, only the generation before is there."""
        names = {path.name.removesuffix(files.BEFORE) for path in self._models.glob("*.json*")}
        return sorted(
            self._models / name
            for name in names
            if name.endswith(".json") and not name.startswith("damaged-")
        )

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

    def damaged(self, bundle: Manifest, heed: Heed = go_on) -> list[str]:
        """Hash every needed file that is there; name those that are damaged."""
        return [f"{file.role} file {file.digest}" for file in self._damaged(bundle, heed)]

    def drop_damaged(self, bundle: Manifest, heed: Heed = go_on) -> list[str]:
        """Hash every needed file that is there; delete and name those that are damaged."""
        bad = []
        for file in self._damaged(bundle, heed):
            self.path(file.digest).unlink(missing_ok=True)
            bad.append(f"{file.role} file {file.digest}")
        return bad

    def has_part(self, file: File) -> bool:
        """Tell whether the transfer blob of a file is on disk (not whether it is complete)."""
        return (self._parts / file.transfer.digest).is_file()

    def drop_part(self, file: File) -> None:
        """Delete the transfer blob of a file that is installed already."""
        (self._parts / file.transfer.digest).unlink(missing_ok=True)

    def open_part(self, file: File, heed: Heed = go_on) -> Part:
        """Open the download of a file's transfer blob, with what an earlier run left of it."""
        transfer = file.transfer
        return Part(self._parts / transfer.digest, transfer.size_bytes, transfer.blocks, heed)

    def install(self, file: File, heed: Heed = go_on) -> None:
        """Turn a complete part into the file it carries. Two threads may do so at one time.

        Raises:
            StoreError: if blocks are no longer what was written; they are fetched again.
            MalformedError: if the blob or the file in it is not what the manifest says.
        """
        part, path = self._parts / file.transfer.digest, self.path(file.digest)
        partial = path.with_name(f"{path.name}.{threading.get_ident()}{files.PARTIAL}")
        try:
            if _digest_of(part, heed) != file.transfer.digest:
                self._judge_part(file, heed)
            if file.transfer.encoding == "zstd":
                _unpack(part, partial, file, heed)
                ready, size_bytes, digest = partial, partial.stat().st_size, _digest_of(partial)
            else:
                _sync(part)
                ready, size_bytes, digest = part, file.transfer.size_bytes, file.transfer.digest
            if (size_bytes, digest) != (file.size_bytes, file.digest):
                raise MalformedError(f"{file.role} file differs from its digest {file.digest}")
            files.commit(ready, path)
            part.unlink(missing_ok=True)
        except FileNotFoundError:
            if not self.has(file.digest):
                raise
            # Another lane, whose release shares this file, has installed it meanwhile.
        except MalformedError:
            part.unlink(missing_ok=True)
            raise
        finally:
            partial.unlink(missing_ok=True)

    def _damaged(self, bundle: Manifest, heed: Heed) -> Iterator[File]:
        for file in self.needed(bundle):
            path = self.path(file.digest)
            if path.is_file() and _digest_of(path, heed) != file.digest:
                yield file

    def _judge_part(self, file: File, heed: Heed) -> None:
        """Say whose fault it is that a part differs from its digest: the disk's or the manifest's.

        Raises:
            StoreError: some blocks differ from their own digests.
            MalformedError: none do, so the manifest contradicts itself.
        """
        with contextlib.closing(self.open_part(file, heed)) as part:
            damaged = len(part.missing)
        if damaged:
            raise StoreError(f"{damaged} blocks of the {file.role} blob are damaged on disk")
        raise MalformedError(f"{file.role} blob differs from {file.transfer.digest}")

    def make_room(self, bundle: Manifest, journals: Iterable[Journal]) -> list[str]:
        """See that a bundle's blobs, and the files unpacked from them, fit; return what went.

        Args:
            bundle: that is to be fetched; one of the journals has an attempt for it.
            journals: of all models.

        Raises:
            NoRoomError: if they do not fit, whatever is deleted.
        """
        own = self._names_of(bundle)
        held = [
            msgspec.structs.replace(file, why=Why.NEEDED) if file.name in own else file
            for file in self._held(journals)
        ]
        sizes = {file.name: file.size_bytes for file in held}
        needed: dict[str, int] = {}
        for file in self.absent(bundle):
            part = f"{PARTS}/{file.transfer.digest}"
            needed[part] = max(file.transfer.size_bytes - sizes.get(part, 0), 0)
            if file.transfer.encoding != "identity":  # else the part becomes the file
                needed[f"{FILES}/{file.digest}"] = file.size_bytes
        names = storage.room(sum(needed.values()), self._disk(), self._storage, held)
        return self._delete(names)

    def collect(self, journals: Iterable[Journal], *, keep_leftovers: bool = True) -> list[str]:
        """Delete leftovers for which there is no room, or all of them; return their names."""
        held = self._held(journals)
        if keep_leftovers:
            return self._delete(storage.surplus(self._disk(), self._storage, held))
        return self._delete(file.name for file in held if file.why is Why.LEFTOVER)

    def is_whole(self, digest: str) -> bool:
        """Tell whether a release has its manifest and every file on disk (not their content)."""
        try:
            return not self.absent(self.manifest(digest))
        except (StoreError, MalformedError):
            return False

    def _held(self, journals: Iterable[Journal]) -> list[Held]:
        """List all files and parts with the reason for which each is there."""
        reasons: dict[str, Why] = {}
        for journal in journals:
            needed = msgspec.structs.replace(journal, previous=None).manifests
            for digest in journal.manifests:
                why = Why.NEEDED if digest in needed else Why.PREVIOUS
                names = {f"{FILES}/{digest}"}
                # A manifest that is not fetched yet, or about to be again, names nothing yet.
                with contextlib.suppress(StoreError, MalformedError):
                    names |= self._names_of(self.manifest(digest))
                for name in names:
                    reasons[name] = max(why, reasons.get(name, why))
        held = []
        for folder in (self._files, self._parts):
            for path in folder.iterdir():
                if path.suffix == files.PARTIAL:
                    continue  # of a step that is running, or removed at the next start
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # installed by a step that is running
                name = f"{folder.name}/{path.name}"
                why = reasons.get(name, Why.LEFTOVER)
                # What it takes on disk: a part has its whole room from the start.
                held.append(Held(name, status.st_blocks * 512, why, status.st_mtime))
        return held

    def _names_of(self, bundle: Manifest) -> set[str]:
        """Return the files of a bundle, and the parts of those that are not there yet."""
        names = {f"{FILES}/{file.digest}" for file in self.needed(bundle)}
        return names | {f"{PARTS}/{file.transfer.digest}" for file in self.absent(bundle)}

    def _disk(self) -> Disk:
        status = os.statvfs(self._files)
        return Disk(str(self._files.parent), status.f_bavail * status.f_frsize)

    def _delete(self, names: Iterable[str]) -> list[str]:
        gone = list(names)
        for name in gone:
            path = self._files.parent / name
            built = self.engines / path.name
            if built.is_dir():
                shutil.rmtree(built)
            path.unlink(missing_ok=True)
        return gone


def _read_journal(path: Path) -> tuple[Journal | None, str]:
    def decode(data: bytes) -> Journal:
        journal = msgspec.json.decode(data, type=Journal)
        if journal.format != FORMAT or journal.key != path.stem:
            raise StoreError(
                f"it is of {journal.key!r} in format {journal.format}; expected {path.stem!r} in"
                f" format {FORMAT}"
            )
        return journal

    journal, complaint = files.read_kept(path, decode)
    return journal, f"journal {complaint}" if complaint else ""


def _digest_of(path: Path, heed: Heed = go_on) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            heed()
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _unpack(blob: Path, target: Path, file: File, heed: Heed) -> None:
    """Unpack one zstd frame in pieces; stop as soon as it is longer than it may be."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    written = 0
    try:
        with blob.open("rb") as source, target.open("wb") as sink:
            for chunk in unpacker.read_to_iter(source, read_size=_COPY_BYTES):
                heed()
                written += len(chunk)
                if written > file.size_bytes:
                    raise TooLargeError(f"{file.role} file", written, file.size_bytes)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except (zstandard.ZstdError, TooLargeError) as error:
        raise MalformedError(f"{file.role} blob cannot be unpacked: {error}") from error
