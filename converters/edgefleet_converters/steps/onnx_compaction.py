"""Say an ONNX graph in as few bytes as it can be said; it answers the same, bit for bit.

Names of inputs and outputs stay; all other names become one or two letters. Equal constants are
stored once. What a device does not read goes: shapes of inner values, documentation, metadata, the
name of the producer, attributes that say what is the default anyway, constants that nothing uses.
"""

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import numpy_helper

from edgefleet_converters import onnx_names

STANDARD = ("", "ai.onnx")
# ONNX Runtime's own operators.
CONTRIB = "com.microsoft"

_WINDOWED = {"Conv", "ConvTranspose", "QLinearConv", "AveragePool", "MaxPool", "QLinearAveragePool"}
# onnx has no schemas of ONNX Runtime's operators; from its ContribOperators.md.
_CONTRIB_DEFAULTS: dict[tuple[str, str], object] = {
    ("QGemm", "alpha"): 1.0,
    ("QGemm", "transA"): 0,
    ("QGemm", "transB"): 0,
    ("QLinearAveragePool", "auto_pad"): b"NOTSET",
    ("QLinearAveragePool", "ceil_mode"): 0,
    ("QLinearAveragePool", "channels_last"): 0,
    ("QLinearAveragePool", "count_include_pad"): 0,
    ("QLinearGlobalAveragePool", "channels_last"): 0,
}
# The shape of the weights says it, and the standard lets the attribute be left out.
_KERNEL_KNOWN = {"Conv", "QLinearConv"}


def compact(proto: Any) -> None:
    """Make a graph as small as it can be said, in place; it answers the same, bit for bit."""
    graph = proto.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in held]
    if len(inputs) < len(graph.input):
        copies = [type(info).FromString(info.SerializeToString()) for info in inputs]
        del graph.input[:]
        graph.input.extend(copies)
    _share_equal_constants(graph)
    onnx_names.rename_by_place(proto)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in nodes(graph):
        node.name = node.doc_string = ""
        _drop_defaults(node, versions.get(node.domain, 1))
    for info in (*graph.input, *graph.output):
        info.doc_string = ""
    used = {node.domain for node in nodes(graph)} | {f.domain for f in proto.functions}
    unused = [e for e in proto.opset_import if e.domain not in used and e.domain not in STANDARD]
    for entry in unused:
        proto.opset_import.remove(entry)
    del proto.metadata_props[:]
    proto.producer_name = proto.producer_version = proto.doc_string = proto.domain = ""
    graph.name, graph.doc_string = "g", ""


def nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph and of the graphs within its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes(inner)


def _share_equal_constants(graph: Any) -> None:
    """Keep one of the initializers that hold the same, and store all as raw bytes."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    kept = []
    outputs = {info.name for info in graph.output}
    for tensor in graph.initializer:
        if tensor.data_type != tensor.STRING:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        tensor.doc_string = ""
        key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        if tensor.data_type != tensor.STRING and tensor.name not in outputs:
            names[tensor.name] = first.setdefault(key, tensor.name)
        if names.get(tensor.name, tensor.name) == tensor.name:
            kept.append(type(tensor).FromString(tensor.SerializeToString()))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]


def _drop_defaults(node: Any, version: int) -> None:
    for attribute in list(node.attribute):
        attribute.doc_string = ""
        if _says_nothing(node, attribute, version):
            node.attribute.remove(attribute)


def _says_nothing(node: Any, attribute: Any, version: int) -> bool:
    """Return whether a node without the attribute means the same."""
    if node.op_type in _WINDOWED:
        if attribute.name in ("strides", "dilations"):
            return set(attribute.ints) == {1}
        if attribute.name == "pads":
            return set(attribute.ints) == {0}
        if attribute.name == "kernel_shape" and node.op_type in _KERNEL_KNOWN:
            return True
    if node.domain == CONTRIB:
        value = onnx.helper.get_attribute_value(attribute)
        return bool(_CONTRIB_DEFAULTS.get((node.op_type, attribute.name)) == value)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return False
    declared = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
    if attribute.name not in declared:
        return False
    default = declared[attribute.name].default_value
    return bool(default.type) and (
        onnx.helper.get_attribute_value(default) == onnx.helper.get_attribute_value(attribute)
    )
