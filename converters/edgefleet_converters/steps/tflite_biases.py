"""Biases of a TFLite file in 8 bits, turned back into float32 when the file is loaded.

b ≈ scale · (q - zero point), -128 ≤ q ≤ 127, one scale and one zero point a layer (Jacob et al.
2018, equation 1): the range from the smallest to the largest bias, with 0 in it.

Biases are a tenth of a small file: layers of 64 channels have 64 of 4 bytes beside 576 or 4,096
weights of one. Half of it would be saved by float16, but XNNPACK hands float16 biases on as they
are, and refuses them beside weights that are float32 by then (LiteRT 2.3: the keyword spotter takes
410 µs instead of 63). Biases from 8 bits it turns into float32 itself, as it does weights.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.steps import tflite_graph

# A value saves 3 bytes; what turns them back takes 110 to 130.
MIN_VALUES = 48
_LOWEST, _STEPS = -128, 255
# No layer's biases are all smaller, unless they are as good as zero; float32 has no exact scale.
_SMALLEST = _STEPS * float(np.finfo(np.float32).tiny)


def store_in_8_bits(data: bytes) -> bytes:
    """Return the file with the biases of its float layers in 8 bits, where that saves bytes."""
    graph = tflite_graph.read(data)
    code = tflite_graph.code_of(graph, tflite_graph.DEQUANTIZE)
    for part in graph.subgraphs:
        operators: list[Any] = []
        for operator in part.operators:
            index = tflite_graph.bias_of(graph, operator)
            values = None if index is None else tflite_graph.constant(graph, part.tensors[index])
            if index is not None and values is not None and _pays(values):
                operators.append(_unfold(graph, part, index, values.astype(np.float32), code))
            operators.append(operator)
        part.operators = operators
    return tflite_graph.write(graph)


def rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32, int]:
    """Return values in 8 bits, their scale and their zero point.

    Args:
        values: `(n,)`, not all (next to) zero.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = np.float32((high - low) / _STEPS)
    zero = int(np.rint(_LOWEST - low / scale))
    whole = np.rint(values.astype(np.float64) / scale) + zero
    return np.clip(whole, _LOWEST, _LOWEST + _STEPS).astype(np.int8), scale, zero


def _pays(values: NDArray[np.generic]) -> bool:
    if values.dtype != np.float32 or values.size < MIN_VALUES:
        return False
    return bool(np.isfinite(values).all() and np.abs(values).max() >= _SMALLEST)


def _unfold(graph: Any, part: Any, index: int, values: NDArray[np.float32], code: int) -> Any:
    """Give a constant's values to a new int8 tensor; return the operator that turns them back."""
    from ai_edge_litert import schema_py_generated as schema

    whole, scale, zero = rounded(values)
    tensor = schema.TensorT()
    tensor.shape, tensor.type = part.tensors[index].shape, tflite_graph.INT8
    tensor.buffer = tflite_graph.added_buffer(graph, whole)
    tensor.name = f"bias{len(part.tensors)}_q".encode()
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([scale], np.float32)
    tensor.quantization.zeroPoint = np.array([zero], np.int64)
    part.tensors[index].buffer = 0
    part.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs = np.array([len(part.tensors) - 1], np.int32)
    operator.outputs = np.array([index], np.int32)
    return operator
