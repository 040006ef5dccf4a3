"""Weights in 16, 8 and 4 bits."""

from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import graph, registry, weight_forms
from edgefleet_converters.steps.registry import Context, Model
from tests.converters.onnx_models import Subject, digits_cnn, onnx_model, run


def dense(weights: NDArray[np.float32], *, gemm: bool = False) -> Subject:
    """Return a dense layer and unit vectors as its rows: its answers are its weights."""
    inputs, outputs = weights.shape
    if gemm:
        held = {"w": weights.T, "b": np.arange(outputs, dtype=np.float32)}
        node = helper.make_node("Gemm", ["X", "w", "b"], ["scores"], transB=1)
    else:
        held = {"w": weights}
        node = helper.make_node("MatMul", ["X", "w"], ["scores"])
    x = np.eye(inputs, dtype=np.float32)
    model = onnx_model([node], held, ["n", inputs], outputs)
    scores = run(model, x).astype(np.float64)
    context = Context("score", Samples("unit vectors", None, {"X": x}), scores, None, 0)
    return Subject(model, context, x, np.zeros(inputs, np.int64))


def some_weights(inputs: int = 64, outputs: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(0, 0.2, (inputs, outputs)).astype(np.float32)


def initializers(model: Model) -> dict[int, int]:
    """Return the values that a file stores, by type."""
    found: dict[int, int] = {}
    for tensor in onnx.load_from_string(model.data).graph.initializer:
        found[tensor.data_type] = found.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    return found


# -- 16 bits -------------------------------------------------------------------------------------


def test_float16_weights_halve_the_file_and_keep_the_accuracy() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-fp16-weights")
    assert len(made.data) < 0.52 * len(subject.model.data)
    assert subject.accuracy(made) == subject.accuracy()
    assert np.abs(run(made, subject.x) - run(subject.model, subject.x)).max() < 5e-3
    onnx.checker.check_model(onnx.load_from_string(made.data), full_check=True)


@pytest.mark.parametrize(("highest", "kept"), [(65504.0, []), (65536.0, ["w"])])
def test_weights_that_float16_cannot_hold_stay_in_float32(highest: float, kept: list[str]) -> None:
    weights = some_weights()
    weights[3, 3] = highest
    subject = dense(weights, gemm=True)
    if kept:
        with pytest.raises(UnsupportedError, match="float16 weights would change nothing"):
            subject.make("onnx-fp16-weights")
    else:
        made = subject.make("onnx-fp16-weights")
        assert made.notes["onnx-fp16-weights"]["float32_constants"] == []
        assert run(made, subject.x)[3, 3] == highest + 3


@pytest.mark.parametrize(("outputs", "gains"), [(1, False), (2, True)])
def test_constants_too_small_to_gain_stay_as_they_are(outputs: int, gains: bool) -> None:
    subject = dense(some_weights(63 if outputs == 1 else 32, outputs))
    if gains:
        assert initializers(subject.make("onnx-fp16-weights")) == {TensorProto.FLOAT16: 64}
    else:
        with pytest.raises(UnsupportedError, match="no float32 constant of 64 values"):
            subject.make("onnx-fp16-weights")


def test_float16_arithmetic_keeps_float32_inputs_and_outputs() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-fp16")
    assert run(made, subject.x).dtype == np.float32
    assert subject.accuracy(made) >= subject.accuracy() - 0.005
    assert set(initializers(made)) == {TensorProto.FLOAT16, TensorProto.INT64}


def test_nodes_that_would_overflow_float16_stay_in_float32() -> None:
    weights = some_weights()
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["sum"]),
        helper.make_node("Mul", ["sum", "large"], ["wide"]),
        helper.make_node("Mul", ["wide", "small"], ["scores"]),
    ]
    held = {"w": weights, "large": np.array(1e6, np.float32), "small": np.array(1e-6, np.float32)}
    x = np.eye(64, dtype=np.float32)
    model = onnx_model(nodes, held, ["n", 64], 6)
    context = Context("score", Samples("s", None, {"X": x}), run(model, x).astype(float), None, 0)
    subject = Subject(model, context, x, np.zeros(64, np.int64))
    made = subject.make("onnx-fp16")
    assert len(made.notes["onnx-fp16"]["float32_nodes"]) == 2
    assert np.abs(run(made, x) - run(model, x)).max() < 1e-3
    with pytest.raises(UnsupportedError, match="float16 would change nothing"):
        subject.make("onnx-fp16", block=["MatMul"])


# -- 8 bits --------------------------------------------------------------------------------------


def test_int8_weights_quarter_the_file_and_compute_in_float() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-weights")
    assert len(subject.model.data) / len(made.data) >= 3.5
    assert subject.accuracy(made) >= subject.accuracy() - 0.005
    kinds = {node.op_type for node in onnx.load_from_string(made.data).graph.node}
    assert not {kind for kind in kinds if "Quant" in kind or kind.startswith("Q")}
    onnx.checker.check_model(onnx.load_from_string(made.data), full_check=True)


