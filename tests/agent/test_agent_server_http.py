"""The server over real sockets, and its limits: models are fakes that do what a test needs."""

import asyncio
import gzip
import http.client
import json
import socket
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefleet_agent.config import Server
from edgefleet_agent.errors import InferenceError, NotServingError, ServerError
from edgefleet_agent.inference.prediction import Inference
from edgefleet_agent.server import application, listener
from edgefleet_agent.server.address import Tcp, Unix
from edgefleet_agent.server.application import Application
from edgefleet_agent.server.listener import InferenceServer
from edgefleet_agent.server.workers import Workers
from edgefleet_agent.testing import Bundle, HubDouble, Rig
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Result, Slot, Window

COLUMNS = ["a", "b", "c", "d"]
DEADLINE_S = 20.0


def signature(columns: int = 4) -> Signature:
    return Signature(
        "classification",
        [Tensor("x", "float32", [None, columns], COLUMNS[:columns])],
        [Tensor("p", "float32", [None, 3])],
        "p",
        classes=["red", "green", "blue"],
    )


class FakeModel:
    """A `serving.Model` whose answer is its input's first three columns."""

    def __init__(self) -> None:
        self.signature = signature()
        self.slot: Slot | None = Slot("colours", "v1", 3, "onnx-fp32", "ab" * 32)
        self.before: Callable[[], None] = lambda: None
        self.labels: dict[int, str] = {}
        self.answering_release = 3

    def infer(self, tensors: Mapping[str, Any], outputs: Any = None) -> Inference:
        self.before()
        (wanted,) = self.signature.inputs
        if tensors["x"].shape[1] != wanted.shape[1]:
            raise MalformedError("not the columns of the model")
        scores = np.resize(tensors["x"], (len(tensors["x"]), 3))
        ids = list(range(len(scores)))
        labels = ["red"] * len(scores)
        return Inference(ids, "colours", "v1", self.answering_release, labels, {"p": scores})

    def feedback(self, prediction: int, label: object) -> bool:
        self.labels[prediction] = str(label)
        return prediction < 100


class FakeAgent:
    """What the server asks of an agent."""

    def __init__(self) -> None:
        self.colours = FakeModel()

    def models(self) -> list[str]:
        return ["colours"] if self.colours.slot else []

    def model(self, name: str) -> Any:
        assert name == "colours", "only names that serve are asked for"
        return self.colours


class Client:
    """One keep-alive connection, over TCP or a Unix socket."""

    def __init__(self, address: Tcp | Unix) -> None:
        self._address = address
        if isinstance(address, Tcp):
            self.http = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
        else:
            self.http = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
            self.http.sock = socket.socket(socket.AF_UNIX)
            self.http.sock.settimeout(DEADLINE_S)
            self.http.sock.connect(str(address.path))

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.http.request(method, path, data, named)
        response = self.http.getresponse()
        return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, body = self.ask("GET", path, **headers)
        return status, json.loads(body)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, answer = self.ask("POST", path, body, **headers)
        return status, json.loads(answer)


Connect = Callable[[Tcp | Unix], Client]


def row(values: Any = (1, 2, 3, 4), **more: Any) -> dict[str, Any]:
    shape = [len(values) // 4 if len(values) % 4 == 0 else 1, min(len(values), 4)]
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": list(values)}
    return {"inputs": [tensor], **more}


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "h11":
        find = util.find_spec
        monkeypatch.setattr(
            listener.util, "find_spec", lambda name: None if name == "httptools" else find(name)
        )


@pytest.fixture
def serve(agent: FakeAgent) -> Iterator[Callable[..., InferenceServer]]:
    servers: list[InferenceServer] = []

    def start(listen: str = "127.0.0.1:0", **changes: Any) -> InferenceServer:
        server = InferenceServer(Server(listen, **changes), agent)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[[Tcp | Unix], Client]]:
    clients: list[Client] = []

    def make(address: Tcp | Unix) -> Client:
        clients.append(Client(address))
        return clients[-1]

    yield make
    for client in clients:
        client.http.close()


@pytest.fixture
def client(serve: Callable[..., InferenceServer], connect: Connect) -> Client:
    return connect(serve().address)


INFER = "/v2/models/colours/infer"


