"""Quantization of float TFLite files by ai-edge-quantizer, for `tflite_quantize`.

1. The quantizer needs no TensorFlow. Its calibration asks for a signature definition, which many
   files lack, so activations are watched here, with LiteRT.
2. Only activations get a measured range. Given one for a weight too, the quantizer takes it as the
   range of the whole weight and silently gives up its scales per channel: that alone costs MLPerf
   Tiny's auto-encoder 4 points of AUC.
3. What was not changed is refused: a file without an operator that can be quantized comes back
   float32 without a word.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import tflite_graph
from edgefleet_protocol.rows import Tensors

Ranges = dict[str, dict[str, NDArray[np.float32]]]
Configure = Callable[[Any], None]

# Values of one tensor and row that a percentile is taken from; extremes are kept exactly.
_VALUES_PER_ROW = 4096


class Calibration(Struct, frozen=True):
    """How ranges of activations follow from rows.

    Attributes:
        rows: number of rows watched.
        percentile: share of the values, in percent, that a range holds; 100 for all of them.
    """

    rows: int
    percentile: float


def quantize(data: bytes, configure: Configure, ranges: Ranges | None = None) -> bytes:
    """Return a float TFLite file, quantized.

    Args:
        data: from `tflite_graph.with_float_weights`.
        configure: sets the rules on a recipe of the quantizer; later rules win.
        ranges: of the activations, where the rules need them.

    Raises:
        UnsupportedError: the quantizer fails, or finds nothing to quantize.
    """
    from ai_edge_quantizer import quantizer, recipe_manager

    rules = recipe_manager.RecipeManager()
    configure(rules)
    try:
        work = quantizer.Quantizer(bytearray(data), rules.get_quantization_recipe())
        made = bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)
    except Exception as error:  # the quantizer's errors share no base class
        text = " ".join(str(error).split())[:400]
        raise UnsupportedError(
            f"ai-edge-quantizer cannot quantize it: {type(error).__name__}: {text}"
        ) from error
    before, after = (
        [tensor.type for tensor in tflite_graph.tensors(tflite_graph.read(file))]
        for file in (data, made)
    )
    if sorted(before) == sorted(after):
        raise UnsupportedError("no operator of the model can be quantized in this way")
    return made


def watch(data: bytes, inputs: Tensors, calibration: Calibration) -> Ranges:
    """Return the range of every activation of a float TFLite file over rows.

    Args:
        data: the file.
        inputs: input tensor → `(n, …)` values, in the dtypes of the file.
        calibration: how many rows, and which share of the values a range holds.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        model_content=data, num_threads=1, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    places = {detail["name"]: detail for detail in interpreter.get_input_details()}
    watched = _activations(data, interpreter)
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in watched}
    rows = min(calibration.rows, *(len(values) for values in inputs.values()))
    for row in range(rows):
        for name, values in inputs.items():
            detail = places[name]
            interpreter.set_tensor(detail["index"], values[row].reshape(detail["shape"]))
        interpreter.invoke()
        for name, index in watched.items():
            seen[name].append(_some(interpreter.get_tensor(index)))
    shapes = {name: (1,) * interpreter.get_tensor(index).ndim for name, index in watched.items()}
    return {name: _range(seen[name], calibration, shapes[name]) for name in watched}


def _activations(data: bytes, interpreter: Any) -> dict[str, int]:
    graph = tflite_graph.read(data)
    constants = {
        tflite_graph.name_of(tensor)
        for tensor in tflite_graph.tensors(graph)
        if graph.buffers[tensor.buffer].data is not None
    }
    found: dict[str, int] = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] is not np.float32 or detail["name"] in constants or not detail["name"]:
            continue
        found[detail["name"]] = detail["index"]
    return found


def _some(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.reshape(-1)
    step = -(-flat.size // _VALUES_PER_ROW)
    return np.concatenate([flat[::step], [flat.min(), flat.max()]]).astype(np.float32)


def _range(
    seen: Sequence[NDArray[np.float32]], calibration: Calibration, shape: tuple[int, ...]
) -> dict[str, NDArray[np.float32]]:
    tail = (100.0 - calibration.percentile) / 2
    low, high = np.percentile(np.concatenate(seen), [tail, 100.0 - tail])
    return {
        "min": np.full(shape, low, np.float32),
        "max": np.full(shape, high, np.float32),
    }
