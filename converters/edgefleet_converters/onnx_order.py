"""Put the nodes of an ONNX graph, and their attributes, into an order that its structure gives.

Converters sort nodes by sets and memory addresses, so equal graphs come out in different orders.
Here the order is that in which a walk from the outputs back, inputs first, leaves the nodes.
"""

from collections.abc import Iterator
from typing import Any


def order_by_structure(graph: Any) -> None:
    """Order the nodes of a graph and of the graphs within them, in place.

    Nodes that no output depends on keep their order behind the others.

    Args:
        graph: `onnx.GraphProto`.
    """
    for node in graph.node:
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        copies = [type(each).FromString(each.SerializeToString()) for each in attributes]
        del node.attribute[:]
        node.attribute.extend(copies)
        for inner in graphs_within(node):
            order_by_structure(inner)
    nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    order = _walk([info.name for info in graph.output], nodes, makers)
    rest = sorted(set(range(len(nodes))) - set(order))
    del graph.node[:]
    graph.node.extend(nodes[place] for place in (*order, *rest))


def graphs_within(node: Any) -> Iterator[Any]:
    """Return the graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _walk(names: list[str], nodes: list[Any], makers: dict[str, int]) -> list[int]:
    """Return the places of all nodes that make these values, each after those it depends on."""
    order: list[int] = []
    seen: set[int] = set()
    # A graph can be deeper than Python's stack: (node, what it still waits for).
    waiting: list[tuple[int, Iterator[str]]] = [(-1, iter(names))]
    while waiting:
        place, needs = waiting[-1]
        name = next(needs, None)
        if name is None:
            waiting.pop()
            if place >= 0:
                order.append(place)
        elif name in makers and makers[name] not in seen:
            maker = makers[name]
            seen.add(maker)
            waiting.append((maker, iter([*_reads(nodes[maker])])))
    return order


def _reads(node: Any) -> Iterator[str]:
    """Return what a node reads, the graphs within it included."""
    yield from node.input
    for inner in graphs_within(node):
        for deeper in inner.node:
            yield from _reads(deeper)
        yield from (info.name for info in inner.output)
