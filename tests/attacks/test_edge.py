"""Attacks on what is particular to a fleet of devices: identities, a broker, models as bundles."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper

from edgefleet_agent.downloading import fetching
from edgefleet_agent.errors import ClaimRefusedError, ConfigError
from edgefleet_agent.link import MAX_PACKET_BYTES, PacketBound
from edgefleet_agent.testing import Bundle
from edgefleet_agent.trusting import enrolment, identity
from edgefleet_agent.updating import trial
from edgefleet_cloud.database.models import Claim as ClaimRow
from edgefleet_cloud.database.models import Incident
from edgefleet_cloud.fleet import renewal, statements
from edgefleet_cloud.fleet.ingest import Inbound, ingest
from edgefleet_cloud.fleet.testing import enrol
from edgefleet_cloud.services import Services
from edgefleet_protocol import codec, golden, manifest, sketch, topics
from edgefleet_protocol.errors import MalformedError, ProtocolError, TooLargeError
from edgefleet_protocol.messages import Attested, BlockAnswer, Report
from edgefleet_protocol.statements import DeviceStatement, signed_statement
from edgefleet_protocol.trust import target_path
from tests.attacks.hubs import MACHINE, claim_of, serving
from tests.attacks.register import Source, attack
from tests.attacks.world import MODELS, World, good, replaced

Worlds = Callable[..., World]
MIB = 1024 * 1024
NOW = 1_800_000_000.0


@attack(
    "downgrade of the wire version",
    Source.EDGE,
    stopped_by="the version is in the name of each topic, in the manifest and in the claim token; "
    "there is no negotiation that could be talked down",
    without="the look at the manifest's version",
)
def test_an_older_format_is_spoken(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of an older format, in which some protection was not thought of yet, is ordered."""
    bundle = good("old")
    data = manifest.encode(replaced(bundle.manifest, version=0))
    old = Bundle(bundle.manifest, data, bundle.blobs)

    def attempt(where: World) -> str:
        where.order(where.hub.release(old, 1))
        return where.serves()

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "VERSION", 0)
        assert attempt(world()) == "old"
    ours = world()
    assert attempt(ours) == ""
    assert ours.refused == [("bundle", "malformed")]
    with pytest.raises(MalformedError, match="no device topic of wire version 1"):
        topics.parse_up("ef/0/d/cam-1/up/state")
    with pytest.raises(ConfigError, match="expected ef1"):
        enrolment.parse_claim(f"ef0.cam-1.{'A' * 43}.{'0' * 64}")


@attack(
    "hostile lengths",
    Source.EDGE,
    stopped_by="every length is looked at before anything is allocated for it: packets, compressed "
    "sizes, strings, lists",
    without="the look at the size that a compressed message declares",
)
def test_a_length_is_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes say that they are, or become, as much memory as the device has."""
    bomb = b"\x01" + zstandard.ZstdCompressor(level=19).compress(bytes(64 * MIB))
    assert len(bomb) < 16 * 1024

    def peak_of(payload: bytes, kind: object) -> int:
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                codec.decode(payload, kind)  # type: ignore[arg-type]  # a union is a type form
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with monkeypatch.context() as patch:
        patch.setattr(
            codec, "decompress", lambda data, **_: zstandard.ZstdDecompressor().decompress(data)
        )
        assert peak_of(bomb, Report) > 64 * MIB
    assert peak_of(bomb, Report) < MIB
    # A map, a list, a string and bytes of 4 GiB, which msgpack announces in five bytes.
    for head in (b"\xdf", b"\xdd", b"\xdb", b"\xc6"):
        assert peak_of(b"\x00" + head + b"\xff" * 4, BlockAnswer) < MIB
    # An MQTT packet of 256 MiB is cut off at its fixed header.
    with pytest.raises(TooLargeError, match="MQTT packet has 268435455 bytes"):
        PacketBound(MAX_PACKET_BYTES).follow(b"\x30\xff\xff\xff\x7f")


@attack(
    "zip or path traversal in a bundle",
    Source.EDGE,
    stopped_by="a bundle is no archive: it has a closed list of roles, and its files are named by "
    "digests, whose form (64 hexadecimal digits) is checked when they are read",
    without="the form of a digest",
)
def test_a_bundle_names_a_file_outside_its_store(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner of one model signs a manifest whose file lies elsewhere on the device."""
    away = "../../" + "./" * 25 + "precious"
    assert len(away) == 64
    bundle = good("v2")
    said = json.loads(bundle.data)
    said["files"][0]["transfer"]["digest"] = away
    traversing = Bundle(bundle.manifest, json.dumps(said).encode(), bundle.blobs)

    def attempt(where: World) -> bytes:
        where.install(good(rows=65), 1)
        precious = where.store.parent / "precious"
        precious.write_bytes(b"what the device cannot do without")
        where.order(where.hub.release(traversing, 2))
        return precious.read_bytes()

    def decode_any_digest(_: bytes) -> manifest.Manifest:
        files = list(bundle.manifest.files)
        files[0] = replaced(files[0], transfer=replaced(files[0].transfer, digest=away))
        return replaced(bundle.manifest, files=files)

    with monkeypatch.context() as patch:
        real = fetching.decode_manifest
        patch.setattr(
            fetching,
            "decode_manifest",
            lambda data: decode_any_digest(data) if away.encode() in data else real(data),
        )
        patch.setattr(fetching.Slots, "has", lambda *_: False)  # the blob is to be fetched
        assert attempt(world()) != b"what the device cannot do without"
    ours = world()
    assert attempt(ours) == b"what the device cannot do without"
    assert ours.serves() == "v1"
    assert ours.refused == [("bundle", "malformed")]
    # Nor in the signed metadata, which bounds neither length nor form of a hash.
    target = ours.hub.release(good("v3"), 3)
    listed = ours.hub._listed[target_path(target.model, 3, target.variant)]
    listed.hashes["sha256"] = away
    ours.order(target)
    assert ours.refused[1:] == [("assignment", "malformed")]


