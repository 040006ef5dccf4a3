"""What the hub tells those who verify: which manifest names a file, and the files of a proof."""

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Provenance, Release, Variant
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.audit.artifacts import names
from edgefleet_protocol import identifiers

# Files are named by few manifests (each variant's, and a reference profile by its siblings').
MAX_MANIFESTS = 64


def manifests_with(session: Session, store: Store, digest: str) -> list[str]:
    """Return the digests of manifests that name a file, or are it; the newest first.

    Raises:
        MalformedError: if `digest` is none.
    """
    identifiers.digest(digest)
    quick = or_(Variant.model_digest == digest, Variant.manifest == digest)
    query = select(Variant.manifest).where(quick, Variant.manifest.is_not(None))
    found = session.scalars(query.order_by(Variant.id.desc()).limit(MAX_MANIFESTS))
    direct = [manifest for manifest in found if manifest is not None]
    return direct or _named_inside(session, store, digest)


def listed(session: Session) -> list[str]:
    """Return the digests of all manifests of releases, and of the statements about them."""
    query = (
        select(Variant.manifest, Provenance.digest)
        .join(Provenance, Provenance.variant_id == Variant.id)
        .join(Release, Release.version_id == Variant.version_id)
        .distinct()
    )
    return sorted({digest for row in session.execute(query) for digest in row if digest})


def read(session: Session, store: Store, digest: str) -> bytes:
    """Return a manifest or a provenance envelope; nothing else of the store is given out.

    Raises:
        NotFoundError: if `digest` is neither.
        MalformedError: if it is no digest.
    """
    identifiers.digest(digest)
    for column in (Variant.manifest, Provenance.digest):
        if session.scalar(select(column).where(column == digest).limit(1)) is not None:
            return store.read(digest)
    raise NotFoundError("manifest or provenance", digest)


def _named_inside(session: Session, store: Store, digest: str) -> list[str]:
    """Look into the manifests: a blob as sent, a reference profile, golden vectors."""
    query = (
        select(Variant.manifest).where(Variant.manifest.is_not(None)).order_by(Variant.id.desc())
    )
    found = []
    for manifest in session.scalars(query.execution_options(yield_per=100)):
        data = store.read(manifest or "")
        # Cheaper than reading each manifest, and a digest stands in it as it is.
        if digest.encode() in data and names(data, digest):
            found.append(manifest or "")
            if len(found) == MAX_MANIFESTS:
                break
    return found
