"""Integer arithmetic: which nodes, which ranges, which form, and what is measured."""

from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import fidelity, graph, mixed_precision, onnx_int8, onnx_quantizer
from edgefleet_converters.steps.onnx_int8 import Candidate
from edgefleet_converters.steps.onnx_quantizer import Settings
from edgefleet_converters.steps.registry import Context, Model, find
from tests.converters.onnx_models import Subject, digits_cnn, onnx_model, run


def operators(model: Model) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model.data).graph.node]


def subject_of(
    nodes: list[Any], held: dict[str, Any], width: int, *, task: Any = "score"
) -> Subject:
    """Return a graph from 8 values to `width` as a subject with 200 rows."""
    x = np.random.default_rng(1).normal(0, 1, (200, 8)).astype(np.float32)
    model = onnx_model(nodes, held, ["n", 8], width)
    context = Context(task, Samples("s", None, {"X": x}), run(model, x).astype(float), None, 0)
    return Subject(model, context, x, np.zeros(200, np.int64))


def weights(*shape: int, seed: int = 2) -> Any:
    return np.random.default_rng(seed).normal(0, 0.4, shape).astype(np.float32)


# -- static --------------------------------------------------------------------------------------


def test_static_int8_computes_every_layer_in_integers() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-static")
    assert operators(made) == [
        *("QuantizeLinear", "QLinearConv", "MaxPool", "QLinearConv", "QLinearConv", "QLinearAdd"),
        *("Reshape", "QGemm", "Softmax"),
    ]
    assert len(subject.model.data) / len(made.data) >= 3.5
    assert subject.accuracy(made) >= subject.accuracy() - 0.005
    assert made.signature == subject.model.signature
    assert len(made.notes["onnx-int8-static"]["layers"]) == 4


def test_both_forms_give_the_same_answers_and_operators_the_smaller_file() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-static")
    qdq = subject.make("onnx-int8-static", form="qdq")
    assert (run(made, subject.x) == run(qdq, subject.x)).all()
    assert len(made.data) < len(qdq.data)
    proto = onnx.load_from_string(qdq.data)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "s8"},
        {"weights": "u8"},
        {"granularity": "channel"},
        {"reduce_range": True},
        {"calibration": "percentile", "percentile": 99.9},
        {"calibration": "entropy", "rows": 128},
        {"moving_average": True},
        {"symmetric": True},
        {"symmetric": True, "activations": "s8"},
        {"activations": "u16", "form": "qdq"},
        {"activations": "s16", "form": "qdq"},
    ],
)
def test_every_choice_keeps_the_accuracy_of_a_cnn(options: dict[str, Any]) -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-static", **options)
    assert subject.accuracy(made) >= subject.accuracy() - 0.02
    assert graph.read(made).ir_version == 8


@pytest.mark.parametrize("name", ["onnx-int8-static", "onnx-int8-dynamic", "onnx-mixed-precision"])
def test_equal_input_gives_equal_bytes(name: str) -> None:
    subject = digits_cnn()
    assert subject.make(name).data == subject.make(name).data


def test_ranges_around_zero_do_not_lose_a_relu() -> None:
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu"]),
        helper.make_node("MatMul", ["relu", "v"], ["scores"]),
    ]
    subject = subject_of(nodes, {"w": weights(8, 16), "v": weights(16, 3)}, 3)
    original = run(subject.model, subject.x)
    for symmetric in (False, True):
        made = subject.make("onnx-int8-static", symmetric=symmetric)
        assert np.abs(run(made, subject.x) - original).max() < 0.1 * np.abs(original).max()


def test_one_scale_a_layer_loses_more_where_channels_differ() -> None:
    subject = digits_cnn()
    losses = {
        kind: fidelity.loss(
            run(subject.make("onnx-int8-static", granularity=kind), subject.x).astype(float),
            run(subject.model, subject.x).astype(float),
        )
        for kind in ("auto", "channel", "tensor")
    }
    assert losses["tensor"] > 2 * losses["channel"]
    assert losses["auto"] < 1.5 * losses["channel"]


