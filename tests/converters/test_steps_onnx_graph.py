from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.steps import graph
from edgefleet_converters.steps.registry import Model, NoOptions
from tests.converters.onnx_models import digits_cnn, onnx_model, run


def operators(model: Model) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model.data).graph.node]


def compacted(model: Model) -> Model:
    return graph.shrink(model, NoOptions(), digits_cnn().context)


def test_optimizing_folds_normalisation_and_keeps_the_answers() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-optimize")
    assert "BatchNormalization" in operators(subject.model)
    assert "BatchNormalization" not in operators(made)
    assert "MatMul" not in operators(made)  # with its bias it is a Gemm now
    assert np.abs(run(made, subject.x) - run(subject.model, subject.x)).max() < 1e-5


def test_optimizing_keeps_format_versions_and_writes_standard_operators_alone() -> None:
    made = onnx.load_from_string(digits_cnn().make("onnx-optimize").data)
    assert made.ir_version == 8
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 17)]
    onnx.checker.check_model(made, full_check=True)


def test_optimizing_what_is_optimal_changes_no_byte() -> None:
    subject = digits_cnn()
    once = subject.make("onnx-optimize")
    again = graph.optimize(once, NoOptions(), subject.context)
    assert again.data == once.data


def test_compacting_keeps_the_answers_bit_for_bit() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-compact")
    assert run(made, subject.x).tobytes() == run(subject.model, subject.x).tobytes()
    assert operators(made) == operators(subject.model)
    assert made.notes["onnx-compact"] == {
        "bytes_before": len(subject.model.data),
        "bytes": len(made.data),
    }


def test_compacting_twice_changes_no_byte() -> None:
    once = compacted(digits_cnn().model)
    assert compacted(once).data == once.data


def test_compacting_removes_what_a_device_does_not_read() -> None:
    made = onnx.load_from_string(compacted(digits_cnn().model).data)
    assert made.producer_name == made.graph.doc_string == ""
    assert all(node.name == "" for node in made.graph.node)
    conv = made.graph.node[0]
    # Strides, dilations and group are the standard's defaults; the weights tell the kernel's shape.
    assert [attribute.name for attribute in conv.attribute] == ["pads"]
    assert [info.name for info in (*made.graph.input, *made.graph.output)] == ["X", "scores"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"strides": [1, 1]}, []),
        ({"strides": [1, 2]}, ["strides"]),
        ({"pads": [0, 0, 0, 0]}, []),
        ({"pads": [0, 0, 0, 1]}, ["pads"]),
        ({"dilations": [2, 2]}, ["dilations"]),
        ({"group": 1, "auto_pad": "NOTSET"}, []),
    ],
)
def test_only_attributes_that_say_the_default_are_left_out(
    given: dict[str, Any], kept: list[str]
) -> None:
    weights = np.ones((1, 1, 2, 2), np.float32)
    node = helper.make_node("Conv", ["X", "w"], ["scores"], **given)
    model = onnx_model([node], {"w": weights}, [None, 1, 6, 6], 1)
    made = onnx.load_from_string(compacted(model).data)
    assert [attribute.name for attribute in made.graph.node[0].attribute] == kept


def test_equal_constants_are_stored_once() -> None:
    nodes = [
        helper.make_node("Mul", ["X", "one"], ["a"]),
        helper.make_node("Add", ["a", "other"], ["b"]),
        helper.make_node("Add", ["b", "integer"], ["scores"]),
    ]
    held = {
        "one": np.full(4, 2.0, np.float32),
        "other": np.full(4, 2.0, np.float32),
        "integer": np.full((1, 4), 2.0, np.float32),  # another shape is another constant
        "unused": np.ones(4, np.float32),
    }
    made = compacted(onnx_model(nodes, held, [None, 4], 4))
    assert [list(t.dims) for t in onnx.load_from_string(made.data).graph.initializer] == [
        [4],
        [1, 4],
    ]
    assert run(made, np.ones((1, 4), np.float32)).tolist() == [[6.0] * 4]


