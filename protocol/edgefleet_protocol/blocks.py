"""Blocks of an artifact and the bitmaps that ask for them.

An artifact is cut into blocks of 128 KiB, the size that measured best on every broker tried
(docs/adr/0002). A bitmap names blocks from an offset on: bit 0 (least significant) of byte 0 is
the first block.
"""

from collections.abc import Iterable, Iterator

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.identifiers import digest_of

BLOCK_BYTES = 128 * 1024
# 1 GiB: no board of the supported class can load a larger model.
MAX_ARTIFACT_BYTES = 1 << 30
MAX_BLOCKS = MAX_ARTIFACT_BYTES // BLOCK_BYTES
MAX_BITMAP_BYTES = MAX_BLOCKS // 8


def block_count(size_bytes: int) -> int:
    """Return how many blocks an artifact of `size_bytes` has (an empty one has none)."""
    return -(-size_bytes // BLOCK_BYTES)


def block_length(size_bytes: int, index: int) -> int:
    """Return the length of block `index` in bytes; only the last one is short.

    Raises:
        MalformedError: if the artifact has no such block.
    """
    if not 0 <= index < block_count(size_bytes):
        raise MalformedError(f"block {index} of an artifact with {block_count(size_bytes)} blocks")
    return min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)


def block_digests(data: bytes) -> list[str]:
    """Return the SHA-256 digest of each block of `data`."""
    view = memoryview(data)
    return [digest_of(view[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES)]


def bitmap_of(indices: Iterable[int]) -> bytes:
    """Return the shortest bitmap in which exactly `indices` are set."""
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def indices_of(bitmap: bytes, count: int) -> Iterator[int]:
    """Yield the blocks set in `bitmap`, in order.

    Args:
        bitmap: as sent by a device, untrusted.
        count: how many blocks the artifact has.

    Raises:
        MalformedError: if a bit at or past `count` is set.
    """
    bits = int.from_bytes(bitmap, "little")
    if bits.bit_length() > count:
        raise MalformedError(f"bitmap asks for block {bits.bit_length() - 1} of {count}")
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
