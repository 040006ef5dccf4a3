from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters import onnx_files, quantize
from edgefleet_converters.errors import UnsupportedError
from edgefleet_protocol.manifest import Tensor


def model(
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    *,
    opset: int = 18,
    ir: int = 8,
    ml: int | None = None,
    op: str = "Relu",
    constant: bool = False,
) -> Any:
    inputs = inputs or [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 4])]
    outputs = outputs or [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 4])]
    weights = [numpy_helper.from_array(np.ones((4, 4), np.float32), "W")] if constant else []
    node = helper.make_node(op, ["X", "W"] if constant else ["X"], ["Y"])
    opsets = [helper.make_opsetid("", opset)]
    if ml is not None:
        opsets.append(helper.make_opsetid("ai.onnx.ml", ml))
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


@pytest.mark.parametrize(
    ("opset", "ir", "ml", "release"),
    [
        (18, 8, 3, "1.15"),
        (19, 9, 3, "1.15"),
        (20, 9, None, "1.17"),
        (19, 9, 4, "1.17"),
        (21, 10, 5, "1.18"),
        (22, 10, 5, "1.21"),
        (23, 11, 5, "1.23"),
        (18, 12, None, "1.24"),
        (26, 13, 5, "1.25"),
    ],
)
def test_the_oldest_runtime_follows_from_the_format(
    opset: int, ir: int, ml: int | None, release: str
) -> None:
    assert onnx_files.runtime_min(model(opset=opset, ir=ir, ml=ml)) == release


@pytest.mark.parametrize(("opset", "ir"), [(27, 13), (26, 14)])
def test_a_format_newer_than_any_runtime_is_refused(opset: int, ir: int) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {opset}, IR {ir}.*export with opset 18"):
        onnx_files.runtime_min(model(opset=opset, ir=ir))


def test_operators_that_onnx_does_not_define_are_listed() -> None:
    assert onnx_files.unknown_operators(model(op="Erfc")) == ["Erfc"]
    assert onnx_files.unknown_operators(model()) == []


def test_int8_needs_a_layer_with_constant_weights() -> None:
    assert onnx_files.quantizable(model(op="MatMul", constant=True))
    assert not onnx_files.quantizable(model(op="Add", constant=True))
    assert not onnx_files.quantizable(model())


def info(name: str, kind: int, shape: list[int | None]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def test_label_and_score_are_found_among_the_outputs() -> None:
    outputs = [
        info("hidden", TensorProto.FLOAT, [None, 9]),
        info("probabilities", TensorProto.FLOAT, [None, 3]),
        info("label", TensorProto.INT64, [None]),
        info("extra", TensorProto.FLOAT, [None, 2]),
    ]
    found = onnx_files.ports(model(outputs=outputs))
    assert (found.label_output, found.score_output) == ("label", "probabilities")
    assert found.inputs == [Tensor("X", "float32", [None, 4])]


def test_the_last_float_output_is_the_score_where_no_name_tells() -> None:
    outputs = [info("a", TensorProto.FLOAT, [None, 9]), info("b", TensorProto.FLOAT, [None, 3])]
    assert onnx_files.ports(model(outputs=outputs)).score_output == "b"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 4], r"shape \[1, 4\]; expected a first size that is free"),
        ([None, None], "expected fixed sizes after the batch"),
        ([], "expected a first size that is free"),
    ],
)
def test_inputs_without_a_free_batch_are_refused(shape: list[int | None], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        onnx_files.ports(model([info("X", TensorProto.FLOAT, shape)]))


def test_an_input_of_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="input 'X' is no tensor of numbers or text"):
        onnx_files.ports(model([info("X", TensorProto.COMPLEX64, [None, 4])]))


def test_scores_in_a_map_are_refused_with_the_way_out() -> None:
    mapping = onnx.ValueInfoProto(name="output_probability")
    mapping.type.CopyFrom(
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            )
        )
    )
    outputs = [info("label", TensorProto.INT64, [None]), mapping]
    with pytest.raises(UnsupportedError, match=r"output_probability\); .*zipmap=False"):
        onnx_files.ports(model(outputs=outputs))


def test_the_fastest_of_equally_good_forms_is_kept() -> None:
    assert quantize.choose({"u8s8": (0.99, 50.0), "s8s8": (0.992, 80.0)}) == "u8s8"
    assert quantize.choose({"u8s8": (0.98, 50.0), "s8s8": (0.992, 80.0)}) == "s8s8"
    assert quantize.choose({"s8s8": (0.1, 5.0)}) == "s8s8"
