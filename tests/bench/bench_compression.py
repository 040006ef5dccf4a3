"""Compression: every variant of real models, the chosen one, and what other tools give by default.

For each subject (`subjects`) the search of `edgefleet-convert search` runs with a budget of half a
point, once asking for proof and once content with what is not refuted, for a board that has both
runtimes, and for one that has one of them alone. Beside it, on the same rows and in the same run,
stand the naive choices: `TFLiteConverter`'s full-integer default (the ready
file of the model's authors where there is one), `quantize_dynamic` and `quantize_static` of ONNX
Runtime with their defaults. The whole table is written to `build/bench/compression.md`.

`python -m tests.bench compression` takes a quarter of an hour on two cores;
`EDGEFLEET_SUBJECTS=kws,ad01` narrows it down.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters import child, opening
from edgefleet_converters.compatibility import boards, releases
from edgefleet_converters.conversion import Compiled, ConversionRequest
from edgefleet_converters.errors import ConversionError
from edgefleet_converters.opening import Prepared
from edgefleet_converters.searching import budgets, study, targets
from edgefleet_converters.searching.study import Searched
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import evidence, trial
from edgefleet_converters.verification.trial import Trial
from edgefleet_protocol.rows import Tensors
from tests.bench.metric import Metric
from tests.bench.subjects import Subject, missing, subjects

FOLDER = Path("build/bench")
BOARD = "generic-x86_64"
MAX_DROP = 0.005
RULES = ("proven", "not-refuted")
RUNTIMES: dict[str, tuple[str, ...]] = {
    "both": (),
    "ONNX Runtime": ("onnxruntime==1.31",),
    "LiteRT": ("ai-edge-litert==2.3",),
}


class Row(Struct, frozen=True):
    """One line of the table.

    Attributes:
        kind: `variant` of ours, or `peer`.
        p50_us: of one row, alone in its process.
        against: float32 variant → its time as a share of that one's, both in one process.
        chosen: under which rules, and on a board with which runtimes, it was chosen.
        drop: of the metric, with its 95 % interval.
        note: why it lost, or could not be made.
    """

    subject: str
    name: str
    kind: str
    size_bytes: int
    score: float
    drop: list[float]
    p50_us: float
    chosen: list[str] = []
    note: str = ""
    against: dict[str, float] = {}


def run() -> list[Metric]:
    """Return size, loss and latency of the chosen variants beside float32 and the peers."""
    wanted = os.environ.get("EDGEFLEET_SUBJECTS", "")
    names = wanted.split(",") if wanted else []
    folder = FOLDER / "subjects"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    metrics: list[Metric] = []
    for subject in subjects(folder, names):
        found = list(_rows(subject))
        rows += found
        metrics += _metrics(subject.name, found)
        _write(rows)
    for line in missing():
        print(f"left out: {line}")
    return metrics


def _rows(subject: Subject) -> Iterator[Row]:
    request = _request(subject)
    searches = {rule: _search(subject, request, rule) for rule in RULES}
    chosen = {
        f"{rule}, {runtimes}": choice.chosen
        for rule, searched in searches.items()
        for runtimes, choice in zip(RUNTIMES, searched.found.choices, strict=True)
    }
    relaxed = searches[RULES[-1]]
    for candidate in relaxed.found.candidates:
        rules = [rule for rule, name in chosen.items() if name == candidate.name]
        lost = relaxed.found.choices[0].losers.get(candidate.name, [])
        compared = candidate.evidence
        yield Row(
            subject.name,
            candidate.name,
            "variant",
            candidate.size_bytes,
            compared.score.point if compared else float("nan"),
            _interval(compared.drop) if compared else [],
            candidate.latency_us.p50,
            rules,
            "; ".join([*candidate.faults, *lost])[:300],
            {name: ratio.point for name, ratio in candidate.against.items()},
        )
    for unmade in relaxed.found.unmade:
        yield Row(subject.name, unmade.name, "variant", 0, float("nan"), [], 0.0, [], unmade.reason)
    yield from _peers(subject, opening.prepare(request), relaxed.compiled)


def _request(subject: Subject) -> ConversionRequest:
    return ConversionRequest(
        str(subject.model),
        str(subject.sample),
        subject.label,
        str(subject.holdout),
        metric=subject.metric,  # type: ignore[arg-type]  # a name of the same list
        group="group" if subject.metric == "reconstruction-auc" else None,
    )


def _search(subject: Subject, request: ConversionRequest, rule: str) -> Searched:
    plan = budgets.plan({}, {"max_drop": MAX_DROP, "evidence": rule}, "benchmark")
    return study.search(
        study.SearchRequest(
            request,
            subject.name,
            "1",
            [
                targets.target(boards.find(BOARD), [releases.asked(each) for each in runtimes])
                for runtimes in RUNTIMES.values()
            ],
            plan,
            [],
            0,
            [],
            str(FOLDER / "cache"),
        )
    )


def _peers(subject: Subject, prepared: Prepared, compiled: dict[str, Compiled]) -> Iterator[Row]:
    """Yield what other tools make of the model by default."""
    float32 = compiled.get("onnx-fp32")
    if float32 is not None and float32.signature is not None:
        base = Model("onnx", float32.model, float32.signature)
        rows = prepared.context.samples.take(slice(0, 200)).bind(base.signature)
        for name, function in (("quantize_dynamic", dynamic), ("quantize_static", static)):
            try:
                data = child.run(name, function, base.data, rows, returns=bytes)
                yield _peer(subject, prepared, name, Model("onnx", data, base.signature))
            except ConversionError as error:
                yield _unmade(subject, name, error)
    name = "TFLiteConverter int8"
    try:
        if subject.peer_int8 is not None:
            request = msgspec.structs.replace(_request(subject), model_path=str(subject.peer_int8))
            model = opening.prepare(request).opened.bases["tflite"]
            yield _peer(subject, prepared, f"{name} (the authors' file)", model)
        elif "keras" in prepared.opened.bases:
            source = prepared.opened.bases["keras"]
            inputs = prepared.context.samples.take(slice(0, 200)).bind(source.signature)
            model = child.run(name, converter_default, source, inputs, returns=Model)
            yield _peer(subject, prepared, name, model)
    except ConversionError as error:
        yield _unmade(subject, name, error)


def _peer(subject: Subject, prepared: Prepared, name: str, model: Model) -> Row:
    runtime = "onnxruntime" if model.format == "onnx" else "litert"
    tried = child.run(name, trial.measure, runtime, model, prepared.trial, returns=Trial)
    compared = evidence.compare(prepared.truth, tried.scores)
    return Row(
        subject.name,
        name,
        "peer",
        len(model.data),
        compared.score.point,
        _interval(compared.drop),
        tried.latency.p50_us,
    )


def _unmade(subject: Subject, name: str, error: ConversionError) -> Row:
    return Row(subject.name, name, "peer", 0, float("nan"), [], 0.0, [], str(error)[:300])


def _interval(found: evidence.Interval) -> list[float]:
    return [found.point, found.low, found.high]


def dynamic(model: bytes, rows: Tensors) -> bytes:
    """Return what `quantize_dynamic` gives by default. Called in a child process."""
    from onnxruntime.quantization import quantize_dynamic

    del rows
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_dynamic(source, target)
        return target.read_bytes()


def static(model: bytes, rows: Tensors) -> bytes:
    """Return what `quantize_static` gives by default. Called in a child process."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._batches = iter([rows])

        def get_next(self) -> Any:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_static(source, target, Once())
        return target.read_bytes()


