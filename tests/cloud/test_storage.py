"""The content-addressed store."""

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.errors import DamagedError, NotFoundError
from edgefleet_cloud.storage import Store
from edgefleet_protocol.errors import MalformedError

DATA = b"a model" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


def test_what_is_put_is_read_under_its_digest(store: Store) -> None:
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA
    assert store.size(DIGEST) == len(DATA)
    assert store.path(DIGEST).name == DIGEST


def test_putting_the_same_again_changes_nothing(store: Store) -> None:
    store.put(DATA)
    before = store.path(DIGEST).stat().st_mtime_ns
    assert store.put(DATA) == DIGEST
    assert store.path(DIGEST).stat().st_mtime_ns == before


def test_a_file_and_a_stream_are_kept_like_bytes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(DATA)
    assert store.put_file(tmp_path / "model.onnx") == DIGEST
    stream = io.BytesIO(b"skip" + DATA)
    stream.seek(4)
    assert store.put_stream(stream) == DIGEST
    assert [p.name for p in store.folder.rglob("*") if p.is_file()] == [DIGEST]


def test_a_source_that_breaks_leaves_nothing_behind(store: Store) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError("connection lost")
            return super().read(4)

    with pytest.raises(OSError, match="connection lost"):
        store.put_stream(Broken(DATA))
    assert list(store.folder.rglob("*")) == []


def test_a_range_is_read_without_the_rest(store: Store) -> None:
    store.put(DATA)
    assert store.read_range(DIGEST, 7, 7) == b"a model"
    assert store.read_range(DIGEST, len(DATA) - 1, 7) == b"l"


def test_a_flipped_byte_is_refused_and_named(store: Store) -> None:
    store.put(DATA)
    store.path(DIGEST).write_bytes(DATA[:-1] + b"?")
    with pytest.raises(DamagedError, match=DIGEST):
        store.read(DIGEST)
    assert not store.verify(DIGEST)


def test_what_was_damaged_is_whole_again_once_it_is_put_anew(store: Store) -> None:
    store.put(DATA)
    store.path(DIGEST).write_bytes(DATA[:-1])
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA


def test_an_unknown_digest_is_not_found_and_a_path_is_no_digest(store: Store) -> None:
    with pytest.raises(NotFoundError, match=DIGEST):
        store.read(DIGEST)
    assert not store.has(DIGEST)
    assert not store.verify(DIGEST)
    with pytest.raises(MalformedError, match="no digest"):
        store.path("../../etc/passwd")


@given(data=st.binary(max_size=4096))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    assert store.read(store.put(data)) == data
