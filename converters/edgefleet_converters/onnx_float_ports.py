"""Give an ONNX graph with quantized inputs and outputs ports of float32.

A device feeds all variants of a model alike, with float32. A TFLite runtime converts at the edge
of the model (`edgefleet_protocol.quantized`); ONNX Runtime does not, so the graph itself has to.
QuantizeLinear rounds half to even and saturates, which is what happens on a device.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from edgefleet_converters.errors import UnsupportedError


class Scale(Struct, frozen=True):
    """What the integers of a tensor stand for: (q - zero point) · scale."""

    scale: float
    zero_point: int


def give_float_ports(model: Any, scales: Mapping[str, Scale]) -> None:
    """Put QuantizeLinear behind inputs and DequantizeLinear before outputs, in place.

    Args:
        model: `onnx.ModelProto` of opset 13 to 20.
        scales: of the inputs and outputs that shall be float32, by name; they keep their names.

    Raises:
        UnsupportedError: integers that these operators do not know below opset 21.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    nodes = list(graph.node)
    for info in (*graph.input, *graph.output):
        if info.name not in scales:
            continue
        held = info.type.tensor_type.elem_type
        if held not in (TensorProto.INT8, TensorProto.UINT8):
            raise UnsupportedError(
                f"{info.name!r} holds quantized {TensorProto.DataType.Name(held).lower()}; ONNX"
                " below opset 21 quantizes to int8 and uint8 only"
            )
        inner = f"{info.name}_quantized"
        _rename_uses(graph, info.name, inner)
        names = _constants(graph, info.name, held, scales[info.name])
        if info in graph.input:
            nodes.insert(0, helper.make_node("QuantizeLinear", [info.name, *names], [inner]))
        else:
            nodes.append(helper.make_node("DequantizeLinear", [inner, *names], [info.name]))
        info.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.node[:]
    graph.node.extend(nodes)


def _constants(graph: Any, name: str, held: int, scale: Scale) -> list[str]:
    from onnx import helper, numpy_helper

    zero = np.array(scale.zero_point, helper.tensor_dtype_to_np_dtype(held))
    names = [f"{name}_scale", f"{name}_zero_point"]
    for value, each in zip((np.array(scale.scale, np.float32), zero), names, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, each))
    return names


def _rename_uses(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                if name == old:
                    values[position] = new
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename_uses(inner, old, new)
