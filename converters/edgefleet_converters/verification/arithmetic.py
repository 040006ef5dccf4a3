"""In what numbers a model file computes, read from the file itself; call it in a child process.

It decides by how much right runtimes may differ. Weights that are only stored in few bits, and
turned back into float32 before anything is computed, count as float32.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from edgefleet_protocol.manifest import Runtime

Arithmetic = Literal["float32", "float16", "int16", "int8"]

_FLOAT16 = 10  # TensorProto.FLOAT16
_INTEGER_WORDS = ("QLinear", "Integer", "QGemm", "QAttention")
_INT16_TYPES = (4, 5)  # TensorProto.UINT16, INT16
# MatMulNBits rounds its input to int8 from this level on.
_NBITS_INT8_LEVEL = 4


def arithmetic_of(runtime: Runtime, data: bytes) -> Arithmetic:
    """Return the coarsest numbers in which a model computes.

    Args:
        runtime: family name, which tells the format.
        data: the model file.
    """
    return _of_onnx(data) if runtime == "onnxruntime" else _of_tflite(data)


def _of_onnx(data: bytes) -> Arithmetic:
    import onnx

    model = onnx.load_model_from_string(data)
    graphs = list(_graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    found: set[Arithmetic] = set()
    for node in nodes:
        if any(word in node.op_type for word in _INTEGER_WORDS) or (
            "Quantize" in node.op_type and not node.op_type.startswith("Dequantize")
        ):
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            wide = zero is not None and zero.data_type in _INT16_TYPES
            found.add("int16" if wide else "int8")
        elif node.op_type == "MatMulNBits" and _attribute(node, "accuracy_level"):
            if _attribute(node, "accuracy_level") >= _NBITS_INT8_LEVEL:
                found.add("int8")
        elif node.op_type == "Cast":
            if _attribute(node, "to") == _FLOAT16:
                found.add("float16")
        elif any(
            name in constants and constants[name].data_type == _FLOAT16 for name in node.input
        ):
            found.add("float16")
    # A graph of int16 activations has int8 weights, which are constants and quantize nothing.
    order: tuple[Arithmetic, ...] = ("int8", "int16", "float16")
    return next((kind for kind in order if kind in found), "float32")


def _of_tflite(data: bytes) -> Arithmetic:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    scaled = {
        np.dtype(detail["dtype"]).itemsize
        for detail in interpreter.get_tensor_details()
        if np.dtype(detail["dtype"]).kind in "iu"
        and len(detail["quantization_parameters"]["scales"])
    }
    # Biases are int32 and int64; int16 activations come with int8 weights.
    if 2 in scaled:
        return "int16"
    return "int8" if 1 in scaled else "float32"


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _attribute(node: Any, name: str) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), 0)
