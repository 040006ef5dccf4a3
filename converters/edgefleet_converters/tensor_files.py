"""Tensors from `.npz` files: one array for each input of a model, in order, rows first.

1. `label` (or the array that is named) holds the right answers, and `group` numbers or names what
   each row belongs to; both have one value a row.
2. Arrays hold numbers, labels and groups also text; nothing in the file is unpickled.
3. Sizes are read from the headers and checked before anything is unpacked: a few bytes of a zip
   archive can stand for gigabytes.
"""

import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError

# Of all arrays together, unpacked; they are held twice for a moment.
MAX_TENSOR_BYTES = 1 << 30
MAX_ARRAYS = 1024
LABEL, GROUP = "label", "group"
_DAMAGED = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error)
_NUMBERS, _TEXT = "biuf", "U"

Array = NDArray[np.generic]


class TensorFile(Struct, frozen=True):
    """The arrays of a file.

    Attributes:
        inputs: name → `(n, …)`, in the order of the file; at least one, with one row or more.
        labels: `(n,)` numbers or text; None without that array.
        groups: likewise.
    """

    inputs: dict[str, Array]
    labels: Array | None
    groups: Array | None


def is_tensor_file(path: str | Path) -> bool:
    """Return whether a file is to be read as tensors: by its suffix."""
    return Path(path).suffix.lower() == ".npz"


def read(
    path: str | Path,
    label: str | None = None,
    group: str | None = None,
    *,
    may_lack_label: bool = False,
) -> TensorFile:
    """Read and check an `.npz` file.

    Args:
        path: of the file.
        label: name of the array of right answers; None for `label`, if there is one.
        group: name of the array of groups; None for `group`, if there is one.
        may_lack_label: whether a `label` that is not there means that there are none.

    Raises:
        BadInputError: the file cannot be read or breaks a rule of this module.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(str(path), archive)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (*_DAMAGED, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, or no .npz file: {error}") from error
    for named in (None if may_lack_label else label, group):
        if named is not None and named not in arrays:
            raise BadInputError(f"{path}: no array {named!r}; there are {', '.join(arrays)}")
    labels, groups = arrays.pop(label or LABEL, None), arrays.pop(group or GROUP, None)
    found = TensorFile(arrays, labels, groups)
    _check(str(path), found)
    return found


def _arrays(source: str, archive: zipfile.ZipFile) -> dict[str, Array]:
    members = archive.infolist()
    if not 0 < len(members) <= MAX_ARRAYS:
        raise BadInputError(f"{source}: {len(members)} arrays; expected 1 to {MAX_ARRAYS}")
    size = sum(member.file_size for member in members)
    if size > MAX_TENSOR_BYTES:
        raise BadInputError(f"{source}: {size} bytes unpacked; at most {MAX_TENSOR_BYTES} are read")
    arrays: dict[str, Array] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not name or len(name) > 190 or name in arrays:
            raise BadInputError(
                f"{source}: {member.filename[:60]!r}: expected .npy members with different names of"
                " up to 190 characters, as numpy.savez writes them"
            )
        with archive.open(member) as stream:
            arrays[name] = _array(f"{source}: {name!r}", stream, member.file_size)
    return arrays


def _array(source: str, stream: IO[bytes], size: int) -> Array:
    """Read one array; `size` is what the archive says that the member holds."""
    try:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise BadInputError(f"{source}: .npy version {version}; expected 1.0 or 2.0")
        shape, fortran, dtype = header(stream)
        if dtype.kind not in _NUMBERS + _TEXT:
            raise BadInputError(f"{source}: of the type {dtype}; expected numbers (or text)")
        left = size - stream.tell()
        if not shape or min(shape) < 0 or math.prod(shape) * dtype.itemsize != left:
            raise BadInputError(f"{source}: shape {shape} of {dtype} does not fit {left} bytes")
        data = stream.read(left)
        if len(data) != left:
            raise BadInputError(f"{source}: truncated: {len(data)} of {left} bytes")
    except (*_DAMAGED, SyntaxError, EOFError, ValueError) as error:
        raise BadInputError(f"{source}: damaged array: {error}") from error
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _check(source: str, found: TensorFile) -> None:
    if not found.inputs:
        raise BadInputError(f"{source}: no array besides label and group; expected the inputs")
    rows = {name: len(values) for name, values in found.inputs.items()}
    for name, values in ((LABEL, found.labels), (GROUP, found.groups)):
        if values is not None:
            if values.ndim != 1:
                raise BadInputError(f"{source}: {name} of the shape {values.shape}; expected (n,)")
            rows[name] = len(values)
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise BadInputError(f"{source}: expected as many rows in each array, found {rows}")
    for name, values in found.inputs.items():
        if values.dtype.kind == _TEXT:
            raise BadInputError(f"{source}: {name!r} holds text; expected numbers")
