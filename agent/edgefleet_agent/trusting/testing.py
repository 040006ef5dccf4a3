"""An image repository with delegations, as the hub publishes it, with all its keys in memory."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgefleet_protocol.identifiers import digest_of

YEAR = timedelta(days=365)
ONLINE = ("snapshot", "timestamp")
# The hub's own role, for all models that nobody claims.
RELEASES: dict[str, tuple[Sequence[str], int]] = {"releases": (["*/*/*"], 1)}

Signed = TypeVar("Signed", Root, Targets, Snapshot, Timestamp)


class Delegating:
    """A repository whose top-level targets role only delegates; consistent snapshots.

    Attributes:
        life: of what is signed next.
        owners: delegated roles in the order of trust, each terminating.
        signers: role → the keys that sign it.
        roots: every version of the root.
        versions: role → version that was signed last.
    """

    def __init__(
        self,
        owners: Mapping[str, tuple[Sequence[str], int]] = RELEASES,
        *,
        keys: int = 3,
        life: timedelta = YEAR,
    ) -> None:
        """Make the keys and version 1 of the root.

        Args:
            owners: role → (patterns of paths, threshold).
            keys: of root, of the top-level targets role and of each owner; both of the first have
                a threshold of two.
            life: of what is signed.
        """
        self.life = life
        self.signers = {
            role: [CryptoSigner.generate_ed25519() for _ in range(keys)]
            for role in ("root", "targets", *owners)
        }
        self.signers |= {role: [CryptoSigner.generate_ed25519()] for role in ONLINE}
        self.owners = [
            DelegatedRole(
                role, self._keyids(role), threshold, terminating=True, paths=list(patterns)
            )
            for role, (patterns, threshold) in owners.items()
        ]
        self.versions: dict[str, int] = {}
        root = Root(expires=datetime.now(UTC) + 3 * YEAR, consistent_snapshot=True)
        for role in ("root", "targets", *ONLINE):
            for signer in self.signers[role]:
                root.add_key(signer.public_key, role)
        for role in ("root", "targets"):
            root.roles[role].threshold = min(2, keys)
        self.roots = [self.sign(root, "root")]

    def publish(
        self, targets: Mapping[str, TargetFile], fields: Mapping[str, object] | None = None
    ) -> dict[str, bytes]:
        """Sign the next version of every role; return role as on its topic → JSON.

        Args:
            targets: each goes to the first role that may list its path.
            fields: signed fields of the top-level targets role.
        """
        listed: dict[str, dict[str, TargetFile]] = {owner.name: {} for owner in self.owners}
        for path, target in targets.items():
            role = next(owner for owner in self.owners if owner.is_delegated_path(path))
            listed[role.name][path] = target
        made = {name: self.owned(name, those) for name, those in listed.items()}
        keys: dict[str, Key] = {
            signer.public_key.keyid: signer.public_key
            for owner in self.owners
            for signer in self.signers[owner.name]
        }
        top = Targets(
            delegations=Delegations(keys, {owner.name: owner for owner in self.owners}),
            unrecognized_fields=dict(fields or {}),
        )
        made["targets"] = self.next(top, "targets")
        return made | self.seal(made)

    def owned(self, role: str, targets: Mapping[str, TargetFile]) -> bytes:
        """Sign the next version of one owner's role."""
        return self.next(Targets(targets=dict(targets)), role)

    def seal(self, made: Mapping[str, bytes]) -> dict[str, bytes]:
        """Sign snapshot and timestamp over the newest version of every role in `made`."""
        meta = {f"{role}.json": self._meta(role, data) for role, data in made.items()}
        snapshot = self.next(Snapshot(meta=meta), "snapshot")
        named = self._meta("snapshot", snapshot)
        timestamp = self.next(Timestamp(snapshot_meta=named), "timestamp")
        return {"snapshot": snapshot, "timestamp": timestamp}

    def next(self, signed: Signed, role: str) -> bytes:
        """Sign the next version of a role, by all of its keys."""
        self.versions[role] = self.versions.get(role, 0) + 1
        signed.version = self.versions[role]
        signed.expires = datetime.now(UTC).replace(microsecond=0) + self.life
        return self.sign(signed, role)

    def sign(self, signed: Signed, role: str) -> bytes:
        """Sign a role as it is, by all of its keys."""
        metadata = Metadata(signed)
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _keyids(self, role: str) -> list[str]:
        return [signer.public_key.keyid for signer in self.signers[role]]

    def _meta(self, role: str, data: bytes) -> MetaFile:
        return MetaFile(self.versions[role], len(data), {"sha256": digest_of(data)})
