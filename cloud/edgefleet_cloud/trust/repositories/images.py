"""The image repository: which bundles exist, as plain TUF metadata (docs/adr/0003).

Rules:

1. The targets role lists exactly what the registry has released; it is derived, so `sync` brings
   it into line after any crash.
2. Files are replaced in the order root, targets, snapshot, timestamp. A crash in between leaves a
   timestamp that is older than the rest; such a chain is completed with higher versions before
   anything of it is given out, so what is published is whole and never goes back.
3. Snapshot and timestamp live for 7 days and targets for 365; each is signed again at half life.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories.roots import RootChain, moment
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.trust import ImageTarget

DAY_S = 86_400.0
TARGETS_LIFE_S = 365 * DAY_S
SNAPSHOT_LIFE_S = 7 * DAY_S
TIMESTAMP_LIFE_S = 7 * DAY_S

Role = TypeVar("Role", Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class ImageEntry:
    """One bundle of a release.

    Attributes:
        length: of the manifest in bytes.
        digest: of the manifest.
        target: signed custom field.
    """

    length: int
    digest: str
    target: ImageTarget


class ImageRepository:
    """The image repository in one folder; open it with `ImageRepository.open`.

    Its methods may be called from any thread.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], roots: RootChain) -> None:
        self._folder = folder
        self._clock = clock
        self._roots = roots
        self._lock = threading.Lock()
        self._files: dict[str, bytes] = {}
        # What may be published: the last whole chain of `_files`.
        self._whole: dict[str, bytes] = {}

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float]) -> "ImageRepository":
        """Read the repository, or make an empty one at first start.

        Raises:
            DamagedError: if a file is missing or unreadable.
        """
        repository = cls(folder, clock, RootChain.open(folder, clock))
        if (folder / "timestamp.json").exists():
            repository._read()
            repository._complete()
        else:
            # The timestamp is written last: without it nothing was ever published.
            repository._write(Targets(1, expires=moment(clock() + TARGETS_LIFE_S)))
            repository._next_snapshot()
        return repository

    @property
    def root_1(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self._roots.first

    def metadata(self) -> dict[str, bytes]:
        """Return every file to publish: role name as on its topic → JSON bytes, leaves last."""
        with self._lock:
            roots = {f"root-{n}": data for n, data in enumerate(self._roots.payloads, start=1)}
            return roots | self._whole

    def sync(self, entries: Mapping[str, ImageEntry]) -> bool:
        """Make the targets role list exactly `entries`.

        Args:
            entries: by target path.

        Returns:
            Whether anything had to be signed.
        """
        wanted = {path: _target_file(path, entry) for path, entry in entries.items()}
        with self._lock:
            targets = self._load(Targets)
            if targets.targets == wanted:
                return self._complete()
            targets.targets = wanted
            self._next_targets(targets)
            return True

    def refresh(self) -> bool:
        """Sign again what has lived half of its life; return whether anything was due."""
        with self._lock:
            renewed = self._roots.renew_if_due()
            now = self._clock()
            targets = self._load(Targets)
            if targets.expires.timestamp() - now <= TARGETS_LIFE_S / 2:
                self._next_targets(targets)
                return True
            snapshot, timestamp = self._load(Snapshot), self._load(Timestamp)
            due = (
                snapshot.expires.timestamp() - now <= SNAPSHOT_LIFE_S / 2
                or timestamp.expires.timestamp() - now <= TIMESTAMP_LIFE_S / 2
            )
            if due:
                self._next_snapshot()
            return self._complete() or renewed or due

    def _next_targets(self, targets: Targets) -> None:
        targets.version += 1
        targets.expires = moment(self._clock() + TARGETS_LIFE_S)
        self._write(targets)
        self._next_snapshot()

    def _next_snapshot(self) -> None:
        """Sign snapshot and timestamp for the targets that are held, with higher versions."""
        now = self._clock()
        version = self._version(Snapshot) + 1
        listed = {"targets.json": self._meta(self._version(Targets), Targets.type)}
        self._write(Snapshot(version, expires=moment(now + SNAPSHOT_LIFE_S), meta=listed))
        meta = self._meta(version, Snapshot.type)
        version = self._version(Timestamp) + 1
        expires = moment(now + TIMESTAMP_LIFE_S)
        self._write(Timestamp(version, expires=expires, snapshot_meta=meta))
        self._whole = dict(self._files)

    def _version(self, role: type[Role]) -> int:
        """Return the version that is held, 0 for none."""
        return self._load(role).version if role.type in self._files else 0

    def _write(self, signed: Role) -> None:
        payload = self._roots.sign(signed)
        durable.write(self._folder / f"{signed.type}.json", payload, mode=durable.PUBLIC)
        self._files[signed.type] = payload

    def _meta(self, version: int, role: str) -> MetaFile:
        payload = self._files[role]
        return MetaFile(version, len(payload), {"sha256": digest_of(payload)})

    def _read(self) -> None:
        for role in (Targets.type, Snapshot.type, Timestamp.type):
            path = self._folder / f"{role}.json"
            try:
                self._files[role] = path.read_bytes()
            except OSError as error:
                raise DamagedError(
                    f"image metadata {path} cannot be read ({error}); restore it from a backup:"
                    " versions must not start again from 1"
                ) from error

    def _complete(self) -> bool:
        """Apply rule 2; return whether the chain had to be completed."""
        if self._whole == self._files:
            return False
        listed = self._load(Snapshot).meta.get("targets.json")
        whole = listed == self._meta(self._version(Targets), Targets.type) and self._load(
            Timestamp
        ).snapshot_meta == self._meta(self._version(Snapshot), Snapshot.type)
        if not whole:
            self._next_snapshot()
        self._whole = dict(self._files)
        return not whole

    def _load(self, role: type[Role]) -> Role:
        path = self._folder / f"{role.type}.json"
        try:
            metadata: Metadata[Role] = Metadata.from_bytes(self._files[role.type])
        except (RepositoryError, ValueError) as error:
            raise DamagedError(
                f"image metadata {path} cannot be read ({error}); restore it from a backup:"
                " versions must not start again from 1"
            ) from error
        if not isinstance(metadata.signed, role):
            raise DamagedError(f"image metadata {path} is of another role: {metadata.signed.type}")
        return metadata.signed


def _target_file(path: str, entry: ImageEntry) -> TargetFile:
    custom = msgspec.to_builtins(entry.target)
    return TargetFile(entry.length, {"sha256": entry.digest}, path, {"custom": custom})
