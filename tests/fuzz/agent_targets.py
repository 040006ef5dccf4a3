"""Targets in the agent: what brokers, programs on the device and people's files bring to it."""

import asyncio
import io
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from securesystemslib.formats import encode_canonical

from edgefleet_agent import answering, config, tables
from edgefleet_agent.config import LocalTopic
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import AgentError, ConfigError
from edgefleet_agent.link import PacketBound
from edgefleet_agent.server.application import Application
from edgefleet_agent.testing import Bundle, HubDouble, Repository, Rig, make_bundle
from edgefleet_agent.trusting import enrolment
from edgefleet_agent.updating.trial import Verdict
from edgefleet_protocol import blocks, codec, messages, topics
from edgefleet_protocol.errors import MalformedError, ProtocolError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.manifest import File, Transfer
from tests.fuzz import forms
from tests.fuzz.oracle import Bounds, Take
from tests.fuzz.protocol_targets import signature
from tests.fuzz.targets import Target, pure

T = TypeVar("T")
MODELS = Path(__file__).parents[1] / "agent" / "models"
# An engine writes journals, runs models and lets python-tuf verify.
_ENGINE = Bounds(seconds=5.0, floor_bytes=24 << 20)
_SERVER = Bounds(seconds=5.0, floor_bytes=8 << 20)
_LIMIT_BYTES = 1 << 20


class _Defects(logging.Handler):
    """Hears of what the agent survives and calls a defect: it logs those with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None and self.first is None:
            self.first = record.exc_info[1]

    def raise_first(self) -> None:
        """Raise the defect that was logged, if one was."""
        if self.first is not None:
            found, self.first = self.first, None
            raise AssertionError(f"logged as a defect: {type(found).__name__}: {found}") from found


@contextmanager
def _defects() -> Iterator[_Defects]:
    heard = _Defects()
    logger = logging.getLogger("edgefleet_agent")
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


def _bundle() -> Bundle:
    return make_bundle((MODELS / "classifier.onnx").read_bytes(), _scores)


def _scores(rows: Any) -> Any:
    """What the classifier in `tests/agent/models` gives."""
    weights = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
    z = np.exp(rows @ weights + np.array([0.1, 0.0, -0.1]))
    return (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


@contextmanager
def _serving(hub: HubDouble) -> Iterator[Rig]:
    """Give an agent that serves `colours`."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        around = {"try_candidate": lambda _request, _cancelled: Verdict([])}
        rig = Rig(Path(folder), hub, surroundings=around)
        try:
            hub.send_all(rig.link, hub.release(_bundle(), 1))
            rig.settle()
            assert rig.engine.models() == ["colours"], rig.steps()
            yield rig
        finally:
            rig.close()


# --- what the broker brings -----------------------------------------------------------------------


@cache
def _hub() -> HubDouble:
    return HubDouble()


@contextmanager
def _inbound() -> Iterator[Take]:
    """Any message on any topic, to an agent that is serving."""
    with _serving(_hub()) as rig, _defects() as heard:

        def take(data: bytes) -> None:
            head, _, payload = data.partition(b"\n")
            try:
                topic = json.loads(head)["topic"]
                # MQTT's topics are UTF-8 of at most 64 KiB.
                if not isinstance(topic, str) or len(topic.encode()) > 65_535:
                    return
            except (ValueError, KeyError, TypeError, RecursionError):
                return
            rig.link.send(topic, payload)
            rig.monotonic.now += 61.0
            for _ in range(3):
                rig.engine.step(0.0)
                rig.hub.answer(rig.link)
            heard.raise_first()
            if rig.engine.models() != ["colours"]:
                raise AssertionError("the model does not serve any more")

        yield take


@cache
def _inbound_seeds() -> list[bytes]:
    hub = _hub()
    order = hub.release(_bundle(), 1)
    sent = hub.image_messages()
    sent.append((topics.down(hub.device, "assignment"), hub.assignment(order)))
    block = messages.Block("0" * 64, 0, b"content")
    away = messages.BlocksUnavailable("0" * 64, "not here")
    sent += [
        (topics.down(hub.device, "blocks"), codec.encode(block)),
        (topics.fleet_blob("0" * 64), codec.encode(away)),
        (topics.down(hub.device, "ack"), codec.encode(messages.Ack("store", [1, 2], 1.0))),
    ]
    return [json.dumps({"topic": topic}).encode() + b"\n" + data for topic, data in sent]


