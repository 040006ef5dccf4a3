"""Golden vectors: rows with the outputs that a right runtime gives, format version 1.

A version check cannot tell that a runtime computes a model wrongly (a model quantized for a newer
runtime loads without error on an old one and scores 9 % instead of 92 %). So every variant carries
some rows with the scores that it gave when it was verified, and a device runs them before it
activates the model.
"""

import math
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from edgefleet_protocol.errors import MalformedError, TooLargeError
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.rows import Rows, Tensors, bind_columns

VERSION = 1
MAX_GOLDEN_BYTES = 16 * 1024 * 1024
# Numbers in the scores of one row; a picture that is made larger has some 500,000.
MAX_WIDTH = 4_000_000
Label = Annotated[str, Meta(max_length=200)]


class GoldenVectors(Struct, frozen=True, omit_defaults=True):
    """Rows, expected scores, and how near a runtime must come.

    Attributes:
        columns: feature names, in the order of the signature.
        numeric: little-endian float64 `(rows, len(columns))`; NaN where a column is text.
        text: column name → values, for text columns.
        tensors: name → values of an input without columns: little-endian, of the input's dtype,
            row after row. A model that takes no batches has one row.
        scores: expected score output, little-endian float32 `(rows, width)`.
        atol: largest allowed absolute difference of a score.
        min_agreement: least share of rows whose best class is the expected one (classification).
    """

    columns: Annotated[list[Label], Meta(max_length=4096)]
    rows: Annotated[int, Meta(ge=1, le=10_000)]
    numeric: bytes
    scores: bytes
    width: Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
    atol: Annotated[float, Meta(ge=0)]
    min_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.0
    text: dict[Label, list[Label]] = field(default_factory=dict)
    tensors: dict[Label, bytes] = field(default_factory=dict)
    version: int = VERSION

    def inputs(self) -> Rows:
        """Return the values of named columns in the form that `rows.bind` takes."""
        array = np.frombuffer(self.numeric, "<f8").reshape(self.rows, len(self.columns))
        if not self.text:
            return array
        return {
            name: self.text.get(name, array[:, index]) for index, name in enumerate(self.columns)
        }

    def expected(self) -> NDArray[np.float32]:
        """Return the expected scores, `(rows, width)` float32."""
        return np.frombuffer(self.scores, "<f4").reshape(self.rows, self.width)


def encode(vectors: GoldenVectors) -> bytes:
    """Return the bytes of a bundle's `golden` file."""
    return msgspec.msgpack.encode(vectors)


def decode(data: bytes) -> GoldenVectors:
    """Read and check golden vectors.

    Raises:
        TooLargeError: over 16 MiB.
        MalformedError: not golden vectors of version 1, or arrays that do not fit the counts.
    """
    if len(data) > MAX_GOLDEN_BYTES:
        raise TooLargeError("golden vectors", len(data), MAX_GOLDEN_BYTES)
    try:
        vectors = msgspec.msgpack.decode(data, type=GoldenVectors)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"not golden vectors: {error}") from error
    if vectors.version != VERSION:
        raise MalformedError(f"golden vectors version {vectors.version}: expected {VERSION}")
    fits = (
        len(vectors.numeric) == 8 * vectors.rows * len(vectors.columns)
        and len(vectors.scores) == 4 * vectors.rows * vectors.width
        and all(len(values) == vectors.rows for values in vectors.text.values())
        and set(vectors.text) <= set(vectors.columns)
    )
    if not fits:
        raise MalformedError(f"golden vectors: arrays do not hold {vectors.rows} rows")
    return vectors


def inputs_of(signature: Signature, vectors: GoldenVectors) -> Tensors:
    """Return all input tensors of golden vectors, ready for a session.

    Raises:
        MalformedError: if they are not for this signature.
    """
    opaque = {tensor.name: tensor for tensor in signature.inputs if not tensor.columns}
    if vectors.columns != signature.columns or set(vectors.tensors) != set(opaque):
        raise MalformedError(
            f"golden vectors have the columns {vectors.columns[:5]} and the tensors"
            f" {sorted(vectors.tensors)[:5]}; the model takes the columns"
            f" {signature.columns[:5]} and the tensors {sorted(opaque)[:5]}"
        )
    if not signature.takes_batches and vectors.rows != 1:
        raise MalformedError(f"golden vectors of {vectors.rows} rows: the model takes one a call")
    tensors = bind_columns(signature, vectors.inputs()) if signature.columns else {}
    for name, tensor in opaque.items():
        tensors[name] = _tensor(signature, tensor, vectors)
    return tensors


def _tensor(signature: Signature, tensor: Tensor, vectors: GoldenVectors) -> NDArray[np.generic]:
    if tensor.dtype == "string":
        raise MalformedError(f"golden vectors for the text input {tensor.name!r}: name its columns")
    data = vectors.tensors[tensor.name]
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    shape = [size or 1 for size in tensor.shape]
    if signature.takes_batches:
        shape[0] = vectors.rows
    expected = dtype.itemsize * math.prod(shape)
    if len(data) != expected:
        raise MalformedError(
            f"golden vectors hold {len(data)} bytes of the input {tensor.name!r}; expected"
            f" {expected} for {vectors.rows} rows of the shape {tensor.shape} {tensor.dtype}"
        )
    values: NDArray[np.generic] = np.frombuffer(data, dtype).reshape(shape)
    return values.astype(np.dtype(tensor.dtype))


def faults(vectors: GoldenVectors, scores: NDArray[np.floating]) -> list[str]:
    """Return every way in which `scores` differ too much from the expected ones.

    Args:
        vectors: the reference.
        scores: what the runtime gave for `inputs_of`, `(rows, width)` float.
    """
    expected = vectors.expected()
    got = np.asarray(scores, np.float64)
    if got.shape != expected.shape:
        return [f"scores have the shape {got.shape}; expected {expected.shape}"]
    if not np.isfinite(got).all():
        return [f"{int((~np.isfinite(got)).sum())} scores are not finite"]
    found = []
    worst = float(np.abs(got - expected).max())
    if worst > vectors.atol:
        found.append(f"scores are off by up to {worst:.4g}; at most {vectors.atol:.4g} is allowed")
    if vectors.width > 1:
        agreement = float((got.argmax(axis=1) == expected.argmax(axis=1)).mean())
        if agreement < vectors.min_agreement:
            found.append(
                f"{agreement:.1%} of the rows have the expected class;"
                f" at least {vectors.min_agreement:.1%} must"
            )
    return found
