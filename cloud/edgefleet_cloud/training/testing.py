"""Stand-ins for the slow half of a training job: what it hands back, without training anything.

`KINDS` has the work replaced and keeps the real `finish` and `fail`; `InlineWorkers` does the work
at once, in the hub's own process.
"""

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_cloud.jobs import kinds
from edgefleet_cloud.jobs.kinds import Kind
from edgefleet_cloud.jobs.worker import Context, Outcome, Task, perform
from edgefleet_cloud.registry.registration import store_result
from edgefleet_cloud.training.work import Chosen, Result
from edgefleet_cloud.values import Json
from edgefleet_converters.conversion import Compiled, ConversionResult
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol import golden, sketch
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Lineage, Measured, Needs, Signature, Tensor
from edgefleet_protocol.sketch import ReferenceProfile

COLUMNS = ["length", "width"]
CLASSES = ["no", "yes"]
# A model of this name cannot be converted.
BROKEN = "broken.joblib"
# A board of this name gets no variant.
WITHOUT = "rpi-32bit"


def conversion_result(model: bytes = b"a model") -> ConversionResult:
    """Return a conversion with two verified variants, one a runtime, and one that is refused."""
    rows = np.array([[0.0, 1.0], [2.0, 3.0]])
    return ConversionResult(
        task="classification",
        columns=COLUMNS,
        classes=CLASSES,
        reference=_profile(rows),
        metrics={"accuracy": 0.9, "rows": 40.0},
        compiled=[
            _compiled("onnx-fp32", model + b" in ONNX", rows, 0.9, 20.0),
            _compiled("tflite-fp32", model + b" in TFLite", rows, 0.9, 10.0),
            Compiled("onnx-int8", "onnxruntime", "refused", "loses 5 points"),
        ],
        phases_s={"export": 0.1},
    )


def _profile(rows: NDArray[np.float64]) -> bytes:
    features = [
        sketch.numeric_feature(name, column) for name, column in zip(COLUMNS, rows.T, strict=True)
    ]
    counts = sketch.pack_counts(sketch.count_rows(features, rows), features)
    moments = sketch.pack_moments(sketch.moments_of(rows))
    return sketch.encode_profile(ReferenceProfile(len(rows), features, counts, moments))


def _compiled(
    name: str, model: bytes, rows: NDArray[np.float64], score: float, latency_us: float
) -> Compiled:
    vectors = GoldenVectors(
        columns=COLUMNS,
        rows=len(rows),
        numeric=rows.astype("<f8").tobytes(),
        scores=np.array([[1.0, 0.0], [0.0, 1.0]], "<f4").tobytes(),
        width=2,
        atol=1e-3,
    )
    litert = name.startswith("tflite")
    return Compiled(
        name,
        "litert" if litert else "onnxruntime",
        "verified",
        model=model,
        golden=golden.encode(vectors),
        signature=Signature(
            task="classification",
            inputs=[Tensor("row", "float32", [None, 2], COLUMNS)],
            outputs=[Tensor("scores", "float32", [None, 2])],
            score_output="scores",
            classes=CLASSES,
        ),
        needs=Needs("litert" if litert else "onnxruntime", "2.0" if litert else "1.16"),
        measured=Measured(0.0, 1.0, latency_us, score, 40),
    )


def work(context: Context, **arguments: Any) -> Json:
    """Hand back `conversion_result` as if it had been trained or converted.

    Raises:
        BadInputError: if the model file is named `BROKEN`.
    """
    if arguments.get("filename") == BROKEN:
        raise BadInputError(f"{context.folder / BROKEN}: no pickle, or a truncated one")
    context.progress(0.5, "half-way")
    lineage = Lineage(arguments.get("dataset", ""), str(arguments["run_id"]), "fake", "test")
    made = conversion_result(f"{arguments['model']} {arguments['version']}".encode())
    registration = store_result(
        context.store,
        made,
        model=arguments["model"],
        version=arguments["version"],
        lineage=lineage,
    )
    artifact = arguments.get("artifact") or context.store.put(b"fitted")
    result = Result(
        arguments["run_id"],
        artifact,
        made.metrics,
        {"python": "3"},
        registration,
        made.phases_s,
        filename=arguments.get("filename", "model.skops"),
        choices=[_chosen(board["name"]) for board in arguments.get("boards", ())],
    )
    if result.choices:
        for form in ("html", "md", "json"):
            result.reports[form] = context.store.put(f"a report as {form}".encode())
    answer: Json = msgspec.to_builtins(result)
    return answer


def _chosen(board: str) -> Chosen:
    if board == WITHOUT:
        return Chosen(board, "a board", None, "nothing runs there", [])
    return Chosen(board, "a board", "onnx-fp32", "it is the smallest", ["not measured there"])


KINDS: dict[str, Kind] = {
    name: replace(kind, work="edgefleet_cloud.training.testing:work")
    for name, kind in kinds.KINDS.items()
}


class InlineWorkers:
    """Does the work of a job at once, in the caller's thread."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Do the work; the future is done."""
        future: Future[Outcome] = Future()
        future.set_result(perform(task))
        return future

    def stop(self, job_id: int) -> None:
        """Do nothing: the work is done."""

    def close(self) -> None:
        """Do nothing: the work is done."""
