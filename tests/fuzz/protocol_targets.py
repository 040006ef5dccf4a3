"""Targets in `protocol`: what both sides decode."""

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import UnionType
from typing import Any

import msgspec
import numpy as np

from edgefleet_protocol import (
    blocks,
    codec,
    drift,
    golden,
    manifest,
    messages,
    sketch,
    topics,
    trust,
)
from edgefleet_protocol.errors import MalformedError, ProtocolError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.profiles import DeviceProfile, misfits
from tests.fuzz import forms
from tests.fuzz.oracle import Bounds
from tests.fuzz.targets import Target, pure
from tests.fuzz.values import values_of

REFUSALS = (ProtocolError,)
_DEVICE = DeviceProfile("rpi4", {"onnxruntime": "1.20.0", "litert": "2.0"}, 1 << 30)

# Every type that is the body of a topic; a test compares this with the module.
MESSAGES: dict[str, object] = {
    "state": messages.State,
    "report": messages.Report,
    "request": messages.Request,
    "block-answer": messages.BlockAnswer,
    "assignment": messages.Assignment,
    "ack": messages.Ack,
    "time": messages.TimeAttestation,
}


def _cases(kind: object) -> list[object]:
    return list(kind.__args__) if isinstance(kind, UnionType) else [kind]


def message_seeds(kind: object) -> list[bytes]:
    """Return payloads of all cases of a message type, plain and compressed."""
    values = [value for case in _cases(kind) for value in values_of(case)]
    return [codec.encode(value) for value in values] + [
        codec.encode(value, compress=False) for value in values[:2]
    ]


def _message(name: str, kind: object) -> Target:
    def take(payload: bytes) -> None:
        message = codec.decode(payload, kind)  # type: ignore[type-var]  # a union is a type form
        again = codec.encode(message)
        if codec.encode(codec.decode(again, kind)) != again:  # type: ignore[type-var]  # likewise
            raise AssertionError("encoding and decoding changes the message")

    seeds = cache(lambda: message_seeds(kind))
    # A message is bounded by 512 KiB, unpacked, whatever its own length.
    bounds = Bounds(floor_bytes=2 * codec.MAX_MESSAGE_BYTES + (1 << 20))
    return Target(
        f"message-{name}", pure(take), REFUSALS, seeds, forms.MESSAGE, bounds, guided=True
    )


def _take_topic(data: bytes) -> None:
    topic = data.decode("utf-8", "replace")
    device, kind = topics.parse_up(topic)
    if topics.up(device, kind) != topic:
        raise AssertionError(f"{topic!r} has another form")


def _topic_seeds() -> list[bytes]:
    return [topics.up("cam-1", kind).encode() for kind in sorted(topics.UP_KINDS)]


def a_manifest() -> manifest.Manifest:
    """Return a manifest with all kinds of inputs."""
    described = [
        manifest.describe_file(role, data)[0]  # type: ignore[arg-type]  # Literal in a loop
        for role, data in (("model", b"m" * 5000), ("reference", b"r"), ("golden", b"g" * 99))
    ]
    return manifest.Manifest(
        "colours",
        "v1",
        "onnx-fp32",
        described,
        signature(),
        manifest.Needs("onnxruntime", "1.16.0", 1000, ["rpi4"], 10, 10),
        manifest.Measured(0.1, 1.0, 10.0, 0.9, 100),
        manifest.Lineage("d", "1", "t", "c", {"depth": 3, "rate": 0.1, "name": "x"}),
    )


def signature() -> manifest.Signature:
    """Return a signature with columns of numbers, of text, and a picture."""
    return manifest.Signature(
        "classification",
        [
            manifest.Tensor("x", "float32", [None, 2], ["a", "b"]),
            manifest.Tensor("t", "string", [None, 1], ["word"]),
            manifest.Tensor("picture", "uint8", [None, 2, 2]),
        ],
        [manifest.Tensor("p", "float32", [None, 2])],
        "p",
        None,
        ["no", "yes"],
    )


def _take_manifest(data: bytes) -> None:
    read = manifest.decode(data)
    again = manifest.encode(read)
    if manifest.decode(again) != read and b"nan" not in repr(read).encode():
        raise AssertionError("encoding and decoding changes the manifest")
    # What both sides do with any manifest that was decoded.
    misfits(read.needs, _DEVICE)
    assert read.transfer_bytes >= 0
    assert len(read.signature.features) >= len(read.signature.columns)


def _golden() -> golden.GoldenVectors:
    return golden.GoldenVectors(
        ["a", "b", "word"],
        2,
        np.zeros((2, 3)).astype("<f8").tobytes(),
        np.zeros((2, 2)).astype("<f4").tobytes(),
        2,
        1e-3,
        0.5,
        {"word": ["x", "y"]},
        {"picture": bytes(8)},
    )


def _take_golden(data: bytes) -> None:
    vectors = golden.decode(data)
    vectors.inputs()
    golden.faults(vectors, vectors.expected())
    golden.inputs_of(signature(), vectors)