def _packet_seeds() -> list[bytes]:
    return [bytes([0x30, 5]) + b"hello" + bytes([0xD0, 0]), bytes([0x30, 0x80, 0x01]) + bytes(128)]


def _take_packets(data: bytes) -> None:
    """A stream gives the same verdict however it is cut."""
    whole, pieces = PacketBound(1000), PacketBound(1000)
    try:
        whole.follow(data)
        refused = False
    except ProtocolError:
        refused = True
    try:
        for place in range(0, len(data), 3):
            pieces.follow(data[place : place + 3])
        assert not refused
    except ProtocolError:
        assert refused


# --- metadata that is signed, and wrong -----------------------------------------------------------


def _signed(repository: Repository, signed: Any) -> bytes:
    """Sign a role as it is, as somebody who has the keys can."""
    signer = repository._signer
    signature = signer.sign(encode_canonical(signed).encode())
    envelope = {
        "signatures": [{"keyid": signature.keyid, "sig": signature.signature}],
        "signed": signed,
    }
    return json.dumps(envelope).encode()


def _around(repository: Repository, targets: Any, version: int) -> dict[str, bytes]:
    """Return the three roles of a repository whose targets are `targets`."""
    expires = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def role(kind: str, **fields: Any) -> dict[str, Any]:
        head = {"_type": kind, "version": version, "spec_version": "1.0.31", "expires": expires}
        return head | fields

    if isinstance(targets, dict):
        targets = targets | {"version": version, "expires": expires}
    named = {"version": version}
    return {
        "targets": _signed(repository, targets),
        "snapshot": _signed(repository, role("snapshot", meta={"targets.json": named})),
        "timestamp": _signed(repository, role("timestamp", meta={"snapshot.json": named})),
    }


@contextmanager
def _stolen_keys() -> Iterator[Take]:
    """Targets of both repositories, rightly signed: what is in them is all there is to refuse."""
    hub = _signing_hub()
    with _serving(hub) as rig, _defects() as heard:
        version = 1000

        def take(data: bytes) -> None:
            nonlocal version
            version += 1
            said = json.loads(data)
            if not isinstance(said, dict):
                raise MalformedError("not the two roles of this target")
            try:
                image = _around(hub.image, said.get("image"), version)
                director = _around(hub.director, said.get("director"), version)
            except Exception as error:
                raise MalformedError("cannot be signed: no canonical JSON") from error
            for role, content in image.items():
                rig.link.send(topics.fleet_meta(role), content)
            try:
                assignment = codec.encode(
                    messages.Assignment(
                        hub.director.roots,
                        director["timestamp"],
                        director["snapshot"],
                        director["targets"],
                    )
                )
            except msgspec.ValidationError as error:
                raise MalformedError("too long for a message") from error
            rig.link.send(topics.down(hub.device, "assignment"), assignment)
            for _ in range(6):
                rig.engine.step(0.0)
                rig.hub.answer(rig.link)
            rig.monotonic.now += 61.0
            rig.engine.step(0.0)
            heard.raise_first()

        yield take


@cache
def _signing_hub() -> HubDouble:
    return HubDouble()


@cache
def _signed_seeds() -> list[bytes]:
    hub = _signing_hub()
    order = hub.release(_bundle(), 1)
    image = json.loads(dict(hub.image_messages())[topics.fleet_meta("targets")])["signed"]
    assignment = codec.decode(hub.assignment(order), messages.Assignment)
    director = json.loads(assignment.targets)["signed"]
    director["edgefleet"]["sequence"] = 50
    image["edgefleet"] = {"authorities": []}
    return [json.dumps({"image": image, "director": director}).encode()]


# --- the files of a bundle ------------------------------------------------------------------------


