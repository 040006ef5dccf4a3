"""What is in a dataset: its canonical file, its columns, and its split. No database here.

Rules:

1. A dataset is kept as Parquet, one row group, columns in the given order, numbers as float64 and
   text as UTF-8, the label's name in its metadata; equal tables with equal labels give equal
   bytes, so the digest names the dataset.
2. A split is a function of the rows, the share and the seed, and of nothing else.
3. Where the label names classes, the split keeps each class's share to within one row.
"""

from io import BytesIO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.storage import Store
from edgefleet_converters.answers import check_labels
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Column, Table, read_table

# A label with more distinct whole numbers than this is a quantity, not a class.
MAX_CLASSES = 100
# Below this a hold-out set says nothing: one row is a tenth.
MIN_ROWS = 10


class Prepared(Struct, frozen=True):
    """A dataset whose file is in the store and which is not yet in the database.

    Attributes:
        columns: [{"name", "kind": "numeric" | "categorical"}] of the features, in order.
    """

    digest: str
    rows: int
    columns: list[dict[str, str]]
    label: str | None


def prepare(store: Store, table: Table, label: str | None) -> Prepared:
    """Put the canonical file of `table` into the store and describe it.

    Raises:
        InvalidError: if the label is no column, has missing values, or is the only column.
    """
    if label is not None:
        _check_label(table, label)
    columns = [
        {"name": name, "kind": "numeric" if table.is_numeric(name) else "categorical"}
        for name in table.names
        if name != label
    ]
    return Prepared(store.put(encode(table, label)), len(table), columns, label)


def encode(table: Table, label: str | None) -> bytes:
    """Return the canonical Parquet file of a table with its label column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.array(cells, pa.float64() if table.is_numeric(name) else pa.string())
        for name, cells in table.columns.items()
    }
    held = pa.table(arrays).replace_schema_metadata({"edgefleet.label": label or ""})
    sink = BytesIO()
    pq.write_table(held, sink, row_group_size=max(len(table), 1), compression="zstd", version="2.6")
    return sink.getvalue()


def read(store: Store, digest: str) -> Table:
    """Return the rows of a dataset.

    Raises:
        NotFoundError: if the store lacks its file.
        InvalidError: if the file cannot be read.
    """
    path = store.path(digest)
    try:
        return Table(f"dataset {digest[:12]}", read_table(path).columns)
    except BadInputError as error:
        raise InvalidError(f"dataset {digest}: {error}") from error


def is_classes(cells: Column) -> bool:
    """Tell whether a label column names classes (text or few whole numbers) or measures."""
    if cells.dtype == object:
        return True
    numbers = cells.astype(np.float64)
    values = np.unique(numbers[~np.isnan(numbers)])
    return len(values) <= MAX_CLASSES and bool((values == np.round(values)).all())


def split_rows(
    label: Column | None, rows: int, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training rows and of the held-out rows, each ascending.

    Args:
        label: `(rows,)`; classes are shared out evenly, None or measures are not looked at.
        rows: how many there are.
        share: of the rows to hold out, 0 to 1.
        seed: of the shuffle.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if label is not None and is_classes(label):
        # Sorted by class, a shuffled order within each: every (1/share)-th row then takes the
        # same part of every class.
        codes = np.unique(label.astype(str), return_inverse=True)[1]
        order = order[np.argsort(codes[order], kind="stable")]
    taken = np.floor(np.arange(1, rows + 1) * share) > np.floor(np.arange(rows) * share)
    return np.sort(order[~taken]), np.sort(order[taken])


def split(
    store: Store, digest: str, label: str | None, share: float, seed: int
) -> tuple[Prepared, Prepared]:
    """Split a dataset into disjoint training and held-out rows, both put into the store.

    Args:
        store: holds the dataset's file, and gets those of both parts.
        digest: of the dataset.
        label: name of its label column.
        share: of the rows to hold out, above 0 and below 1.
        seed: of the shuffle.

    Raises:
        InvalidError: if there are under ten rows, or one part would be empty.
    """
    table = read(store, digest)
    if len(table) < MIN_ROWS:
        raise InvalidError(
            f"dataset {digest[:12]} has {len(table)} rows; a split needs at least {MIN_ROWS}"
        )
    cells = None if label is None else table.column(label)
    train, held = split_rows(cells, len(table), share, seed)
    if not len(train) or not len(held):
        raise InvalidError(f"a hold-out share of {share} of {len(table)} rows leaves a part empty")
    return prepare(store, table.take(train), label), prepare(store, table.take(held), label)


def _check_label(table: Table, label: str) -> None:
    if label not in table.names:
        known = ", ".join(table.names[:20])
        raise InvalidError(f"{table.source}: no column {label!r} for the label; there are {known}")
    cells = table.column(label)
    try:
        check_labels(cells, f"{table.source}: the label {label!r}")
    except BadInputError as error:
        raise InvalidError(str(error)) from error
    if len(table.names) == 1:
        raise InvalidError(f"{table.source}: {label!r} is the only column; there is no feature")
