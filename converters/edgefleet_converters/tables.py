"""Tables of feature rows from CSV or Parquet, checked before anything is built on them.

1. Every row has as many cells as the header; nothing is padded or cut.
2. A column is numeric if all its cells are numbers (or empty), else it is text. Numbers become
   float64, an empty cell NaN; text stays text, an empty cell None.
3. A column that must be numeric and is not is refused with the row and cell that broke it.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError
from edgefleet_protocol.rows import Rows
from edgefleet_protocol.sketch import MAX_FEATURES

if TYPE_CHECKING:
    import pandas as pd

# Of a Parquet file, before it is unpacked: 800 MB of numbers.
MAX_CELLS = 100_000_000
# Of a column of text, all cells together.
MAX_CHARACTERS = 200_000_000
_PARQUET_MAGIC = b"PAR1"
_SEPARATORS = ";\t|"
Column = NDArray[np.float64] | NDArray[np.object_]


@dataclass(frozen=True)
class Table:
    """Named columns of one length.

    Attributes:
        source: where it came from, for error texts.
        columns: name → `(n,)` float64, or `(n,)` object of `str | None` for text.
    """

    source: str
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> list[str]:
        """Column names in the order of the file."""
        return list(self.columns)

    def is_numeric(self, name: str) -> bool:
        """Return whether a column holds numbers."""
        return self.columns[name].dtype != object

    def column(self, name: str) -> Column:
        """Return one column.

        Raises:
            BadInputError: if there is none of that name.
        """
        if name not in self.columns:
            raise BadInputError(
                f"{self.source}: no column {name!r}; there are {', '.join(self.names[:20])}"
            )
        return self.columns[name]

    def select(self, names: Iterable[str]) -> "Table":
        """Return these columns, in this order.

        Raises:
            BadInputError: if one is missing.
        """
        return Table(self.source, {name: self.column(name) for name in names})

    def without(self, name: str | None) -> "Table":
        """Return all columns but one."""
        return self.select(column for column in self.names if column != name)

    def take(self, index: NDArray[np.int64]) -> "Table":
        """Return these rows, in this order."""
        return Table(self.source, {name: cells[index] for name, cells in self.columns.items()})

    def below(self, other: "Table") -> "Table":
        """Return the rows of this table and then those of `other`, which has all its columns."""
        joined: dict[str, Column] = {}
        for name, cells in self.columns.items():
            more = other.column(name)
            if self.is_numeric(name):
                more = other.numbers(name)
            joined[name] = np.concatenate([cells, more])
        return Table(f"{self.source} and {other.source}", joined)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a numeric column.

        Raises:
            BadInputError: if it holds text; names the first such cell.
        """
        cells = self.column(name)
        if cells.dtype != object:
            return cells.astype(np.float64)
        for row, cell in enumerate(cells, start=1):
            if cell is not None and not _is_number(cell):
                raise BadInputError(
                    f"{self.source}: column {name!r}, data row {row}: expected a number, found"
                    f" {str(cell)[:40]!r}"
                )
        return np.array([np.nan if cell is None else float(cell) for cell in cells])

    def matrix(self, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return numeric columns as `(n, n_columns)` float64.

        Raises:
            BadInputError: as `numbers`.
        """
        names = self.names if names is None else names
        return np.array([self.numbers(name) for name in names]).T.reshape(len(self), len(names))

    def rows(self) -> Rows:
        """Return the rows in the form that devices bind: an array, or columns if some are text."""
        if all(self.is_numeric(name) for name in self.names):
            return self.matrix()
        return dict(self.columns)

    def frame(self) -> "pd.DataFrame":
        """Return a pandas frame; missing text is NaN, as when pandas reads the file."""
        import pandas as pd

        return pd.DataFrame(
            {
                name: cells
                if self.is_numeric(name)
                else pd.Series([np.nan if cell is None else cell for cell in cells], dtype=object)
                for name, cells in self.columns.items()
            }
        )


def read_table(path: str | Path) -> Table:
    """Read and check a table; Parquet is known by its content, all else is read as CSV.

    Raises:
        BadInputError: the file cannot be read, has no rows, or breaks a rule of this module.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not magic:
        raise BadInputError(f"{path}: the file is empty; expected CSV with a header, or Parquet")
    frame = _read_parquet(file) if magic == _PARQUET_MAGIC else _read_csv(file)
    if not len(frame):
        raise BadInputError(f"{path}: there is a header, but no row")
    return Table(str(path), {str(name): _column(file, name, frame[name]) for name in frame})


def _read_csv(file: Path) -> "pd.DataFrame":
    import pandas as pd

    _check_csv(file)
    try:
        return pd.read_csv(file, encoding="utf-8", low_memory=False, skip_blank_lines=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise BadInputError(f"{file}: not readable as CSV: {error}") from error


def _check_csv(file: Path) -> None:
    """Count the cells of each row, which pandas pads without a word where they are too few."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            _check_header(file, header)
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise BadInputError(
                        f"{file}: line {reader.line_num}: expected {len(header)} cells as in the"
                        f" header, found {len(cells)}"
                    )
    except csv.Error as error:
        raise BadInputError(f"{file}: line {reader.line_num}: broken CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{file}: not UTF-8 text (byte {error.start}): expected CSV or Parquet"
        ) from error


def _check_header(file: Path, header: list[str]) -> None:
    if len(header) == 1:
        for separator in _SEPARATORS:
            if separator in header[0]:
                raise BadInputError(
                    f"{file}: line 1: cells are separated by {separator!r}; expected commas"
                )
    _check_names(file, header)


def _check_names(file: Path, names: Sequence[str]) -> None:
    empty = [str(index) for index, name in enumerate(names, start=1) if not name.strip()]
    if empty or not names:
        raise BadInputError(f"{file}: column {', '.join(empty) or '1'} has no name in the header")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInputError(f"{file}: the header names a column twice: {', '.join(twice[:8])}")
    if len(names) > MAX_FEATURES:
        raise BadInputError(f"{file}: {len(names)} columns; at most {MAX_FEATURES} are allowed")
    long = [name for name in names if len(name) > 200]
    if long:
        raise BadInputError(f"{file}: a column name has over 200 characters: {long[0][:60]}…")


def _read_parquet(file: Path) -> "pd.DataFrame":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
        _check_cells(file, metadata)
        # As it is written: each text once, and a number for each cell.
        columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        table = pq.read_table(file, read_dictionary=texts)
        _check_names(file, table.column_names)
        # Here, too: what the pages of a damaged file hold shows only when it is used.
        frame: pd.DataFrame = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise BadInputError(f"{file}: broken Parquet file: {error}") from error
    return frame


def _check_cells(file: Path, metadata: Any) -> None:
    """Refuse more cells than are ever needed: a few bytes can stand for billions of equal ones."""
    cells = sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    if not 0 <= cells <= MAX_CELLS:
        raise BadInputError(f"{file}: {cells} cells; at most {MAX_CELLS} are read")


def _column(file: Path, name: object, series: "pd.Series[Any]") -> Column:
    from pandas.api import types

    if types.is_bool_dtype(series) or types.is_numeric_dtype(series):
        return series.to_numpy(np.float64, na_value=np.nan)
    text = types.is_string_dtype(series) or types.is_object_dtype(series)
    if not text and not isinstance(series.dtype, types.CategoricalDtype):
        raise BadInputError(
            f"{file}: column {name!r} has the type {series.dtype}; expected numbers or text"
        )
    cells = np.empty(len(series), object)
    if isinstance(series.dtype, types.CategoricalDtype):
        # By its words: as a series, pandas would write each of them out for each cell.
        words = [str(word) for word in series.cat.categories]
        cells[:] = [None if code < 0 else words[code] for code in series.cat.codes]
    else:
        cells[:] = [
            None if missing else str(cell)
            for cell, missing in zip(series, series.isna(), strict=True)
        ]
    characters = sum(len(cell) for cell in cells if cell is not None)
    if characters > MAX_CHARACTERS:
        raise BadInputError(
            f"{file}: column {name!r} has {characters} characters;"
            f" at most {MAX_CHARACTERS} are read"
        )
    if all(cell is None for cell in cells):
        return np.full(len(cells), np.nan)
    return cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