def test_sums_that_are_read_as_floats_are_not_rounded() -> None:
    node = helper.make_node("MatMul", ["X", "w"], ["scores"])
    subject = subject_of([node], {"w": weights(8, 3)}, 3)
    made = subject.make("onnx-int8-static", form="qdq")
    assert operators(made).count("QuantizeLinear") == 1  # of the input alone
    # 256 levels of the output would be at most 768 values.
    assert len(np.unique(run(made, subject.x)[:, 0])) > 150


def test_the_bias_of_a_row_vector_is_a_bias() -> None:
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["scores"]),
    ]
    subject = subject_of(nodes, {"w": weights(8, 3), "b": weights(1, 3)}, 3)
    made = subject.make("onnx-int8-static", granularity="channel")
    assert operators(made) == ["QuantizeLinear", "QGemm"]
    assert np.abs(run(made, subject.x) - run(subject.model, subject.x)).max() < 0.05


def test_layers_can_be_left_out_by_name_and_by_type() -> None:
    subject = digits_cnn()
    proto = graph.prepared(graph.read(subject.model))
    first, *_ = [node.name for node in graph.layers(proto.graph)]
    made = subject.make("onnx-int8-static", exclude=[first])
    assert first not in made.notes["onnx-int8-static"]["layers"]
    assert operators(made)[0] == "Conv"
    assert operators(made).count("QLinearConv") == 2
    dense = subject.make("onnx-int8-static", op_types=["Gemm"])
    assert "QLinearConv" not in operators(dense)
    assert "QGemm" in operators(dense)
    with pytest.raises(BadInputError, match=r"no node is called Conv_99; the model has: Conv_0"):
        subject.make("onnx-int8-static", exclude=["Conv_99"])
    with pytest.raises(UnsupportedError, match="op_types and exclude leave no layer to quantize"):
        subject.make("onnx-int8-static", op_types=["MaxPool"])


def test_operators_without_weights_follow_the_layers_around_them() -> None:
    proto = graph.prepared(graph.read(digits_cnn().model))
    names = {node.op_type: node.name for node in proto.graph.node if node.op_type != "Relu"}
    gemm = names["Gemm"]
    assert onnx_quantizer.without_islands(proto.graph, {gemm, names["Add"], names["Reshape"]}) == [
        gemm
    ]
    everything = onnx_quantizer.integer_nodes(proto, [], [])
    assert {"Add", "Reshape", "MaxPool"} <= {name.split("_")[0] for name in everything}
    assert names["Softmax"] not in everything


def test_what_comes_after_the_last_layer_stays_in_float() -> None:
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["scores"], axis=1),
    ]
    subject = subject_of(nodes, {"w": weights(8, 1), "one": np.ones(1, np.float32)}, 2)
    made = subject.make("onnx-int8-static")
    assert operators(made)[-3:] == ["Sigmoid", "Sub", "Concat"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activations": "s8", "weights": "u8"}, "weights u8 with activations s8: no kernel"),
        ({"activations": "u16"}, "activations u16 have no integer operators: use form qdq"),
    ],
)
def test_pairs_that_no_kernel_takes_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInputError, match=text):
        digits_cnn().make("onnx-int8-static", **options)


@pytest.mark.parametrize("percentile", [50.0, 100.01])
def test_a_percentile_out_of_its_limits_is_refused(percentile: float) -> None:
    with pytest.raises(BadInputError, match="percentile"):
        find("onnx-int8-static").configure({"percentile": percentile})


@pytest.mark.parametrize(
    "name", ["onnx-int8-static", "onnx-int8-measured", "onnx-mixed-precision", "onnx-fp16"]
)
def test_a_model_without_layers_is_refused(name: str) -> None:
    subject = subject_of([helper.make_node("Relu", ["X"], ["scores"])], {}, 8)
    with pytest.raises(UnsupportedError, match=r"does not apply: the model has no Conv, .*Gemm or"):
        subject.make(name)


def test_what_cannot_be_quantized_is_refused_not_left_as_it_was() -> None:
    nodes = [
        helper.make_node("Cast", ["X"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "d"], ["product"]),
        helper.make_node("Cast", ["product"], ["scores"], to=TensorProto.FLOAT),
    ]
    subject = subject_of(nodes, {"d": weights(8, 3).astype(np.float64)}, 3)
    with pytest.raises(UnsupportedError, match="int8 does not apply"):
        subject.make("onnx-int8-static")


