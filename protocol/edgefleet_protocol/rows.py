"""Rows of features ↔ tensors of a model, the same on the device and at conversion.

Rows come as a `(n, n_columns)` array in the order of `signature.columns`, or as a mapping from
column name to `(n,)` values, which models with text columns need. Whatever else a model takes
(pictures, spectrograms, states) comes as tensors by input name; `count` turns those into the same
table of numbers per row that is counted of feature rows. Rules:

1. Nothing is guessed: a missing or unknown column, or a wrong width, is refused.
2. All preprocessing is in the model's graph; here values are only cast, split and reshaped.
3. Tensors of text know no missing value, so a missing text (None, NaN, empty) becomes `nan`, as
   encoders call that category in a graph exported from scikit-learn.
4. Tensors hold `n` rows, first in every input; a model that takes no batches has one row a call.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import SUMMARIES, Signature, Tensor
from edgefleet_protocol.sketch import Feature

Rows = NDArray[np.floating] | Mapping[str, ArrayLike]
Tensors = dict[str, NDArray[np.generic]]
_MISSING_TEXT = "nan"


def bind(signature: Signature, rows: Rows) -> Tensors:
    """Return the input tensors for `rows`, by input name.

    Raises:
        MalformedError: if the rows do not have the columns of the signature, or the model takes
            more than rows.
    """
    opaque = [tensor.name for tensor in signature.inputs if not tensor.columns]
    if opaque:
        raise MalformedError(f"the inputs {opaque[:8]} are not made of columns: give tensors")
    return bind_columns(signature, rows)


def bind_columns(signature: Signature, rows: Rows) -> Tensors:
    """Return the tensors of those inputs that are made of named columns.

    Raises:
        MalformedError: if the rows do not have the columns of the signature.
    """
    if isinstance(rows, Mapping):
        return _bind_mapping(signature, rows)
    width = len(signature.columns)
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != width:
        raise MalformedError(f"rows of shape {array.shape}: expected (n, {width})")
    tensors: Tensors = {}
    start = 0
    for tensor in signature.inputs:
        if tensor.columns:
            part = array[:, start : start + len(tensor.columns)]
            tensors[tensor.name] = _shaped(signature, tensor, part)
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


def count(
    signature: Signature, features: Sequence[Feature], tensors: Mapping[str, NDArray[np.generic]]
) -> NDArray[np.float64]:
    """Return `(n, n_features)` float64: what is counted of input tensors with `n` rows.

    Values of named columns as `numbers` gives them, and `summaries` of every other input.

    Args:
        signature: of the model.
        features: of its reference profile, named as `signature.features` names them.
        tensors: by input name, in the form that the model takes.

    Raises:
        MalformedError: if an input is missing or does not hold the same rows as the others.
    """
    n = tensor_rows(signature, tensors)
    named = {feature.name: feature for feature in features}
    parts = []
    for tensor in signature.inputs:
        values = tensors[tensor.name]
        if not tensor.columns:
            parts.append(summaries(tensor, values if signature.takes_batches else values[None]))
            continue
        try:
            cells = values.reshape(n, len(tensor.columns))
        except ValueError as error:
            raise MalformedError(
                f"input {tensor.name!r} has the shape {values.shape}; expected {n} rows of"
                f" {len(tensor.columns)} columns"
            ) from error
        if tensor.dtype == "string":
            vocabularies = [named[column].vocabulary for column in tensor.columns]
            parts.append(_indices(vocabularies, cells))
        else:
            parts.append(cells.astype(np.float64))
    return np.concatenate(parts, axis=1)


def summaries(tensor: Tensor, rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return `(n, 4)` float64: mean, standard deviation, least and greatest value of each row.

    All four are NaN, which is counted as missing, for text and for a row that is empty.

    Args:
        tensor: the input.
        rows: its values, `(n, …)`.
    """
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    if tensor.dtype == "string" or flat.shape[1] == 0:
        return np.full((len(flat), len(SUMMARIES)), np.nan)
    values = flat.astype(np.float64)
    return np.stack([values.mean(1), values.std(1), values.min(1), values.max(1)], axis=1)


def tensor_rows(signature: Signature, tensors: Mapping[str, NDArray[np.generic]]) -> int:
    """Return how many rows input tensors hold: 1 for a model that takes no batches.

    Raises:
        MalformedError: if an input is missing, or the inputs hold different numbers of rows.
    """
    missing = [tensor.name for tensor in signature.inputs if tensor.name not in tensors]
    if missing:
        raise MalformedError(f"the inputs {missing[:8]} are missing")
    if not signature.takes_batches:
        return 1
    shapes = {tensor.name: tensors[tensor.name].shape for tensor in signature.inputs}
    counts = {shape[0] if shape else None for shape in shapes.values()}
    if len(counts) != 1 or None in counts:
        raise MalformedError(f"inputs of the shapes {shapes} do not hold the same rows")
    return int(next(iter(shapes.values()))[0])


def _bind_mapping(signature: Signature, rows: Mapping[str, ArrayLike]) -> Tensors:
    wanted = signature.columns
    missing = [name for name in wanted if name not in rows]
    unknown = sorted(set(rows) - set(wanted))
    if missing or unknown:
        raise MalformedError(
            f"rows lack the columns {missing[:8]} and have the unknown columns {unknown[:8]}"
        )
    tensors: Tensors = {}
    for tensor in signature.inputs:
        if not tensor.columns:
            continue
        if tensor.dtype == "string":
            part = np.stack([_text(rows[column]) for column in tensor.columns], 1)
        else:
            part = np.stack([_numeric(c, rows[c]) for c in tensor.columns], 1)
        tensors[tensor.name] = _shaped(signature, tensor, part)
    return tensors


def _text(values: ArrayLike) -> NDArray[np.object_]:
    cells = np.asarray(values, object)
    return np.array([_MISSING_TEXT if _absent(cell) else str(cell) for cell in cells], object)


def _numeric(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise MalformedError(f"column {name!r} must hold numbers: {error}") from error


def _shaped(signature: Signature, tensor: Tensor, part: NDArray[np.generic]) -> NDArray[np.generic]:
    if tensor.dtype == "string":
        cast: NDArray[np.generic] = part.astype(object)
    else:
        cast = np.ascontiguousarray(part, dtype=np.dtype(tensor.dtype))
    if signature.takes_batches:
        return cast.reshape([len(part), *[size or 1 for size in tensor.shape[1:]]])
    if len(part) != 1:
        raise MalformedError(f"{len(part)} rows: the model takes one row a call")
    return cast.reshape([size or 1 for size in tensor.shape])


def _indices(vocabularies: list[list[str]], cells: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the vocabulary index of each cell `(n, k)`: -1 if unknown, NaN if missing."""
    known = [{word: float(i) for i, word in enumerate(words)} for words in vocabularies]
    found = [
        [
            np.nan if _absent(cell) or cell == _MISSING_TEXT else index.get(str(cell), -1.0)
            for cell, index in zip(row, known, strict=True)
        ]
        for row in cells
    ]
    return np.array(found, np.float64).reshape(cells.shape)


def _absent(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))
