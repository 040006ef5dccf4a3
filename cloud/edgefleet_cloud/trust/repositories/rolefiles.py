"""The present files of a repository in one folder: `{role}.json`, as they were signed."""

from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories.signing import meta_of

_KINDS: dict[str, type[Snapshot | Timestamp | Targets]] = {
    Snapshot.type: Snapshot,
    Timestamp.type: Timestamp,
}


class RoleFiles:
    """Metadata files, each parsed once.

    Attributes:
        revision: grows with every file that is read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.revision = 0
        self._payloads: dict[str, bytes] = {}
        self._parsed: dict[str, Metadata[Any]] = {}

    def __contains__(self, role: str) -> bool:
        return role in self._payloads

    def exists(self, role: str) -> bool:
        """Tell whether a file lies in the folder, read or not."""
        return self._path(role).exists()

    def read(self, role: str) -> None:
        """Read a file from the folder.

        Raises:
            DamagedError: if it is missing, unreadable, or of another role.
        """
        try:
            self._keep(role, self._path(role).read_bytes())
        except (OSError, RepositoryError, ValueError) as error:
            raise DamagedError(
                f"image metadata {self._path(role)} cannot be read ({error}); restore it from a"
                " backup: versions must not start again from 1"
            ) from error

    def write(self, role: str, payload: bytes) -> None:
        """Replace a file, durably."""
        durable.write(self._path(role), payload, mode=durable.PUBLIC)
        self._keep(role, payload)

    def payload(self, role: str) -> bytes:
        """Return a file that was read or written."""
        return self._payloads[role]

    def file(self, role: str) -> Metadata[Any]:
        """Return a file, parsed; not to be altered."""
        return self._parsed[role]

    def targets(self, role: str) -> Metadata[Targets]:
        """Return a file that lists targets, parsed; not to be altered."""
        file: Metadata[Targets] = self._parsed[role]  # `_keep` has seen to it
        return file

    def version(self, role: str) -> int:
        """Return the version that is held, 0 for none."""
        return self._parsed[role].signed.version if role in self._parsed else 0

    def meta(self, role: str) -> MetaFile:
        """Return what the file above says of this one."""
        return meta_of(self.version(role), self._payloads[role])

    def remaining_s(self, role: str, now: float) -> float:
        """Return how long a file is still valid."""
        expires_at: float = self._parsed[role].signed.expires.timestamp()
        return expires_at - now

    def _keep(self, role: str, payload: bytes) -> None:
        parsed: Metadata[Any] = Metadata.from_bytes(payload)
        kind = _KINDS.get(role, Targets)
        if not isinstance(parsed.signed, kind):
            raise ValueError(f"it is of another role: {parsed.signed.type}")
        self.revision += 1
        self._payloads[role], self._parsed[role] = payload, parsed

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.json"
