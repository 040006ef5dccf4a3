"""Datasets in the database: added, found, and split with their lineage.

Reading and writing the files (`content`) is slow and is done before the transaction; here only
rows are written. A dataset is named by the digest of its content, so adding it again changes
nothing.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Dataset
from edgefleet_cloud.datasets.content import Prepared
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_protocol.identifiers import model_name

# A shorter prefix of a digest would too soon mean another dataset.
MIN_PREFIX = 8


def add(
    session: Session,
    prepared: Prepared,
    *,
    name: str,
    source: str,
    now: float,
    parents: list[str] | None = None,
) -> Dataset:
    """Enter a dataset whose file is in the store; the same content gives the row that is there.

    Args:
        session: in a write transaction.
        prepared: from `content.prepare`.
        name: for people; need not be unique.
        source: where it came from (`bundled:iris`, `file:door.csv`, `split of …`).
        now: Unix seconds.
        parents: digests of the datasets that it was made from.

    Raises:
        MalformedError: if `name` is no name.
    """
    known = session.get(Dataset, prepared.digest)
    if known is not None:
        return known
    dataset = Dataset(
        digest=prepared.digest,
        name=model_name(name),
        rows=prepared.rows,
        columns=prepared.columns,
        label=prepared.label,
        source=source[:500],
        parents=parents or [],
        created_at=now,
    )
    session.add(dataset)
    session.flush()
    audit.record(
        session,
        "dataset.add",
        dataset.digest,
        now,
        after={
            "name": dataset.name,
            "rows": dataset.rows,
            "source": dataset.source,
            "parents": dataset.parents,
        },
    )
    return dataset


def find(session: Session, reference: str) -> Dataset:
    """Return the dataset with this digest, with a digest of this beginning, or of this name.

    Of several with one name the newest is meant.

    Raises:
        NotFoundError: if there is none.
        ConflictError: if several digests begin so.
    """
    exact = session.get(Dataset, reference)
    if exact is not None:
        return exact
    named = session.scalar(
        select(Dataset)
        .where(Dataset.name == reference)
        .order_by(Dataset.created_at.desc(), Dataset.digest)
        .limit(1)
    )
    if named is not None:
        return named
    if len(reference) >= MIN_PREFIX:
        begun = select(Dataset).where(Dataset.digest.startswith(reference, autoescape=True))
        found = list(session.scalars(begun.limit(2)))
        if len(found) > 1:
            raise ConflictError(f"several datasets begin with {reference!r}; give more digits")
        if found:
            return found[0]
    raise NotFoundError("dataset", reference)


def list_datasets(session: Session, *, limit: int = 100) -> list[Dataset]:
    """Return datasets, newest first."""
    query = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.digest).limit(limit)
    return list(session.scalars(query))


def add_split(
    session: Session, whole: Dataset, train: Prepared, holdout: Prepared, now: float
) -> tuple[Dataset, Dataset]:
    """Enter both parts of a split, with the whole as their parent."""
    made = [
        add(
            session,
            part,
            name=f"{whole.name[:55]}-{kind}",
            source=f"{kind} rows of {whole.digest[:12]}",
            parents=[whole.digest],
            now=now,
        )
        for kind, part in (("train", train), ("holdout", holdout))
    ]
    return made[0], made[1]
