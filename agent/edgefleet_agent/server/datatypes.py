"""Tensors of the Open Inference Protocol ↔ numpy arrays, as raw bytes and as JSON.

Rules:

1. Raw data is little-endian and row-major without padding. An element of BYTES is a 4-byte length
   and that many bytes; BOOL is one byte, 0 or 1.
2. What is there is held against the shape before anything is allocated for it.
3. Text is UTF-8. FP16 and BF16 have no JSON form. BF16 becomes float32, which holds it exactly.
4. JSON knows no NaN: `null` stands for it among FP32 and FP64, in both directions.
"""

import math
import struct
from collections.abc import Sequence
from itertools import accumulate, chain
from operator import mul
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.server.refusal import RequestError, shown

Array = NDArray[np.generic]

_NAMES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: np.dtype(name).newbyteorder("<") for name, datatype in _NAMES.items()}
_BY_DTYPE = {np.dtype(name): datatype for name, datatype in _NAMES.items()}
_BF16_BYTES = 2
_LENGTH = struct.Struct("<I")
# What the parts of a JSON array of each kind of datatype may be.
_JSON_TYPES: dict[str, set[type]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float, type(None)},
}


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a manifest's data type."""
    return _NAMES.get(dtype, "BYTES")


def datatype_of_array(array: Array) -> str:
    """Return the protocol's name of what an array holds."""
    # By the dtype itself: numpy takes 10 µs to make up its name.
    return _BY_DTYPE.get(array.dtype.newbyteorder("="), "BYTES")


def fits(datatype: str, dtype: str) -> bool:
    """Tell whether every value of `datatype` is a value of a manifest's `dtype` too.

    Raises:
        RequestError: if there is no such datatype.
    """
    if datatype == "BYTES" or dtype == "string":
        return datatype == "BYTES" and dtype == "string"
    given = np.dtype(np.float32) if datatype == "BF16" else _dtype(datatype)
    return np.can_cast(given, np.dtype(dtype), "safe")


def size_bytes(datatype: str) -> int:
    """Return the raw size of one element; of BYTES, the least.

    Raises:
        RequestError: if there is no such datatype.
    """
    if datatype == "BYTES":
        return _LENGTH.size
    return _BF16_BYTES if datatype == "BF16" else _dtype(datatype).itemsize


def from_raw(datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """Return the array that raw bytes hold; it may be a view of them.

    Raises:
        RequestError: if they do not hold exactly that many elements, or not such ones.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(_texts(count, data), shape)
    expected = count * size_bytes(datatype)
    if len(data) != expected:
        raise RequestError(
            f"{len(data)} bytes of binary data; {datatype} of shape {list(shape)} takes {expected}"
        )
    if datatype == "BF16":
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32).reshape(shape)
    array = np.frombuffer(data, _dtype(datatype)).reshape(shape)
    if datatype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise RequestError("an element of BOOL is neither 0 nor 1")
    # Data behind a JSON head starts anywhere; runtimes on ARM want numbers at their own places.
    return np.require(array, requirements="A")


def from_json(datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """Return the array that a JSON array holds, flat or nested as the shape is.

    Raises:
        RequestError: if it does not hold exactly those elements.
    """
    count = math.prod(shape)
    if datatype in ("FP16", "BF16"):
        raise RequestError(f"{datatype} has no JSON form; send it as binary data")
    if datatype == "BYTES":
        flat = _flat(_decoded(data), shape)
        _require_types(flat, {str}, datatype)
        return _objects(flat, shape)
    dtype = _dtype(datatype)
    # Counted before it is decoded: a list costs many times what it takes in the body.
    text = bytes(data)
    nested = sum(accumulate(shape[:-1], mul)) + 1
    if text.count(b",") != count - 1 or text.count(b"[") not in (1, nested):
        raise RequestError(f"data does not hold the {count} elements of shape {list(shape)}")
    flat = _flat(_decoded(data), shape)
    _require_types(flat, _JSON_TYPES[dtype.kind], datatype)
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype).reshape(shape)
    except (OverflowError, FloatingPointError) as error:
        raise RequestError(f"a number does not fit {datatype}: {error}") from error


def to_raw(array: Array) -> bytes | memoryview:
    """Return an array as raw bytes; it may be a view of it."""
    if array.dtype.kind in "OUS":
        packed = []
        for element in array.ravel().tolist():
            data = element if isinstance(element, bytes) else str(element).encode()
            packed += [_LENGTH.pack(len(data)), data]
        return b"".join(packed)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def to_json(array: Array) -> list[Any]:
    """Return an array as a flat list for JSON.

    Raises:
        RequestError: if its datatype has no JSON form.
    """
    if array.dtype == np.float16:
        raise RequestError("an FP16 output has no JSON form; ask for it as binary data")
    flat: list[Any] = array.ravel().tolist()
    if array.dtype.kind not in "OUS":
        return flat
    return [
        element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)
        for element in flat
    ]


def _dtype(datatype: str) -> np.dtype[Any]:
    try:
        return _DTYPES[datatype]
    except KeyError:
        raise RequestError(f"there is no datatype {shown(datatype)}") from None


def _texts(count: int, data: memoryview) -> list[str]:
    if len(data) < count * _LENGTH.size:
        raise RequestError(
            f"{len(data)} bytes of binary data cannot hold {count} elements of BYTES"
        )
    texts = []
    place = 0
    for index in range(count):
        start = place + _LENGTH.size
        if start <= len(data):
            (length,) = _LENGTH.unpack_from(data, place)
            place = start + length
        if start > len(data) or place > len(data):
            raise RequestError(f"element {index} of BYTES goes beyond the binary data")
        texts.append(text_of(data[start:place]))
    if place != len(data):
        raise RequestError(
            f"{len(data) - place} bytes of binary data follow the last element of BYTES"
        )
    return texts


def text_of(data: memoryview) -> str:
    """Return an element of BYTES as text.

    Raises:
        RequestError: if it is not UTF-8.
    """
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"an element of BYTES is not text in UTF-8: {error.reason}") from error


def _decoded(data: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"data is no JSON array: {error}") from error


def _flat(data: object, shape: Sequence[int]) -> list[Any]:
    """Return the elements of a flat list, or of one that is nested as `shape` says."""
    if not isinstance(data, list):
        raise RequestError("data is no JSON array")
    if not (data and isinstance(data[0], list)):
        if len(data) != math.prod(shape):
            raise RequestError(
                f"data has {len(data)} elements; shape {list(shape)} takes {math.prod(shape)}"
            )
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise RequestError(f"data is not nested as its shape {list(shape)} says")
        level = list(chain.from_iterable(level))
    return level


def _require_types(flat: list[Any], allowed: set[type], datatype: str) -> None:
    wrong = set(map(type, flat)) - allowed
    if wrong:
        names = ", ".join(sorted(found.__name__ for found in wrong))
        raise RequestError(f"data of {datatype} holds elements of another kind: {names}")


def _objects(flat: Sequence[str], shape: Sequence[int]) -> Array:
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)
