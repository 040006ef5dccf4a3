"""ONNX float32 → static int8 (QDQ, per channel). `quantize` runs in a child process.

Which form is best depends on the model and the CPU, so it is measured: activations as uint8 and as
int8, each with MinMax calibration. Dynamic quantization is not tried: for convolutions it is up to
14 times slower than float32. Softmax and ArgMax stay in float: they take no weights, and rounding
probabilities to 1/256 loses the order of near answers.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters import onnx_files, runners
from edgefleet_converters.answers import r2
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.exports import Made
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.rows import Rows, Tensors, bind

CALIBRATION_ROWS = 512
_FLOAT_OPERATORS = {"Softmax", "LogSoftmax", "ArgMax"}
_ACTIVATIONS = {"u8s8": "QUInt8", "s8s8": "QInt8"}
_CALIBRATION = "MinMax"
# Two candidates this near to the original (share of rows, or R²) count as equally good.
_EQUAL_FIDELITY = 0.005
_TIMED_RUNS = 200


class Quantized(Struct, frozen=True):
    """The best candidate.

    Attributes:
        form: of it, `u8s8` or `s8s8`.
        candidates: form → fidelity to the original and median µs of one row.
    """

    made: Made
    form: str
    candidates: dict[str, tuple[float, float]]


def quantize(made: Made, calibration: Rows, rows: Rows, original: NDArray[np.float64]) -> Quantized:
    """Quantize a model in every form and keep the best.

    Args:
        made: float32 model.
        calibration: training rows.
        rows: on which candidates are compared.
        original: scores of the original model on them, `(n, width)`.

    Raises:
        UnsupportedError: no form could be made.
    """
    inputs = bind(made.signature, calibration)
    tensors = {name: values[:CALIBRATION_ROWS] for name, values in inputs.items()}
    candidates: dict[str, tuple[float, float]] = {}
    models: dict[str, bytes] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(made.model, Path(folder))
        for form in _ACTIVATIONS:
            try:
                model = _quantize(prepared, tensors, form, Path(folder))
                candidates[form] = _measure(model, made.signature, rows, original)
                models[form] = model
            except Exception as error:  # the quantizer's errors share no base class
                failures.append(f"{form}: {type(error).__name__}: {str(error)[:200]}")
    if not candidates:
        raise UnsupportedError(f"ONNX Runtime cannot quantize it: {'; '.join(failures)}")
    best = choose(candidates)
    model = models[best]
    release = onnx_files.runtime_min(onnx.load_model_from_string(model))
    return Quantized(Made(model, made.signature, release), best, candidates)


def choose(candidates: dict[str, tuple[float, float]]) -> str:
    """Return the fastest of the candidates that are as good as the best one.

    Args:
        candidates: form → (fidelity, µs).
    """
    top = max(fidelity for fidelity, _ in candidates.values())
    good = {
        form: us for form, (fidelity, us) in candidates.items() if fidelity >= top - _EQUAL_FIDELITY
    }
    return min(good, key=lambda form: good[form])


def _prepare(model: bytes, folder: Path) -> Path:
    """Fuse and infer shapes, which the quantizer asks for; where that fails, go on without."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw, prepared = folder / "raw.onnx", folder / "prepared.onnx"
    raw.write_bytes(model)
    try:
        # Where it fails, symbolic shape inference leaves a file in the current folder.
        with contextlib.chdir(folder):
            quant_pre_process(raw, prepared)
    except Exception:  # symbolic shape inference knows not all operators, and says so by any type
        quant_pre_process(raw, prepared, skip_symbolic_shape=True)
    return prepared


def _quantize(prepared: Path, tensors: Tensors, form: str, folder: Path) -> bytes:
    from onnxruntime import quantization

    target = folder / f"{form}.onnx"
    graph = onnx.load(prepared).graph
    quantization.quantize_static(
        prepared,
        target,
        _reader(tensors),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType[_ACTIVATIONS[form]],
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[_CALIBRATION],
        nodes_to_exclude=[n.name for n in graph.node if n.op_type in _FLOAT_OPERATORS],
    )
    model = onnx.load(target)
    model.ir_version = max(onnx_files.IR_VERSION, onnx.load(prepared).ir_version)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _reader(tensors: Tensors) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Once(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        """Gives all calibration rows as one batch."""

        def __init__(self) -> None:
            self._batches = iter([tensors])

        def get_next(self) -> Tensors | None:
            return next(self._batches, None)

    return Once()


def _measure(
    model: bytes, signature: Signature, rows: Rows, original: NDArray[np.float64]
) -> tuple[float, float]:
    runner = runners.OnnxRunner(model, signature)
    scores = runners.scores(runner, signature, rows)
    if signature.task == "classification":
        fidelity = float((scores.argmax(axis=1) == original.argmax(axis=1)).mean())
    else:
        fidelity = r2(scores, original)
    one = {name: values[:1] for name, values in bind(signature, rows).items()}
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        runner.run(one)
        times.append(time.perf_counter() - start)
    return fidelity, float(np.median(times)) * 1e6
