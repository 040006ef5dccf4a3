"""Keys and root metadata of one TUF repository of the hub.

A folder holds `keys/{role}.pem` (ed25519, one a role) and `{N}.root.json`, N from 1 on. Rules:

1. Keys are made at first start, before the first root; once a root exists, a missing or wrong key
   is damage, never a reason to make another one: devices trust what the first root names.
2. A root is renewed at half its life by signing the next version; all versions are kept, so that a
   device of any age can walk from the one it was given at enrolment.
"""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
ROOT_LIFE_S = 365 * 86_400.0

Role = TypeVar("Role", Root, Targets, Snapshot, Timestamp)


class RootChain:
    """The keys of a repository and every version of its root; open it with `RootChain.open`.

    Attributes:
        payloads: root metadata as published; element i is version i + 1.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float],
        signers: Mapping[str, CryptoSigner],
        payloads: list[bytes],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._signers = signers
        self.payloads = payloads

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float]) -> "RootChain":
        """Read the folder, or fill it at first start.

        Raises:
            DamagedError: if keys or roots are missing, unreadable, or do not fit together.
        """
        first = folder / "1.root.json"
        if not first.exists():
            signers = {role: _signer(folder, role, make=True) for role in ROLES}
            chain = cls(folder, clock, signers, [])
            chain._append(_first_root(signers))
            return chain
        signers = {role: _signer(folder, role, make=False) for role in ROLES}
        payloads: list[bytes] = []
        while (path := folder / f"{len(payloads) + 1}.root.json").exists():
            payloads.append(path.read_bytes())
        chain = cls(folder, clock, signers, payloads)
        chain._check()
        return chain

    @property
    def first(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self.payloads[0]

    def renew_if_due(self) -> bool:
        """Sign the next root version if the newest has lived half of its life."""
        newest = Metadata[Root].from_bytes(self.payloads[-1]).signed
        if newest.expires.timestamp() - self._clock() > ROOT_LIFE_S / 2:
            return False
        newest.version += 1
        self._append(newest)
        return True

    def sign(self, signed: Role) -> bytes:
        """Return the role's metadata file, signed with its key."""
        metadata = Metadata(signed)
        metadata.sign(self._signers[signed.type])
        return metadata.to_bytes()

    def _append(self, root: Root) -> None:
        root.expires = moment(self._clock() + ROOT_LIFE_S)
        payload = self.sign(root)
        durable.write(self._folder / f"{root.version}.root.json", payload, mode=durable.PUBLIC)
        self.payloads.append(payload)

    def _check(self) -> None:
        """Refuse roots that their own keys, or the keys held here, do not vouch for."""
        try:
            previous: Root | None = None
            for number, payload in enumerate(self.payloads, start=1):
                root = Metadata[Root].from_bytes(payload)
                vouching = previous or root.signed
                vouching.verify_delegate(Root.type, root.signed_bytes, root.signatures)
                if root.signed.version != number:
                    raise DamagedError(
                        f"{self._folder}/{number}.root.json has the version {root.signed.version}"
                    )
                previous = root.signed
        except (RepositoryError, ValueError) as error:
            raise DamagedError(
                f"root metadata in {self._folder} cannot be trusted ({error}); restore the folder"
                " from a backup: devices accept no other root"
            ) from error
        for role, signer in self._signers.items():
            if previous is None or signer.public_key.keyid not in previous.roles[role].keyids:
                raise DamagedError(
                    f"{self._folder}/keys/{role}.pem is not the key that the root names; restore"
                    " it from a backup"
                )


def moment(at: float) -> datetime.datetime:
    """Return Unix time `at` as TUF writes it: UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def _first_root(signers: Mapping[str, CryptoSigner]) -> Root:
    root = Root(version=1, consistent_snapshot=False)
    for role, signer in signers.items():
        root.add_key(signer.public_key, role)
    return root


def _signer(folder: Path, role: str, *, make: bool) -> CryptoSigner:
    """Read the key of a role; make it if it is missing and may be made."""
    path = folder / "keys" / f"{role}.pem"
    if make and not path.exists():
        signer = CryptoSigner.generate_ed25519()
        durable.write(path, signer.private_bytes, mode=durable.PRIVATE)
        return signer
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(
            f"signing key {path} cannot be read ({error}); restore it from a backup"
        ) from error
