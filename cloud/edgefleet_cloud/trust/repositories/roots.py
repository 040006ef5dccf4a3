"""The root metadata of one repository: every version, as devices walk along them.

A folder holds `{N}.root.json`, N from 1 on. Rules:

1. Each version is signed by enough keys of the one before it and by enough of its own.
2. All versions are kept, so that a device of any age can walk from the one it was given at
   enrolment.
3. What does not verify stops the hub: devices accept no other root.
"""

from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable


class RootChain:
    """Every version of a root; open it with `RootChain.open`.

    Attributes:
        payloads: root metadata as published; element i is version i + 1.
        newest: the last of them.
    """

    def __init__(self, folder: Path, payloads: list[bytes], newest: Metadata[Root]) -> None:
        self._folder = folder
        self.payloads = payloads
        self.newest = newest

    @classmethod
    def open(cls, folder: Path) -> "RootChain":
        """Read and verify all versions.

        Raises:
            DamagedError: if there is none, or they cannot be read, or one does not verify.
        """
        payloads: list[bytes] = []
        while (path := folder / f"{len(payloads) + 1}.root.json").exists():
            payloads.append(path.read_bytes())
        if not payloads:
            raise DamagedError(f"{folder} has no root: make one with `edgefleet trust init`")
        try:
            return cls(folder, payloads, verified(payloads))
        except (RepositoryError, ValueError) as error:
            raise DamagedError(
                f"root metadata in {folder} cannot be trusted ({error}); restore the folder"
                " from a backup: devices accept no other root"
            ) from error

    @property
    def first(self) -> bytes:
        """Root version 1, which devices are given at enrolment."""
        return self.payloads[0]

    def append(self, payload: bytes) -> None:
        """Add the next version, durably.

        Raises:
            RepositoryError: if it does not verify.
        """
        newest = _follow(self.newest.signed, payload)
        path = self._folder / f"{newest.signed.version}.root.json"
        durable.write(path, payload, mode=durable.PUBLIC)
        self.payloads.append(payload)
        self.newest = newest


def verified(payloads: list[bytes]) -> Metadata[Root]:
    """Return the last of a chain of roots that begins with version 1.

    Raises:
        RepositoryError, ValueError: if a root cannot be read or does not verify.
    """
    newest: Metadata[Root] | None = None
    for payload in payloads:
        newest = _follow(newest.signed if newest else None, payload)
    if newest is None:
        raise ValueError("there is no root")
    return newest


def _follow(previous: Root | None, payload: bytes) -> Metadata[Root]:
    """Return a root if it follows `previous`, or is a first one."""
    root: Metadata[Root] = Metadata.from_bytes(payload)
    expected = previous.version + 1 if previous else 1
    if not isinstance(root.signed, Root) or root.signed.version != expected:
        raise RepositoryError(f"expected root version {expected}, got {root.signed.version}")
    for vouching in (previous or root.signed, root.signed):
        vouching.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    return root
