"""Files on disk: resumable parts, unpacking under limits, and what is deleted."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from edgefleet_agent.errors import StoreError
from edgefleet_agent.slots import Slots
from edgefleet_agent.testing import Bundle
from edgefleet_agent.update import Assigned, Event, Journal, Order, advance, begin
from edgefleet_protocol import blocks, manifest
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.manifest import File, Transfer
from edgefleet_protocol.messages import Slot

Make = Callable[..., Bundle]
SIZE = 3 * blocks.BLOCK_BYTES + 100


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    made = Slots(tmp_path)
    made.prepare()
    return made


@pytest.fixture
def data() -> bytes:
    return np.random.default_rng(3).bytes(SIZE)


def piece(data: bytes, index: int) -> bytes:
    return data[index * blocks.BLOCK_BYTES : (index + 1) * blocks.BLOCK_BYTES]


def zstd_file(data: bytes, blob: bytes) -> File:
    transfer = Transfer("zstd", digest_of(blob), len(blob), blocks.block_digests(blob))
    return File("model", digest_of(data), len(data), transfer)


def fill(slots: Slots, file: File, blob: bytes) -> None:
    part = slots.open_part(file)
    for index in sorted(part.missing):
        assert part.write(index, piece(blob, index))
    part.close()


def test_a_part_takes_right_blocks_in_any_order_and_becomes_its_file(
    slots: Slots, data: bytes
) -> None:
    file, blob = manifest.describe_file("model", data)
    part = slots.open_part(file)
    assert part.missing == {0, 1, 2, 3}
    for index in (3, 0, 2, 1):
        assert part.write(index, piece(blob, index))
    part.close()
    slots.install(file)
    assert slots.read(file) == data
    assert not slots.has_part(file)


def test_a_part_that_is_opened_again_knows_what_it_holds(slots: Slots, data: bytes) -> None:
    file, blob = manifest.describe_file("model", data)
    part = slots.open_part(file)
    for index in (1, 3):
        part.write(index, piece(blob, index))
    part.close()
    path = slots._parts / file.transfer.digest
    held = bytearray(path.read_bytes())
    held[blocks.BLOCK_BYTES] ^= 1  # a block torn by the power cut
    path.write_bytes(held)
    again = slots.open_part(file)
    assert again.missing == {0, 1, 2}
    again.close()


@pytest.mark.parametrize("size", [0, 10, SIZE + 5])
def test_a_part_of_a_wrong_size_is_made_right(slots: Slots, data: bytes, size: int) -> None:
    file, _ = manifest.describe_file("model", data)
    (slots._parts / file.transfer.digest).write_bytes(data[:size])
    part = slots.open_part(file)
    part.close()
    assert (slots._parts / file.transfer.digest).stat().st_size == SIZE
    assert part.missing == ({0, 1, 2, 3} if size < SIZE else set())


def test_a_wrong_block_is_not_written(slots: Slots, data: bytes) -> None:
    file, blob = manifest.describe_file("model", data)
    part = slots.open_part(file)
    assert part.write(0, piece(blob, 1)) is False
    with pytest.raises(MalformedError, match="block 3 has 5 bytes; expected 100"):
        part.write(3, b"short")
    with pytest.raises(MalformedError, match="block 4 of an artifact with 4 blocks"):
        part.write(4, b"x")
    assert part.missing == {0, 1, 2, 3}
    part.close()


def test_a_compressed_blob_is_unpacked(slots: Slots) -> None:
    data = b"edgefleet " * 100_000
    file, blob = manifest.describe_file("model", data)
    assert file.transfer.encoding == "zstd"
    fill(slots, file, blob)
    slots.install(file)
    assert slots.read(file) == data


@pytest.mark.parametrize(
    "kind", ["bomb", "longer", "shorter", "other", "truncated", "junk", "window"]
)
def test_a_blob_that_is_not_what_its_manifest_says_leaves_no_file(slots: Slots, kind: str) -> None:
    data = b"0123456789" * 1000
    pack = zstandard.ZstdCompressor(level=3)
    blob = {
        "bomb": lambda: pack.compress(bytes(200 << 20)),
        "longer": lambda: pack.compress(data + b"x"),
        "shorter": lambda: pack.compress(data[:-1]),
        "other": lambda: pack.compress(data[::-1]),
        "truncated": lambda: pack.compress(data)[:-4],
        "junk": lambda: b"junk" * 100,
        "window": lambda: b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(40),  # declares a window of 2 TiB
    }[kind]()
    file = zstd_file(data, blob)
    fill(slots, file, blob)
    with pytest.raises(MalformedError):
        slots.install(file)
    assert list(slots._files.iterdir()) == []
    assert not slots.has_part(file)


def install(slots: Slots, made: Bundle) -> None:
    slots.save_manifest(made.digest, made.data)
    for file in slots.needed(made.manifest):
        fill(slots, file, made.blobs[file.transfer.digest])
        slots.install(file)


def confirmed(made: Bundle, release: int, journal: Journal | None = None) -> Journal:
    slot = Slot("colours", "v", release, "x", made.digest)
    target = Assigned(slot, "onnxruntime", len(made.data), release, Order(1, 0, 1))
    journal = begin(journal or Journal("colours"), target, 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    return journal


def test_only_what_no_release_needs_is_deleted(slots: Slots, bundle: Make) -> None:
    bundles = [bundle(version=f"v{n}", rows=64 + n) for n in range(3)]
    journal = None
    for release, made in enumerate(bundles, start=1):
        install(slots, made)
        journal = confirmed(made, release, journal)
    assert journal is not None
    gone = set(slots.collect([journal]))
    shared = bundles[0].manifest.file("model").digest  # the same model in all three
    assert shared not in gone
    assert bundles[0].digest in gone
    assert bundles[0].manifest.file("golden").digest in gone
    for made in bundles[1:]:
        assert slots.absent(made.manifest) == []
    assert slots.collect([journal]) == []
    slots.collect([])
    assert list(slots._files.iterdir()) == []


def test_a_running_step_keeps_its_unfinished_files(slots: Slots) -> None:
    path = slots._files / "something.partial"
    path.write_bytes(b"x")
    assert slots.collect([]) == []
    slots.prepare()
    assert not path.exists()


def test_damaged_files_are_found_by_their_digest(slots: Slots, bundle: Make) -> None:
    made = bundle()
    install(slots, made)
    assert slots.drop_damaged(made.manifest) == []
    golden = made.manifest.file("golden")
    slots.path(golden.digest).write_bytes(b"x" * golden.size_bytes)
    with pytest.raises(StoreError, match="is damaged on disk"):
        slots.read(golden)
    assert slots.drop_damaged(made.manifest) == [f"golden file {golden.digest}"]
    assert slots.absent(made.manifest) == [golden]
    slots.path(made.digest).write_bytes(made.data + b" ")
    with pytest.raises(StoreError, match="is damaged on disk"):
        slots.manifest(made.digest)


def test_a_journal_is_read_back_as_it_was_written(slots: Slots, bundle: Make) -> None:
    journal = confirmed(bundle(), 7)
    slots.save(journal)
    assert slots.journals() == ({"colours": journal}, [])
    assert slots.peek() == {"colours": journal}


@pytest.mark.parametrize("kind", ["torn", "format", "name"])
def test_a_journal_that_cannot_be_trusted_is_set_aside(
    slots: Slots, bundle: Make, kind: str
) -> None:
    journal = confirmed(bundle(), 7)
    changed = {
        "torn": msgspec.json.encode(journal)[:-20],
        "format": msgspec.json.encode(msgspec.structs.replace(journal, format=99)),
        "name": msgspec.json.encode(msgspec.structs.replace(journal, model="other")),
    }[kind]
    (slots._models / "colours.json").write_bytes(changed)
    with pytest.raises(StoreError, match=r"journal colours\.json "):
        slots.peek()
    held, (complaint,) = slots.journals()
    assert held == {}
    assert complaint.endswith("kept as colours.damaged")
    assert slots.journals() == ({}, [])
