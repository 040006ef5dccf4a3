"""Block arithmetic and bitmaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_protocol import blocks
from edgefleet_protocol.errors import MalformedError


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 0), (1, 1), (131_071, 1), (131_072, 1), (131_073, 2), (40 * 1024 * 1024, 320)],
)
def test_an_artifact_has_as_many_blocks_as_cover_it(size: int, count: int) -> None:
    assert blocks.block_count(size) == count
    assert sum(blocks.block_length(size, i) for i in range(count)) == size


@pytest.mark.parametrize("index", [-1, 2])
def test_a_block_outside_of_the_artifact_is_refused(index: int) -> None:
    with pytest.raises(MalformedError, match=f"block {index} of an artifact with 2 blocks"):
        blocks.block_length(131_073, index)


def test_the_lowest_bit_of_the_first_byte_is_the_first_block() -> None:
    assert blocks.bitmap_of([0]) == b"\x01"
    assert blocks.bitmap_of([8]) == b"\x00\x01"
    assert blocks.bitmap_of([]) == b""


@given(st.sets(st.integers(0, 8191)))
def test_a_bitmap_gives_back_its_blocks(wanted: set[int]) -> None:
    assert list(blocks.indices_of(blocks.bitmap_of(wanted), 8192)) == sorted(wanted)


def test_a_bit_past_the_end_is_refused() -> None:
    assert list(blocks.indices_of(blocks.bitmap_of([4]), 5)) == [4]
    with pytest.raises(MalformedError, match="asks for block 4 of 4"):
        list(blocks.indices_of(blocks.bitmap_of([4]), 4))


def test_each_block_has_its_own_digest() -> None:
    data = bytes(blocks.BLOCK_BYTES) + b"x"
    first, last = blocks.block_digests(data)
    assert first != last
    assert blocks.block_digests(b"") == []
