"""Give the values of an ONNX graph names by their place in it.

tf2onnx merges equal constants in the order of memory addresses, so which name survives differs
from run to run. With names by place, equal models give equal bytes, and shorter ones.
"""

from collections.abc import Iterator
from typing import Any


def rename_by_place(model: Any) -> None:
    """Rename all inner values and nodes of a graph by the order of their first use, in place.

    One name is given the same new name everywhere, so graphs within nodes still see the values
    around them. Inputs and outputs of the model keep their names.

    Args:
        model: `onnx.ModelProto`.
    """
    graph = model.graph
    kept = {info.name for info in (*graph.input, *graph.output)}
    names = {"": ""} | {name: name for name in kept}
    for name in _names(graph):
        if name not in names:
            names[name] = f"v{len(names)}"
            while names[name] in kept:
                names[name] += "_"
    _apply(graph, names)


def _names(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in _graphs(node):
            yield from (info.name for info in inner.input)
            yield from _names(inner)
        yield from node.output
    yield from (info.name for info in graph.output)


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _apply(graph: Any, names: dict[str, str]) -> None:
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for values in (node.input, node.output):
            values[:] = [names[name] for name in values]
        for inner in _graphs(node):
            _apply(inner, names)
    for info in (*graph.input, *graph.output):
        info.name = names[info.name]
    used = [tensor for tensor in graph.initializer if tensor.name in names]
    place = {name: position for position, name in enumerate(names)}
    ordered = sorted(used, key=lambda tensor: place[tensor.name])
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in ordered]
    for tensor in copies:
        tensor.name = names[tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    # Shapes of inner values can be inferred again; their order follows the old names.
    del graph.value_info[:]