def converter_default(source: Model, rows: dict[str, NDArray[np.generic]]) -> Model:
    """Return what TensorFlow's converter gives with its documented full-integer settings."""
    import tensorflow as tf

    from edgefleet_converters import tflite_files

    converting = tflite_files.converter(source)
    converting.optimizations = [tf.lite.Optimize.DEFAULT]
    converting.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converting.representative_dataset = lambda: (
        [values[i : i + 1] for values in rows.values()]
        for i in range(len(next(iter(rows.values()))))
    )
    return tflite_files.finish(converting, source)


def _metrics(name: str, rows: list[Row]) -> list[Metric]:
    ours = {row.name: row for row in rows if row.kind == "variant" and row.size_bytes}
    peers = [row for row in rows if row.kind == "peer" and row.size_bytes]
    floats = [row for row in ours.values() if row.name.endswith("fp32")]
    largest = max(floats, key=lambda row: row.size_bytes)
    best = min(peers, key=lambda peer: peer.drop[0], default=None)
    metrics = []
    for row in (row for row in ours.values() if row.chosen):
        beside = min(
            (base for base in floats if _comparable(base, row)),
            key=lambda base: base.p50_us,
            default=largest,
        )
        title = f"{name}: {row.name} ({'; '.join(row.chosen)})"
        ratio = row.against.get(beside.name, 1.0)
        metrics += [
            Metric(f"{title}, bytes", row.size_bytes, "B", largest.name, largest.size_bytes),
            Metric(f"{title}, time", ratio, "times", beside.name, 1.0),
        ]
        if best is not None:
            metrics.append(
                Metric(f"{title}, points lost", 100 * row.drop[0], "points",
                       f"{best.name}, {best.size_bytes} B", 100 * best.drop[0])
            )  # fmt: skip
    return metrics


def _comparable(base: Row, row: Row) -> bool:
    """Return whether a float32 variant is there on every board that chose a row."""
    alone = all(not each.endswith(", both") for each in row.chosen)
    return not alone or base.name.split("-")[0] == row.name.split("-")[0]


def _write(rows: list[Row]) -> None:
    (FOLDER / "compression_table.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(rows), indent=1)
    )
    lines = [
        "| subject | variant | bytes | score | points lost (95 %) | µs p50 | chosen | why not |",
        "|---|---|--:|--:|---|--:|---|---|",
    ]
    for row in rows:
        loss = "–"
        if row.drop:
            point, low, high = (100 * value for value in row.drop)
            loss = f"{point:+.2f} ({low:+.2f} to {high:+.2f})"
        name = row.name if row.kind == "variant" else f"*{row.name}*"
        note = " ".join(row.note.replace("|", "/").split())
        lines.append(
            f"| {row.subject} | {name} | {row.size_bytes:,} | {row.score:.4f} | {loss} |"
            f" {row.p50_us:,.1f} | {'; '.join(row.chosen)} | {note} |"
        )
    (FOLDER / "compression.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
