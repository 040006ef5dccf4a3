"""Downloads: an artifact through the embedded broker, beside a plain HTTPS download of its bytes.

Hub, broker and agent are processes of their own, as in the field: the hub serves from its store,
the agent asks, checks, writes, and goes on to `verifying`. The time is from the agent's first
request for blocks of the artifact to its first state beyond `fetching`.

Two peers serve the same file over TLS to a client that writes what it reads to a file, unchecked:
uvicorn with Starlette, which is what the hub's own HTTPS is made of, and, as the floor, the
standard library's server, which does nothing but copy the file into the socket.
"""

import http.client
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

from tests.bench.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
SIZES_MIB = (10, 40, 160)
# The size that the target of half the rate of HTTPS is about.
TARGET_MIB = 40
ROUNDS = 3
DEVICE, MODEL = "cam-1", "digits"
TIMEOUT_S = 120.0


def run() -> list[Metric]:
    """Fetch artifacts of three sizes."""
    metrics, peaks = [], {}
    for size in SIZES_MIB:
        rounds = ROUNDS if size == TARGET_MIB else 1
        with _hub(size) as hub:
            plain = median(_download(hub, "hub_port", size) for _ in range(rounds))
            floor = median(_download(hub, "floor_port", size) for _ in range(rounds))
            fetched = [_agent(hub) for _ in range(rounds)]
        rate = size / median(outcome["seconds"] for outcome in fetched)
        peaks[size] = max(outcome["peak_bytes"] for outcome in fetched) / MIB
        name = f"fetch {size} MiB over MQTT and TLS"
        metrics += [
            Metric(name, rate, "MiB/s", "HTTPS of the hub's server", size / plain),
            Metric(name, rate, "MiB/s", "HTTPS of a bare server", size / floor),
        ]
    smallest = peaks[SIZES_MIB[0]]
    metrics += [
        Metric(
            f"agent's peak memory, {size} MiB", peaks[size], "MiB", f"{SIZES_MIB[0]} MiB", smallest
        )
        for size in SIZES_MIB
    ]
    return metrics


# --- this process: the peer, and starting the others ---------------------------------------------


