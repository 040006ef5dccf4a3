"""The contract: what a window report and its sketch cost, beside the plain way to do it."""

import json

import msgspec
import numpy as np

from edgefleet_protocol import codec, messages, sketch
from tests.bench.metric import Metric, microseconds

FEATURES, ROWS = 18, 500


def run() -> list[Metric]:
    """Measure encoding, decoding, counting and merging."""
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5000, FEATURES))
    features = [sketch.numeric_feature(f"f{i}", training[:, i]) for i in range(FEATURES)]
    rows = rng.normal(size=(ROWS, FEATURES))
    counts, moments = sketch.count_rows(features, rows), sketch.moments_of(rows)
    window = messages.Window(
        "model",
        "1",
        1,
        "a" * 64,
        "b" * 64,
        0.0,
        60.0,
        ROWS,
        sketch.pack_counts(counts, features),
        sketch.pack_moments(moments),
    )
    report = messages.Report("device-1", "store", 1, 60.0, window)
    payload = codec.encode(report)
    plain = msgspec.to_builtins(report)
    plain["body"] |= {"counts": counts.tolist(), "moments": moments.tolist()}
    text = json.dumps(plain)
    ring, batch = np.empty((256, FEATURES), np.float32), rows[:256].astype(np.float32)

    def copy_rows() -> None:
        for index in range(256):
            ring[index] = batch[index]

    layout = sketch.Layout(features)
    count = microseconds(lambda: layout.count(batch), calls=20) / 256
    copy = microseconds(copy_rows, calls=20) / 256
    merge = microseconds(lambda: counts + counts, calls=1000)
    unpack = microseconds(lambda: layout.unpack(window.counts), calls=200)
    return [
        Metric("window report, 18 features", len(payload), "bytes", "json", len(text)),
        Metric(
            "encode a window report",
            microseconds(lambda: codec.encode(report), calls=200),
            "µs",
            "json.dumps",
            microseconds(lambda: json.dumps(plain), calls=50),
        ),
        Metric(
            "decode a window report",
            microseconds(lambda: codec.decode(payload, messages.Report), calls=200),
            "µs",
            "json.loads",
            microseconds(lambda: json.loads(text), calls=50),
        ),
        Metric("count a row of 18 (batches of 256)", count, "µs", "copy into a ring", copy),
        Metric("unpack and add a device's counts", unpack + merge, "µs", "add alone", merge),
    ]
