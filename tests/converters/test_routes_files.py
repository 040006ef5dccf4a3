"""ONNX and TFLite files as models: real ones, damaged ones, and ones made to do harm."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters import child, sources
from edgefleet_converters.child import ChildLimits
from edgefleet_converters.errors import BadInputError, ConversionError, UnsupportedError
from edgefleet_converters.routes import onnx as onnx_route
from edgefleet_converters.routes import tflite as tflite_route
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples


def rows(*shape: int, count: int = 5) -> Samples:
    values = np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)
    return Samples("rows.npz", None, {"rows": values})


def opened(path: Path, samples: Samples, hints: Hints | None = None) -> Opened:
    """Open a file as the pipeline does: in a child process."""
    file = sources.recognise(path)
    route = onnx_route if file.kind == "onnx" else tflite_route
    limits = ChildLimits(time_s=60)
    return child.run(
        f"opening {path.name}",
        route.open,
        file,
        samples,
        hints or Hints(),
        returns=Opened,
        limits=limits,
    )


def save(path: Path, nodes: list[Any], weights: list[Any], **settings: Any) -> Path:
    """Write a model X (n, 4) → Y (n, 4)."""
    shape = settings.pop("shape", [None, 4])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
        weights,
    )
    opset = helper.make_opsetid("", settings.pop("opset", 18))
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


WEIGHT = numpy_helper.from_array(np.eye(4, dtype=np.float32), "W")
PRODUCT = helper.make_node("MatMul", ["X", "W"], ["Y"])


def external(length: int, location: str = "weights.bin", offset: int = 0) -> Any:
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_external_data_is_taken_into_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes((2 * np.eye(4, dtype=np.float32)).tobytes())
    samples = rows(4)
    found = opened(save(tmp_path / "m.onnx", [PRODUCT], [external(64)]), samples)
    np.testing.assert_allclose(found.scores, 2.0 * samples.tensors["rows"], rtol=1e-6)
    (weight,) = onnx.load_model_from_string(found.bases["onnx"].data).graph.initializer
    assert weight.data_location != TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external(30_000_000_000), "30000000000 bytes"),
        (external(64, "missing.bin"), "cannot be used"),
        (external(64, "../outside.bin"), "not inside the model's folder"),
        (external(64, "/etc/passwd"), "not inside the model's folder"),
        (external(64, offset=1), "64 bytes from 1"),
    ],
)
def test_external_data_that_is_not_there_or_lies_elsewhere_is_refused(
    tmp_path: Path, tensor: Any, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model/weights.bin", "outside.bin"):
        (tmp_path / name).write_bytes(bytes(64))
    with pytest.raises(BadInputError, match=message):
        opened(save(folder / "m.onnx", [PRODUCT], [tensor]), rows(4))


def test_a_constant_of_terabytes_is_refused_before_it_is_made(tmp_path: Path) -> None:
    size = numpy_helper.from_array(np.array([1 << 40], np.int64), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["X", "sum"], ["Y"]),
    ]
    with pytest.raises(ConversionError, match=r"bytes of memory|[Mm]emory"):
        opened(save(tmp_path / "m.onnx", nodes, [size]), rows(4))


def test_a_loop_without_an_end_is_refused(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["held"], ["kept"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, None),
        ],
    )
    start = numpy_helper.from_array(np.array(True), "start")
    loop = helper.make_node("Loop", ["", "start", "X"], ["Y"], body=body)
    with pytest.raises(BadInputError, match=r"m.onnx: .*(end|Loop)"):
        opened(save(tmp_path / "m.onnx", [loop], [start]), rows(4))


@pytest.mark.parametrize(
    ("nodes", "opset", "message"),
    [
        ([PRODUCT], 999, "opset 999"),
        ([helper.make_node("Cuckoo", ["X"], ["Y"], domain="ai.nest")], 18, "Cuckoo"),
    ],
)
def test_what_no_runtime_has_is_refused(
    tmp_path: Path, nodes: list[Any], opset: int, message: str
) -> None:
    path = save(tmp_path / "m.onnx", nodes, [WEIGHT], opset=opset)
    with pytest.raises(ConversionError, match=message):
        opened(path, rows(4))


def test_a_fixed_batch_is_fed_in_pieces(tmp_path: Path) -> None:
    samples = rows(4, count=5)
    found = opened(save(tmp_path / "m.onnx", [PRODUCT], [WEIGHT], shape=[2, 4]), samples)
    np.testing.assert_allclose(found.scores, samples.tensors["rows"], rtol=1e-6)
    (taken,) = found.bases["onnx"].signature.inputs
    assert taken.shape == [None, 4]


def test_sizes_that_the_graph_leaves_free_are_those_of_the_samples(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["X"], ["Y"])
    found = opened(save(tmp_path / "m.onnx", [node], [], shape=[None, None]), rows(7))
    assert found.bases["onnx"].signature.inputs[0].shape == [None, 7]
    assert found.scores.shape == (5, 7)


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Log", ["X"], ["Y"])
    with pytest.raises(BadInputError, match="not finite for rows of the sample; the first is row"):
        opened(save(tmp_path / "m.onnx", [node], []), rows(4))


def test_a_quantized_model_takes_floats_or_its_own_integers(shared_models: Path) -> None:
    path = shared_models / "mlperf_tiny" / "kws_ref_model.tflite"
    whole = np.random.default_rng(0).integers(-128, 128, (6, 49, 10, 1))
    integers = Samples("s.npz", None, {"rows": whole.astype(np.int8)})
    by_integers = opened(path, integers)
    (taken,) = by_integers.bases["tflite"].signature.inputs
    assert (taken.dtype, taken.shape) == ("int8", [None, 49, 10, 1])
    scale, zero = 0.5847029089927673, 83
    floats = Samples("s.npz", None, {"rows": ((whole - zero) * scale).astype(np.float32)})
    by_floats = opened(path, floats)
    assert by_floats.bases["tflite"].signature.inputs[0].dtype == "float32"
    assert (by_floats.task, by_floats.scores.shape) == ("classification", (6, 12))
    np.testing.assert_array_equal(by_floats.scores, by_integers.scores)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("broken_inputs/ov_external_file_not_found.onnx", (2, 2), "another file"),
        ("broken_inputs/coral_model_invoking_error.tflite", (2,), "coral_model_invoking_error"),
        ("broken_inputs/flip8_0_kws.tflite", (49, 10, 1), "damaged or cut short"),
        ("tflm/person_detect.tflite", (96, 96, 1), "quantized_dimension"),
        ("litert/custom_sinh.tflite", (3,), "custom|Sinh"),
        ("derived/flex_bincount.tflite", (3,), "Flex"),
        ("ort_extensions/test_hf_bert_tokenizer_optional_output.onnx", (3,), "HfBertTokenizer"),
    ],
)
def test_files_of_other_projects_that_must_be_refused(
    shared_models: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises((BadInputError, UnsupportedError), match=message):
        opened(shared_models / name, rows(*shape))


def test_a_wrong_number_of_arrays_is_refused(shared_models: Path) -> None:
    path = shared_models / "mlperf_tiny" / "ad01_fp32.tflite"
    with pytest.raises(BadInputError, match=r"takes \[640\]"):
        opened(path, rows(639))
