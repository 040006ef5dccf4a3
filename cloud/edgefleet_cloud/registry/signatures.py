"""Releases that wait for the signature of their model's owner.

Rules:

1. No device is ordered to run a release that its owner has not signed: devices would refuse it.
   Orders wait and go on by themselves.
2. What the tables say follows the image repository (`settle`), which alone decides.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import OwnedModel, Release, Variant
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_protocol.trust import target_path


def owner_of(session: Session, model: str) -> str:
    """Return the role of a model's owner, empty if the hub itself signs its bundles."""
    owned = session.get(OwnedModel, model)
    return owned.role if owned else ""


def waits_for(session: Session, model: str, release: int) -> str:
    """Return the role whose signature a release waits for, empty for none."""
    row = session.get(Release, (model, release))
    return row.waits_for if row else ""


def is_concerned(session: Session, images: ImageRepository) -> bool:
    """Tell whether any model has an owner, or had one: without, there is nothing to settle."""
    return bool(images.owners()) or session.scalar(select(OwnedModel).limit(1)) is not None


def settle(session: Session, images: ImageRepository) -> list[tuple[str, int]]:
    """Bring the tables into line with what is published.

    Args:
        session: in a write transaction.
        images: in line with the registry (`sync`).

    Returns:
        Model and number of the releases that wait no longer.
    """
    owners = images.owners()
    known = {row.model: row for row in session.scalars(select(OwnedModel))}
    for model, role in owners.items():
        if model in known:
            known[model].role = role
        else:
            session.add(OwnedModel(model=model, role=role))
    if gone := known.keys() - owners.keys():
        session.execute(delete(OwnedModel).where(OwnedModel.model.in_(gone)))
    concerned = select(Release).where(Release.model.in_(owners) | (Release.waits_for != ""))
    listed = []
    for release in session.scalars(concerned):
        waits = "" if _is_listed(session, images, release) else owners.get(release.model, "")
        if release.waits_for and not waits:
            listed.append((release.model, release.number))
        release.waits_for = waits
    session.flush()
    return listed


def _is_listed(session: Session, images: ImageRepository, release: Release) -> bool:
    """Tell whether devices find every variant of a release that may be ordered."""
    names = session.scalars(
        select(Variant.name).where(
            Variant.version_id == release.version_id,
            Variant.state == "verified",
            Variant.manifest.is_not(None),
        )
    )
    return all(images.lists(target_path(release.model, release.number, name)) for name in names)