@contextmanager
def _install() -> Iterator[Take]:
    """A blob with a manifest that vouches for it, as whoever signs manifests can make it."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        slots = Slots(Path(folder))
        slots.prepare()

        def take(data: bytes) -> None:
            size, blob = int.from_bytes(data[:3], "little"), data[3:]
            digests = blocks.block_digests(blob)
            transfer = Transfer("zstd", digest_of(blob), len(blob), digests)
            file = File("model", "0" * 64, size, transfer)
            part = slots.open_part(file)
            try:
                for index in sorted(part.missing):
                    start = index * blocks.BLOCK_BYTES
                    assert part.write(index, blob[start : start + blocks.BLOCK_BYTES])
            finally:
                part.close()
            try:
                slots.install(file)
            except MalformedError as error:
                # Everything but the last digest was right: it has been unpacked.
                if "differs from its digest" not in str(error):
                    raise
            finally:
                for path in Path(folder).glob("parts/*"):
                    path.unlink()
            left = [path for path in Path(folder).rglob("*") if path.is_file()]
            if left:
                raise AssertionError(f"left behind: {left}")

        yield take


def _install_seeds() -> list[bytes]:
    contents = [b"a" * 100_000, bytes(range(256)) * 16]
    return [len(data).to_bytes(3, "little") + codec.compress(data) for data in contents]


# --- programs on the device -----------------------------------------------------------------------


class _Here:
    """Runs calls at once, where the server has threads."""

    async def run(self, call: Callable[[], T]) -> T:
        return call()


@contextmanager
def _http() -> Iterator[Take]:
    """Any request to the inference server; the head is a line of JSON."""
    with _serving(HubDouble()) as rig, ExitStack() as stack:
        application = Application(rig.engine, _Here(), max_request_bytes=_LIMIT_BYTES)  # type: ignore[arg-type]  # as `Workers`
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        heard = stack.enter_context(_defects())

        def take(data: bytes) -> None:
            scope, body = _scope(data)
            if scope is None:
                return
            replies = loop.run_until_complete(_asked(application, scope, body))
            heard.raise_first()
            status = replies[0]["status"]
            # 500 says that the model gave nothing usable: a request may hold infinite numbers.
            if status >= 500 and b"not finite" not in replies[1]["body"]:
                raise AssertionError(f"answered with {status}: {replies[1]['body'][:300]!r}")

        yield take


async def _asked(
    application: Callable[..., Awaitable[None]], scope: dict[str, Any], body: bytes
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent


def _scope(data: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """Return the ASGI scope of an input, None where no HTTP parser would let the head through."""
    head, _, body = data.partition(b"\n")
    try:
        said = json.loads(head)
        method, path, headers = said["method"], said["path"], said["headers"]
        pairs = [(name.lower().encode("latin-1"), str(value).encode("latin-1"))
                 for name, value in headers.items()]  # fmt: skip
        path.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, b""
    if not isinstance(method, str) or not method.isascii():
        return None, b""
    kept = [(name, value) for name, value in pairs if name != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    return {"type": "http", "method": method, "path": path, "headers": kept}, body


def _request(path: str, body: Any = None, method: str = "POST", **headers: str) -> bytes:
    head = {"method": method, "path": path, "headers": {"host": "localhost", **headers}}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.dumps(head).encode() + b"\n" + content


def _http_seeds() -> list[bytes]:
    row = [0.1, 0.2, 0.3, 0.4]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
    raw = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [raw], "outputs": [{"name": "probabilities"}]}).encode()
    infer = "/v2/models/colours/infer"
    packed = {"inference-header-content-length": str(len(head)), "content-type": "x"}
    return [
        _request("/v2", b"", "GET"),
        _request("/v2/health/ready", b"", "GET"),
        _request("/v2/models/colours/versions/1", b"", "GET"),
        _request(infer, {"id": "1", "inputs": [tensor], "outputs": [{"name": "probabilities"}]}),
        _request(infer, head + bytes(16), **packed),
        _request(infer, bytes(16), **{"inference-header-content-length": "0"}),
        _request("/v2/models/colours/feedback", {"prediction_id": 1, "label": "red"}),
    ]


def _http_form() -> forms.Form:
    """The head, and the body as JSON where it is."""

    def read(data: bytes) -> Any:
        head, _, body = data.partition(b"\n")
        try:
            return [json.loads(head), json.loads(body)]
        except ValueError:
            return [json.loads(head), body]

    return forms.Form(read, forms.HEADED.write)


@contextmanager
def _local() -> Iterator[Take]:
    """Messages of a sensor pipeline."""
    with _serving(HubDouble()) as rig, _defects() as heard:
        topic = LocalTopic("colours", "in", "out")
        answers: list[bytes] = []
        answerer = answering.Answerer(
            [topic], rig.engine.model, lambda _topic, payload: answers.append(payload)
        )

        def take(data: bytes) -> None:
            answers.clear()
            answerer.handle(answering.Message("in", data))
            heard.raise_first()
            if len(answers) != 1:
                raise AssertionError(f"one message is answered by {len(answers)}")
            json.loads(answers[0])

        yield take


def _local_seeds() -> list[bytes]:
    row = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    bodies = [row, [0.1, 0.2, None, 0.4], {"rows": [row, list(row.values())]}]
    return [json.dumps(body).encode() for body in bodies]


# --- people's files -------------------------------------------------------------------------------


@contextmanager
def _table(name: str) -> Iterator[Take]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        path = Path(folder) / name

        def take(data: bytes) -> None:
            path.write_bytes(data)
            tables.rows_for(tables.read(path), signature())

        yield take


def _npz_seeds() -> list[bytes]:
    sink = io.BytesIO()
    np.savez(sink, rows=np.zeros((2, 3)), labels=np.array(["a", "b"]))
    packed = io.BytesIO()
    np.savez_compressed(packed, rows=np.zeros((200, 3)))
    return [sink.getvalue(), packed.getvalue()]


@contextmanager
def _settings() -> Iterator[Take]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        path = Path(folder) / "agent.toml"

        def take(data: bytes) -> None:
            path.write_bytes(data)
            config.load(path, environment={})

        yield take


def _settings_seeds() -> list[bytes]:
    return [
        b'store = "/tmp/x"\n[network]\nlink = "metered"\n[server]\nlisten = "127.0.0.1:8500"\n',
        b'board = "rpi4"\n[maintenance]\nwindows = ["Sat Sun 02:00-05:00"]\n',
        b'[broker]\nhost = "h"\n[[broker.topics]]\nmodel = "m"\ninput = "i"\noutput = "o"\n',
    ]


def _claim_seeds() -> list[bytes]:
    return [b"ef1.cam-1." + b"A" * 43 + b"." + b"0" * 64]


TARGETS = [
    Target("agent-inbound", _inbound, (), _inbound_seeds, forms.HEADED, _ENGINE),
    Target(
        "agent-signed-metadata",
        _stolen_keys,
        (MalformedError, json.JSONDecodeError, UnicodeDecodeError, RecursionError),
        _signed_seeds,
        forms.JSON,
        _ENGINE,
    ),
    Target("agent-packets", pure(_take_packets), (), _packet_seeds, guided=True),
    Target(
        "agent-bundle-blob",
        _install,
        (ProtocolError,),
        _install_seeds,
        bounds=Bounds(floor_bytes=24 << 20),
    ),
    Target("agent-http", _http, (), _http_seeds, _http_form(), _SERVER),
    Target("agent-local-topic", _local, (), _local_seeds, forms.JSON, _SERVER),
    Target("agent-npz", lambda: _table("rows.npz"), (AgentError, ProtocolError), _npz_seeds),
    Target(
        "agent-csv",
        lambda: _table("rows.csv"),
        (AgentError, ProtocolError),
        lambda: [b"a,b,word\n1,2.5,x\n2,,y\n"],
    ),
    Target("agent-settings", _settings, (ConfigError,), _settings_seeds),
    Target(
        "agent-claim",
        pure(lambda data: enrolment.parse_claim(data.decode("utf-8", "replace"))),
        (ConfigError,),
        _claim_seeds,
        guided=True,
    ),
]
