"""Give the values of an ONNX graph names by their place in it.

tf2onnx merges equal constants in the order of memory addresses, so which name survives differs
from run to run. With names by place, equal models give equal bytes, and shorter ones.
"""

from collections.abc import Iterator, Mapping
from string import ascii_letters
from typing import Any

from edgefleet_converters.onnx_order import graphs_within


def rename_by_place(model: Any, ports: Mapping[str, str] | None = None) -> None:
    """Rename all inner values and nodes of a graph by the order of their first use, in place.

    One name is given the same new name everywhere, so graphs within nodes still see the values
    around them. Inputs and outputs of the model keep their names, or get those of `ports`.

    Args:
        model: `onnx.ModelProto`.
        ports: new names of inputs and outputs, all different; None to keep them.
    """
    graph = model.graph
    ports = ports or {}
    kept = {info.name: ports.get(info.name, info.name) for info in (*graph.input, *graph.output)}
    names = {"": ""} | kept
    taken = set(kept.values())
    for name in _names(graph):
        if name not in names:
            names[name] = _short(len(names))
            while names[name] in taken:
                names[name] += "_"
    _apply(graph, names)


def _short(place: int) -> str:
    """Return `a`, `b`, … `Z`, `aa`, `ab`, …: small models are up to a tenth names of constants."""
    name = ""
    while place > 0:
        place, letter = divmod(place - 1, len(ascii_letters))
        name = ascii_letters[letter] + name
    return name


def _names(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in graphs_within(node):
            yield from (info.name for info in inner.input)
            yield from _names(inner)
        yield from node.output
    yield from (info.name for info in graph.output)


def _apply(graph: Any, names: dict[str, str]) -> None:
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for values in (node.input, node.output):
            values[:] = [names[name] for name in values]
        for inner in graphs_within(node):
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
