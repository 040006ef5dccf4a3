"""Few bytes that stand for many: refused by what they announce, before they are unpacked."""

import gzip
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3

from edgefleet_agent.trusting import hubcalls
from edgefleet_cloud.api.uploads import on_disk
from edgefleet_cloud.errors import InvalidError
from edgefleet_converters import tables
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import read_table


def test_a_table_of_more_cells_than_allowed_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": np.zeros(50), "b": np.zeros(50)}), path)
    monkeypatch.setattr(tables, "MAX_CELLS", 100)
    assert len(read_table(path)) == 50
    monkeypatch.setattr(tables, "MAX_CELLS", 99)
    with pytest.raises(BadInputError, match="100 cells; at most 99 are read"):
        read_table(path)


def test_a_long_text_in_many_cells_is_held_once_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a gigabyte for each kilobyte of the file."""
    path = tmp_path / "table.parquet"
    word = pa.array(["x" * 50_000])
    cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5_000, np.int32)), word)
    pq.write_table(pa.table({"a": cells}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000
    counted = pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(BadInputError, match="250000000 characters; at most 200000000 are"):
            read_table(path)
    finally:
        pa.set_memory_pool(pa.system_memory_pool())
    assert 0 < counted.max_memory() < 10_000_000
    monkeypatch.setattr(tables, "MAX_CHARACTERS", 250_000_000)
    assert len(read_table(path)) == 5_000


@pytest.fixture
def packing_hub() -> Iterator[str]:
    """A hub that packs its answers although nobody asked it to."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = gzip.compress(bytes(50_000_000))
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_agent_does_not_unpack_what_a_hub_packs_unasked(packing_hub: str) -> None:
    with urllib3.PoolManager(retries=False) as pool:
        status, body = hubcalls.exchange(pool, "GET", packing_hub)
    assert (status, body[:2]) == (200, b"\x1f\x8b")
    assert len(body) < 100_000


class _Upload:
    """An upload of a name."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.file = io.BytesIO(b"a,b")


@pytest.mark.parametrize(
    "name", ["a\0.csv", "é" * 101, "\ud800.csv", "..", "", "a/..", "\n.csv", "x" * 201]
)
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    upload = _Upload(name)
    with (
        upload.file,
        pytest.raises(InvalidError, match="no usable name"),
        on_disk(upload, tmp_path),
    ):  # type: ignore[arg-type]  # as Starlette's
        pass


@pytest.mark.parametrize("name", ["é" * 100, "x" * 200, "../a.csv", "C:\\data\\a.csv"])
def test_any_other_name_is_the_name_of_the_file_in_a_folder_of_its_own(
    name: str, tmp_path: Path
) -> None:
    upload = _Upload(name)
    with upload.file, on_disk(upload, tmp_path) as path:  # type: ignore[arg-type]  # as Starlette's
        assert path.parent.parent == tmp_path
        assert path.is_file()
    assert list(tmp_path.iterdir()) == []
