from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.onnx_names import rename_by_place


def branching(prefix: str, *, swap: bool = False) -> Any:
    """Graph with an If whose branches use a value from outside of them."""
    p = prefix

    def branch(op: str) -> Any:
        node = helper.make_node(op, [f"{p}doubled", f"{p}one"], [f"{p}{op}_out"], f"{p}{op}")
        out = helper.make_tensor_value_info(f"{p}{op}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], f"{op}_branch", [], [out])

    nodes = [
        helper.make_node("Mul", ["X", f"{p}two"], [f"{p}doubled"], f"{p}a"),
        helper.make_node("ReduceSum", [f"{p}doubled"], [f"{p}sum"], f"{p}b", keepdims=0),
        helper.make_node("Greater", [f"{p}sum", f"{p}zero"], [f"{p}cond"], f"{p}c"),
        helper.make_node(
            "If",
            [f"{p}cond"],
            ["Y"],
            f"{p}d",
            then_branch=branch("Add"),
            else_branch=branch("Sub"),
        ),
    ]
    weights = [
        numpy_helper.from_array(np.float32(value), f"{p}{name}")
        for name, value in (("two", 2), ("zero", 0), ("one", 1))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None])],
        weights[::-1] if swap else weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: Any, x: list[float]) -> list[float]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    answer: list[float] = session.run(["Y"], {"X": np.array(x, np.float32)})[0].tolist()
    return answer


def test_renaming_keeps_what_the_graph_computes() -> None:
    model = branching("some/long/name_")
    rename_by_place(model)
    assert run(model, [1.0, 2.0]) == [3.0, 5.0]
    assert run(model, [-1.0, -2.0]) == [-3.0, -5.0]


def test_graphs_that_differ_only_in_names_and_order_of_weights_become_equal() -> None:
    one, other = branching("a_"), branching("zz_", swap=True)
    assert one.SerializeToString() != other.SerializeToString()
    for model in (one, other):
        rename_by_place(model)
    assert one.SerializeToString() == other.SerializeToString()


def test_a_value_of_the_model_that_looks_like_a_new_name_is_not_taken() -> None:
    node = helper.make_node("Neg", ["b"], ["inner"])
    graph = helper.make_graph(
        [node, helper.make_node("Abs", ["inner"], ["c"])],
        "g",
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [None])],
    )
    model = helper.make_model(graph)
    rename_by_place(model)
    assert list(model.graph.node[0].output) == ["c_"]
    assert list(model.graph.node[1].input) == ["c_"]