def test_a_model_built_for_a_fixed_number_of_rows_is_calibrated_in_such_pieces() -> None:
    subject = digits_cnn()
    proto = graph.read(subject.model)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    fixed = msgspec.structs.replace(subject.model, data=proto.SerializeToString())
    step = find("onnx-int8-static")
    made = step.run(fixed, step.configure({"rows": 100}), subject.context)
    assert run(made, subject.x[:1]).shape == (1, 10)


# -- dynamic -------------------------------------------------------------------------------------


def test_dynamic_int8_leaves_convolutions_alone() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-dynamic")
    assert operators(made).count("Conv") == 3
    assert "ConvInteger" not in operators(made)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= set(
        made.notes["onnx-int8-dynamic"]["operators"]
    )
    assert subject.accuracy(made) >= subject.accuracy() - 0.005


def test_dynamic_int8_that_would_change_nothing_is_refused() -> None:
    node = helper.make_node("Conv", ["image", "w"], ["found"])
    nodes = [
        helper.make_node("Reshape", ["X", "square"], ["image"]),
        node,
        helper.make_node("Flatten", ["found"], ["scores"]),
    ]
    held = {"w": weights(4, 1, 2, 2), "square": np.array([-1, 1, 2, 4], np.int64)}
    subject = subject_of(nodes, held, 12)
    with pytest.raises(UnsupportedError, match="dynamic int8 would change nothing"):
        subject.make("onnx-int8-dynamic")


# -- measured ------------------------------------------------------------------------------------


def test_measured_int8_tells_what_was_tried() -> None:
    subject = digits_cnn()
    made = subject.make("onnx-int8-measured")
    note = made.notes["onnx-int8-measured"]
    names = [candidate["name"] for candidate in note["candidates"]]
    assert len(names) == 4
    assert note["chosen"] in names
    assert note["failures"] == []
    assert subject.accuracy(made) >= subject.accuracy() - 0.01
    top = max(candidate["fidelity"] for candidate in note["candidates"])
    chosen = next(c for c in note["candidates"] if c["name"] == note["chosen"])
    assert chosen["fidelity"] >= top - 0.005
    assert chosen["bytes"] == len(made.data)


@pytest.mark.parametrize(
    ("fidelity_of_fast", "latency_us", "best"),
    [
        (0.990, 10.0, "fast"),
        (0.989, 10.0, "good"),  # not good enough
        (0.990, 18.2, "good"),  # not faster than timing can tell
        (0.990, 18.1, "fast"),
    ],
)
def test_the_fastest_of_the_good_candidates_is_chosen(
    fidelity_of_fast: float, latency_us: float, best: str
) -> None:
    candidates = [
        Candidate("good", 0.995, 20.0, 1),
        Candidate("fast", fidelity_of_fast, latency_us, 1),
        Candidate("bad", 0.5, 1.0, 1),
    ]
    assert onnx_int8.choose(candidates, 0.005).name == best


def test_what_judges_is_not_what_calibrated() -> None:
    x = np.arange(300, dtype=np.float32)[:, None]
    context = Context("score", Samples("s", None, {"X": x}), x.astype(float), None, 0)
    calibrated = fidelity.calibration_rows(context, 200).tensors["X"][:, 0]
    judged, scores = fidelity.judged_rows(context, 200)
    assert len(calibrated) == 200
    assert set(judged.tensors["X"][:, 0]).isdisjoint(calibrated)
    assert (scores == judged.tensors["X"]).all()
    # With fewer than a hundred others, all judge.
    assert len(fidelity.judged_rows(context, 201)[0]) == 300


def test_loss_and_fidelity_of_equal_scores_are_nothing_and_one() -> None:
    scores = np.array([[0.2, 0.8], [0.6, 0.4]])
    assert fidelity.loss(scores, scores) == 0
    assert fidelity.fidelity("classification", scores, scores) == 1
    assert fidelity.fidelity("classification", scores[:, ::-1], scores) == 0
    assert fidelity.fidelity("regression", scores, scores) == 1
    assert fidelity.loss(np.zeros((2, 2)), scores) == pytest.approx(1.2 / 0.16)


