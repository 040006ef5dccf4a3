"""Which stored files a device may ask for: those of released bundles, and no others.

The store also holds datasets and models that never leave the hub. A device knows the digests of
its bundles from signed metadata; here each is looked up in an index of every released, verified
variant: its manifest, and the blobs that the manifest lists. Manifests never change, so each is
read once.
"""

import logging
import threading

from sqlalchemy import select

from edgefleet_cloud.database.models import Release, Variant
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import DamagedError, NotFoundError
from edgefleet_cloud.storage import Store
from edgefleet_protocol import manifest as manifests
from edgefleet_protocol.errors import ProtocolError

_log = logging.getLogger(__name__)


class BlobCatalog:
    """The index; its methods may be called from any thread."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._lock = threading.Lock()
        self._manifests: set[str] = set()
        self._sizes: dict[str, int] = {}

    def size(self, digest: str) -> int | None:
        """Return the size in bytes of a file that may be served, None for any other digest."""
        with self._lock:
            if digest not in self._sizes:
                self._read_new_manifests()
            return self._sizes.get(digest)

    def _read_new_manifests(self) -> None:
        with self._database.read() as session:
            released = set(
                session.scalars(
                    select(Variant.manifest)
                    .join(Release, Release.version_id == Variant.version_id)
                    .where(Variant.manifest.is_not(None))
                )
            )
        for digest in released - self._manifests:
            if digest is not None:
                self._read(digest)

    def _read(self, digest: str) -> None:
        try:
            data = self._store.read(digest)
            manifest = manifests.decode(data)
        except (NotFoundError, DamagedError, ProtocolError):
            # Tried again at the next unknown digest, so a restored file is found.
            _log.exception("manifest %s of a released bundle cannot be served", digest)
            return
        self._manifests.add(digest)
        self._sizes[digest] = len(data)
        for file in manifest.files:
            self._sizes[file.transfer.digest] = file.transfer.size_bytes
