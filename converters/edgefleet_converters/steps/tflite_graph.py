"""TFLite files as graphs: read, changed in place and written again.

1. Old files name operators in a field of eight bits only, and may have no list of signatures, and
   small ones (`tflite_compaction`) give inner tensors no name. All three are filled in, because
   tools of today look at the new field alone, and tell tensors apart by their names.
2. A file may hold weights in 8 or 16 bits for operators that compute in float32: it is float for
   its caller, yet every tool for quantization passes such weights by. `with_float_weights` turns
   them into float32.
3. Equal vectors are written once and weights lie at multiples of 16 bytes, as the schema asks.
   Scales per channel bring a zero point of 8 bytes for every channel, all of them 0: a third of a
   small file, unless they are shared.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.compatibility.tflite_graph import required_versions
from edgefleet_converters.errors import BadInputError, UnsupportedError

# Of the schema's TensorType.
FLOAT32, FLOAT16, INT8 = 0, 1, 9
_UINT8, _INT16 = 3, 7
_INTEGERS = (INT8, _UINT8, _INT16)
_STORED = {FLOAT32: np.float32, FLOAT16: np.float16, INT8: np.int8}
# Of the schema's BuiltinOperator.
DEQUANTIZE = 6
DENSE = 9
# Layers with weights (convolution, depthwise, dense): the axes of a weight for the channels that
# the layer gives and for those that it takes.
AXES = {3: (0, 3), 4: (3, 3), DENSE: (0, 1)}


def read(data: bytes) -> Any:
    """Return the object tree (`ModelT`) of a TFLite file."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(data, 0)
    for code in graph.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    graph.signatureDefs = graph.signatureDefs or []
    for buffer in graph.buffers:
        if buffer.data is None and buffer.size:  # it lies behind the flatbuffer
            stored = np.frombuffer(data, np.uint8)[buffer.offset : buffer.offset + buffer.size]
            if len(stored) != buffer.size:
                raise BadInputError("a buffer of the TFLite file ends behind the file")
            buffer.data, buffer.offset, buffer.size = stored, 0, 0
    for part in graph.subgraphs:
        _name(part)
    return graph


def _name(part: Any) -> None:
    """Name the tensors that have no name, by their place."""
    known = {tensor.name for tensor in part.tensors}
    for place, tensor in enumerate(part.tensors):
        if tensor.name is None:
            free = (b"t%d%s" % (place, b"_" * tail) for tail in itertools.count())
            tensor.name = next(name for name in free if name not in known)


def plain(data: bytes) -> bytes:
    """Return the file as tf2onnx understands it; the same bytes where it is so already.

    It goes by names, so each tensor has one. Weights in int8 that a DEQUANTIZE turns into float32,
    which it loses without an error, are float32.
    """
    from ai_edge_litert import schema_py_generated as schema

    stored = schema.ModelT.InitFromPackedBuf(data, 0)
    changed = any(tensor.name is None for tensor in tensors(stored))
    graph = read(data)
    for part in graph.subgraphs:
        count = len(part.operators)
        for operator in part.operators:
            if kind_of(graph, operator) == DEQUANTIZE:
                tensor = part.tensors[operator.inputs[0]]
                if tensor.type == INT8:
                    _to_float(graph, tensor)
        _drop_dequantize(graph, part)
        changed |= len(part.operators) < count
    return write(graph) if changed else data


