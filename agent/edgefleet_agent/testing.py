"""Fakes that implement the agent's production interfaces, for tests of this and other rooms."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgefleet_agent.agent import build_engine
from edgefleet_agent.config import Config
from edgefleet_agent.link import Connected, Deliver, Disconnected, Message, Oversized, fits
from edgefleet_agent.trusting import identity, renewal, tufclient
from edgefleet_agent.trusting.testing import Delegating
from edgefleet_agent.updating.journal import key_of
from edgefleet_protocol import blocks, codec, golden, manifest, sketch, topics
from edgefleet_protocol import rows as rows_
from edgefleet_protocol.attesting import TimeStatement, signed_time
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.manifest import Manifest, Runtime
from edgefleet_protocol.messages import (
    Ack,
    Assignment,
    Block,
    BlockRequest,
    BlocksUnavailable,
    Report,
    Request,
    State,
    SyncRequest,
    TimeAttestation,
    TimeRequest,
)
from edgefleet_protocol.trust import (
    INSTRUCTIONS_FIELD,
    DirectorTarget,
    ImageTarget,
    Instructions,
    target_path,
)

T = TypeVar("T")
S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


class MemoryLink:
    """A `link.Link` without a network: what is published is kept, what is sent is delivered.

    Attributes:
        published: `(topic, payload)` in order, while connected.
        listening: topics beside the fixed ones.
    """

    def __init__(self) -> None:
        self.published: deque[tuple[str, bytes]] = deque()
        self.listening: set[str] = set()
        self._deliver: Deliver = lambda _: None
        self._up = False

    def start(self, deliver: Deliver) -> None:
        """Remember where messages go; `connect` brings the link up."""
        self._deliver = deliver

    def stop(self) -> None:
        """Go down for good."""
        self._up = False

    def is_alive(self) -> bool:
        """Say yes: there is no thread that could end."""
        return True

    def publish(self, topic: str, payload: bytes) -> bool:
        """Keep a message if the link is up."""
        if self._up:
            self.published.append((topic, payload))
        return self._up

    def listen(self, topic: str) -> None:
        """Receive one more topic."""
        self.listening.add(topic)

    def unlisten(self, topic: str) -> None:
        """Undo `listen`."""
        self.listening.discard(topic)

    def reconnect(self) -> None:
        """Go down and up again, with a renewed certificate."""
        self.disconnect("a renewed certificate is there")
        self._up = True
        self._deliver(Connected(renewed=True))

    def connect(self) -> None:
        """Bring the link up."""
        self._up = True
        self._deliver(Connected())

    def disconnect(self, reason: str = "test") -> None:
        """Take the link down."""
        self._up = False
        self._deliver(Disconnected(reason))

    def send(self, topic: str, payload: bytes) -> None:
        """Deliver a message from the hub, under the same length limits as the real link."""
        if fits(topic, len(payload)):
            self._deliver(Message(topic, payload))
        else:
            self._deliver(Oversized(topic, len(payload)))


# What one test bundle needs beside its model file.
COLUMNS = ["a", "b", "c", "d"]
CLASSES = ["red", "green", "blue"]


@dataclass(frozen=True)
class Bundle:
    """A bundle with the blobs that travel for it."""

    manifest: Manifest
    data: bytes
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return digest_of(self.data)


def make_bundle(
    model_file: bytes,
    scores: Callable[[NDArray[np.float64]], NDArray[np.float32]],
    *,
    model: str = "colours",
    version: str = "v1",
    runtime: Runtime = "onnxruntime",
    input_name: str = "x",
    output_name: str = "probabilities",
    runtime_min: str = "1.0",
    boards: Sequence[str] = (),
    memory_bytes: int = 0,
    rows: int = 64,
) -> Bundle:
    """Make a bundle of a classifier with four columns and three classes.

    Args:
        model_file: content of the model file.
        scores: what the right model gives for `(n, 4)` rows.
        model: name of the model.
        version: of the model.
        runtime: that the file is for.
        input_name: of the one input.
        output_name: of the probabilities.
        runtime_min: lowest version of the runtime.
        boards: that may run it.
        memory_bytes: that it says it needs.
        rows: golden rows, and training rows of the reference profile.
    """
    training = np.random.default_rng(7).normal(size=(rows, len(COLUMNS)))
    expected = np.asarray(scores(training), np.float32)
    vectors = golden.GoldenVectors(
        COLUMNS,
        rows,
        training.astype("<f8").tobytes(),
        expected.astype("<f4").tobytes(),
        len(CLASSES),
        atol=1e-4,
        min_agreement=1.0,
    )
    features = [
        sketch.numeric_feature(name, training[:, index]) for index, name in enumerate(COLUMNS)
    ]
    profile = sketch.ReferenceProfile(
        rows,
        features,
        sketch.pack_counts(sketch.count_rows(features, training), features),
        sketch.pack_moments(sketch.moments_of(training)),
        CLASSES,
        np.bincount(expected.argmax(axis=1), minlength=len(CLASSES)).tolist(),
        [0] * sketch.CONFIDENCE_BINS,
    )
    signature = manifest.Signature(
        "classification",
        [manifest.Tensor(input_name, "float32", [None, len(COLUMNS)], COLUMNS)],
        [manifest.Tensor(output_name, "float32", [None, len(CLASSES)])],
        output_name,
        classes=CLASSES,
    )
    needs = manifest.Needs(runtime, runtime_min, memory_bytes, list(boards))
    return _bundle(model, version, model_file, profile, vectors, signature, needs)


def make_tensor_bundle(
    model_file: bytes,
    signature: manifest.Signature,
    tensors: rows_.Tensors,
    scores: NDArray[np.float32],
    *,
    model: str,
    version: str = "v1",
    runtime: Runtime = "onnxruntime",
    atol: float = 1e-4,
    max_latency_us: int = 0,
    max_memory_bytes: int = 0,
) -> Bundle:
    """Make a bundle of any model.

    Args:
        model_file: content of the model file.
        signature: what goes in and what comes out.
        tensors: golden inputs by name, in the form that the model takes; also counted in the
            reference profile.
        scores: what a right runtime gives for them, `(n, k)`.
        model: name of the model.
        version: of the model.
        runtime: that the file is for.
        atol: how near a score must come.
        max_latency_us: the manifest's budget of time.
        max_memory_bytes: its budget of memory.
    """
    count = len(scores)
    text = {
        tensor.columns[0]: [str(cell) for cell in tensors[tensor.name].ravel()]
        for tensor in signature.inputs
        if tensor.dtype == "string"
    }
    columns = [
        np.full((count, 1), np.nan)
        if tensor.dtype == "string"
        else tensors[tensor.name].reshape(count, -1).astype(np.float64)
        for tensor in signature.inputs
        if tensor.columns
    ]
    numeric = np.concatenate(columns, axis=1) if columns else np.zeros((count, 0))
    vectors = golden.GoldenVectors(
        signature.columns,
        count,
        numeric.astype("<f8").tobytes(),
        scores.astype("<f4").tobytes(),
        scores.shape[1],
        atol=atol,
        text=text,
        tensors={
            tensor.name: tensors[tensor.name].astype(np.dtype(tensor.dtype)).tobytes()
            for tensor in signature.inputs
            if not tensor.columns
        },
    )
    words = [
        sketch.Feature(name, "categorical", vocabulary=sorted(set(text[name])))
        if name in text
        else sketch.Feature(name)
        for name in signature.features
    ]
    counted = rows_.count(signature, words, tensors)
    features = [
        feature
        if feature.kind == "categorical"
        else sketch.numeric_feature(feature.name, counted[:, index])
        for index, feature in enumerate(words)
    ]
    profile = sketch.ReferenceProfile(
        count,
        features,
        sketch.pack_counts(sketch.count_rows(features, counted), features),
        sketch.pack_moments(sketch.moments_of(counted)),
        signature.classes,
        np.bincount(scores.argmax(axis=1), minlength=len(signature.classes)).tolist()
        if signature.classes
        else [],
        [0] * sketch.CONFIDENCE_BINS if signature.classes else [],
    )
    needs = manifest.Needs(
        runtime, "1.0", max_latency_us=max_latency_us, max_memory_bytes=max_memory_bytes
    )
    return _bundle(model, version, model_file, profile, vectors, signature, needs)


def _bundle(
    model: str,
    version: str,
    model_file: bytes,
    profile: sketch.ReferenceProfile,
    vectors: golden.GoldenVectors,
    signature: manifest.Signature,
    needs: manifest.Needs,
) -> Bundle:
    files, blobs = [], {}
    for role, data in (
        ("model", model_file),
        ("reference", sketch.encode_profile(profile)),
        ("golden", golden.encode(vectors)),
    ):
        file, blob = manifest.describe_file(role, data)  # type: ignore[arg-type]  # Literal in a loop
        files.append(file)
        blobs[file.transfer.digest] = blob
    made = Manifest(
        model,
        version,
        f"{needs.runtime}-test",
        files,
        signature,
        needs,
        manifest.Measured(0.0, 1.0, 1.0),
        manifest.Lineage(),
    )
    return Bundle(made, manifest.encode(made), blobs)


class Repository:
    """One TUF repository with its keys in memory, to sign right and wrong metadata with."""

    def __init__(self, life: timedelta = timedelta(days=1)) -> None:
        self.life = life
        self.version = 0
        self._signer = CryptoSigner.generate_ed25519()
        root = Root(expires=datetime.now(UTC) + timedelta(days=365), consistent_snapshot=False)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(self._signer.public_key, role)
        self._root = root
        self.roots = [self._sign(root)]

    def rotate(self) -> None:
        """Replace the key of all roles, by a root that the old and the new key sign."""
        old, self._signer = self._signer, CryptoSigner.generate_ed25519()
        for role in ("root", "timestamp", "snapshot", "targets"):
            self._root.add_key(self._signer.public_key, role)
            self._root.revoke_key(old.public_key.keyid, role)
        self._root.version += 1
        signed = Metadata(self._root)
        signed.sign(old)
        signed.sign(self._signer, append=True)
        self.roots.append(signed.to_bytes())

    def publish(
        self, targets: Mapping[str, TargetFile], fields: Mapping[str, Any] | None = None
    ) -> dict[str, bytes]:
        """Sign the next version of targets, snapshot and timestamp; return role → JSON."""
        self.version += 1
        version, expires = self.version, datetime.now(UTC).replace(microsecond=0) + self.life
        listed = self._sign(
            Targets(
                version,
                expires=expires,
                targets=dict(targets),
                unrecognized_fields=dict(fields or {}),
            )
        )
        snapshot = self._sign(
            Snapshot(version, expires=expires, meta={"targets.json": MetaFile(version)})
        )
        timestamp = self._sign(Timestamp(version, expires=expires, snapshot_meta=MetaFile(version)))
        return {"targets": listed, "snapshot": snapshot, "timestamp": timestamp}

    def attest(self, statement: TimeStatement) -> TimeAttestation:
        """Sign a time, as the director does with its timestamp key."""
        data = msgspec.msgpack.encode(statement)
        signature = self._signer.sign(signed_time(data))
        return TimeAttestation(data, signature.keyid, bytes.fromhex(signature.signature))

    def _sign(self, role: S) -> bytes:
        signed = Metadata(role)
        signed.sign(self._signer)
        return signed.to_bytes()


class HubDouble:
    """The hub's side of the wire, in memory and on the test's own thread.

    Attributes:
        blobs: what it serves, by digest.
        reports: every report that arrived, acknowledged or not.
        requests: every request for blocks or documents that arrived.
        questions: every request for the time that arrived.
        states: every state that arrived.
        clock: of the time that it attests, Unix seconds.
        attests: whether it answers questions for the time.
        challenge: in its attestations.
    """

    def __init__(self, device: str = "cam-1", image: Delegating | None = None) -> None:
        """Make the keys.

        Args:
            device: that it serves.
            image: its image repository; None for one without delegations.
        """
        self.device = device
        self.image: Repository | Delegating = image or Repository(timedelta(days=7))
        self.director = Repository()
        self.blobs: dict[str, bytes] = {}
        self.reports: list[Report] = []
        self.requests: list[BlockRequest | SyncRequest] = []
        self.questions: list[TimeRequest] = []
        self.states: list[State] = []
        self.sequence = 0
        self.clock: Callable[[], float] = time.time
        self.attests = True
        self.challenge = bytes(range(16))
        self._listed: dict[str, TargetFile] = {}

    def identity_into(self, store: Path) -> None:
        """Write an identity as enrolment would; its certificates are of no use."""
        identity.save(
            store,
            identity.Hub(self.device, "localhost", 8883, "https://localhost"),
            key=b"",
            certificate=b"",
            ca=b"",
            image_root=self.image.roots[0],
            director_root=self.director.roots[0],
        )

    def release(self, bundle: Bundle, release: int, **changes: Any) -> DirectorTarget:
        """List a bundle in the image repository; return its director target, attempt = release.

        Args:
            bundle: to be released.
            release: its number.
            changes: fields of the director target that differ.
        """
        made = bundle.manifest
        runtime = made.needs.runtime
        image = ImageTarget(
            made.model, made.model_version, made.variant, release, runtime, made.needs.boards
        )
        path = target_path(made.model, release, made.variant)
        self._listed[path] = target_file(bundle.data, image)
        self.blobs.update(bundle.blobs)
        self.blobs[bundle.digest] = bundle.data
        ordered = DirectorTarget(
            made.model, made.model_version, made.variant, release, runtime, attempt=release
        )
        return msgspec.structs.replace(ordered, **changes)

    def image_messages(self) -> list[tuple[str, bytes]]:
        """Sign the image repository; return its messages, roots first."""
        parts = [(f"root-{n}", data) for n, data in enumerate(self.image.roots, start=1)]
        parts += list(self.image.publish(self._listed).items())
        return [(topics.fleet_meta(role), data) for role, data in parts]

    def assignment(
        self,
        *targets: DirectorTarget,
        device: str | None = None,
        sequence: int | None = None,
        files: Mapping[str, TargetFile] | None = None,
    ) -> bytes:
        """Sign an assignment of released targets.

        Args:
            targets: from `release`.
            device: that it names; None for the right one.
            sequence: None for the next.
            files: path → target, to replace what the image repository says.
        """
        self.sequence += 1
        listed = {}
        for target in targets:
            path = target_path(target.model, target.release, target.variant)
            base = (files or {}).get(path) or self._listed[path]
            custom = {"custom": msgspec.to_builtins(target)}
            listed[path] = TargetFile(base.length, base.hashes, path, custom)
        instructions = Instructions(
            device or self.device, self.sequence if sequence is None else sequence
        )
        parts = self.director.publish(
            listed, {INSTRUCTIONS_FIELD: msgspec.to_builtins(instructions)}
        )
        return codec.encode(
            Assignment(self.director.roots, parts["timestamp"], parts["snapshot"], parts["targets"])
        )

    def send_all(self, link: MemoryLink, *targets: DirectorTarget) -> None:
        """Publish the image repository and an assignment."""
        for topic, data in self.image_messages():
            link.send(topic, data)
        link.send(topics.down(self.device, "assignment"), self.assignment(*targets))

    def answer(self, link: MemoryLink, *, acknowledge: bool = True) -> int:
        """Take everything that the device has published, serve blocks and acknowledge reports.

        Returns:
            How many messages there were.
        """
        count = 0
        while link.published:
            topic, payload = link.published.popleft()
            count += 1
            _, kind = topics.parse_up(topic)
            if kind == "state":
                self.states.append(codec.decode(payload, State))
            elif kind == "report":
                report = codec.decode(payload, Report)
                self.reports.append(report)
                if acknowledge:
                    ack = Ack(report.store, [report.number])
                    link.send(topics.down(self.device, "ack"), codec.encode(ack))
            else:
                request: Request = codec.decode(payload, Request)  # type: ignore[arg-type]  # a union is a type form
                if isinstance(request, TimeRequest):
                    self._attest(link, request)
                    continue
                self.requests.append(request)
                if isinstance(request, BlockRequest):
                    self._serve(link, request)
        return count

    def bodies(self, kind: type[T]) -> list[T]:
        """Return the bodies of one kind that arrived, each once."""
        seen = {report.number: report.body for report in self.reports}
        return [body for body in seen.values() if isinstance(body, kind)]

    def block(self, digest: str, index: int) -> bytes:
        """Return one block; a test replaces this to serve something else."""
        start = index * blocks.BLOCK_BYTES
        return self.blobs[digest][start : start + blocks.BLOCK_BYTES]

    def _attest(self, link: MemoryLink, request: TimeRequest) -> None:
        """Say what time it is; its metadata expires by the same clock."""
        self.questions.append(request)
        if self.attests:
            statement = TimeStatement(self.device, request.nonce, self.clock(), self.challenge)
            answer = codec.encode(self.director.attest(statement))
            link.send(topics.down(self.device, "time"), answer)

    def _serve(self, link: MemoryLink, request: BlockRequest) -> None:
        topic = topics.down(self.device, "blocks")
        blob = self.blobs.get(request.digest)
        if blob is None:
            answer = BlocksUnavailable(request.digest, "no such blob")
            link.send(topic, codec.encode(answer))
            return
        for index in blocks.indices_of(request.bitmap, blocks.block_count(len(blob))):
            block = Block(request.digest, index, self.block(request.digest, index))
            link.send(topic, codec.encode(block, compress=False))


def target_file(data: bytes, custom: msgspec.Struct) -> TargetFile:
    """Return the TUF target of some bytes, with a custom field."""
    return TargetFile(
        len(data), {"sha256": digest_of(data)}, "", {"custom": msgspec.to_builtins(custom)}
    )


def padded_onnx(data: bytes, size_bytes: int, seed: int = 0) -> bytes:
    """Return an ONNX model made larger by bytes that do not compress and that runtimes skip.

    They stand in a field that the format does not know (protobuf, field 1000, length-delimited).
    """
    padding = np.random.default_rng(seed).bytes(size_bytes)
    length, encoded = size_bytes, b""
    while length >= 0x80:
        encoded += bytes([length & 0x7F | 0x80])
        length >>= 7
    return data + b"\xc2\x3e" + encoded + bytes([length]) + padding


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def no_keys(_request: renewal.Request) -> renewal.Answer:
    """Answer as the program that holds the keys does for an identity without certificates."""
    return renewal.Answer("damaged", "this identity holds no certificate")


class Rig:
    """An engine on a store, driven step by step on the test's thread, with a hub double.

    Attributes:
        link: between the two.
        clock: Unix seconds, as the device believes; a test may set it to anything.
        monotonic: the engine's clock; `settle` does not move it.
    """

    def __init__(
        self,
        store: Path,
        hub: HubDouble,
        *,
        config: Config | None = None,
        surroundings: Mapping[str, Any] | None = None,
        alive: Callable[[], None] = lambda: None,
        ask_keyholder: renewal.Ask = no_keys,
    ) -> None:
        """Open the store; enrol it first if it is new.

        Args:
            store: of the device.
            hub: that it belongs to.
            config: None for the defaults, board `generic-x86_64`.
            surroundings: fields of `Surroundings`; slow work runs on this thread unless
                `start` says otherwise.
            alive: called in each turn of the engine.
            ask_keyholder: stands for the program that holds the device's keys.
        """
        self.store, self.hub = store, hub
        if not identity.is_enrolled(store):
            hub.identity_into(store)
        self.link = MemoryLink()
        self.clock = Clock()
        self.monotonic = Clock(1000.0)
        self.engine = build_engine(
            config or Config(store=str(store), board="generic-x86_64"),
            identity.load(store),
            self.link,
            clock=self.clock,
            monotonic=self.monotonic,
            surroundings={
                "start": lambda work: work(),
                "link_class": lambda: "unmetered",
                "chance": lambda: 0.5,
                **(surroundings or {}),
            },
            alive=alive,
            run_client=tufclient.refresh,
            check_time=tufclient.check_time,
            ask_keyholder=ask_keyholder,
        )
        self.link.start(self.engine.deliver)
        self.engine.open()
        self.link.connect()

    def settle(self, *, acknowledge: bool = True, turns: int = 2000) -> None:
        """Let engine and hub talk until neither has anything to say at this time."""
        for _ in range(turns):
            self.engine.step(0.0)
            said = self.hub.answer(self.link, acknowledge=acknowledge)
            if not said and not self.engine.has_news:
                return
        raise AssertionError(f"still talking after {turns} turns")

    def later(self, seconds: float) -> None:
        """Move the clock, then settle."""
        self.monotonic.now += seconds
        self.settle()

    def close(self) -> None:
        """Stop the engine as `agent.Agent.stop` does."""
        self.engine.stop()
        self.engine.run()

    @property
    def state(self) -> State:
        """The newest state that the hub has."""
        return self.hub.states[-1]

    def steps(self) -> dict[str, str]:
        """Return key of each lane → step of its newest attempt."""
        return {
            key_of(attempt.model, attempt.lane): str(attempt.step)
            for attempt in self.engine.attempts.summaries()
        }
