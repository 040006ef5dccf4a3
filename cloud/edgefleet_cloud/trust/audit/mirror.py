"""A folder as a mirror: what `edgefleet trust export` has written.

metadata/NAME     the image repository
files/DIGEST      manifests, and statements of where bundles came from
"""

from collections.abc import Sequence
from pathlib import Path

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.trust.audit.artifacts import names
from edgefleet_protocol import identifiers
from edgefleet_protocol.manifest import MAX_MANIFEST_BYTES

METADATA, FILES = "metadata", "files"


class FolderMirror:
    """Implements `tracing.Mirror` over a folder.

    Args:
        folder: of the export.

    Raises:
        InvalidError: if it is none.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / METADATA).is_dir():
            raise InvalidError(
                f"{folder} is no mirror: expected a folder {METADATA} in it, as"
                " `edgefleet trust export` writes it"
            )
        self._metadata = folder / METADATA
        self._files = folder / FILES

    def metadata(self, name: str) -> bytes | None:
        """Return a file of the image repository."""
        # A name is made by the TUF client from verified roles; still it stays inside the folder.
        path = self._metadata / Path(name).name
        return path.read_bytes() if path.is_file() else None

    def content(self, digest: str) -> bytes | None:
        """Return a manifest or a statement."""
        path = self._files / identifiers.digest(digest)
        return path.read_bytes() if path.is_file() else None

    def manifests_with(self, digest: str) -> Sequence[str]:
        """Return the digests of the manifests in the folder that name a file."""
        paths = sorted(self._files.iterdir()) if self._files.is_dir() else []
        found = []
        for path in paths:
            small = path.is_file() and path.stat().st_size <= MAX_MANIFEST_BYTES
            if small and names(path.read_bytes(), digest):
                found.append(path.name)
        return found