def write(graph: Any) -> bytes:
    """Return the TFLite file of an object tree."""
    import flatbuffers

    class Sharing(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers ships no types
        """Writes equal vectors once."""

        def __init__(self) -> None:
            super().__init__(1024)
            self._places: dict[tuple[str, bytes], int] = {}

        def StartVector(self, size: int, count: int, alignment: int) -> int:  # noqa: N802  # theirs
            return int(super().StartVector(size, count, 16 if size == 1 else alignment))

        def CreateNumpyVector(self, values: NDArray[np.generic]) -> int:  # noqa: N802  # theirs
            key = (values.dtype.str, values.tobytes())
            if key not in self._places:
                self._places[key] = int(super().CreateNumpyVector(values))
            return self._places[key]

    builder = Sharing()
    builder.Finish(graph.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def stamp(graph: Any) -> None:
    """Give the operators the versions that they truly need, in place.

    ai-edge-quantizer leaves those of the float file. A runtime that is too old then loads the file
    and computes nonsense; with the right versions it refuses.
    """
    needed = required_versions(write(graph))
    for code, version in zip(graph.operatorCodes, needed, strict=True):
        code.version = version


def with_float_weights(data: bytes) -> bytes:
    """Return the file with every stored weight of a float operator as float32.

    Constants in int8 or float16 that a float operator takes become float32, directly or behind a
    DEQUANTIZE, which goes away.

    Raises:
        UnsupportedError: the file computes in integers of 8 or 16 bits.
    """
    graph = read(data)
    for tensor in tensors(graph):
        if tensor.type in _INTEGERS and graph.buffers[tensor.buffer].data is None:
            raise UnsupportedError("the TFLite file computes in integers: it is quantized already")
    for part in graph.subgraphs:
        for operator in part.operators:
            is_dequantize = kind_of(graph, operator) == DEQUANTIZE
            computes = part.tensors[operator.inputs[0]].type if len(operator.inputs) else None
            if not is_dequantize and computes != FLOAT32:
                continue
            for index in operator.inputs:
                if index >= 0:
                    _to_float(graph, part.tensors[index])
        _drop_dequantize(graph, part)
    return write(graph)


def _to_float(graph: Any, tensor: Any) -> None:
    values = constant(graph, tensor)
    if values is None or tensor.type == FLOAT32:
        return
    if tensor.type == INT8:
        quantization = tensor.quantization
        if quantization is None or quantization.scale is None:
            return  # plain integers, such as an index
        shape = [1] * values.ndim
        shape[quantization.quantizedDimension] = len(quantization.scale)
        zero = np.asarray(quantization.zeroPoint, np.float64).reshape(shape)
        values = (values.astype(np.float64) - zero) * np.asarray(
            quantization.scale, np.float64
        ).reshape(shape)
    replace(graph, tensor, values.astype(np.float32))


def constant(graph: Any, tensor: Any) -> NDArray[np.generic] | None:
    """Return the stored float or int8 values of a tensor; None if it has none or is another.

    Also of sparse ones, which are not stored as they are.
    """
    data = graph.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in _STORED or tensor.sparsity is not None:
        return None
    return np.frombuffer(bytes(data), _STORED[tensor.type]).reshape(tensor.shape)


def replace(graph: Any, tensor: Any, values: NDArray[np.float32]) -> None:
    """Let a tensor hold float32 constants instead of what it held."""
    old = tensor.buffer
    tensor.buffer = added_buffer(graph, values)
    tensor.type, tensor.quantization = FLOAT32, None
    if all(other.buffer != old for other in tensors(graph)):
        graph.buffers[old].data = None


def added_buffer(graph: Any, values: NDArray[np.generic]) -> int:
    """Return the number of a new buffer that holds the values."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    graph.buffers.append(buffer)
    return len(graph.buffers) - 1


def _drop_dequantize(graph: Any, part: Any) -> None:
    """Take out the DEQUANTIZE operators whose input is float32 by now."""
    kept = []
    same: dict[int, int] = {}
    for operator in part.operators:
        is_dequantize = kind_of(graph, operator) == DEQUANTIZE
        if is_dequantize and part.tensors[operator.inputs[0]].type == FLOAT32:
            same[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    for operator in kept:
        operator.inputs = np.array([same.get(int(i), int(i)) for i in operator.inputs], np.int32)
    if any(int(output) in same for output in part.outputs):
        raise UnsupportedError("an output of the model is a constant")
    part.operators = kept


def code_of(graph: Any, kind: int) -> int:
    """Return the number of a kind of operator in the file's list; it is added if need be."""
    from ai_edge_litert import schema_py_generated as schema

    known = [code.builtinCode for code in graph.operatorCodes]
    if kind not in known:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        graph.operatorCodes.append(code)
        known.append(kind)
    return known.index(kind)


def kind_of(graph: Any, operator: Any) -> int:
    """Return what an operator is, as the schema's BuiltinOperator."""
    return int(graph.operatorCodes[operator.opcodeIndex].builtinCode)


def bias_of(graph: Any, operator: Any) -> int | None:
    """Return the index of a layer's bias; None for other operators, and for layers without."""
    if kind_of(graph, operator) not in AXES or len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return None
    return int(operator.inputs[2])


def readers(part: Any) -> dict[int, list[int]]:
    """Return, for each tensor of a subgraph that any operator reads, the places of these."""
    found: dict[int, list[int]] = {}
    for place, operator in enumerate(part.operators):
        for index in operator.inputs:
            found.setdefault(int(index), []).append(place)
    return found


def tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of all subgraphs."""
    for part in graph.subgraphs:
        yield from part.tensors


def name_of(tensor: Any) -> str:
    """Return the name of a tensor as text."""
    return (tensor.name or b"").decode(errors="replace")
