"""The director repositories: which bundles one device is to run, now (docs/adr/0003).

One root and one key a role serve all devices; targets, snapshot and timestamp are made for each
device and travel together in one `messages.Assignment`. Rules:

1. Nothing of a device is kept here: the versions come from the database (`DirectorRecord`), which
   commits before anything is published. So no crash can publish a version twice.
2. The device's id and the assignment's sequence are in the signed targets role, and the full
   assignment always is too, even if it is empty: it cannot be replayed to another device.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Targets, Timestamp

from edgefleet_cloud.trust.repositories.roots import RootChain, moment
from edgefleet_protocol import codec
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Assignment
from edgefleet_protocol.trust import INSTRUCTIONS_FIELD, DirectorTarget, Instructions


@dataclass(frozen=True)
class DirectorEntry:
    """One bundle that the device is to run.

    Attributes:
        path: target path, as in the image repository.
        length: of the manifest in bytes.
        digest: of the manifest.
        target: signed custom field.
    """

    path: str
    length: int
    digest: str
    target: DirectorTarget


@dataclass(frozen=True)
class Signed:
    """A device's signed assignment.

    Attributes:
        payload: `messages.Assignment`, encoded for its topic.
        expires_at: of all its roles.
    """

    payload: bytes
    expires_at: float


class Director:
    """Signs assignments; open it with `Director.open`. May be called from any thread."""

    def __init__(self, clock: Callable[[], float], roots: RootChain) -> None:
        self._clock = clock
        self._roots = roots
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float]) -> "Director":
        """Read the director's keys and roots, or make them at first start.

        Raises:
            DamagedError: if they are missing, unreadable, or do not fit together.
        """
        return cls(clock, RootChain.open(folder, clock))

    @property
    def root_1(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self._roots.first

    def sign(
        self,
        device: str,
        sequence: int,
        version: int,
        entries: Sequence[DirectorEntry],
        ttl_s: float,
    ) -> Signed:
        """Sign the full assignment of one device.

        Args:
            device: whom it is for.
            sequence: of the assignment; grows whenever its content changes.
            version: of the TUF roles; grows with every signing.
            entries: everything that the device is to run.
            ttl_s: life of the metadata.
        """
        with self._lock:
            self._roots.renew_if_due()
            roots = list(self._roots.payloads)
        expires_at = float(int(self._clock() + ttl_s))
        expires = moment(expires_at)
        instructions = msgspec.to_builtins(Instructions(device, sequence))
        targets = self._roots.sign(
            Targets(
                version=version,
                expires=expires,
                targets={entry.path: _target_file(entry) for entry in entries},
                unrecognized_fields={INSTRUCTIONS_FIELD: instructions},
            )
        )
        snapshot = self._roots.sign(
            Snapshot(version, expires=expires, meta={"targets.json": _meta(version, targets)})
        )
        timestamp = self._roots.sign(
            Timestamp(version, expires=expires, snapshot_meta=_meta(version, snapshot))
        )
        payload = codec.encode(Assignment(roots, timestamp, snapshot, targets))
        return Signed(payload, expires_at)


def _meta(version: int, payload: bytes) -> MetaFile:
    return MetaFile(version, len(payload), {"sha256": digest_of(payload)})


def _target_file(entry: DirectorEntry) -> TargetFile:
    custom = msgspec.to_builtins(entry.target)
    return TargetFile(entry.length, {"sha256": entry.digest}, entry.path, {"custom": custom})