def test_constants_used_inside_branches_survive_compacting() -> None:
    def branch(operator: str) -> Any:
        out = helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, None)
        node = helper.make_node(operator, ["X", "second/two"], [f"{operator}_out"])
        return helper.make_graph([node], operator, [], [out])

    nodes = [
        helper.make_node("ReduceSum", ["X"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "first/two"], ["double"]),
        helper.make_node("Greater", ["double", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["scores"], then_branch=branch("Mul"), else_branch=branch("Sub")
        ),
    ]
    held = {name: np.float32(2) for name in ("first/two", "second/two")} | {"zero": np.float32(0)}
    made = compacted(onnx_model(nodes, {k: np.array(v) for k, v in held.items()}, [None, 2], 2))
    assert run(made, np.array([[1, 2]], np.float32)).tolist() == [[2, 4]]
    assert run(made, np.array([[-1, -2]], np.float32)).tolist() == [[-3, -4]]


def test_an_initializer_that_is_listed_as_input_is_no_input_any_more() -> None:
    node = helper.make_node("Add", ["X", "w"], ["scores"])
    model = onnx_model([node], {"w": np.ones(2, np.float32)}, [None, 2], 2)
    proto = onnx.load_from_string(model.data)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    made = compacted(msgspec.structs.replace(model, data=proto.SerializeToString()))
    assert [info.name for info in onnx.load_from_string(made.data).graph.input] == ["X"]


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_stored_as_int8_become_float_again(axis: int | None) -> None:
    values = np.arange(-3, 3, dtype=np.int8).reshape(2, 3)
    width = 1 if axis is None else values.shape[axis]
    scales, zeros = np.linspace(0.5, 1, width, dtype=np.float32), np.full(width, 1, np.int8)
    if axis is None:
        scales, zeros = scales[0], zeros[0]
    nodes = [
        helper.make_node(
            "DequantizeLinear",
            ["q", "s", "z"],
            ["w"],
            **({} if axis is None else {"axis": axis}),
        ),
        helper.make_node("MatMul", ["X", "w"], ["scores"]),
    ]
    held = {"q": values, "s": np.asarray(scales), "z": np.asarray(zeros)}
    model = onnx_model(nodes, held, [None, 2], 3)
    proto = graph.read(model)
    graph.dequantize_weights(proto.graph)
    assert [node.op_type for node in proto.graph.node] == ["MatMul"]
    folded = msgspec.structs.replace(model, data=proto.SerializeToString())
    shape = [-1 if axis == place else 1 for place in range(2)]
    meant = (values - np.int32(1)) * np.reshape(scales, shape if axis is not None else ())
    assert run(folded, np.array([[1, 2]], np.float32)).tolist() == [
        (meant[0] + 2 * meant[1]).tolist()
    ]


def test_a_quantized_model_is_not_prepared_again() -> None:
    made = digits_cnn().make("onnx-int8-static", form="qdq")
    with pytest.raises(UnsupportedError, match="is quantized already; start from its float32"):
        graph.prepared(graph.read(made))


def test_preparing_knows_types_behind_operators_of_ai_onnx_ml() -> None:
    nodes = [
        helper.make_node(
            "Scaler", ["X"], ["scaled"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]
        ),
        helper.make_node("MatMul", ["scaled", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["scores"]),
    ]
    held = {"w": np.ones((4, 3), np.float32), "b": np.ones((1, 3), np.float32)}
    made = graph.prepared(graph.read(onnx_model(nodes, held, [None, 4], 3)))
    assert [node.op_type for node in made.graph.node] == ["Scaler", "Gemm", "Relu"]
    kinds = {info.name: info.type.tensor_type.elem_type for info in made.graph.value_info}
    assert set(kinds.values()) == {TensorProto.FLOAT}
    assert {"scaled"} <= set(kinds)
    assert [list(tensor.dims) for tensor in made.graph.initializer if tensor.name == "b"] == [[3]]


@pytest.mark.parametrize("data", [b"", b"\x00not a model", b"version https://git-lfs"])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    model = msgspec.structs.replace(digits_cnn().model, data=data)
    with pytest.raises(BadInputError, match="no ONNX model"):
        graph.read(model)


def test_a_model_that_the_runtime_cannot_load_is_refused() -> None:
    node = helper.make_node("Nonsense", ["X"], ["scores"])
    model = onnx_model([node], {}, [None, 2], 2)
    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot load the model"):
        graph.optimized(graph.read(model), "basic")


def test_batches_have_the_number_of_rows_that_a_graph_is_built_for() -> None:
    rows = {"X": np.zeros((7, 2), np.float32)}
    node = helper.make_node("Relu", ["X"], ["scores"])
    fixed = graph.read(onnx_model([node], {}, [3, 2], 2))
    free = graph.read(onnx_model([node], {}, ["n", 2], 2))
    assert [len(batch["X"]) for batch in graph.batches(fixed, rows)] == [3, 3]
    assert [len(batch["X"]) for batch in graph.batches(free, rows)] == [7]


def test_layers_are_the_nodes_with_constant_float_weights() -> None:
    proto = graph.prepared(graph.read(digits_cnn().model))
    assert [node.op_type for node in graph.layers(proto.graph)] == ["Conv", "Conv", "Conv", "Gemm"]
    trees = onnx_model([helper.make_node("Relu", ["X"], ["scores"])], {}, [None, 2], 2)
    with pytest.raises(UnsupportedError, match=r"^int8 does not apply: the model has no Conv"):
        graph.layers_or_refuse(graph.read(trees).graph, "int8")


def test_a_layer_whose_weights_are_computed_is_none() -> None:
    node = helper.make_node("MatMul", ["X", "X"], ["scores"])
    assert graph.layers(graph.read(onnx_model([node], {}, [2, 2], 2)).graph) == []
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32))
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    held = onnx_model([constant, helper.make_node("MatMul", ["X", "w"], ["scores"])], {}, [2, 2], 2)
    assert len(graph.layers(graph.read(held).graph)) == 1