# -- mixed precision -----------------------------------------------------------------------------


def test_sensitivities_are_listed_from_the_least_to_the_most() -> None:
    made = digits_cnn().make("onnx-mixed-precision", fidelity=0.9)
    found = made.notes["sensitivity"]
    assert [entry["loss"] for entry in found] == sorted(entry["loss"] for entry in found)
    assert {entry["op"] for entry in found} == {"Conv", "Gemm"}
    assert sum(entry["bytes"] for entry in found) == 4 * (16 * 9 + 32 * 16 * 9 + 32 * 9 + 5120)
    assert made.notes["onnx-mixed-precision"]["float32"] == []


def broken_in_one_layer() -> Subject:
    """Return two dense layers, the first of which no single scale fits."""
    uneven = weights(8, 16) * np.geomspace(1e-3, 10, 16, dtype=np.float32)
    rescaled = weights(16, 3) / np.geomspace(1e-3, 10, 16, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("MatMul", ["X", "w"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu"]),
        helper.make_node("Mul", ["relu", "even"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "v"], ["next"]),
        helper.make_node("Relu", ["next"], ["scores"]),
    ]
    even = 1 / np.geomspace(1e-3, 10, 16, dtype=np.float32)
    held = {"w": uneven, "even": even, "v": rescaled * np.geomspace(1e-3, 10, 16)[:, None]}
    return subject_of(nodes, {k: v.astype(np.float32) for k, v in held.items()}, 3)


def test_the_layer_that_int8_breaks_stays_in_float() -> None:
    subject = broken_in_one_layer()
    original = subject.context.scores
    int8 = subject.make("onnx-int8-static", granularity="tensor")
    mixed = subject.make("onnx-mixed-precision", granularity="tensor", fidelity=0.98)
    assert fidelity.fidelity("score", run(int8, subject.x).astype(float), original) < 0.9
    assert fidelity.fidelity("score", run(mixed, subject.x).astype(float), original) >= 0.98
    note = mixed.notes["onnx-mixed-precision"]
    assert note["int8"] == ["MatMul_3"]
    assert note["float32"] == ["MatMul_0"]
    assert note["fidelity"] >= 0.98


def test_layers_left_in_float_store_their_weights_in_8_bits_unless_told_otherwise() -> None:
    subject = broken_in_one_layer()
    sizes = {
        kind: len(
            subject.make(
                "onnx-mixed-precision", granularity="tensor", fidelity=0.98, float_weights=kind
            ).data
        )
        for kind in ("int8", "float32")
    }
    assert sizes["int8"] < sizes["float32"]


def test_a_fidelity_that_no_layer_keeps_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"the least sensitive layer, .* 1 is asked for"):
        broken_in_one_layer().make("onnx-mixed-precision", fidelity=1.0)


def test_large_models_are_measured_in_groups() -> None:
    made = digits_cnn().make("onnx-mixed-precision", fidelity=0.9, groups=2)
    assert made.notes["onnx-mixed-precision"]["evaluations"] == 3
    assert [entry["layer"].count(" ") for entry in made.notes["sensitivity"]] == [1, 1]


@given(count=st.integers(1, 40), groups=st.integers(1, 50))
def test_groups_are_neighbours_of_even_sizes(count: int, groups: int) -> None:
    made = mixed_precision.grouped(list(range(count)), groups)
    assert [item for group in made for item in group] == list(range(count))
    assert len(made) == min(count, groups)
    assert max(map(len, made)) - min(map(len, made)) <= 1


@given(highest=st.integers(1, 200), threshold=st.integers(0, 200))
def test_the_largest_count_is_found_in_few_trials(highest: int, threshold: int) -> None:
    tried = []

    def keeps(count: int) -> bool:
        tried.append(count)
        return count <= threshold

    assert mixed_precision.largest(highest, keeps) == min(highest, threshold)
    assert len(tried) == len(set(tried)) <= 9


def test_settings_are_the_same_for_all_static_steps() -> None:
    names = set(Settings.__struct_fields__)
    assert names < set(onnx_int8.StaticOptions.__struct_fields__)
    assert names < set(mixed_precision.MixedOptions.__struct_fields__)
