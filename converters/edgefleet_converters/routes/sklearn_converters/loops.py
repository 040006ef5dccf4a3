"""Loops: a part of a graph that is repeated until it says that it is done.

1. The body is a graph of its own: what it reads is handed to it as state, or is a constant in it.
   skl2onnx orders nodes by what they read, and does not look into bodies.
2. A loop has a greatest number of rounds, so that every run ends.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from edgefleet_converters.routes.sklearn_converters.graph import Graph

# (graph of the body, state) → (whether to go on, a bool scalar; the next state)
Step = Callable[[Graph, list[str]], tuple[str, list[str]]]


def repeat(graph: Graph, rounds: int, state: list[str], step: Step) -> list[str]:
    """Add a loop and return the names of the state behind it.

    Args:
        graph: to add to.
        rounds: at most.
        state: names of values `(n, width)`, numbers of the graph.
        step: writes the body.
    """
    scope, container = graph._scope, graph._container
    body = copy.copy(graph)
    body._container = inside = _Body(container)
    given = [scope.get_unique_variable_name("state") for _ in state]
    go_on, following = step(body, given)
    ends = [body.op("Identity", value) for value in (go_on, *following)]
    done = [scope.get_unique_variable_name("done") for _ in state]
    round_, unread = (scope.get_unique_variable_name(name) for name in ("round", "unread"))
    kind = onnx.helper.np_dtype_to_tensor_dtype(graph.dtype)
    inner = onnx.helper.make_graph(
        inside.nodes,
        "body",
        [
            onnx.helper.make_tensor_value_info(round_, onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info(unread, onnx.TensorProto.BOOL, []),
            *(onnx.helper.make_tensor_value_info(name, kind, [None, None]) for name in given),
        ],
        [
            onnx.helper.make_tensor_value_info(ends[0], onnx.TensorProto.BOOL, []),
            *(onnx.helper.make_tensor_value_info(name, kind, [None, None]) for name in ends[1:]),
        ],
        inside.constants,
    )
    inputs = [graph.constant(np.array(rounds)), graph.constant(np.array(True)), *state]
    container.add_node(
        "Loop", inputs, done, name=scope.get_unique_operator_name("Loop"), body=inner
    )
    return done


class _Body:
    """Collects what a body consists of, under the names by which skl2onnx's container does."""

    def __init__(self, outer: Any) -> None:
        self._outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add_node(
        self,
        kind: str,
        inputs: list[str],
        outputs: list[str],
        *,
        op_domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> None:
        """Add a node; the opset of the whole model has to reach its version, too."""
        version = self._outer._get_op_version(op_domain, kind)
        self._outer.node_domain_version_pair_sets.add((op_domain, version))
        node = onnx.helper.make_node(
            kind, inputs, outputs, name=name, domain=op_domain, **attributes
        )
        self.nodes.append(node)

    def add_initializer(
        self, name: str, kind: int, shape: list[int], content: onnx.TensorProto
    ) -> None:
        """Add a constant of numbers."""
        del name, kind, shape  # the tensor says them itself
        self.constants.append(content)
