"""TFLite files as graphs: read, changed in place and written again.

1. Old files name operators in a field of eight bits only, and may have no list of signatures; both
   are filled in, because tools of today look at the new fields alone.
2. A file may hold weights in 8 or 16 bits for operators that compute in float32: it is float for
   its caller, yet every tool for quantization passes such weights by. `with_float_weights` turns
   them into float32.
3. Equal vectors are written once and weights lie at multiples of 16 bytes, as the schema asks.
   Scales per channel bring a zero point of 8 bytes for every channel, all of them 0: a third of a
   small file, unless they are shared.
"""

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
_DEQUANTIZE = 6
DENSE = 9
# Layers with weights (convolution, depthwise, dense): the axis of a weight's output channels.
CHANNELS = {3: 0, 4: 3, DENSE: 0}


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
    return graph


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


def compact(data: bytes) -> bytes:
    """Return the file without what no runtime reads.

    Inner tensors are named by their place, their recorded ranges and the converter's own notes go,
    and buffers that nothing refers to as well. Names of inputs and outputs stay.
    """
    graph = read(data)
    for part in graph.subgraphs:
        ports = {int(index) for index in (*part.inputs, *part.outputs)}
        for place, tensor in enumerate(part.tensors):
            if place not in ports:
                tensor.name = b"t%d" % place
            if tensor.quantization is not None:
                tensor.quantization.min = tensor.quantization.max = None
    graph.description = None
    graph.metadata = [
        entry for entry in graph.metadata or [] if entry.name != b"CONVERSION_METADATA"
    ]
    _drop_buffers(graph)
    return with_versions(write(graph))


def with_versions(data: bytes) -> bytes:
    """Return the file with the operator versions that its operators truly need.

    ai-edge-quantizer leaves those of the float file. A runtime that is too old then loads the file
    and computes nonsense; with the right versions it refuses.
    """
    graph = read(data)
    for code, version in zip(graph.operatorCodes, required_versions(data), strict=True):
        code.version = version
    return write(graph)


def _drop_buffers(graph: Any) -> None:
    """Keep the buffers that hold something and are referred to; the first is empty, as agreed."""
    kept, places = [graph.buffers[0]], {0: 0}
    for user in (*tensors(graph), *graph.metadata):
        if user.buffer not in places:
            buffer = graph.buffers[user.buffer]
            if buffer.data is None:
                places[user.buffer] = 0
            else:
                places[user.buffer] = len(kept)
                kept.append(buffer)
        user.buffer = places[user.buffer]
    graph.buffers = kept


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
            is_dequantize = graph.operatorCodes[operator.opcodeIndex].builtinCode == _DEQUANTIZE
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
    _replace(graph, tensor, values.astype(np.float32))


def constant(graph: Any, tensor: Any) -> NDArray[np.generic] | None:
    """Return the stored float or int8 values of a tensor; None if it has none or is another."""
    data = graph.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in _STORED:
        return None
    return np.frombuffer(bytes(data), _STORED[tensor.type]).reshape(tensor.shape)


def _replace(graph: Any, tensor: Any, values: NDArray[np.float32]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    old = tensor.buffer
    tensor.buffer, tensor.type, tensor.quantization = len(graph.buffers), FLOAT32, None
    graph.buffers.append(buffer)
    if all(other.buffer != old for part in graph.subgraphs for other in part.tensors):
        graph.buffers[old].data = None


def _drop_dequantize(graph: Any, part: Any) -> None:
    """Take out the DEQUANTIZE operators whose input is float32 by now."""
    kept = []
    same: dict[int, int] = {}
    for operator in part.operators:
        is_dequantize = graph.operatorCodes[operator.opcodeIndex].builtinCode == _DEQUANTIZE
        if is_dequantize and part.tensors[operator.inputs[0]].type == FLOAT32:
            same[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    for operator in kept:
        operator.inputs = np.array([same.get(int(i), int(i)) for i in operator.inputs], np.int32)
    if any(int(output) in same for output in part.outputs):
        raise UnsupportedError("an output of the model is a constant")
    part.operators = kept


def tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of all subgraphs."""
    for part in graph.subgraphs:
        yield from part.tensors


def name_of(tensor: Any) -> str:
    """Return the name of a tensor as text."""
    return (tensor.name or b"").decode(errors="replace")
