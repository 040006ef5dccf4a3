from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgefleet_converters import onnx_files
from edgefleet_converters.errors import UnsupportedError
from edgefleet_protocol.manifest import Tensor


def model(
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    *,
    op: str = "Relu",
) -> Any:
    inputs = inputs or [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 4])]
    outputs = outputs or [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 4])]
    graph = helper.make_graph([helper.make_node(op, ["X"], ["Y"])], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_operators_that_onnx_does_not_define_are_listed() -> None:
    assert onnx_files.unknown_operators(model(op="Erfc")) == ["Erfc"]
    assert onnx_files.unknown_operators(model()) == []


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
    ("shape", "expected"),
    [
        ([1, 4], [None, 4]),
        ([16, 4], [None, 4]),
        ([None, None, 3], [None, None, 3]),
        ([None], [None]),
    ],
)
def test_the_first_size_of_an_input_is_the_batch(
    shape: list[int | None], expected: list[int | None]
) -> None:
    (found,) = onnx_files.ports(model([info("X", TensorProto.FLOAT, shape)])).inputs
    assert found.shape == expected


def test_an_input_without_sizes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="input 'X' has no sizes; expected rows"):
        onnx_files.ports(model([info("X", TensorProto.FLOAT, [])]))


def test_the_score_that_a_person_names_is_taken_or_refused() -> None:
    outputs = [info("a", TensorProto.FLOAT16, [None, 9]), info("b", TensorProto.FLOAT, [None, 3])]
    assert onnx_files.ports(model(outputs=outputs), "a").score_output == "a"
    with pytest.raises(UnsupportedError, match=r"no output 'c' holds scores .*outputs: a, b"):
        onnx_files.ports(model(outputs=outputs), "c")


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
