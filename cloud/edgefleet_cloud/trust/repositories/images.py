"""The image repository: which bundles exist, as plain TUF metadata (docs/adr/0003, 0009).

Rules:

1. What is listed is derived from what the registry has released, so `sync` brings it into line
   after any crash. The bundles of a model that has an owner are listed by the owner's role, once
   its holders have signed; all others by the hub's own role `releases`.
2. Files are replaced in the order root, owners, releases, targets, snapshot, timestamp. A crash in
   between leaves a timestamp that is older than the rest; such a chain is completed with higher
   versions before anything of it is given out, so what is published is whole and never goes back.
3. What the hub signs is signed again at half its life. What people sign stays as they signed it:
   the hub only drafts the next version (`drafts`).
4. A draft that somebody has signed stays as it is until it goes into force or is discarded; what
   has been released since is in the next one.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust.repositories import drafts, layout
from edgefleet_cloud.trust.repositories.drafts import DraftFolder, File, Held, Signed
from edgefleet_cloud.trust.repositories.layout import (
    OFFLINE_LIFE_S,
    RELEASES,
    RELEASES_LIFE_S,
    SNAPSHOT_LIFE_S,
    TIMESTAMP_LIFE_S,
)
from edgefleet_cloud.trust.repositories.online import OnlineKeys
from edgefleet_cloud.trust.repositories.rolefiles import RoleFiles
from edgefleet_cloud.trust.repositories.roots import RootChain
from edgefleet_cloud.trust.repositories.signing import moment, sign
from edgefleet_protocol.trust import ImageTarget

# A client that is reading one publication can finish while the next ones come out.
PUBLICATIONS_KEPT = 4
_TOP, _SNAPSHOT, _TIMESTAMP = Targets.type, Snapshot.type, Timestamp.type


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

    Attributes:
        online: the keys that the hub signs with.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float], roots: RootChain, online: OnlineKeys
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._roots = roots
        self.online = online
        self._lock = threading.RLock()
        self._drafts = DraftFolder(folder / "drafts")
        self._files = RoleFiles(folder)
        self._wanted: dict[str, TargetFile] = {}
        # The state in which there was nothing to do: judging it takes many signatures.
        self._settled: tuple[int, int, int] | None = None
        # What may be published: the last whole chain, and as files the last few of them.
        self._whole: dict[str, bytes] = {}
        self._listed: frozenset[str] = frozenset()
        self._published: deque[dict[str, bytes]] = deque(maxlen=PUBLICATIONS_KEPT)

    @classmethod
    def open(
        cls, folder: Path, clock: Callable[[], float], online: OnlineKeys | None = None
    ) -> "ImageRepository":
        """Read the repository as `founding` or an earlier run has left it.

        Args:
            folder: of the repository.
            clock: the time now.
            online: the hub's keys; those in the folder by default.

        Raises:
            DamagedError: if a file is missing or unreadable, or files do not fit together.
        """
        repository = cls.recover(folder, clock, online)
        repository._advance()
        repository._check_keys()
        repository._complete()
        return repository

    @classmethod
    def recover(
        cls, folder: Path, clock: Callable[[], float], online: OnlineKeys | None = None
    ) -> "ImageRepository":
        """Read the repository although online keys may be lost, to draft what names others.

        Raises:
            DamagedError: as `open`, but for lost keys.
        """
        online = online or OnlineKeys.open(folder / "keys")
        repository = cls(folder, clock, RootChain.open(folder), online)
        repository._read()
        return repository

    # --- what is published ------------------------------------------------------------------------

    @property
    def root_1(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self._roots.first

    def metadata(self) -> dict[str, bytes]:
        """Return every file to publish: role name as on its topic → JSON bytes, leaves first."""
        with self._lock:
            return dict(self._whole)

    def file(self, name: str) -> bytes | None:
        """Return a published file by the name that a TUF client asks for; None if there is none."""
        with self._lock:
            return next((files[name] for files in self._published if name in files), None)

    def files(self) -> dict[str, bytes]:
        """Return what is published by file name, as a TUF client asks for it.

        Of a repository that recovers, what is held: it publishes nothing.
        """
        with self._lock:
            return dict(self._published[0] if self._published else self._named())

    def lists(self, path: str) -> bool:
        """Tell whether devices find a target path in what is published."""
        with self._lock:
            return path in self._listed

    def owners(self) -> dict[str, str]:
        """Return model → role of those models whose bundles an owner signs."""
        with self._lock:
            roles = drafts.owner_roles(self._files.targets(_TOP))
        return {model: role for role, models in roles.items() for model in models}

    def lives(self) -> dict[str, tuple[int, float]]:
        """Return online role → version and end of its life, Unix seconds."""
        with self._lock:
            return {
                f"{layout.IMAGE}.{role}": (
                    self._files.version(role),
                    self._files.file(role).signed.expires.timestamp(),
                )
                for role in (_SNAPSHOT, _TIMESTAMP, RELEASES)
            }

    def held(self) -> Held:
        """Return what is in force of the files that people sign, and of `releases`."""
        with self._lock:
            top = self._files.targets(_TOP)
            owners = [role for role in drafts.owner_roles(top) if role in self._files]
            return Held(
                image_root=self._roots.newest,
                targets=top,
                owners={role: self._files.targets(role) for role in owners},
                released=self._files.targets(RELEASES) if RELEASES in self._files else None,
            )

    # --- releases ---------------------------------------------------------------------------------

    def sync(self, entries: Mapping[str, ImageEntry]) -> bool:
        """List exactly `entries`: at once, or as drafts for the owners of their models.

        Args:
            entries: by target path.

        Returns:
            Whether anything had to be signed or drafted.
        """
        with self._lock:
            wanted = {path: _target_file(path, entry) for path, entry in entries.items()}
            if wanted == self._wanted and self._is_settled():
                return False
            self._wanted, self._settled = wanted, None
            drafted = self._draft_owners()
            left = self._left_over(self._files.targets(_TOP))
            released = self._files.targets(RELEASES).signed.targets != left
            if released:
                self._write_releases(left, self._files.targets(_TOP))
            advanced = self._advance()
            return self._complete() or advanced or released or drafted

    def refresh(self) -> bool:
        """Sign again what the hub has signed half of its life ago; return whether any was due."""
        with self._lock:
            now, files = self._clock(), self._files
            releases_due = files.remaining_s(RELEASES, now) <= RELEASES_LIFE_S / 2
            if releases_due:
                listed = files.targets(RELEASES).signed.targets
                self._write_releases(listed, files.targets(_TOP))
            if (
                releases_due
                or files.remaining_s(_SNAPSHOT, now) <= SNAPSHOT_LIFE_S / 2
                or files.remaining_s(_TIMESTAMP, now) <= TIMESTAMP_LIFE_S / 2
            ):
                self._next_snapshot()
                return True
            return self._complete()

    # --- drafts -----------------------------------------------------------------------------------

    def drafts(self) -> dict[str, File]:
        """Return all drafts by name."""
        with self._lock:
            return self._drafts.read()

    def draft(self, name: str, change: Callable[[Signed], None]) -> None:
        """Change a draft, or begin one from what is in force; it loses its signatures.

        Args:
            name: of the draft.
            change: is given the next version of the file to alter.
        """
        with self._lock:
            draft = drafts.next_version(name, self._drafts.read(), self.held(), self._clock())
            change(draft.signed)
            self._drafts.put(name, draft)
            self._draft_below()

    def take(self, name: str, draft: File) -> bool:
        """Keep a draft with more signatures; return whether anything went into force by it."""
        with self._lock:
            self._drafts.put(name, drafts.merged(name, self._drafts.read(), draft))
            return self._advance()

    def discard(self, name: str) -> None:
        """Forget a draft."""
        with self._lock:
            self._drafts.drop(name)
            self._draft_below()

    def _draft_below(self) -> None:
        """Draft what a changed root or delegation would leave unsigned."""
        present, held = self._drafts.read(), self.held()
        root = present.get(layout.IMAGE_ROOT)
        if (
            root is not None
            and layout.TARGETS not in present
            and not drafts.vouches(root, _TOP, self._files.targets(_TOP))
        ):
            again = drafts.next_version(layout.TARGETS, present, held, self._clock())
            self._drafts.put(layout.TARGETS, again)
        self._draft_owners()

    def _draft_owners(self) -> bool:
        """Bring the owners' drafts into line with what is wanted; return whether any changed."""
        held, present = self.held(), self._drafts.read()
        top = drafts.targets_files(present.get(layout.TARGETS), held.targets)[0]
        roles = drafts.owner_roles(top)
        before = len(present)
        for name in [name for name in present if layout.is_owner_role(layout.role_of(name))]:
            if layout.role_of(name) not in roles:
                self._drafts.drop(name)
        changed = len(self._drafts.read()) != before
        for role, models in roles.items():
            wanted = {p: t for p, t in self._wanted.items() if layout.model_of(p) in models}
            if self._is_due(role, wanted, held, present):
                in_force = held.owners.get(role)
                version = in_force.signed.version + 1 if in_force else 1
                expires = moment(self._clock() + OFFLINE_LIFE_S)
                file = Targets(version, expires=expires, targets=wanted)
                self._drafts.put(layout.draft_of(role), Metadata(file))
                changed = True
        return changed

    def _is_due(
        self,
        role: str,
        wanted: Mapping[str, TargetFile],
        held: Held,
        present: Mapping[str, File],
    ) -> bool:
        """Tell whether an owner's file has to be drafted, or its draft anew (rule 4)."""
        in_force, draft = held.owners.get(role), present.get(layout.draft_of(role))
        if draft is not None:
            assert isinstance(draft.signed, Targets)  # as its name says
            # A first file has to list all that is listed now, so it follows until it is in force.
            frozen = bool(draft.signatures) and in_force is not None
            return not frozen and draft.signed.targets != wanted
        above = present.get(layout.TARGETS, self._files.targets(_TOP))
        return (
            in_force is None
            or in_force.signed.targets != wanted
            or not drafts.vouches(above, role, in_force)
        )

    # --- writing ----------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Let drafts go into force as far as they are signed and fit; return whether any did."""
        self._drop_outdated()
        held = self.held()
        chosen = drafts.choose(held, self._usable())
        if chosen is None:
            raise DamagedError(
                f"metadata in {self._folder} does not fit together: the targets role or an owner's"
                " is not signed as the root or the delegation demands; restore it from a backup"
            )
        if chosen is held:
            return False
        assert chosen.image_root is not None  # of a repository that has one
        assert chosen.targets is not None  # likewise
        if chosen.image_root is not held.image_root:
            self._roots.append(drafts.payload_of(chosen.image_root))
        for role, file in chosen.owners.items():
            if file is not held.owners.get(role):
                self._files.write(role, drafts.payload_of(file))
        if chosen.targets is not held.targets:
            # Before the file that may name another key for it.
            self._write_releases(self._left_over(chosen.targets), chosen.targets)
            self._files.write(_TOP, drafts.payload_of(chosen.targets))
        self._next_snapshot()
        self._drop_outdated()
        return True

    def _usable(self) -> dict[str, File]:
        """Return the drafts that name no online key that the hub does not hold."""

        def holds(draft: File) -> bool:
            signed = draft.signed
            if isinstance(signed, Root):
                roles = [signed.roles[_SNAPSHOT], signed.roles[_TIMESTAMP]]
            elif signed.delegations is not None:
                roles = [signed.get_delegated_role(RELEASES)]
            else:
                return True
            return all(self.online.holds(role.keyids) for role in roles)

        return {name: draft for name, draft in self._drafts.read().items() if holds(draft)}

    def _drop_outdated(self) -> None:
        held = self.held()
        for name, draft in self._drafts.read().items():
            in_force = held.of(name)
            if in_force is not None and draft.signed.version <= in_force.signed.version:
                self._drafts.drop(name)

    def _left_over(self, top: Metadata[Targets]) -> dict[str, TargetFile]:
        """Return what is wanted of models that no owner signs."""
        owned = {model for models in drafts.owner_roles(top).values() for model in models}
        return {p: t for p, t in self._wanted.items() if layout.model_of(p) not in owned}

    def _write_releases(self, listed: dict[str, TargetFile], top: Metadata[Targets]) -> None:
        version = self._files.version(RELEASES) + 1
        expires = moment(self._clock() + RELEASES_LIFE_S)
        signers = self.online.signers(
            f"{layout.IMAGE}.{RELEASES}", top.signed.get_delegated_role(RELEASES).keyids
        )
        file = sign(Targets(version, expires=expires, targets=listed), signers)
        self._files.write(RELEASES, file)

    def _next_snapshot(self) -> None:
        """Sign snapshot and timestamp for the files that are held, with higher versions."""
        now, files = self._clock(), self._files
        meta = {f"{role}.json": files.meta(role) for role in self._target_roles()}
        expires = moment(now + SNAPSHOT_LIFE_S)
        self._sign(Snapshot(files.version(_SNAPSHOT) + 1, expires=expires, meta=meta))
        expires = moment(now + TIMESTAMP_LIFE_S)
        version = files.version(_TIMESTAMP) + 1
        self._sign(Timestamp(version, expires=expires, snapshot_meta=files.meta(_SNAPSHOT)))
        self._let_out()

    def _sign(self, signed: Snapshot | Timestamp) -> None:
        keyids = self._roots.newest.signed.roles[signed.type].keyids
        signers = self.online.signers(f"{layout.IMAGE}.{signed.type}", keyids)
        self._files.write(signed.type, sign(signed, signers))

    def _complete(self) -> bool:
        """Apply rule 2; return whether the chain had to be completed."""
        if RELEASES not in self._files:
            self._write_releases({}, self._files.targets(_TOP))
        whole = self._is_settled() or self._is_whole()
        if not whole:
            self._next_snapshot()
        elif not self._whole:
            self._let_out()
        self._settled = self._state()
        return not whole

    def _is_settled(self) -> bool:
        return self._settled == self._state()

    def _state(self) -> tuple[int, int, int]:
        """Return what changes whenever a draft, a root or a file does."""
        return self._drafts.revision, len(self._roots.payloads), self._files.revision

    def _is_whole(self) -> bool:
        """Tell whether snapshot and timestamp are of the present files and the present keys."""
        files = self._files
        if _SNAPSHOT not in files or _TIMESTAMP not in files:
            return False
        snapshot, timestamp = files.file(_SNAPSHOT), files.file(_TIMESTAMP)
        assert isinstance(snapshot.signed, Snapshot)  # as `RoleFiles` has seen
        assert isinstance(timestamp.signed, Timestamp)  # likewise
        root = self._roots.newest.signed
        return (
            snapshot.signed.meta == {f"{r}.json": files.meta(r) for r in self._target_roles()}
            and timestamp.signed.snapshot_meta == files.meta(_SNAPSHOT)
            and all(
                root.get_verification_result(role, file.signed_bytes, file.signatures).verified
                for role, file in ((_SNAPSHOT, snapshot), (_TIMESTAMP, timestamp))
            )
        )

    def _let_out(self) -> None:
        """Take the chain that is held, which is whole, for what is published."""
        files, targets = self._files, self._target_roles()
        roots = enumerate(self._roots.payloads, start=1)
        self._whole = {f"root-{n}": data for n, data in roots}
        self._whole |= {role: files.payload(role) for role in (*targets, _SNAPSHOT, _TIMESTAMP)}
        self._published.appendleft(self._named())
        self._listed = frozenset(
            path for role in targets for path in files.targets(role).signed.targets
        )

    def _named(self) -> dict[str, bytes]:
        """Return the files that are held by the names of consistent snapshots."""
        files, roots = self._files, enumerate(self._roots.payloads, start=1)
        named = {f"{n}.root.json": data for n, data in roots}
        for role in (*self._target_roles(), _SNAPSHOT):
            if role in files:
                named[f"{files.version(role)}.{role}.json"] = files.payload(role)
        if _TIMESTAMP in files:
            named["timestamp.json"] = files.payload(_TIMESTAMP)
        return named

    def _target_roles(self) -> list[str]:
        """Return the roles that a snapshot lists, leaves first."""
        return [*drafts.owner_roles(self._files.targets(_TOP)), RELEASES, _TOP]

    # --- reading ----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read all files; only before the first publication may the hub's own be missing."""
        files = self._files
        files.read(_TOP)
        if files.targets(_TOP).signed.delegations is None:
            raise DamagedError(
                f"{self._folder} is of an earlier layout without delegations, which no released"
                " version has made; begin with a new home"
            )
        for role in drafts.owner_roles(files.targets(_TOP)):
            if files.exists(role):
                files.read(role)
        # The timestamp is written last, so without it nothing was ever published.
        published = files.exists(_TIMESTAMP) or any(
            files.exists(role) and self._is_later(role) for role in (RELEASES, _SNAPSHOT)
        )
        for role in (RELEASES, _SNAPSHOT, _TIMESTAMP):
            if published or files.exists(role):
                files.read(role)

    def _check_keys(self) -> None:
        """Refuse to go on without the keys of the roles that the hub signs."""
        top, root = self._files.targets(_TOP).signed, self._roots.newest.signed
        for role in (RELEASES, _SNAPSHOT, _TIMESTAMP):
            above = top if role == RELEASES else root
            self.online.signers(f"{layout.IMAGE}.{role}", above.get_delegated_role(role).keyids)

    def _is_later(self, role: str) -> bool:
        """Tell whether a file is of a later version than a first one."""
        self._files.read(role)
        return self._files.version(role) > 1


def _target_file(path: str, entry: ImageEntry) -> TargetFile:
    custom = msgspec.to_builtins(entry.target)
    return TargetFile(entry.length, {"sha256": entry.digest}, path, {"custom": custom})