@contextmanager
def _hub(size_mib: int) -> "Iterator[dict[str, Any]]":
    """Run a hub with one artifact; yield what it says of itself, and `folder`."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start("hub", folder, str(size_mib))
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield {"folder": folder, **_line(process.stdout)}
        finally:
            process.stdin.close()  # tells it to end
            process.wait(TIMEOUT_S)


def _agent(hub: dict[str, Any]) -> dict[str, float]:
    """Run a new agent on a new store until it has fetched what it is assigned."""
    folder = Path(hub["folder"])
    with tempfile.TemporaryDirectory(dir=folder) as store:
        shutil.copytree(folder / "device", store, dirs_exist_ok=True)
        process = _start("agent", store)
        assert process.stdout is not None
        outcome = _line(process.stdout)
        process.wait(TIMEOUT_S)
    return outcome


def _download(hub: dict[str, Any], server: str, size_mib: int) -> float:
    """Return the seconds that a plain HTTPS download takes, its handshake included."""
    context = ssl.create_default_context(cafile=hub["ca"])
    start = time.perf_counter()
    connection = http.client.HTTPSConnection("127.0.0.1", hub[server], context=context)
    connection.request("GET", "/artifact")
    answer = connection.getresponse()
    with (Path(hub["folder"]) / "downloaded").open("wb") as file:
        shutil.copyfileobj(answer, file, MIB)
        received = file.tell()
    seconds = time.perf_counter() - start
    connection.close()
    assert received == size_mib * MIB
    return seconds


def _start(role: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.bench_transport", role, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(stdout: IO[str]) -> dict[str, Any]:
    line = stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark ended early; see its error above")
    return dict(json.loads(line))


# --- the hub's process ---------------------------------------------------------------------------


def _run_hub(folder: Path, size_mib: int) -> None:
    # Imported here: the agent's process must not load what only the hub needs.
    import uvicorn
    from starlette.responses import FileResponse

    from edgefleet_agent.trusting import identity
    from edgefleet_cloud.broker.embedded import EmbeddedBroker
    from edgefleet_cloud.broker.link import Link
    from edgefleet_cloud.fleet import assignments
    from edgefleet_cloud.fleet.testing import enrol, open_services, release_bundle

    services = open_services(folder)
    broker = EmbeddedBroker(
        services.settings, services.authority, folder / "broker", services.database
    )
    link = Link(services)
    broker.start()
    link.start()
    assert link.await_connected(10)
    granted = enrol(services, DEVICE, folder / "keys")
    content = os.urandom(size_mib * MIB)
    with services.database.write() as session:
        bundle = release_bundle(session, services.store, MODEL, "1", 1, content)
        assignments.order(session, DEVICE, MODEL, 1, "onnx-fp32", {}, None, services.clock())
    (artifact,) = (digest for digest, blob in bundle.blobs.items() if len(blob) == len(content))
    services.images.sync({bundle.path: bundle.entry})
    assignments.sign_due(
        services.database, services.store, services.director, services.settings, services.clock()
    )
    link.publish_pending()
    identity.save(
        folder / "device",
        identity.Hub(DEVICE, "127.0.0.1", services.settings.mqtt_port, "https://127.0.0.1"),
        key=(folder / "keys" / f"{DEVICE}.key").read_bytes(),
        certificate=granted.certificate.encode(),
        ca=granted.ca.encode(),
        image_root=granted.image_root.encode(),
        director_root=granted.director_root.encode(),
    )
    pair = services.authority.issue_server("https", ["127.0.0.1"], folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_PlainFile, services.store.path(artifact))
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = services.store.path(artifact)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await FileResponse(path)(scope, receive, send)

    config = uvicorn.Config(
        answer, ssl_certfile=pair.certificate, ssl_keyfile=pair.key, lifespan="off", log_config=None
    )
    listening = socket.create_server(("127.0.0.1", 0))
    hub_server = uvicorn.Server(config)
    serving = threading.Thread(target=hub_server.run, kwargs={"sockets": [listening]})
    serving.start()
    told = {
        "floor_port": server.server_port,
        "hub_port": listening.getsockname()[1],
        "ca": str(folder / "device/identity/ca.pem"),
    }
    print(json.dumps(told), flush=True)
    sys.stdin.read()
    hub_server.should_exit = True
    serving.join()
    server.shutdown()
    link.stop()
    broker.stop()
    services.database.close()


class _PlainFile(http.server.BaseHTTPRequestHandler):
    """Answers every request with one file."""

    def __init__(self, path: Path, *arguments: Any) -> None:
        self._path = path
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self._path.stat().st_size))
        self.end_headers()
        with self._path.open("rb") as file:
            shutil.copyfileobj(file, self.wfile, MIB)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# --- the agent's process -------------------------------------------------------------------------


def _run_agent(store: Path) -> None:
    from edgefleet_agent.agent import Agent
    from edgefleet_agent.config import Config
    from edgefleet_agent.link import MqttLink
    from edgefleet_agent.trusting import identity
    from edgefleet_protocol import codec
    from edgefleet_protocol.messages import BlockRequest, Request, State, Step

    fetched = threading.Event()
    times: list[float] = []
    fetching = (Step.IDLE, Step.FETCHING)

    class TimedLink(MqttLink):
        """Notes the time of the last first request, and of the first state that has moved on."""

        def publish(self, topic: str, payload: bytes) -> bool:
            if topic.endswith("/request"):
                request = codec.decode(payload, Request)  # type: ignore[arg-type]  # a union is a type form
                # Small blobs begin with the manifest's first and only block.
                if isinstance(request, BlockRequest) and len(request.bitmap) > 1 and not times:
                    times.append(time.perf_counter())
            elif topic.endswith("/state"):
                state = codec.decode(payload, State)
                if any(attempt.step not in fetching for attempt in state.attempts):
                    times.append(time.perf_counter())
                    fetched.set()
            return super().publish(topic, payload)

    config = Config(store=str(store), board="generic-x86_64")
    agent = Agent(config, link=TimedLink(identity.load(store)))
    agent.start()
    in_time = fetched.wait(TIMEOUT_S)
    status = Path("/proc/self/status").read_text("ascii")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    if not in_time:
        sys.exit("the agent did not fetch its artifact in time")
    outcome = {"seconds": times[1] - times[0], "peak_bytes": int(peak_kib) * 1024}
    print(json.dumps(outcome), flush=True)
    agent.stop()


if __name__ == "__main__":
    if sys.argv[1] == "hub":
        _run_hub(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        _run_agent(Path(sys.argv[2]))
