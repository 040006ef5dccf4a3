"""Labelled rows from the field → datasets to train on and to judge by.

Rules:

1. Only rows that came in since the drift began, for the recipe's purpose, and not from a device
   under an open device fault.
2. A batch whose columns are not the model's, or whose rows or labels cannot be read, is left out
   and counted; nothing in it is guessed.
3. Equal rows count once, so that no row is both trained on and judged by.
4. The split is seeded; training data is the base datasets and the field's training part. The
   parents of every dataset are recorded.
"""

import logging
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Dataset, SampleRecord
from edgefleet_cloud.datasets import content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.rollouts.figures import faulty_devices
from edgefleet_cloud.storage import Store
from edgefleet_converters.tables import Column, Table
from edgefleet_protocol.sketch import Feature

# Newest batches that are read: at 50 rows each, 100,000 rows.
MAX_BATCHES = 2000
logger = logging.getLogger(__name__)


class Selection(Struct, frozen=True):
    """Which samples are meant.

    Attributes:
        since: came in at or after this time, Unix seconds.
    """

    model: str
    purpose: str
    since: float


class Built(Struct, frozen=True):
    """Datasets made from samples, by digest.

    Attributes:
        train: base and field rows together; holdout: field rows alone.
        rows: field rows used; left_out: batches that could not be read.
    """

    train: str
    holdout: str
    rows: int
    left_out: int


def count(session: Session, selection: Selection) -> int:
    """Return how many labelled rows a selection has, equal ones counted each."""
    query = _query(session, selection).with_only_columns(
        func.coalesce(func.sum(func.json_array_length(SampleRecord.labels)), 0)
    )
    return int(session.scalar(query.order_by(None).limit(None)) or 0)


def build(
    session: Session,
    store: Store,
    selection: Selection,
    base: Sequence[Dataset],
    features: Sequence[Feature],
    *,
    holdout_share: float,
    seed: int,
    source: str,
    now: float,
) -> Built:
    """Make the datasets of a retraining.

    Args:
        session: in a write transaction.
        store: holds the base datasets, and gets the new ones.
        selection: of the samples.
        base: datasets that are trained on too, at least one, all with the same columns and label.
        features: of the champion's reference profile, whose vocabularies name categories.
        holdout_share: of the field rows.
        seed: of the split.
        source: where they came from, for people.
        now: Unix seconds.

    Raises:
        InvalidError: if not one sample can be used, or the base datasets do not fit each other.
    """
    first = base[0]
    label = first.label
    if label is None:
        raise InvalidError(f"dataset {first.name} has no label column")
    for other in base[1:]:
        if (other.label, other.columns) != (label, first.columns):
            raise InvalidError(f"datasets {first.name} and {other.name} have different columns")
    old = content.read(store, first.digest)
    for other in base[1:]:
        old = old.below(content.read(store, other.digest))
    batches = list(session.scalars(_query(session, selection)))
    field, left_out = _field_rows(batches, old, label, features)
    if not len(field):
        raise InvalidError(f"not one of {len(batches)} sample batches could be used")
    train_rows, held_rows = content.split_rows(field.column(label), len(field), holdout_share, seed)
    whole = content.prepare(store, field, label)
    name = selection.model[:50]
    samples = datasets.add(session, whole, name=f"{name}-field", source=source, now=now)
    held = content.prepare(store, field.take(held_rows), label)
    holdout = datasets.add(
        session, held, name=f"{name}-field-holdout", source=f"holdout rows of {source}"[:500],
        parents=[samples.digest], now=now,
    )  # fmt: skip
    joined = content.prepare(store, old.below(field.take(train_rows)), label)
    parents = [*(dataset.digest for dataset in base), samples.digest]
    train = datasets.add(
        session, joined, name=f"{name}-retrain", source=f"base and training rows of {source}"[:500],
        parents=parents, now=now,
    )  # fmt: skip
    for batch in batches:
        batch.dataset = samples.digest
    return Built(train.digest, holdout.digest, len(field), left_out)


def _query(session: Session, selection: Selection) -> Select[SampleRecord]:
    return (
        select(SampleRecord)
        .where(
            SampleRecord.model == selection.model,
            SampleRecord.purpose == selection.purpose,
            SampleRecord.received_at >= selection.since,
            SampleRecord.device_id.not_in(faulty_devices(session, selection.model)),
        )
        .order_by(SampleRecord.report_id.desc())
        .limit(MAX_BATCHES)
    )


def _field_rows(
    batches: Sequence[SampleRecord], like: Table, label: str, features: Sequence[Feature]
) -> tuple[Table, int]:
    """Return the rows of all readable batches as a table with the columns of `like`."""
    names = [name for name in like.names if name != label]
    kinds = {feature.name: feature for feature in features}
    parts: list[Table] = []
    left_out = 0
    for batch in batches:
        try:
            values = _values(batch, names)
            columns = {
                name: _column(values[:, index], kinds.get(name), like.is_numeric(name))
                for index, name in enumerate(names)
            }
            columns[label] = _labels(batch.labels, like.is_numeric(label))
        except ValueError as error:
            left_out += 1
            logger.warning("samples of %s left out: %s", batch.device_id, error)
            continue
        parts.append(Table("samples", {name: columns[name] for name in like.names}))
    if not parts:
        return Table("samples", {name: np.zeros(0) for name in like.names}), left_out
    joined = {name: np.concatenate([p.columns[name] for p in parts]) for name in like.names}
    return _distinct(Table("samples", joined)), left_out


def _values(batch: SampleRecord, names: list[str]) -> NDArray[np.float32]:
    if sorted(batch.columns) != sorted(names):
        raise ValueError(f"columns {batch.columns[:4]}…; expected {names[:4]}…")
    if len(batch.rows) != 4 * len(batch.labels) * len(names):
        raise ValueError(f"{len(batch.rows)} bytes for {len(batch.labels)} rows")
    values = np.frombuffer(batch.rows, "<f4").reshape(len(batch.labels), len(names))
    return values[:, [batch.columns.index(name) for name in names]]


def _column(values: NDArray[np.float32], feature: Feature | None, numeric: bool) -> Column:
    if numeric:
        return values.astype(np.float64)
    if feature is None or feature.kind != "categorical":
        raise ValueError("a text column that the reference profile does not count as categories")
    words = dict(enumerate(feature.vocabulary))
    cells = [words.get(int(value)) if np.isfinite(value) else None for value in values]
    return np.array(cells, object)


def _labels(labels: Sequence[str], numeric: bool) -> Column:
    if not numeric:
        return np.array([str(label) for label in labels], object)
    cells = np.array([float(label) for label in labels], np.float64)
    if not np.isfinite(cells).all():
        raise ValueError("a label that is not a number")
    return cells


def _distinct(table: Table) -> Table:
    """Return each different row once, the first of its kind."""
    seen: dict[tuple[object, ...], int] = {}
    for index, row in enumerate(zip(*table.columns.values(), strict=True)):
        # NaN differs from itself; a missing number is equal to another one here.
        seen.setdefault(tuple(None if cell != cell else cell for cell in row), index)
    return table.take(np.array(sorted(seen.values()), np.int64))
