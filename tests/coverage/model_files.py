"""Which real model files convert, and answer as before: the files of `EDGEFLEET_DATA`/models.

Each is opened by its route with random samples of its input's shape, converted to the formats that
it is not in, twice, and run. A quantized model may be off by what one rounding in the middle moves
a score: LiteRT and ONNX Runtime round sums and averages of integers differently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from edgefleet_converters import child, keras_files, runners, sources
from edgefleet_converters.routes import keras as keras_route
from edgefleet_converters.routes import tflite as tflite_route
from edgefleet_converters.routes.opened import Hints
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import conversions
from edgefleet_converters.steps.registry import Context, NoOptions, Run
from edgefleet_protocol.manifest import Runtime

_ROWS = 9
FLOAT_TOLERANCE, QUANTIZED_TOLERANCE = 1e-4, 0.05


@dataclass(frozen=True)
class File:
    """A model file.

    Attributes:
        path: below the folder of models.
        shape: of a row.
        spread: standard deviation of its input.
        tolerance: largest difference of a score.
    """

    path: str
    shape: tuple[int, ...]
    spread: float = 1.0
    tolerance: float = FLOAT_TOLERANCE


_STEPS: dict[str, list[tuple[str, Runtime, Run]]] = {
    "keras": [
        ("onnx", "onnxruntime", conversions.keras_to_onnx),
        ("tflite", "litert", conversions.keras_to_tflite),
    ],
    "tflite": [("onnx", "onnxruntime", conversions.tflite_to_onnx)],
}
_KWS, _PICTURE = (49, 10, 1), (32, 32, 3)
FILES = [
    File("mlperf_tiny/ic_resnet8.h5", _PICTURE, 64),
    File("mlperf_tiny/str_ww_ref_model.h5", (30, 1, 40)),
    File("gesture/keypoint_classifier.hdf5", (42,)),
    File("gesture/keypoint_classifier.tflite", (42,)),
    File("mlperf_tiny/ic_resnet8_float.tflite", _PICTURE, 64),
    File("mlperf_tiny/ic_resnet8_int8.tflite", _PICTURE, 64, QUANTIZED_TOLERANCE),
    File("mlperf_tiny/kws_ref_model.tflite", _KWS, 40, QUANTIZED_TOLERANCE),
    # Its weights are int8, and LiteRT rounds what they meet to int8 too.
    File("mlperf_tiny/kws_ref_model_float32.tflite", _KWS, 40, QUANTIZED_TOLERANCE),
    File("mlperf_tiny/ad01_fp32.tflite", (640,)),
    File("mlperf_tiny/ad01_int8.tflite", (640,), 10, QUANTIZED_TOLERANCE),
    File("mlperf_tiny/str_ww_ref_model.tflite", (30, 1, 40), 1, QUANTIZED_TOLERANCE),
    File("tflm/hello_world_float.tflite", (1,)),
    File("tflm/hello_world_int8.tflite", (1,), 2, QUANTIZED_TOLERANCE),
    File("ultraface/version-slim-320_without_postprocessing.tflite", (240, 320, 3)),
    File("coral/mobilenet_v1_0.25_128_quant.tflite", (128, 128, 3), 0.5, QUANTIZED_TOLERANCE),
]


class Result(Struct, frozen=True):
    """What became of one file in one format.

    Attributes:
        gap: largest difference of a score.
        is_same: whether converting again gave the same bytes.
    """

    path: str
    format: str
    gap: float
    is_same: bool
    size_bytes: int

    @property
    def is_right(self) -> bool:
        """Whether the scores are near enough."""
        (file,) = (file for file in FILES if file.path == self.path)
        return self.gap <= file.tolerance


def run(models: Path, paths: Sequence[str] = ()) -> list[Result]:
    """Convert files in one child process.

    Args:
        models: the folder.
        paths: of files in it; empty for all.
    """
    wanted = list(paths) or [file.path for file in FILES]
    return child.run(
        "converting model files", _convert_all, str(models), wanted, returns=list[Result]
    )


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| file | to | largest difference of a score | bytes |", "|---|---|---|---|"]
    lines += [f"| {r.path} | {r.format} | {r.gap:.0e} | {r.size_bytes:,} |" for r in results]
    right = sum(result.is_right for result in results)
    return "\n".join([*lines, "", f"{right} of {len(results)} right."]) + "\n"


def _convert_all(models: str, wanted: list[str]) -> list[Result]:
    keras_files.import_keras()
    files = [file for file in FILES if file.path in wanted]
    return [result for file in files for result in _convert(Path(models), file)]


def _convert(models: Path, file: File) -> list[Result]:
    found = sources.recognise(models / file.path)
    random = np.random.default_rng(math.prod(file.shape))
    rows = random.normal(0, file.spread, (_ROWS, *file.shape)).astype(np.float32)
    samples = Samples(file.path, None, {"rows": rows})
    route = keras_route if found.kind == "keras" else tflite_route
    opened = route.open(found, samples, Hints())
    (base,) = opened.bases.values()
    context = Context(opened.task, samples, opened.scores, None, 0)
    results = []
    for made, runtime, step in _STEPS[base.format]:
        model, again = (step(base, NoOptions(), context) for _ in range(2))
        runner = runners.load(runtime, model.data, model.signature)
        got = runners.scores(runner, samples.bind(model.signature))
        gap = float(np.abs(got - opened.scores).max())
        results.append(Result(file.path, made, gap, model.data == again.data, len(model.data)))
    return results