def test_both_forms_of_int8_weights_mean_the_same() -> None:
    subject = digits_cnn()
    folded = subject.make("onnx-int8-weights", form="folded", granularity="channel")
    dequantized = subject.make("onnx-int8-weights", form="dequantize", granularity="channel")
    # Unoptimized, because the runtime would multiply the dequantized form in integers.
    one, other = (
        graph.shown(graph.read(model), []).run(["scores"], {"X": subject.x})[0]
        for model in (folded, dequantized)
    )
    assert np.abs(one - other).max() < 1e-4


@pytest.mark.parametrize("gemm", [False, True])
def test_each_output_channel_has_a_scale_of_its_own(gemm: bool) -> None:
    weights = some_weights() * np.array([1, 10, 100, 0.1, 1, 1], np.float32)
    subject = dense(weights, gemm=gemm)
    error = np.abs(
        run(subject.make("onnx-int8-weights"), subject.x) - run(subject.model, subject.x)
    )
    assert (error.max(axis=0) <= 1.01 * np.abs(weights).max(axis=0) / 254).all()


def test_a_scale_a_channel_is_taken_only_where_one_scale_costs_half_a_bit() -> None:
    even = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (6, 1))
    assert weight_forms.channels_of(even, 0, "auto") is None
    assert weight_forms.channels_of(even, 0, "channel") == 0
    uneven = even * np.array([1, 9, 1, 9, 1, 9], np.float32)[:, None]
    assert weight_forms.channels_of(uneven, 0, "auto") == 0
    assert weight_forms.channels_of(uneven, 0, "tensor") is None


def test_recurrent_weights_are_stored_in_8_bits_too() -> None:
    rng = np.random.default_rng(0)
    held = {
        "w": rng.normal(0, 0.3, (1, 32, 5)).astype(np.float32),
        "r": rng.normal(0, 0.3, (1, 32, 8)).astype(np.float32),
        "axes": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["X"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=8),
        helper.make_node("Squeeze", ["last", "axes"], ["scores"]),
    ]
    model = onnx_model(nodes, held, ["n", 4, 5], 8)
    x = rng.normal(0, 1, (9, 4, 5)).astype(np.float32)
    context = Context("score", Samples("s", None, {"X": x}), run(model, x).astype(float), None, 0)
    made = Subject(model, context, x, np.zeros(9, np.int64)).make("onnx-int8-weights")
    assert initializers(made)[TensorProto.INT8] == 32 * 5 + 32 * 8
    assert np.abs(run(made, x) - run(model, x)).max() < 0.01


def test_weights_that_were_int8_in_the_file_are_not_dequantized_at_every_call_any_more() -> None:
    subject = digits_cnn()
    slow = subject.make("onnx-int8-weights", form="dequantize")
    fast = msgspec.structs.replace(subject.model, data=slow.data)
    step = registry.find("onnx-int8-weights")
    made = step.run(fast, step.configure({}), subject.context)
    kinds = {node.op_type for node in onnx.load_from_string(made.data).graph.node}
    assert "DequantizeLinear" not in kinds
    assert subject.accuracy(made) >= subject.accuracy() - 0.005


# -- 4 bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("inputs", [64, 77])
@pytest.mark.parametrize("form", ["dequantize", "matmul-nbits"])
def test_all_forms_of_4_bits_mean_the_same(form: str, inputs: int, gemm: bool) -> None:
    subject = dense(some_weights(inputs), gemm=gemm)
    made = subject.make("onnx-int4-weights", form=form, block=32)
    scales = weight_forms.in_blocks(some_weights(inputs).T, 32, even=False)
    rows = (scales.values * scales.scales[:, None]).reshape(6, -1)[:, :inputs].T
    if gemm:
        rows = rows + np.arange(6)
    assert np.abs(run(made, subject.x) - rows).max() < 1e-5
    if inputs == 64:  # even blocks are the same blocks then
        folded = subject.make("onnx-int4-weights", form="folded", block=32)
        assert np.abs(run(folded, subject.x) - rows).max() < 1e-5


def test_folded_4_bits_hold_two_weights_in_a_byte_at_any_opset() -> None:
    subject = dense(some_weights(96))
    made = subject.make("onnx-int4-weights")
    assert initializers(made)[TensorProto.UINT8] == 96 * 6 // 2
    proto = onnx.load_from_string(made.data)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    onnx.checker.check_model(proto, full_check=True)


def test_dequantized_4_bits_need_the_opset_that_knows_them() -> None:
    proto = onnx.load_from_string(
        dense(some_weights()).make("onnx-int4-weights", form="dequantize").data
    )
    assert proto.opset_import[0].version == 21
    assert proto.ir_version == 10
    onnx.checker.check_model(proto, full_check=True)


