"""Trust at the hub: signing assignments for a fleet, beside the bare signatures in them."""

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_cloud.trust.repositories.images import ImageEntry
from edgefleet_cloud.trust.repositories.testing import founded, signer
from edgefleet_protocol.trust import DirectorTarget, ImageTarget, target_path
from tests.bench.metric import Metric, microseconds

ROLES = 3  # targets, snapshot, timestamp
DEVICES = 10_000
RELEASES = 200
DAY_S = 86_400.0


def run() -> list[Metric]:
    """Measure signing one assignment, those of a fleet, and one release among many."""
    key = Ed25519PrivateKey.generate()
    message = bytes(1000)
    with tempfile.TemporaryDirectory() as folder:
        fleet = founded(Path(folder), time.time)
        entry = _entry(9)
        floor = microseconds(lambda: key.sign(message), calls=200) * ROLES
        signing = microseconds(lambda: fleet.director.sign("cam-1", 7, 7, [entry], DAY_S), calls=20)
        library = microseconds(_by_library(), calls=20)
        payload = fleet.director.sign("cam-1", 7, 7, [entry], DAY_S).payload
        whole_s, bare_s = _fleet(fleet.director, key, message)
        entries = {
            target_path("digits", number, "onnx-int8"): ImageEntry(
                3000,
                "a" * 64,
                ImageTarget("digits", "2", "onnx-int8", number, "onnxruntime"),
            )
            for number in range(1, RELEASES + 1)
        }
        fleet.images.sync(entries)
        idle = microseconds(lambda: fleet.images.sync(entries), calls=3)
        start = time.perf_counter()
        fleet.images.sync(entries | {target_path("iris", 1, "onnx-int8"): entries[min(entries)]})
        release = (time.perf_counter() - start) * 1e6
    return [
        Metric("sign one assignment", signing, "µs", "three Ed25519 signatures", floor),
        Metric(
            "sign one assignment", signing, "µs", "the same by python-tuf's serialisers", library
        ),
        Metric(f"sign {DEVICES:,} assignments", whole_s, "s", "30,000 bare signatures", bare_s),
        Metric("assignment on the wire", len(payload), "bytes", "signatures alone", 64 * ROLES),
        Metric(f"one release more than {RELEASES}", release, "µs", "a round without news", idle),
    ]


def _entry(attempt: int) -> DirectorEntry:
    order = DirectorTarget("digits", "2", "onnx-int8", 4, "onnxruntime", attempt=attempt)
    return DirectorEntry(target_path("digits", 4, "onnx-int8"), 3000, "a" * 64, order)


def _fleet(director: Director, key: Ed25519PrivateKey, message: bytes) -> tuple[float, float]:
    """Return the seconds of signing for the whole fleet, and of the bare signatures in it.

    Both take turns in blocks, so that other work on the machine slows them alike.
    """
    whole = bare = 0.0
    block = DEVICES // 10
    gc.collect()
    for start in range(0, DEVICES, block):
        before = time.perf_counter()
        for number in range(start, start + block):
            director.sign(f"cam-{number}", number, 1, [_entry(number)], DAY_S)
        between = time.perf_counter()
        for _ in range(block * ROLES):
            key.sign(message)
        whole += between - before
        bare += time.perf_counter() - between
    return whole, bare


def _by_library() -> Callable[[], None]:
    """Return a call that signs the same three roles with python-tuf's own serialisers."""
    online = signer("online")
    target = TargetFile(
        3000,
        {"sha256": "a" * 64},
        target_path("digits", 4, "onnx-int8"),
        {"custom": {"attempt": 9}},
    )

    def sign() -> None:
        meta = {"targets.json": MetaFile(7)}
        for signed in (
            Targets(7, targets={target.path: target}),
            Snapshot(7, meta=meta),
            Timestamp(7, snapshot_meta=MetaFile(7)),
        ):
            metadata = Metadata(signed)
            metadata.sign(online)
            metadata.to_bytes()

    return sign
