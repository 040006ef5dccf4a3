"""Variants on their real runtime, in child processes: what they cost, and how broken ones end."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters import child, onnx_files
from edgefleet_converters.child import ChildLimits
from edgefleet_converters.errors import ChildError, ChildMemoryError, ChildTimeoutError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import goldens, trial
from edgefleet_converters.verification.arithmetic import arithmetic_of
from edgefleet_converters.verification.trial import Trial
from edgefleet_protocol.manifest import Signature, Tensor

SIGNATURE = Signature(
    "regression",
    [Tensor("X", "float32", [None, 2])],
    [Tensor("y", "float32", [None, 1])],
    "y",
)
SAMPLES = Samples("s", None, {"X": np.arange(40.0).reshape(20, 2)})
WEIGHTS = np.array([[1.0], [-2.0]], np.float32)


def graph(nodes: list[Any], *constants: tuple[str, np.ndarray[Any, Any]]) -> bytes:
    """Return a model from X `(n, 2)` to y `(n, 1)`."""
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [numpy_helper.from_array(values, name) for name, values in constants],
        ),
        ir_version=onnx_files.IR_VERSION,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
    )
    data: bytes = made.SerializeToString()
    return data


def measured(data: bytes, limits: ChildLimits | None = None) -> Trial:
    model = Model("onnx", data, SIGNATURE)
    return child.run(
        "trying", trial.measure, "onnxruntime", model, SAMPLES, returns=Trial, limits=limits
    )


LINEAR = graph([helper.make_node("MatMul", ["X", "w"], ["y"])], ("w", WEIGHTS))


def test_a_trial_gives_scores_latency_and_memory() -> None:
    found = measured(LINEAR)
    expected = SAMPLES.tensors["X"] @ WEIGHTS
    assert np.array_equal(found.scores, expected)
    assert np.array_equal(found.single, expected[:8])
    assert 0 < found.latency.p50_us <= found.latency.p90_us <= found.latency.p99_us
    assert found.latency.runs > 20
    assert len(LINEAR) <= found.memory_bytes <= found.peak_bytes < 200 << 20
    assert found.arithmetic == "float32"


def test_what_a_batch_changes_shows_in_single_rows() -> None:
    """The sum over the batch stands for every operator that mixes rows."""
    mixing = graph(
        [
            helper.make_node("MatMul", ["X", "w"], ["each"]),
            helper.make_node("ReduceSum", ["each", "axis"], ["all"], keepdims=1),
            helper.make_node("Add", ["each", "all"], ["y"]),
        ],
        ("w", WEIGHTS),
        ("axis", np.array([0], np.int64)),
    )
    found = measured(mixing)
    assert np.abs(found.single - found.scores[:8]).max() > 1


def test_a_loop_without_an_end_is_stopped() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Neg", ["value"], ["turned"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [2, 1]),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turned", TensorProto.FLOAT, [2, 1]),
        ],
    )
    endless = graph(
        [
            helper.make_node("Loop", ["", "true", "w"], ["never"], body=body),
            helper.make_node("MatMul", ["X", "never"], ["y"]),
        ],
        ("true", np.array(True)),
        ("w", WEIGHTS),
    )
    with pytest.raises(ChildTimeoutError, match="no answer within 3 s"):
        measured(endless, ChildLimits(time_s=3.0))


def test_a_model_that_takes_all_memory_is_stopped() -> None:
    hungry = graph(
        [
            helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["none"], keepdims=0),
            helper.make_node("MatMul", ["X", "w"], ["each"]),
            helper.make_node("Add", ["each", "none"], ["y"]),
        ],
        ("huge", np.array([1 << 32], np.int64)),
        ("w", WEIGHTS),
    )
    with pytest.raises(ChildError) as caught:
        measured(hungry, ChildLimits(time_s=60.0, memory_bytes=1 << 30))
    assert isinstance(caught.value, ChildMemoryError) or "alloc" in str(caught.value)


def test_a_file_that_the_runtime_refuses_is_an_error_with_its_words() -> None:
    unknown = graph([helper.make_node("NoSuchOp", ["X"], ["y"])])
    with pytest.raises(ChildError, match="NoSuchOp"):
        measured(unknown)


def test_golden_vectors_tell_a_wrong_model_from_a_right_one() -> None:
    scores = SAMPLES.tensors["X"] @ WEIGHTS.astype(np.float64)
    vectors = goldens.encode(SIGNATURE, SAMPLES, scores, "float32")

    def faults(data: bytes) -> list[str]:
        model = Model("onnx", data, SIGNATURE)
        arguments = ("onnxruntime", model, vectors)
        return child.run("running", trial.golden_faults, *arguments, returns=list[str])

    assert faults(LINEAR) == []
    off = graph([helper.make_node("MatMul", ["X", "w"], ["y"])], ("w", WEIGHTS + 0.01))
    assert "scores are off by up to 0.77" in faults(off)[0]


def quantized(kind: type) -> bytes:
    """Return a QDQ graph whose zero points have a type."""
    return graph(
        [
            helper.make_node("QuantizeLinear", ["X", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        ("s", np.array(0.1, np.float32)),
        ("z", np.array(0, kind)),
        ("w", WEIGHTS),
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (LINEAR, "float32"),
        (quantized(np.int8), "int8"),
        (quantized(np.uint8), "int8"),
        (quantized(np.uint16), "int16"),
        (
            graph(
                [
                    helper.make_node("Cast", ["X"], ["h"], to=TensorProto.FLOAT16),
                    helper.make_node("MatMul", ["h", "w"], ["p"]),
                    helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
                ],
                ("w", WEIGHTS.astype(np.float16)),
            ),
            "float16",
        ),
        (  # stored in halves, computed in float32
            graph(
                [
                    helper.make_node("Cast", ["w"], ["full"], to=TensorProto.FLOAT),
                    helper.make_node("MatMul", ["X", "full"], ["y"]),
                ],
                ("w", WEIGHTS.astype(np.float16)),
            ),
            "float32",
        ),
        (  # stored in bytes, computed in float32
            graph(
                [
                    helper.make_node("DequantizeLinear", ["w", "s"], ["full"]),
                    helper.make_node("MatMul", ["X", "full"], ["y"]),
                ],
                ("w", WEIGHTS.astype(np.int8)),
                ("s", np.array(1, np.float32)),
            ),
            "float32",
        ),
        (graph([helper.make_node("DynamicQuantizeLinear", ["X"], ["a", "b", "c"])]), "int8"),
    ],
)
def test_in_what_numbers_a_graph_computes_is_read_from_it(data: bytes, expected: str) -> None:
    onnx.load_model_from_string(data)
    assert arithmetic_of("onnxruntime", data) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("kws_ref_model.tflite", "int8"),
        ("kws_ref_model_float32.tflite", "int8"),  # dynamic: activations are rounded at run time
        ("ad01_fp32.tflite", "float32"),
    ],
)
def test_in_what_numbers_a_tflite_model_computes(
    shared_models: Any, file: str, expected: str
) -> None:
    data = next((shared_models / "mlperf_tiny").rglob(file)).read_bytes()
    found = child.run("looking", arithmetic_of, "litert", data, returns=str)
    assert found == expected
