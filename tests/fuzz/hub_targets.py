"""Targets in the hub: what devices, brokers and people's files bring to it."""

import base64
import csv
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import update

from edgefleet_cloud.broker import tickets
from edgefleet_cloud.broker.serving import BlockServer
from edgefleet_cloud.database.models import Version
from edgefleet_cloud.errors import HubError, InvalidError
from edgefleet_cloud.fleet import devices
from edgefleet_cloud.fleet.catalog import BlobCatalog
from edgefleet_cloud.fleet.ingest import Inbound, ingest
from edgefleet_cloud.fleet.testing import enrol, open_services, release_bundle, signing_request
from edgefleet_cloud.monitoring import service as monitoring
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import load as load_settings
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_converters import sources
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import read_table
from edgefleet_protocol import codec, messages, sketch, topics
from edgefleet_protocol.errors import ProtocolError
from tests.fuzz import forms
from tests.fuzz.oracle import Bounds, Take
from tests.fuzz.protocol_targets import a_profile, message_seeds
from tests.fuzz.targets import Target, pure

DEVICE = "cam-1"
NOW = 1_800_000_000.0
# SQLAlchemy keeps what it compiles, and a commit is slow on a busy disk.
_DATABASE = Bounds(seconds=5.0, floor_bytes=16 << 20)


@contextmanager
def _hub() -> Iterator[tuple[Services, messages.Slot]]:
    """Give a hub with one enrolled device and one released model."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        home = Path(folder)
        services = open_services(home, lambda: NOW)
        enrol(services, DEVICE, home / "device")
        with services.database.write() as session:
            bundle = release_bundle(session, services.store, "colours", "v1", 1, b"content")
            reference = services.store.put(sketch.encode_profile(a_profile()))
            session.execute(update(Version).values(reference=reference))
        try:
            yield services, messages.Slot("colours", "v1", 1, "onnx-fp32", bundle.manifest)
        finally:
            services.database.close()


def _readdressed(payload: bytes, kind: type[Any]) -> bytes:
    """Make a payload the enrolled device's own where it is a message at all.

    The broker lets a device speak for itself alone, so a foreign name goes no further than that.
    """
    try:
        message = codec.decode(payload, kind)
    except ProtocolError:
        return payload
    return codec.encode(msgspec.structs.replace(message, device=DEVICE))


def _state_seeds() -> list[bytes]:
    slot = messages.Slot("colours", "v1", 1, "onnx-fp32", "0" * 64)
    attempt = messages.Attempt(1, "colours", 1, "0" * 64, messages.Step.CONFIRMED)
    state = messages.State(
        DEVICE, 1, 1, NOW, "0.1.0", "rpi4", {"onnxruntime": "1.20.0"}, 1 << 30, 1,
        [slot], [slot], [attempt], [slot],
    )  # fmt: skip
    return [codec.encode(state)]


def _report_seeds() -> list[bytes]:
    profile = a_profile()
    digest = "0" * 64
    window = messages.Window(
        "colours", "v1", 1, digest, digest, NOW - 60, NOW, profile.rows, profile.counts,
        profile.moments, [1, 1], [0] * 15 + [2], [0.0] * 4, [0, 2], 0, 1, 1,
        messages.Health(10.0, 1, 50.0, 1, 1.0, 1, False, 0.5, 0),
    )  # fmt: skip
    bodies = [
        window,
        messages.Samples("colours", "v1", 1, "retraining", ["a"], bytes(4), ["x"], ["y"]),
        messages.Result(1, "colours", "v1", 1, digest, messages.Step.CONFIRMED, "", 10, 1.0),
        messages.Refusal("assignment", "rollback", "text", digest),
    ]
    return [
        codec.encode(messages.Report(DEVICE, "store", number, NOW, body))
        for number, body in enumerate(bodies, start=1)
    ]


@contextmanager
def _ingest(kind: type[Any], topic_kind: str) -> Iterator[Take]:
    with _hub() as (services, _):
        count = 0

        def take(payload: bytes) -> None:
            nonlocal count
            count += 1
            own = _readdressed(payload, kind)
            ahead = _numbered(own, kind, count)
            batch = [Inbound(topics.up(DEVICE, topic_kind), data) for data in (payload, ahead)]
            ingest(services.database, services.store, batch, NOW + count)
            with services.database.write() as session:
                monitoring.evaluate(session, services.store, NOW + count)
            # What was stored is shown to people, as JSON.
            with services.database.read() as session:
                json.dumps(devices.describe(session, DEVICE, NOW), allow_nan=False)
                json.dumps(monitoring.performance(session, "colours"), allow_nan=False)
                json.dumps(
                    monitoring.drift(session, services.store, "colours", None, NOW),
                    allow_nan=False,
                )

        yield take


def _numbered(payload: bytes, kind: type[Any], number: int) -> bytes:
    """Make a message newer than those before, so that it is not left alone as a repetition."""
    try:
        message = codec.decode(payload, kind)
    except ProtocolError:
        return payload
    if kind is messages.Report:
        return codec.encode(msgspec.structs.replace(message, number=number))
    if message.boot == 1:
        return codec.encode(msgspec.structs.replace(message, sequence=number))
    return payload


@contextmanager
def _requests() -> Iterator[Take]:
    """Requests for blocks, as far as the socket."""
    with _hub() as (services, slot):
        sent: list[int] = []
        server = BlockServer(
            BlobCatalog(services.database, services.store),
            services.store,
            lambda _topic, payload: sent.append(len(payload)),
        )

        def take(payload: bytes) -> None:
            sent.clear()
            request: Any = codec.decode(payload, messages.Request)  # type: ignore[arg-type]  # a union
            if isinstance(request, messages.BlockRequest):
                for digest in (request.digest, slot.manifest):
                    server.ask(DEVICE, msgspec.structs.replace(request, digest=digest))
                    server._round()
            if len(sent) > 64:
                raise AssertionError(f"one request is answered by {len(sent)} messages")

        yield take


@contextmanager
def _signing() -> Iterator[Take]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        authority = Authority.open(Path(folder), lambda: NOW)
        yield lambda data: authority.issue_device(data, DEVICE, 3600.0)


@cache
def _request_seeds() -> list[bytes]:
    return [signing_request(DEVICE).encode(), signing_request("other").encode()]


def _take_der_request(data: bytes) -> bytes:
    pem = base64.encodebytes(data)
    head, tail = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"
    return head + pem + tail


@contextmanager
def _signing_der() -> Iterator[Take]:
    with _signing() as take:
        yield lambda data: take(_take_der_request(data))


@cache
def _der_request_seeds() -> list[bytes]:
    lines = _request_seeds()[0].decode().strip().splitlines()
    return [base64.b64decode("".join(lines[1:-1]))]


@cache
def _question_seeds() -> list[bytes]:
    certificate = ""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        authority = Authority.open(Path(folder), lambda: NOW)
        issued = authority.issue_device(signing_request(DEVICE).encode(), DEVICE, 3600.0)
        certificate = issued.certificate_pem.decode()
    claims = {
        "nats": {
            "server_id": {"id": "SERVER", "name": "s"},
            "user_nkey": "UKEY",
            "client_info": {"id": 4, "type": "client", "mqtt_id": DEVICE},
            "client_tls": {"verified_chains": [[certificate]]},
        }
    }
    return [json.dumps(claims).encode()]


def _take_question(data: bytes) -> None:
    body = base64.urlsafe_b64encode(data).rstrip(b"=")
    tickets.read(b"e30." + body + b".c2ln")


def _csv(rows: list[list[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _csv_seeds() -> list[bytes]:
    return [
        _csv([["a", "b", "word"], [1, 2.5, "x"], [2, "", "y"], [3, "nan", "z"]]),
        _csv([["a", "b"], *([index, index * 1e300] for index in range(30))]),
    ]


@cache
def _parquet_seeds() -> list[bytes]:
    made = []
    for columns in (
        {"a": [1.0, 2.0], "word": ["x", None]},
        {"a": [1, 2], "flag": [True, False], "list": [[1], [2]]},
        {"a": pa.array(["x", "x"]).dictionary_encode()},
    ):
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        made.append(sink.getvalue())
    return made


@contextmanager
def _table(suffix: str) -> Iterator[Take]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        path = Path(folder) / f"upload{suffix}"

        def take(data: bytes) -> None:
            path.write_bytes(data)
            table = read_table(path)
            assert len({len(cells) for cells in table.columns.values()}) == 1
            table.rows()

        yield take


def _model_seeds() -> list[bytes]:
    models = Path(__file__).parents[1] / "agent" / "models"
    return [
        b".onnx\n" + (models / "classifier.onnx").read_bytes(),
        b".keras\nPK\x05\x06" + bytes(18),
    ]


@contextmanager
def _recognise() -> Iterator[Take]:
    """A model file as far as the hub's own process looks at it; the rest is in a child."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:

        def take(data: bytes) -> None:
            suffix, _, content = data.partition(b"\n")
            name = suffix.decode("ascii", "replace").replace("/", "")[:20]
            path = Path(folder) / f"model{name}".replace("\0", "")
            path.write_bytes(content)
            sources.recognise(path)

        yield take