def test_layers_that_4_bits_do_not_fit_get_8() -> None:
    subject = digits_cnn()
    folded = subject.make("onnx-int4-weights")
    # The first and the depthwise convolution have nine weights a channel.
    assert folded.notes["onnx-int4-weights"]["weights_4_bit"] == 2
    assert folded.notes["onnx-int4-weights"]["weights_8_bit"] == 2
    dense_alone = subject.make("onnx-int4-weights", form="matmul-nbits")
    assert dense_alone.notes["onnx-int4-weights"]["weights_4_bit"] == 1
    assert len(subject.model.data) / len(folded.data) > 5


@pytest.mark.parametrize(("inputs", "fits"), [(15, False), (16, True)])
def test_channels_of_fewer_than_16_weights_get_no_4_bits(inputs: int, fits: bool) -> None:
    subject = dense(some_weights(inputs, 8))
    if fits:
        assert subject.make("onnx-int4-weights").notes["onnx-int4-weights"]["weights_4_bit"] == 1
    else:
        with pytest.raises(
            UnsupportedError, match=r"4-bit weights \(folded\) would change nothing"
        ):
            subject.make("onnx-int4-weights")


def test_a_gemm_that_scales_is_not_given_to_matmul_nbits() -> None:
    subject = dense(some_weights(), gemm=True)
    proto = onnx.load_from_string(subject.model.data)
    proto.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0))
    scaled = msgspec.structs.replace(subject.model, data=proto.SerializeToString())
    step = registry.find("onnx-int4-weights")
    with pytest.raises(UnsupportedError, match="no dense layer"):
        step.run(scaled, step.configure({"form": "matmul-nbits"}), subject.context)


@pytest.mark.parametrize("name", ["onnx-int8-weights", "onnx-int4-weights"])
def test_a_model_without_layers_is_refused(name: str) -> None:
    node = helper.make_node("Relu", ["X"], ["scores"])
    model = onnx_model([node], {}, [None, 2], 2)
    step = registry.find(name)
    with pytest.raises(UnsupportedError, match="weights in fewer bits do not apply"):
        step.run(model, step.configure({}), digits_cnn().context)


def test_a_block_of_another_size_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"block.*its options are: form, block"):
        registry.find("onnx-int4-weights").configure({"block": 48})


@settings(deadline=None, max_examples=40)
@given(
    weights=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 70)),
        elements=st.floats(-8, 8, width=32),
    ),
    block=st.sampled_from([16, 32, 64]),
    even=st.booleans(),
)
@example(weights=np.array([[3.003053e-32]], np.float32), block=16, even=False)
@example(weights=np.array([[1e-45]], np.float32), block=16, even=False)
@example(weights=np.array([[2.0788133, 1.5]], np.float32), block=16, even=False)
def test_4_bits_stay_within_half_a_step_or_are_cut_off_at_less_error(
    weights: NDArray[np.float32], block: int, even: bool
) -> None:
    blocks = weight_forms.in_blocks(weights, block, even=even)
    assert np.abs(blocks.values).max() <= 7
    size = blocks.values.shape[1]
    assert size <= block
    assert size % 2 == 0
    width = weights.shape[1]
    back = (blocks.values * blocks.scales[:, None]).reshape(len(weights), -1)
    assert back.shape[1] - width < blocks.per_channel * (2 if even else block)
    assert (back[:, width:] == 0).all()
    # No worse than the plain rounding of each block, but for float16 scales (a two-thousandth);
    # what float32 holds no exact scale for may become zero.
    padded = np.zeros_like(back, np.float64)
    padded[:, :width] = weights
    rows = padded.reshape(-1, size)
    plain = np.abs(rows).max(axis=1, keepdims=True) / 7
    plain[plain == 0] = 1
    allowed = (np.rint(rows / plain) * plain - rows) ** 2
    found = (back.reshape(-1, size) - rows) ** 2
    half = (2.0**-11 * np.abs(rows)) ** 2
    smallest = size * (127 * float(np.finfo(np.float32).tiny)) ** 2
    # (e + d)² ≤ (1 + n) e² + (1 + 1 / n) d² for any n > 0: of rounding e and float16 d; n = 0.05.
    limit = 1.05 * allowed.sum(axis=1) + 21 * half.sum(axis=1) + smallest
    assert (found.sum(axis=1) <= limit).all()


def test_8_bits_hold_the_smallest_weights_as_zeros() -> None:
    weights = some_weights()
    weights[:, 0] = 1e-44
    subject = dense(weights)
    found = run(subject.make("onnx-int8-weights", granularity="channel"), subject.x)
    assert (found[:, 0] == 0).all()
    assert np.abs(found - weights).max() < 0.01


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("onnx-optimize", {}),
        ("onnx-compact", {}),
        ("onnx-fp16", {}),
        ("onnx-fp16-weights", {}),
        ("onnx-int8-weights", {}),
        ("onnx-int4-weights", {}),
        ("onnx-int4-weights", {"form": "matmul-nbits"}),
    ],
)
def test_equal_input_gives_equal_bytes(name: str, options: dict[str, Any]) -> None:
    subject = digits_cnn()
    made = subject.make(name, **options)
    assert made.data == subject.make(name, **options).data
    assert graph.read(made).ir_version == 8
