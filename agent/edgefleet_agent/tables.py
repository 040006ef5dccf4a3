"""Rows in a file: CSV with a header, or NPZ. What cannot be read is refused with its line."""

import csv
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_agent.errors import SourceError
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.rows import Rows

# What a replay may hold in memory; a device's own recordings are far smaller.
MAX_FILE_BYTES = 256 * 1024 * 1024


class Table(Struct, frozen=True):
    """Rows as they stand in the file.

    Attributes:
        columns: name → cells as text (CSV).
        array: `(n, columns)` in the order of the model's columns (NPZ); None for a CSV.
        labels: `n` of them, or none.
    """

    path: str
    columns: dict[str, list[str]]
    array: NDArray[np.float64] | None
    labels: list[str]


def read(path: Path, label_column: str | None = None) -> Table:
    """Read a table.

    Args:
        path: `.npz`, anything else is CSV.
        label_column: of a CSV.

    Raises:
        SourceError: if it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SourceError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        if path.suffix == ".npz":
            return _read_npz(path)
        with path.open(newline="", encoding="utf-8") as file:
            return _read_csv(path, list(csv.reader(file, strict=True)), label_column)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error


def rows_for(table: Table, signature: Signature) -> Rows:
    """Return the rows in the form that the model takes: an array, or columns if some are text.

    Raises:
        SourceError: if a column is missing or a cell is no number.
    """
    wanted = signature.columns
    if table.array is not None:
        if table.array.shape[1] != len(wanted):
            raise SourceError(
                f"{table.path} has {table.array.shape[1]} columns; the model takes {len(wanted)}"
            )
        return table.array
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise SourceError(
            f"{table.path} lacks the columns {', '.join(missing[:8])} that the model takes"
        )
    text = {
        name for tensor in signature.inputs if tensor.dtype == "string" for name in tensor.columns
    }
    numbers = {name: _numbers(table, name) for name in wanted if name not in text}
    if not text:
        return np.stack([numbers[name] for name in wanted], axis=1)
    return {name: numbers.get(name, table.columns[name]) for name in wanted}


def _read_csv(path: Path, lines: list[list[str]], label_column: str | None) -> Table:
    if not lines or not any(lines[0]):
        raise SourceError(f"{path} is empty: expected a header and rows")
    header = lines[0]
    if len(set(header)) != len(header):
        raise SourceError(f"{path}: the header names a column twice")
    rows = [(number, line) for number, line in enumerate(lines[1:], start=2) if line]
    for number, line in rows:
        if len(line) != len(header):
            raise SourceError(
                f"{path}, line {number}: {len(line)} cells; the header has {len(header)}"
            )
    if not rows:
        raise SourceError(f"{path} has a header and no rows")
    columns = {name: [line[i] for _, line in rows] for i, name in enumerate(header)}
    labels: list[str] = []
    if label_column is not None:
        if label_column not in columns:
            raise SourceError(f"{path} has no label column {label_column!r}")
        labels = columns.pop(label_column)
    return Table(str(path), columns, None, labels)


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = np.asarray(archive["rows"], np.float64)
            labels = [str(label) for label in archive["labels"]] if "labels" in archive else []
    except OSError:
        raise
    except Exception as error:  # numpy lets errors of zipfile, zlib, ast and tokenize through
        raise SourceError(
            f"{path} is no NPZ with an array 'rows' of numbers (and 'labels'): {error}"
        ) from error
    if array.ndim != 2 or not len(array) or (labels and len(labels) != len(array)):
        raise SourceError(
            f"{path}: rows of shape {array.shape} with {len(labels)} labels;"
            " expected (n, columns) with n labels or none"
        )
    return Table(str(path), {}, array, labels)


def _numbers(table: Table, name: str) -> NDArray[np.float64]:
    values = np.empty(len(table.columns[name]))
    for index, cell in enumerate(table.columns[name]):
        try:
            values[index] = float(cell) if cell.strip() else np.nan
        except ValueError as error:
            raise SourceError(
                f"{table.path}, row {index + 1}: column {name!r} must hold numbers, not {cell!r}"
            ) from error
    return values