@contextmanager
def _settings() -> Iterator[Take]:
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        home = Path(folder)

        def take(data: bytes) -> None:
            (home / "hub.toml").write_bytes(data)
            load_settings(home, {})

        yield take


def _settings_seeds() -> list[bytes]:
    return [
        b'public_host = "hub.example"\nmqtt_port = 8883\ntick_s = 0.5\njob_workers = 2\n',
        b"assignment_ttl_s = 86400.0\nupload_limit_bytes = 1000\n",
    ]


TARGETS = [
    Target(
        "hub-state",
        lambda: _ingest(messages.State, "state"),
        (),
        _state_seeds,
        forms.MESSAGE,
        _DATABASE,
    ),
    Target(
        "hub-report",
        lambda: _ingest(messages.Report, "report"),
        (),
        _report_seeds,
        forms.MESSAGE,
        _DATABASE,
    ),
    Target(
        "hub-request",
        _requests,
        (ProtocolError,),
        lambda: message_seeds(messages.Request),
        forms.MESSAGE,
        _DATABASE,
    ),
    Target("hub-signing-request", _signing, (InvalidError,), _request_seeds),
    Target("hub-signing-request-der", _signing_der, (InvalidError,), _der_request_seeds),
    Target("hub-broker-question", pure(_take_question), (ValueError,), _question_seeds, forms.JSON),
    Target("hub-csv", lambda: _table(".csv"), (BadInputError,), _csv_seeds),
    Target(
        "hub-parquet",
        lambda: _table(".parquet"),
        (BadInputError,),
        _parquet_seeds,
        bounds=Bounds(floor_bytes=64 << 20),
    ),
    Target("hub-model-file", _recognise, (BadInputError,), _model_seeds),
    Target("hub-settings", _settings, (HubError,), _settings_seeds),
]
