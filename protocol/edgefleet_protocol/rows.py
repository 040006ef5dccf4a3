"""Rows of features ↔ tensors of a model, the same on the device and at conversion.

Rows come as a `(n, n_columns)` array in the order of `signature.columns`, or as a mapping from
column name to `(n,)` values, which models with text columns need. Rules:

1. Nothing is guessed: a missing or unknown column, or a wrong width, is refused.
2. All preprocessing is in the model's graph; here values are only cast, split and reshaped.
3. Tensors of text know no missing value, so a missing text (None, NaN, empty) becomes `nan`, as
   encoders call that category in a graph exported from scikit-learn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.sketch import Feature

Rows = NDArray[np.floating] | Mapping[str, ArrayLike]
Tensors = dict[str, NDArray[np.generic]]
_MISSING_TEXT = "nan"


def bind(signature: Signature, rows: Rows) -> Tensors:
    """Return the input tensors for `rows`, by input name.

    Raises:
        MalformedError: if the rows do not have the columns of the signature.
    """
    if isinstance(rows, Mapping):
        return _bind_columns(signature, rows)
    width = sum(len(tensor.columns) for tensor in signature.inputs)
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != width:
        raise MalformedError(f"rows of shape {array.shape}: expected (n, {width})")
    tensors: Tensors = {}
    start = 0
    for tensor in signature.inputs:
        part = array[:, start : start + len(tensor.columns)]
        tensors[tensor.name] = _shaped(tensor, part)
        start += len(tensor.columns)
    return tensors


def row_count(rows: Rows) -> int:
    """Return how many rows there are."""
    if isinstance(rows, Mapping):
        return max((len(np.asarray(column)) for column in rows.values()), default=0)
    return len(rows)


def numbers(features: Sequence[Feature], rows: Rows) -> NDArray[np.float64]:
    """Return `(n, n_features)` float64 for counting: categories become their vocabulary index.

    An unknown category becomes -1 and a missing one (None, NaN, empty text) NaN.

    Args:
        features: of the reference profile, in column order.
        rows: an array holds categories as vocabulary indices already.
    """
    if not isinstance(rows, Mapping):
        return np.asarray(rows, np.float64)
    columns = []
    for feature in features:
        if feature.name not in rows:
            raise MalformedError(f"rows have no column {feature.name!r}")
        values = rows[feature.name]
        if feature.kind == "categorical":
            index = {category: float(i) for i, category in enumerate(feature.vocabulary)}
            cells = np.asarray(values, object)
            columns.append([np.nan if _absent(v) else index.get(str(v), -1.0) for v in cells])
        else:
            columns.append(list(_numeric(feature.name, values)))
    return np.array(columns, np.float64).T.reshape(-1, len(features))


def _bind_columns(signature: Signature, rows: Mapping[str, ArrayLike]) -> Tensors:
    wanted = signature.columns
    missing = [name for name in wanted if name not in rows]
    unknown = sorted(set(rows) - set(wanted))
    if missing or unknown:
        raise MalformedError(
            f"rows lack the columns {missing[:8]} and have the unknown columns {unknown[:8]}"
        )
    tensors: Tensors = {}
    for tensor in signature.inputs:
        if tensor.dtype == "string":
            part = np.stack([_text(rows[column]) for column in tensor.columns], 1)
        else:
            part = np.stack([_numeric(c, rows[c]) for c in tensor.columns], 1)
        tensors[tensor.name] = _shaped(tensor, part)
    return tensors


def _text(values: ArrayLike) -> NDArray[np.object_]:
    cells = np.asarray(values, object)
    return np.array([_MISSING_TEXT if _absent(cell) else str(cell) for cell in cells], object)


def _numeric(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise MalformedError(f"column {name!r} must hold numbers: {error}") from error


def _shaped(tensor: Tensor, part: NDArray[np.generic]) -> NDArray[np.generic]:
    if tensor.dtype == "string":
        cast: NDArray[np.generic] = part.astype(object)
    else:
        cast = np.ascontiguousarray(part, dtype=np.dtype(tensor.dtype))
    return cast.reshape([len(part), *[size or 1 for size in tensor.shape[1:]]])


def _absent(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))
