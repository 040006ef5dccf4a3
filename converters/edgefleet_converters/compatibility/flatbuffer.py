"""Read a FlatBuffer that nobody vouches for. Every offset and length is checked before use.

FlatBuffers, internals: a table starts with the signed distance back to its vtable; the vtable
holds its own size, the table's size, and for each field the distance from the table's start, 0 for
an absent one. Vectors and texts start with a 32-bit length. All numbers are little-endian.

Nothing here recurses, copies more than is asked for, or follows a length beyond the file.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_U16, _I32, _U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
_SCALARS = {
    name: struct.Struct(f"<{letter}")
    for name, letter in {
        "bool": "?", "int8": "b", "uint8": "B", "int32": "i", "uint32": "I", "uint64": "Q",
    }.items()
}  # fmt: skip


class DamagedError(ValueError):
    """An offset or length leads out of the file."""


class Table:
    """A table at a place in a file."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        vtable = place - self._number(_I32, place)
        size = self._number(_U16, vtable)
        if size < 4 or vtable + size > len(data):
            raise DamagedError(f"the vtable at {vtable} has {size} bytes and leaves the file")
        self._fields = struct.unpack_from(f"<{(size - 4) // 2}H", data, vtable + 4)

    def scalar(self, slot: int, kind: str, default: int = 0) -> int:
        """Return a number, or its default where the field is absent."""
        place = self._field(slot)
        return default if place is None else int(self._number(_SCALARS[kind], place))

    def has(self, slot: int) -> bool:
        """Tell whether a field is there."""
        return self._field(slot) is not None

    def table(self, slot: int) -> "Table | None":
        """Return a table inside this one."""
        place = self._field(slot)
        return None if place is None else Table(self._data, self._follow(place))

    def tables(self, slot: int) -> Iterator["Table"]:
        """Yield the tables of a vector."""
        start, count = self.vector(slot, 4)
        for index in range(count):
            yield Table(self._data, self._follow(start + 4 * index))

    def count(self, slot: int, item_bytes: int = 4) -> int:
        """Return the length of a vector; 0 where it is absent."""
        return self.vector(slot, item_bytes)[1]

    def numbers(self, slot: int, dtype: str) -> NDArray[np.generic]:
        """Return a vector of numbers, `(n,)`; empty where it is absent."""
        kind = np.dtype(dtype).newbyteorder("<")
        start, count = self.vector(slot, kind.itemsize)
        return np.frombuffer(self._data, kind, count, start) if count else np.empty(0, kind)

    def text(self, slot: int) -> str:
        """Return a text; empty where it is absent."""
        start, count = self.vector(slot, 1)
        return self._data[start : start + count].decode(errors="replace")

    def _field(self, slot: int) -> int | None:
        if slot >= len(self._fields) or not self._fields[slot]:
            return None
        return self._place + int(self._fields[slot])

    def vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Return where a vector's items start, and how many there are; 0 and 0 without one."""
        place = self._field(slot)
        if place is None:
            return 0, 0
        at = self._follow(place)
        count = int(self._number(_U32, at))
        if at + 4 + count * item_bytes > len(self._data):
            raise DamagedError(f"the vector at {at} has {count} items and leaves the file")
        return at + 4, count

    def _follow(self, place: int) -> int:
        return place + int(self._number(_U32, place))

    def _number(self, kind: struct.Struct, place: int) -> int:
        if place < 0 or place + kind.size > len(self._data):
            raise DamagedError(f"an offset leads to {place}, out of the file")
        return int(kind.unpack_from(self._data, place)[0])


def root(data: bytes) -> Table:
    """Return the outermost table of a file.

    Raises:
        DamagedError: if there is none.
    """
    if len(data) < 8:
        raise DamagedError(f"a file of {len(data)} bytes holds no table")
    return Table(data, _U32.unpack_from(data, 0)[0])