def features() -> list[sketch.Feature]:
    """Return a numeric, a constant, an empty and a categorical feature."""
    return [
        sketch.numeric_feature("a", np.arange(100.0)),
        sketch.numeric_feature("b", np.ones(5)),
        sketch.Feature("c"),
        sketch.Feature("word", "categorical", vocabulary=["x", "y"]),
    ]


def _rows() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([[1.0, 1.0, np.nan, 0.0], [-5.0, np.inf, 2.0, 7.0]])


def a_profile() -> sketch.ReferenceProfile:
    """Return a reference profile of `features`."""
    counts = sketch.count_rows(features(), _rows())
    packed = sketch.pack_counts(counts, features())
    moments = sketch.pack_moments(sketch.moments_of(_rows()))
    return sketch.ReferenceProfile(
        2, features(), packed, moments, ["no", "yes"], [1, 1], [0] * sketch.CONFIDENCE_BINS
    )


def _take_profile(data: bytes) -> None:
    profile = sketch.decode_profile(data)
    layout = sketch.Layout(profile.features)
    counts = layout.unpack(profile.counts)
    rows = np.zeros((3, len(profile.features)))
    counted = layout.count(rows)
    if counted.sum() != rows.size:
        raise AssertionError(f"{rows.size} values are counted as {counted.sum()}")
    with np.errstate(all="ignore"):
        drift.psi(counted, counts)
        drift.ks(counted, counts)


def _take_counts(data: bytes) -> None:
    layout = sketch.Layout(features())
    counts = layout.unpack(data)
    if (layout.unpack(layout.pack(counts)) != counts).any():
        raise AssertionError("packing changes the counts")


def _take_moments(data: bytes) -> None:
    moments = sketch.unpack_moments(data, len(features()))
    if sketch.pack_moments(moments) != data:
        raise AssertionError("packing changes the moments")
    with np.errstate(all="ignore"):
        sketch.merge_moments(moments, moments)


def _take_bitmap(data: bytes) -> None:
    count, bitmap = struct.unpack_from("<H", data.ljust(2, b"\0"))[0], data[2:]
    indices = list(blocks.indices_of(bitmap[: blocks.MAX_BITMAP_BYTES], count))
    if blocks.bitmap_of(indices) != bitmap[: blocks.MAX_BITMAP_BYTES].rstrip(b"\0"):
        raise AssertionError("the bitmap is read as other blocks")


def _bitmap_seeds() -> list[bytes]:
    return [struct.pack("<H", 9) + blocks.bitmap_of([0, 3, 8]), b"\0\0", b"\xff\xff" + b"\1" * 1024]


def _take_blob(data: bytes) -> None:
    """A blob whose digests are right, as whoever signs manifests can make it."""
    size, blob = struct.unpack_from("<I", data.ljust(4, b"\0"))[0], data[4:]
    size %= 1 << 21
    transfer = manifest.Transfer("zstd", digest_of(blob), len(blob), blocks.block_digests(blob))
    file = manifest.File("model", "0" * 64, size, transfer)
    try:
        manifest.unpack_file(file, blob)
    except MalformedError as error:
        # All of them but the last have been unpacked.
        if "file differs from its digest" in str(error):
            return
        raise


def _blob_seeds() -> list[bytes]:
    contents = [b"a" * 100_000, bytes(range(256)) * 8, b""]
    return [struct.pack("<I", len(data)) + codec.compress(data) for data in contents]


def _custom(name: str, kind: type[msgspec.Struct]) -> Target:
    def take(data: bytes) -> None:
        try:
            custom = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise MalformedError("no JSON: the TUF client refuses it before") from error
        trust.read_custom(kind, custom, "target")

    seeds = cache(lambda: [msgspec.json.encode(value) for value in values_of(kind)])
    return Target(f"signed-{name}", pure(take), REFUSALS, seeds, forms.JSON, guided=True)


def _guided(
    name: str,
    take: Callable[[bytes], None],
    seeds: Callable[[], list[bytes]],
    form: forms.Form | None,
) -> Target:
    return Target(name, pure(take), REFUSALS, seeds, form, guided=True)


TARGETS = [
    *(_message(name, kind) for name, kind in MESSAGES.items()),
    _guided("topic", _take_topic, _topic_seeds, None),
    _guided("manifest", _take_manifest, lambda: [manifest.encode(a_manifest())], forms.JSON),
    _guided("golden-vectors", _take_golden, lambda: [golden.encode(_golden())], forms.MSGPACK),
    _guided(
        "reference-profile",
        _take_profile,
        lambda: [sketch.encode_profile(a_profile())],
        forms.MSGPACK,
    ),
    _guided("sketch-counts", _take_counts, lambda: [a_profile().counts], None),
    _guided("sketch-moments", _take_moments, lambda: [a_profile().moments], None),
    _guided("block-bitmap", _take_bitmap, _bitmap_seeds, None),
    replace(
        _guided("bundle-blob", _take_blob, _blob_seeds, None),
        bounds=Bounds(floor_bytes=(1 << 21) + (1 << 20)),
    ),
    *(
        _custom(kind.__name__.lower(), kind)
        for kind in (trust.ImageTarget, trust.DirectorTarget, trust.Instructions)
    ),
]
