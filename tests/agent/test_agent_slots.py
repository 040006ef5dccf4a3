"""Files on disk: resumable parts, unpacking under limits, and what is deleted."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from edgefleet_agent.config import Storage
from edgefleet_agent.downloading import storage
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.downloading.storage import NoRoomError, Why
from edgefleet_agent.errors import StoreError
from edgefleet_agent.testing import Bundle
from edgefleet_agent.updating.journal import Assigned, Journal, Order
from edgefleet_agent.updating.update import Event, advance, begin
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


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


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


def assigned(made: Bundle, release: int) -> Assigned:
    slot = Slot("colours", "v", release, "x", made.digest)
    return Assigned(slot, "onnxruntime", len(made.data), release, Order(1, 0, 1))


def started(made: Bundle, release: int = 1) -> Journal:
    return begin(Journal("colours"), assigned(made, release), 0.0)


def confirmed(made: Bundle, release: int, journal: Journal | None = None) -> Journal:
    journal = begin(journal or Journal("colours"), assigned(made, release), 0.0)
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
    assert slots.collect([journal]) == []  # there is room for what nothing needs
    gone = set(slots.collect([journal], keep_leftovers=False))
    shared = bundles[0].manifest.file("model").digest  # the same model in all three
    assert f"files/{shared}" not in gone
    assert f"files/{bundles[0].digest}" in gone
    assert f"files/{bundles[0].manifest.file('golden').digest}" in gone
    for made in bundles[1:]:
        assert slots.is_whole(made.digest)
    assert not slots.is_whole(bundles[0].digest)
    assert slots.collect([journal], keep_leftovers=False) == []
    slots.collect([], keep_leftovers=False)
    assert list(slots._files.iterdir()) == []


def test_leftovers_go_when_the_quota_has_no_place_for_them(tmp_path: Path, bundle: Make) -> None:
    old, new = bundle(version="v1"), bundle(version="v2", rows=70)
    slots = Slots(tmp_path)
    slots.prepare()
    install(slots, old)
    install(slots, new)
    journal = confirmed(new, 2)
    assert slots.collect([journal]) == []
    needed = sum(file.size_bytes for file in slots._held([journal]) if file.why is Why.NEEDED)
    tight = Slots(tmp_path, Storage(needed))
    gone = tight.collect([journal])
    assert set(gone) == {
        f"files/{digest}"
        for digest in (old.digest, *(old.manifest.file(r).digest for r in ("golden", "reference")))
    }
    assert tight.is_whole(new.digest)


def weight(files: list[File]) -> int:
    """Return what files take while they are fetched and unpacked."""
    return sum(
        (file.transfer.encoding == "zstd") * file.size_bytes + file.transfer.size_bytes
        for file in files
    )


def test_room_for_a_download_counts_blobs_and_what_is_unpacked_from_them(
    tmp_path: Path, bundle: Make
) -> None:
    made = bundle(data=b"model" * 200_000)  # a small blob, a large file
    needed = weight(made.manifest.files)
    journal = started(made)
    page = os.sysconf("SC_PAGE_SIZE")
    for spare, fits in ((4 * page, True), (-1, False)):
        slots = Slots(tmp_path / str(fits), Storage(len(made.data) // page * page + needed + spare))
        slots.prepare()
        slots.save_manifest(made.digest, made.data)
        if fits:
            assert slots.make_room(made.manifest, [journal]) == []
        else:
            with pytest.raises(NoRoomError, match="raise \\[storage\\] max_bytes"):
                slots.make_room(made.manifest, [journal])


def test_a_previous_release_gives_way_to_a_download_and_the_serving_one_does_not(
    tmp_path: Path, bundle: Make
) -> None:
    bundles = [bundle(version=f"v{n}", rows=64 + 200 * n) for n in range(3)]
    slots = Slots(tmp_path)
    slots.prepare()
    for made in bundles[:2]:
        install(slots, made)
    slots.save_manifest(bundles[2].digest, bundles[2].data)
    journal = confirmed(bundles[1], 2, confirmed(bundles[0], 1))
    target = assigned(bundles[2], 3)
    journal = begin(journal, target, 0.0)
    held = sum(file.size_bytes for file in slots._held([journal]))
    needed = weight(slots.absent(bundles[2].manifest))
    assert slots.make_room(bundles[2].manifest, [journal]) == []
    tight = Slots(tmp_path, Storage(held + needed - 1, 0))
    gone = tight.make_room(bundles[2].manifest, [journal])
    assert gone
    assert not tight.is_whole(bundles[0].digest)
    assert tight.is_whole(bundles[1].digest)
    assert tight.has(bundles[2].digest)
    tighter = Slots(tmp_path, Storage(1, 0))
    with pytest.raises(NoRoomError):
        tighter.make_room(bundles[2].manifest, [journal])
    assert tight.is_whole(bundles[1].digest)


def test_a_part_that_rotted_on_disk_is_told_from_a_manifest_that_contradicts_itself(
    slots: Slots, data: bytes
) -> None:
    file, blob = manifest.describe_file("model", data)
    fill(slots, file, blob)
    path = slots._parts / file.transfer.digest
    path.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
    with pytest.raises(StoreError, match="1 blocks of the model blob are damaged on disk"):
        slots.install(file)
    part = slots.open_part(file)  # kept, so that one block is asked for again and not all
    assert part.missing == {0}
    part.write(0, piece(blob, 0))
    part.close()
    slots.install(file)
    assert slots.read(file) == data


def test_two_lanes_may_install_the_same_file(slots: Slots, data: bytes) -> None:
    for encoded in (manifest.describe_file("model", data)[0], zstd_file(data, zstd(data))):
        blob = data if encoded.transfer.encoding == "identity" else zstd(data)
        fill(slots, encoded, blob)
        failed: list[BaseException] = []

        def work(file: File = encoded, failed: list[BaseException] = failed) -> None:
            try:
                slots.install(file)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert slots.read(encoded) == data
        assert {path.name for path in slots._files.iterdir()} == {encoded.digest}
        slots.path(encoded.digest).unlink()


def test_work_that_is_called_off_leaves_part_and_no_half_file(slots: Slots) -> None:
    data = np.random.default_rng(1).integers(0, 4, 3 << 20, np.uint8).tobytes()
    blob = zstd(data)
    file = zstd_file(data, blob)
    fill(slots, file, blob)
    calls = iter(range(100))

    class CalledOffError(Exception):
        pass

    def heed() -> None:
        if next(calls) >= 2:
            raise CalledOffError

    with pytest.raises(CalledOffError):
        slots.install(file, heed)
    assert list(slots._files.iterdir()) == []
    slots.install(file)
    assert slots.read(file) == data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"needs to mount a file system of 1 MiB (run as root): {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_found_before_the_download(small_disk: Path) -> None:
    data = np.random.default_rng(3).bytes(2 << 20)
    file, _ = manifest.describe_file("model", data)
    slots = Slots(small_disk)
    slots.prepare()
    with pytest.raises(OSError, match="No space left on device"):
        slots.open_part(file)
    assert sum(held.size_bytes for held in slots._held([])) == 0  # it took no room


def test_a_disk_that_fills_up_while_unpacking_keeps_the_part_and_gives_room_back(
    small_disk: Path,
) -> None:
    data = bytes(3 << 20)
    blob = zstd(data)
    file = zstd_file(data, blob)
    slots = Slots(small_disk)
    slots.prepare()
    fill(slots, file, blob)
    with pytest.raises(OSError, match="No space left on device"):
        slots.install(file)
    assert list(slots._files.iterdir()) == []
    assert slots.has_part(file)
    with pytest.raises(NoRoomError, match=r"3\.0 MiB more are needed"):
        storage.room(file.size_bytes, slots._disk(), Storage(), [])


def test_a_read_only_disk_still_gives_what_it_holds(small_disk: Path, data: bytes) -> None:
    file, blob = manifest.describe_file("model", data)
    slots = Slots(small_disk)
    slots.prepare()
    fill(slots, file, blob)
    slots.install(file)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert slots.read(file) == data
    with pytest.raises(OSError, match="Read-only file system"):
        slots.open_part(manifest.describe_file("model", data[:-1])[0])
    with pytest.raises(OSError, match="Read-only file system"):
        slots.collect([], keep_leftovers=False)
    assert slots.read(file) == data


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
    assert complaint.endswith("kept as damaged-colours.json")
    assert slots.journals() == ({}, [])
