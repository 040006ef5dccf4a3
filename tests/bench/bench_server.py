"""The local server: one binary inference over HTTP, beside the same row in process and an echo.

The client is a process of its own. The echo is a bare uvicorn application that reads the body and
gives as many bytes back as the model's reply has: what HTTP alone costs on this machine.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from edgefleet_agent.config import Server
from edgefleet_agent.server.address import Tcp
from edgefleet_agent.server.listener import InferenceServer
from edgefleet_agent.testing import HubDouble, Rig, make_bundle
from edgefleet_agent.updating.trial import Verdict
from tests.bench.metric import Metric, microseconds

MODELS = Path(__file__).parents[1] / "agent" / "models"
WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
BIAS = np.array([0.1, 0.0, -0.1])
ROW = np.array([5.1, 3.5, 1.4, 0.2])
REPLY_BYTES = 330
SECONDS = 2.0
CONNECTIONS = 4


def run() -> list[Metric]:
    """Measure one connection's latency and the rate of four."""
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request"
        request.write_bytes(_request())
        with _rig(Path(folder)) as rig:
            model = rig.engine.model("colours")
            predict_us = microseconds(lambda: model.predict(ROW), calls=500)
            server = InferenceServer(Server("127.0.0.1:0"), rig.engine)
            server.start()
            assert isinstance(server.address, Tcp)
            one, many = (_measure(server.address, request, n) for n in (1, CONNECTIONS))
            server.stop()
        with _echo() as address:
            echo_one, echo_many = (_measure(address, request, n) for n in (1, CONNECTIONS))
    what = "one row over HTTP, binary, one kept connection"
    return [
        Metric(what, one["us"], "µs", "bare uvicorn echo", echo_one["us"]),
        Metric(what, one["us"], "µs", "predict in process", predict_us),
        Metric(
            "requests of one row, 4 connections",
            many["per_s"],
            "1/s",
            "bare uvicorn echo",
            echo_many["per_s"],
        ),
    ]


def _request() -> bytes:
    data = ROW.astype("<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return (
        b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        % (len(head), len(head) + len(data))
        + head
        + data
    )


def _measure(address: Tcp, request: Path, connections: int) -> dict[str, float]:
    arguments = [address.host, str(address.port), str(request), str(SECONDS), str(connections)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.http_client", *arguments],
        check=True,
        capture_output=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextmanager
def _rig(folder: Path) -> Iterator[Rig]:
    """Open an engine that serves the classifier."""
    hub = HubDouble()
    # The trial is not what is measured here; the golden vectors still run in this process.
    rig = Rig(folder / "store", hub, surroundings={"try_candidate": lambda *_: Verdict([])})
    bundle = make_bundle((MODELS / "classifier.onnx").read_bytes(), _scores)
    hub.send_all(rig.link, hub.release(bundle, 1))
    rig.settle()
    yield rig
    rig.close()


def _scores(rows: np.ndarray) -> np.ndarray:
    z = np.exp(rows @ WEIGHTS + BIAS)
    return (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


async def _answer(
    _scope: Any,
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", str(REPLY_BYTES).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(REPLY_BYTES)})


@contextmanager
def _echo() -> Iterator[Tcp]:
    """Run the bare application in a thread of this process, as the agent's server is."""
    config = uvicorn.Config(
        _answer,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
    )
    server = uvicorn.Server(config)
    # Not `config.bind_socket`: with it asyncio leaves TCP_NODELAY off, and replies wait 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    yield Tcp(*bound.getsockname()[:2])
    server.should_exit = True
    thread.join()