class Bomb:
    """An object that, when it is unpickled, leaves a mark in the world."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self._mark), 0o700)


def request_for(folder: Path, model: bytes, *, timeout_s: float = 60.0) -> trial.Request:
    """Return a trial of a model file, whose golden vectors are those of the right one."""
    bundle = good()
    file = bundle.manifest.file("golden")
    folder.mkdir(exist_ok=True)
    for name, data in (
        ("manifest", bundle.data),
        ("golden", manifest.unpack_file(file, bundle.blobs[file.transfer.digest])),
        ("model", model),
    ):
        (folder / name).write_bytes(data)
    return trial.Request(
        *(str(folder / name) for name in ("manifest", "model", "golden")), timeout_s, 128 * MIB
    )


@attack(
    "pickle in a bundle",
    Source.EDGE,
    stopped_by="nothing on a device unpickles: models are ONNX or TFLite, the rest is msgpack and "
    "JSON, all of fixed types",
    without="that rule (the same bytes, unpickled)",
)
def test_a_bundle_holds_a_pickle(tmp_path: Path) -> None:
    """As the model file, in a real trial, and as each other part of a bundle."""
    mark = tmp_path / "it has run"
    evil = pickle.dumps(Bomb(mark))
    pickle.loads(evil)
    assert mark.exists()
    mark.rmdir()

    (fault,) = trial.run(request_for(tmp_path / "trial", evil)).faults
    assert fault.startswith("ONNX Runtime does not load the model: it is no ONNX model")
    for read in (manifest.decode, golden.decode, sketch.decode_profile):
        with pytest.raises(ProtocolError):
            read(evil)
    assert not mark.exists()


def of_nodes(*nodes: onnx.NodeProto, **initializers: TensorProto) -> bytes:
    """Return an ONNX model from `x` (n, 4) to `probabilities` (n, 3)."""
    for name, tensor in initializers.items():
        tensor.name = name
    graph = helper.make_graph(
        list(nodes),
        "attack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        list(initializers.values()),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("attack", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


def lying_weights() -> bytes:
    """Return a model whose weights say that they are 4 GiB, and have 16 bytes."""
    weights = numpy_helper.from_array(np.zeros((2, 2), np.float32))
    weights.dims[:] = [1 << 15, 1 << 15]
    return of_nodes(helper.make_node("MatMul", ["x", "w"], ["probabilities"]), w=weights)


def weights_elsewhere() -> bytes:
    """Return a model that keeps its weights in a file of the device's."""
    weights = TensorProto(
        data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL
    )
    weights.external_data.add(key="location", value="../../../../etc/passwd")
    return of_nodes(helper.make_node("MatMul", ["x", "w"], ["probabilities"]), w=weights)


