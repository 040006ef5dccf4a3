"""The director repositories: which bundles one device is to run, now (docs/adr/0003, 0009).

One root and one key a role serve all devices; targets, snapshot and timestamp are made for each
device and travel together in one `messages.Assignment`. Rules:

1. Nothing of a device is kept here: the versions come from the database (`DirectorRecord`), which
   commits before anything is published. So no crash can publish a version twice.
2. The device's id and the assignment's sequence are in the signed targets role, and the full
   assignment always is too, even if it is empty: it cannot be replayed to another device.
3. The root is signed by people. The next one is a draft until enough have signed; from then on
   every assignment is signed again, by the keys that it names.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from securesystemslib.signer import Signature, Signer
from tuf.api.metadata import SPECIFICATION_VERSION, Root, Snapshot, Targets, Timestamp

from edgefleet_cloud.trust.repositories import drafts, layout
from edgefleet_cloud.trust.repositories.drafts import DraftFolder, File, Held, Signed
from edgefleet_cloud.trust.repositories.online import OnlineKeys
from edgefleet_cloud.trust.repositories.roots import RootChain
from edgefleet_cloud.trust.repositories.signing import moment, sign_fields
from edgefleet_cloud.values import Json
from edgefleet_protocol import codec
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Assignment
from edgefleet_protocol.trust import INSTRUCTIONS_FIELD, DirectorTarget, Instructions

_SPEC_VERSION = ".".join(SPECIFICATION_VERSION)
_ROLES = (Targets.type, Snapshot.type, Timestamp.type)


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
class SignedAssignment:
    """A device's signed assignment.

    Attributes:
        payload: `messages.Assignment`, encoded for its topic.
        expires_at: of all its roles.
        root_version: of the root that names the keys.
    """

    payload: bytes
    expires_at: float
    root_version: int


class Director:
    """Signs assignments; open it with `Director.open`. May be called from any thread.

    Attributes:
        online: the keys that the hub signs with.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float], roots: RootChain, online: OnlineKeys
    ) -> None:
        self._clock = clock
        self._roots = roots
        self.online = online
        self._lock = threading.RLock()
        self._drafts = DraftFolder(folder / "drafts")
        self._signers: dict[str, list[Signer]] = {}

    @classmethod
    def open(
        cls, folder: Path, clock: Callable[[], float], online: OnlineKeys | None = None
    ) -> "Director":
        """Read the director's roots and keys as `founding` or an earlier run has left them.

        Args:
            folder: of the repository.
            clock: the time now.
            online: the hub's keys; those in the folder by default.

        Raises:
            DamagedError: if they are missing, unreadable, or do not fit together.
        """
        director = cls.recover(folder, clock, online)
        director._advance()
        director._signers = director._find_signers()
        return director

    @classmethod
    def recover(
        cls, folder: Path, clock: Callable[[], float], online: OnlineKeys | None = None
    ) -> "Director":
        """Read the roots although online keys may be lost, to draft one that names others.

        Raises:
            DamagedError: as `open`, but for lost keys.
        """
        online = online or OnlineKeys.open(folder / "keys")
        return cls(folder, clock, RootChain.open(folder), online)

    @property
    def root_1(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self._roots.first

    @property
    def root_version(self) -> int:
        """Version of the newest root; assignments under an older one are to be signed again."""
        return self._roots.newest.signed.version

    def root(self, version: int) -> bytes | None:
        """Return one version of the root, None if there is none."""
        roots = self._roots.payloads
        return roots[version - 1] if 1 <= version <= len(roots) else None

    def sign(
        self,
        device: str,
        sequence: int,
        version: int,
        entries: Sequence[DirectorEntry],
        ttl_s: float,
    ) -> SignedAssignment:
        """Sign the full assignment of one device.

        Args:
            device: whom it is for.
            sequence: of the assignment; grows whenever its content changes.
            version: of the TUF roles; grows with every signing.
            entries: everything that the device is to run.
            ttl_s: life of the metadata.
        """
        with self._lock:
            roots, signers = list(self._roots.payloads), self._signers
        expires_at = float(int(self._clock() + ttl_s))
        # As `Signed.to_dict` gives them, without the objects: this is done for every device.
        common = {
            "spec_version": _SPEC_VERSION,
            "version": version,
            "expires": moment(expires_at).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        targets = sign_fields(
            {
                "_type": Targets.type,
                **common,
                "targets": {entry.path: _target_fields(entry) for entry in entries},
                INSTRUCTIONS_FIELD: msgspec.to_builtins(Instructions(device, sequence)),
            },
            signers[Targets.type],
        )
        listed = {"targets.json": _meta_fields(version, targets)}
        snapshot = sign_fields(
            {"_type": Snapshot.type, **common, "meta": listed}, signers[Snapshot.type]
        )
        listed = {"snapshot.json": _meta_fields(version, snapshot)}
        timestamp = sign_fields(
            {"_type": Timestamp.type, **common, "meta": listed}, signers[Timestamp.type]
        )
        payload = codec.encode(Assignment(roots, timestamp, snapshot, targets))
        return SignedAssignment(payload, expires_at, len(roots))

    def sign_bytes(self, role: str, data: bytes) -> Signature:
        """Sign bytes that are no metadata with the key of a role; the caller separates domains."""
        with self._lock:
            signer = self._signers[role][0]
        return signer.sign(data)

    # --- the root and its draft -------------------------------------------------------------------

    def held(self) -> Held:
        """Return what is in force of the files that people sign."""
        with self._lock:
            return Held(director_root=self._roots.newest)

    def drafts(self) -> dict[str, File]:
        """Return the draft of the root by its name, if there is one."""
        with self._lock:
            return self._drafts.read()

    def draft(self, name: str, change: Callable[[Signed], None]) -> None:
        """Change the draft of the root, or begin one; it loses its signatures.

        Args:
            name: `layout.DIRECTOR_ROOT`.
            change: is given the next version of the file to alter.
        """
        with self._lock:
            draft = drafts.next_version(name, self._drafts.read(), self.held(), self._clock())
            change(draft.signed)
            self._drafts.put(name, draft)

    def take(self, name: str, draft: File) -> bool:
        """Keep a draft with more signatures; return whether it went into force by it."""
        with self._lock:
            self._drafts.put(name, drafts.merged(name, self._drafts.read(), draft))
            return self._advance()

    def discard(self, name: str) -> None:
        """Forget a draft."""
        with self._lock:
            self._drafts.drop(name)

    def _advance(self) -> bool:
        """Let the drafted root go into force if it is signed; return whether it did."""
        name, held = layout.DIRECTOR_ROOT, self.held()
        present = self._drafts.read()
        draft = present.get(name)
        if draft is None:
            return False
        if draft.signed.version <= self.root_version:
            self._drafts.drop(name)
            return False
        assert isinstance(draft.signed, Root)  # as its name says
        known = all(self.online.holds(draft.signed.roles[role].keyids) for role in _ROLES)
        if not known or not drafts.is_signed(name, present, held):
            return False
        self._roots.append(drafts.payload_of(draft))
        self._signers = self._find_signers()
        self._drafts.drop(name)
        return True

    def _find_signers(self) -> dict[str, list[Signer]]:
        roles = self._roots.newest.signed.roles
        return {
            role: self.online.signers(f"{layout.DIRECTOR}.{role}", roles[role].keyids)
            for role in _ROLES
        }


def _target_fields(entry: DirectorEntry) -> Json:
    return {
        "length": entry.length,
        "hashes": {"sha256": entry.digest},
        "custom": msgspec.to_builtins(entry.target),
    }


def _meta_fields(version: int, payload: bytes) -> Json:
    return {"version": version, "length": len(payload), "hashes": {"sha256": digest_of(payload)}}