# -- endpoints ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("parser")
def test_a_server_tells_what_it_is_and_what_serves(client: Client, agent: FakeAgent) -> None:
    assert client.get("/v2")[1]["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/")[0] == 200
    assert client.get("/v2/health/live") == (200, {"live": True})
    assert client.get("/v2/health/ready") == (200, {"ready": True})
    assert client.get("/v2/models/colours/ready")[0] == 200
    assert client.get("/v2/models/colours/versions/3/ready")[0] == 200
    assert client.get("/v2/models/colours")[1]["versions"] == ["3"]
    assert client.get("/v2/models/colours/versions/2/ready") == (
        404,
        {"error": "model colours has no version '2' here; 3 serves"},
    )
    assert client.get("/v2/models/shapes") == (
        404,
        {"error": "this device serves no model 'shapes'; it serves: colours"},
    )
    agent.colours.slot = None
    assert client.get("/v2/health/live")[0] == 200
    assert client.get("/v2/health/ready") == (503, {"ready": False})
    assert client.get("/v2/models/colours/ready")[0] == 404


@pytest.mark.usefixtures("parser")
def test_one_connection_carries_json_binary_packed_and_raw_requests(client: Client) -> None:
    status, answer = client.post(INFER, row(id="q"))
    assert (status, answer["id"], answer["model_version"]) == (200, "q", "3")
    assert answer["parameters"] == {
        "version": "v1",
        "release": 3,
        "prediction_ids": [0],
        "labels": ["red"],
    }
    assert answer["outputs"] == [
        {"name": "p", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}
    ]
    values = np.arange(4, dtype="<f4").tobytes()
    head = {
        "inputs": [
            {
                "name": "x",
                "shape": [1, 4],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 16},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    start = json.dumps(head).encode()
    length = {"Inference_Header_Content_Length": str(len(start))}
    for pack, encoding in (
        (bytes, "identity"),
        (gzip.compress, "gzip"),
        (zlib.compress, "deflate"),
    ):
        status, headers, body = client.ask(
            "POST", INFER, pack(start + values), Content_Encoding=encoding, **length
        )
        size = int(headers["inference-header-content-length"])
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
        assert np.frombuffer(body[size:], "<f4").tolist() == [0, 1, 2]
    status, headers, body = client.ask("POST", INFER, values, Inference_Header_Content_Length="0")
    assert status == 200
    assert body.endswith(values[:12])


@pytest.mark.parametrize(
    ("name", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_a_large_reply_is_packed_if_the_client_takes_it(
    client: Client, name: str, unpack: Callable[[bytes], bytes]
) -> None:
    plain = client.post(INFER, row([1] * 2000))[1]
    status, headers, body = client.ask("POST", INFER, row([1] * 2000), Accept_Encoding=name)
    assert (status, headers["content-encoding"]) == (200, name)
    assert json.loads(unpack(body)) == plain
    assert "content-encoding" not in client.ask("POST", INFER, row(), Accept_Encoding=name)[1]


def test_feedback_tells_whether_the_prediction_is_known(client: Client, agent: FakeAgent) -> None:
    path = "/v2/models/colours/feedback"
    assert client.post(path, {"prediction_id": 7, "label": "red"}) == (200, {"known": True})
    assert client.post(path, {"prediction_id": 100, "label": 7}) == (200, {"known": False})
    assert agent.colours.labels == {7: "red", 100: "7"}
    assert client.post(path, {"prediction_id": 1, "label": "a" * 200})[0] == 200
    assert client.post(path, {"prediction_id": 1, "label": "a" * 201})[0] == 400
    status, answer = client.post(path, {"prediction": 7, "label": "red"})
    assert status == 400
    assert answer["error"].startswith('the body is not {"prediction_id": NUMBER, "label": VALUE}: ')


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/", 404, "there is nothing at '/'"),
        ("GET", "/v2/repository/index", 404, "there is nothing at '/v2/repository/index'"),
        ("GET", "/v2/models/colours/config", 404, "a model has nothing at 'config'"),
        ("GET", INFER, 405, "'GET' is not offered here; use POST"),
        ("POST", "/v2/health/live", 405, "'POST' is not offered here; use GET"),
        ("POST", "/v2/models/a/infer", 404, "this device serves no model 'a'; it serves: colours"),
        ("POST", INFER, 400, "the body is no inference request: Input data was truncated"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused(
    client: Client, method: str, path: str, status: int, text: str
) -> None:
    found, _, body = client.ask(method, path)
    assert (found, json.loads(body)) == (status, {"error": text})


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (InferenceError("colours release 3: not finite"), 500, "colours release 3: not finite"),
        (MalformedError("wrong rows"), 400, "wrong rows"),
        (NotServingError("gone"), 404, "gone"),
        (RuntimeError("secret"), 500, "the server failed; its log says why"),
    ],
)
def test_each_kind_of_failure_has_its_status(
    client: Client,
    agent: FakeAgent,
    raised: Exception,
    status: int,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise raised

    agent.colours.before = fail
    assert client.post(INFER, row()) == (status, {"error": text})
    assert bool(caplog.records) is isinstance(raised, RuntimeError)
    agent.colours.before = lambda: None
    assert client.post(INFER, row())[0] == 200


@pytest.mark.parametrize("length", ["x", "-1", "1" * 20, "1e3"])
def test_a_head_length_that_is_no_length_is_refused(client: Client, length: str) -> None:
    status, answer = client.post(INFER, row(), Inference_Header_Content_Length=length)
    assert (status, "expected a length" in answer["error"]) == (400, True)


def test_another_name_of_this_machine_or_a_page_from_elsewhere_is_refused(client: Client) -> None:
    assert client.get("/v2", Host="localhost:1")[0] == 200
    assert client.get("/v2", Host="evil.example") == (
        403,
        {"error": "Host 'evil.example' is not a name of this machine"},
    )
    assert client.get("/v2", Origin="http://localhost:3000")[0] == 200
    for origin in ("https://evil.example", "null"):
        status, headers, body = client.ask("POST", INFER, row(), Origin=origin)
        assert (status, "may not use this server" in json.loads(body)["error"]) == (403, True)
        assert not [name for name in headers if name.startswith("access-control")]


# -- versions and switches ---------------------------------------------------------------------


def test_a_version_that_is_asked_for_is_answered_by_no_successor(
    client: Client, agent: FakeAgent
) -> None:
    path = "/v2/models/colours/versions/3/infer"
    assert client.post(path, row())[0] == 200
    agent.colours.answering_release = 4  # a challenger, while 3 serves
    assert client.post(path, row())[1]["model_version"] == "4"

    def switch() -> None:
        agent.colours.slot = Slot("colours", "v2", 4, "onnx-fp32", "cd" * 32)

    agent.colours.before = switch
    assert client.post(path, row()) == (
        404,
        {"error": "model colours has no version '3' here; 4 serves"},
    )


def test_a_request_is_judged_by_the_release_that_answers_it(
    client: Client, agent: FakeAgent
) -> None:
    def switch() -> None:
        agent.colours.signature = signature(columns=3)
        agent.colours.slot = Slot("colours", "v2", 4, "onnx-fp32", "cd" * 32)

    agent.colours.before = switch
    status, answer = client.post(INFER, row())
    assert status == 400
    assert answer["error"] == (
        "input 'x': the shape is [1, 4]; the model takes [-1, 3] (-1 is any size)"
    )
    assert client.post(INFER, row([1, 2, 3]))[0] == 200


# -- limits ------------------------------------------------------------------------------------


def test_a_body_at_its_limit_is_taken_and_one_byte_more_is_not(
    connect: Connect,
    serve: Callable[..., InferenceServer],
) -> None:
    body = json.dumps(row()).encode()
    client = connect(serve(max_request_bytes=len(body)).address)
    text = f"the body is larger than the {len(body)} bytes that server.max_request_bytes allows"
    assert client.post(INFER, body)[0] == 200
    assert client.post(INFER, body + b" ") == (413, {"error": text})
    assert client.post(INFER, iter([body, b" "])) == (413, {"error": text})  # chunked
    packed = gzip.compress(body + b" " * 1000)
    assert client.post(INFER, packed, Content_Encoding="gzip")[0] == 413
    assert client.post(INFER, body)[0] == 200


@pytest.mark.usefixtures("parser")
def test_a_head_without_end_ends_the_connection(
    connect: Connect, serve: Callable[..., InferenceServer]
) -> None:
    server = serve()
    assert isinstance(server.address, Tcp)
    with socket.create_connection((server.address.host, server.address.port), DEADLINE_S) as raw:
        raw.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: ")
        sent = 0
        with suppress(ConnectionError):  # as soon as the server has had enough
            while sent < 64 << 20:
                sent += raw.send(b"x" * 65536)
    assert sent < 16 << 20
    client = connect(server.address)
    assert client.get("/v2/health/live")[0] == 200


def test_a_slow_model_stops_no_health_check_and_no_other_call(
    connect: Connect, serve: Callable[..., InferenceServer], agent: FakeAgent
) -> None:
    address = serve().address
    entered, go_on = threading.Event(), threading.Event()

    def first_is_slow() -> None:
        if not entered.is_set():
            entered.set()
            assert go_on.wait(DEADLINE_S)

    agent.colours.before = first_is_slow
    slow, other = connect(address), connect(address)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(slow.post(INFER, row())[0]))
    thread.start()
    assert entered.wait(DEADLINE_S)
    assert other.get("/v2/health/live")[0] == 200
    assert other.post(INFER, row())[0] == 200
    assert not found
    go_on.set()
    thread.join(DEADLINE_S)
    assert found == [200]


def test_a_stop_answers_what_was_asked_before_it(
    connect: Connect, serve: Callable[..., InferenceServer], agent: FakeAgent
) -> None:
    server = serve()
    entered, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert go_on.wait(DEADLINE_S)

    agent.colours.before = wait
    client = connect(server.address)
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(client.post(INFER, row())[0]))
    asking.start()
    assert entered.wait(DEADLINE_S)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    go_on.set()
    asking.join(DEADLINE_S)
    stopping.join(DEADLINE_S)
    assert found == [200]
    with pytest.raises(ConnectionRefusedError):
        connect(server.address).http.connect()


def test_a_model_that_never_returns_does_not_keep_the_server_from_stopping(
    connect: Connect,
    serve: Callable[..., InferenceServer],
    agent: FakeAgent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "DRAIN_S", 1)
    server = serve()
    entered, never = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        never.wait(DEADLINE_S)

    agent.colours.before = hang
    client = connect(server.address)
    client.http.request("POST", INFER, json.dumps(row()))
    assert entered.wait(DEADLINE_S)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < listener.STOP_TIMEOUT_S
    never.set()


class Exchange:
    """One request, given to the application without a socket, one message at a time."""

    def __init__(self, app: Application, body: bytes | None = b"{}") -> None:
        self.sent: list[Any] = []
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if body is not None:
            self.give(body, more=False)
        scope = {"type": "http", "method": "POST", "path": INFER, "headers": [(b"host", b"[::1]")]}
        self.task = asyncio.ensure_future(app(scope, self.inbox.get, self._send))

    def give(self, body: bytes, *, more: bool = True) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def answer(self) -> tuple[int, str]:
        await asyncio.wait_for(self.task, DEADLINE_S)
        return self.sent[0]["status"], json.loads(self.sent[1]["body"]).get("error", "")


def test_what_comes_beyond_the_room_is_told_so_at_once(agent: FakeAgent) -> None:
    async def check() -> None:
        app = Application(agent, Workers(1), max_request_bytes=100)
        waiting = [Exchange(app, None) for _ in range(application.MAX_REQUESTS)]
        await asyncio.sleep(0)
        assert await Exchange(app).answer() == (
            503,
            "64 requests are being answered already; try again",
        )
        for exchange in waiting[: application.HELD_BODIES]:
            exchange.give(b"x" * 100)
        last = waiting[-1]
        await asyncio.sleep(0)
        last.give(b"x")
        assert await last.answer() == (
            503,
            "the bodies of other requests take all the room; try again",
        )
        for exchange in waiting[:-1]:
            exchange.inbox.put_nowait({"type": "http.disconnect"})
            assert await exchange.answer() == (
                400,
                "the client went away in the middle of the body",
            )
        assert (await Exchange(app).answer())[0] == 400  # there is room again
        assert app._room.held_bytes == 0

    asyncio.run(check())


def test_a_body_that_does_not_come_gives_up_its_place(agent: FakeAgent) -> None:
    async def check() -> None:
        app = Application(agent, Workers(1), max_request_bytes=100, body_timeout_s=0.01)
        exchange = Exchange(app, None)
        exchange.give(b"{")
        assert await exchange.answer() == (408, "the body did not come within 0.01 s")

    asyncio.run(check())


def test_workers_outlive_what_a_call_raises_and_a_loop_that_has_ended() -> None:
    workers = Workers(1)
    go_on = threading.Event()

    async def leave() -> None:
        with pytest.raises(SystemExit):
            await workers.run(lambda: exec("raise SystemExit"))
        task = asyncio.ensure_future(workers.run(lambda: go_on.wait(DEADLINE_S)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    go_on.set()

    async def answer() -> int:
        return await workers.run(lambda: 7)

    assert asyncio.run(answer()) == 7
    workers.stop()


# -- where it listens --------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_at_the_start(serve: Callable[..., InferenceServer]) -> None:
    taken = str(serve().address)
    with pytest.raises(ServerError) as error:
        serve(taken)
    assert str(error.value) == (
        f"the inference server cannot listen on {taken}: Address already in use;"
        " another program listens there"
    )


def test_a_unix_socket_is_for_owner_and_group_and_gone_after_the_stop(
    connect: Connect, serve: Callable[..., InferenceServer], tmp_path: Path
) -> None:
    path = tmp_path / "inference.sock"
    server = serve(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    client = connect(server.address)
    assert client.get("/v2", Host="anything")[0] == 200
    assert client.post(INFER, row())[0] == 200
    with pytest.raises(ServerError, match="another program listens there"):
        serve(f"unix:{path}")
    server.stop()
    assert not path.exists()


def test_a_socket_file_left_behind_is_replaced_and_any_other_file_is_not(
    connect: Connect, serve: Callable[..., InferenceServer], tmp_path: Path
) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    client = connect(serve(f"unix:{path}").address)
    assert client.get("/v2")[0] == 200
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(ServerError, match="a file that is no socket is there"):
        serve(f"unix:{other}")
    assert other.read_text() == "mine"
    with pytest.raises(ServerError, match="its folder does not exist"):
        serve(f"unix:{tmp_path}/none/inference.sock")


def test_a_stop_leaves_the_socket_of_a_successor_alone(
    serve: Callable[..., InferenceServer], tmp_path: Path
) -> None:
    path = tmp_path / "inference.sock"
    server = serve(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(tmp_path / "new"))
        (tmp_path / "new").replace(path)
        server.stop()
        assert path.exists()


@pytest.mark.usefixtures("parser")
def test_replies_do_not_wait_for_acknowledgements(client: Client) -> None:
    # Without TCP_NODELAY on the server's side each of these takes 40 ms.
    client.get("/v2/health/live")
    client.http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        client.post(INFER, row())
        times.append(time.perf_counter() - started)
    assert min(times) < 0.03


def test_a_server_that_is_not_installed_says_how_to_install_it(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install 'edgefleet-agent\[server\]'"):
        InferenceServer(Server("127.0.0.1:0"), agent)


# -- a real model ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier.onnx", "classifier.tflite"])
def test_a_real_model_answers_and_its_rows_are_counted(
    connect: Connect,
    rig: Callable[..., Rig],
    hub: HubDouble,
    bundle: Callable[..., Bundle],
    scores: Callable[[Any], Any],
    name: str,
) -> None:
    device = rig()
    server = InferenceServer(Server("127.0.0.1:0"), device.engine)
    server.start()
    try:
        client = connect(server.address)
        assert client.get("/v2/health/ready")[0] == 503
        hub.send_all(device.link, hub.release(bundle(name), 1, window_rows=6, confirm_rows=6))
        device.settle()
        rows = np.random.default_rng(1).normal(size=(6, 4))
        status, answer = client.post(INFER, row(rows.astype(np.float32).ravel().tolist()))
        assert status == 200
        found = np.reshape(answer["outputs"][0]["data"], (6, 3))
        np.testing.assert_allclose(found, scores(rows), atol=1e-4)
        number = answer["parameters"]["prediction_ids"][0]
        asked = {"prediction_id": number, "label": answer["parameters"]["labels"][0]}
        assert client.post("/v2/models/colours/feedback", asked) == (200, {"known": True})
        device.settle()
        assert [window.rows for window in hub.bodies(Window)] == [6]
        assert [str(result.outcome) for result in hub.bodies(Result)] == ["confirmed"]
    finally:
        server.stop()


def test_an_agent_without_a_server_does_not_pay_for_one() -> None:
    code = (
        "import sys, edgefleet_agent.agent, edgefleet_agent.config\n"
        "print(sorted({'uvicorn', 'edgefleet_agent.pipeline'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