LOAD_WITHOUT_LIMITS = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print("loaded", flush=True)
session.run(None, {"x": np.zeros((1, 4), np.float32)})
"""


@attack(
    "model that attacks its runtime",
    Source.EDGE,
    stopped_by="a trial in a child process with limits of time, memory, files and tasks; what it "
    "does becomes a sentence to the hub. No sandbox: see below",
    without="the trial's limits (a model without end keeps its process for ever)",
)
def test_a_model_attacks_its_runtime(tmp_path: Path) -> None:
    """Endless, greedy, of a lying size, with an operator of its own, with weights elsewhere."""
    endless = MODELS / "endless.onnx"
    with subprocess.Popen(
        [sys.executable, "-c", LOAD_WITHOUT_LIMITS, str(endless)], stdout=subprocess.PIPE
    ) as unchecked:
        assert unchecked.stdout is not None
        assert unchecked.stdout.readline() == b"loaded\n"
        with pytest.raises(subprocess.TimeoutExpired):
            unchecked.wait(3.0)
        unchecked.kill()

    own = helper.make_node("Payload", ["x"], ["probabilities"], domain="attack")
    attacks = {
        "endless": (endless.read_bytes(), "the trial did not end within 3 s"),
        "greedy": ((MODELS / "greedy.onnx").read_bytes(), "the model needs more than 134217728"),
        "lying": (lying_weights(), "ONNX Runtime does not load the model: "),
        "operator": (of_nodes(own), "ONNX Runtime does not load the model: it uses the operator "),
        "elsewhere": (weights_elsewhere(), "ONNX Runtime does not load the model: "),
    }
    for name, (model, sentence) in attacks.items():
        limit_s = 3.0 if name == "endless" else 60.0
        (fault,) = trial.run(request_for(tmp_path / name, model, timeout_s=limit_s)).faults
        assert fault.startswith(sentence), (name, fault)
        assert "root:" not in fault


@attack(
    "claim-token replay",
    Source.EDGE,
    stopped_by="a claim works once: it is used up in the commit that gives the certificate, and "
    "only its digest is kept; it ends after a day",
    without="the mark that a claim was used",
)
def test_a_claim_token_is_used_again(tmp_path: Path, hubs: Callable[[str], Services]) -> None:
    """The token was on a label, in a log, or on a screen that somebody has photographed."""
    services = hubs("hub")
    claim = claim_of(services, "cam-1")
    with serving(services) as url:
        enrolment.enrol(tmp_path / "true", url, claim, MACHINE)
        with pytest.raises(ClaimRefusedError, match="was used already"):
            enrolment.enrol(tmp_path / "thief", url, claim, MACHINE)
        assert not identity.is_enrolled(tmp_path / "thief")
        with services.database.write() as session:
            session.query(ClaimRow).update({"used_at": None})
        enrolment.enrol(tmp_path / "thief", url, claim, MACHINE)
    assert identity.is_enrolled(tmp_path / "thief")


@attack(
    "cloned device",
    Source.EDGE,
    stopped_by="nothing prevents the copying of a key that is a file (a TPM does); it is found: "
    "two outboxes behind one identity, or a signed count that forks, open an incident",
    without="the look at outboxes and counts",
)
def test_a_device_is_copied(
    hubs: Callable[[str], Services], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same identity reports from two storages in turn, and swears to the same count twice."""

    def attempt(services: Services) -> set[str]:
        enrol(services, "a", tmp_path / "devices")
        key = serialization.load_pem_private_key(
            (tmp_path / "devices" / "a.key").read_bytes(), None
        )
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = x509.load_pem_x509_certificate((tmp_path / "devices" / "a.pem").read_bytes())
        reports = [
            Report("a", store, number, NOW, sworn(key, certificate, at))
            for store, number, at in (("true", 1, 1.0), ("copy", 1, 2.0), ("true", 2, 3.0))
        ]
        batch = [Inbound(topics.up("a", "report"), codec.encode(one)) for one in reports]
        ingest(services.database, services.store, batch, NOW)
        with services.database.read() as session:
            return {incident.kind for incident in session.query(Incident)}

    with monkeypatch.context() as patch:
        patch.setattr(statements, "note_store", lambda *_: None)
        patch.setattr(statements, "_refusal", lambda *_: None)
        assert renewal.CLONED not in attempt(hubs("unchecked"))
    assert renewal.CLONED in attempt(hubs("ours"))


def sworn(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, at: float) -> Attested:
    """Return a signed statement, the first that its device ever made."""
    said = DeviceStatement(
        device="a", counter=1, at=at, challenge=b"", assignment=1, serving=[], previous=[],
        boot=1, sequence=1, time_attested=True, attack="", agent_version="0.1.0", authorities=[],
        certificate=f"{certificate.serial_number:x}",
    )  # fmt: skip
    data = msgspec.msgpack.encode(said)
    return Attested(data, key.sign(signed_statement(data), ec.ECDSA(hashes.SHA256())))
