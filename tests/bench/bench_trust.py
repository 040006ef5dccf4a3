"""Trust: signing an assignment at the hub, beside the bare signatures that are in it."""

import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgefleet_cloud.trust.repositories.director import Director, DirectorEntry
from edgefleet_protocol.trust import DirectorTarget, target_path
from tests.bench.metric import Metric, microseconds

ROLES = 3  # targets, snapshot, timestamp


def run() -> list[Metric]:
    """Measure signing one device's director repository."""
    key = Ed25519PrivateKey.generate()
    message = bytes(1000)
    floor = microseconds(lambda: key.sign(message), calls=200) * ROLES
    order = DirectorTarget("digits", "2", "onnx-int8", 4, "onnxruntime", attempt=9)
    entry = DirectorEntry(target_path("digits", 4, "onnx-int8"), 3000, "a" * 64, order)
    with tempfile.TemporaryDirectory() as folder:
        director = Director.open(Path(folder), time.time)
        signing = microseconds(lambda: director.sign("cam-1", 7, 7, [entry], 86_400.0), calls=20)
        payload = director.sign("cam-1", 7, 7, [entry], 86_400.0).payload
    return [
        Metric("sign one assignment", signing, "µs", "three Ed25519 signatures", floor),
        Metric("assignment on the wire", len(payload), "bytes", "signatures alone", 64 * ROLES),
    ]
