"""Small TFLite files: compaction, cross-layer equalization, and biases in 8 bits."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_converters.compatibility import check
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import (
    registry,
    tflite_biases,
    tflite_compaction,
    tflite_equalization,
    tflite_graph,
)
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_converters.steps.tflite_equalization import Layer
from edgefleet_protocol.manifest import Signature, Tensor

NONE, RELU, RELU6 = 0, 1, 3
CONVOLUTION, DEPTHWISE, MEAN = 3, 4, 40
INT32 = 2
NOTES = (b"min_runtime_version", b"CONVERSION_METADATA")


def opened(data: bytes) -> Model:
    interpreter = Interpreter(model_content=data)
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    inputs = [Tensor(taken["name"], "float32", [None, *map(int, taken["shape"][1:])])]
    outputs = [Tensor(given["name"], "float32", [None, *map(int, given["shape"][1:])])]
    return Model("tflite", data, Signature("classification", inputs, outputs, given["name"]))


@pytest.fixture(scope="module")
def spotter(shared_models: Path) -> bytes:
    """Return a network of nine layers with ReLU and a dense one, with float32 weights."""
    data = (shared_models / "mlperf_tiny" / "kws_ref_model_float32.tflite").read_bytes()
    return tflite_graph.with_float_weights(data)


def run(name: str, data: bytes, **options: object) -> Model:
    step = registry.find(name)
    context = Context(
        "classification", Samples("none", None, {}), np.zeros((0, 1)), labels=None, seed=0
    )
    return step.run(opened(data), step.configure(dict(options)), context)


def answers(data: bytes, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    interpreter = Interpreter(model_content=data, num_threads=1)
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.allocate_tensors()
    found = []
    for row in rows:
        interpreter.set_tensor(taken["index"], row[np.newaxis])
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(found)


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 30, (20, 49, 10, 1)).astype(np.float32)


def changed(data: bytes, change: Callable[[Any], None]) -> bytes:
    graph = tflite_graph.read(data)
    change(graph)
    return tflite_graph.write(graph)


def stored(data: bytes) -> Any:
    """Return the object tree of a file as it is, with nothing filled in."""
    return schema.ModelT.InitFromPackedBuf(data, 0)


# -- compaction --------------------------------------------------------------------------------


def test_a_compact_file_answers_bit_for_bit_and_names_only_what_goes_in_and_out(
    spotter: bytes, rows: NDArray[np.float32]
) -> None:
    compact = tflite_compaction.compact(spotter)
    assert len(compact) < len(spotter) - 2000
    np.testing.assert_array_equal(answers(compact, rows), answers(spotter, rows))
    names = [tensor.name for tensor in stored(compact).subgraphs[0].tensors]
    assert [name for name in names if name is not None] == [b"input_1", b"Identity"]


def test_what_is_compact_stays_as_it_is(spotter: bytes) -> None:
    compact = tflite_compaction.compact(spotter)
    assert tflite_compaction.compact(compact) == compact


def test_notes_of_converters_go_and_metadata_of_others_stay(spotter: bytes) -> None:
    def annotate(graph: Any) -> None:
        graph.metadata = []
        for name in (*NOTES, b"TFLITE_METADATA"):
            entry = schema.MetadataT()
            entry.name = name
            entry.buffer = tflite_graph.added_buffer(graph, np.frombuffer(name, np.uint8))
            graph.metadata.append(entry)

    graph = stored(tflite_compaction.compact(changed(spotter, annotate)))
    assert [entry.name for entry in graph.metadata] == [b"TFLITE_METADATA"]
    held = graph.buffers[graph.metadata[0].buffer].data
    assert bytes(held) == b"TFLITE_METADATA"
    assert stored(tflite_compaction.compact(spotter)).metadata is None


def test_equal_tensors_are_one_table_and_others_are_not(spotter: bytes) -> None:
    model = schema.Model.GetRootAs(tflite_compaction.compact(spotter))
    part = model.Subgraphs(0)
    outputs = [
        part.Tensors(part.Operators(place).Outputs(0)) for place in range(part.OperatorsLength())
    ]
    places = {outputs[place]._tab.Pos for place in range(9)}
    assert len(places) == 1  # nine layers of 25 x 5 x 64
    assert outputs[9]._tab.Pos not in places  # the pooled ones: 1 x 1 x 64
    assert {list(tensor.ShapeAsNumpy())[-1] for tensor in outputs[9:]} == {64, 12}


def test_the_operator_used_most_comes_first_and_unused_ones_go(spotter: bytes) -> None:
    def add_unused(graph: Any) -> None:
        tflite_graph.code_of(graph, 114)  # QUANTIZE

    def codes(data: bytes) -> list[int]:
        return [code.builtinCode for code in tflite_graph.read(data).operatorCodes]

    before = codes(changed(spotter, add_unused))
    assert before[-1] == 114
    after = codes(tflite_compaction.compact(changed(spotter, add_unused)))
    assert after[:2] == [CONVOLUTION, DEPTHWISE]  # five and four
    assert sorted(after) == sorted(set(before) - {114})


def test_names_that_were_left_out_come_back_and_never_twice(spotter: bytes) -> None:
    def rename(graph: Any) -> None:
        part = graph.subgraphs[0]
        part.tensors[part.outputs[0]].name = b"t3"

    compact = tflite_compaction.compact(changed(spotter, rename))
    names = [tensor.name for tensor in stored(tflite_graph.plain(compact)).subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert (names[2], names[3]) == (b"t2", b"t3_")
    assert tflite_graph.plain(spotter) is spotter


# -- equalization ------------------------------------------------------------------------------


def dense(rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
    """Return a dense layer `(gives, takes)` whose channels differ by up to 100 times."""
    sizes = 10 ** rng.uniform(-2, 0, (shape[0], 1))
    return Layer(rng.normal(size=shape) * sizes, rng.normal(size=shape[0]), 0, 1)


def through(layers: list[Layer], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    for layer in layers:
        assert layer.bias is not None
        rows = np.maximum(rows @ layer.weights.T + layer.bias, 0)
    return rows


@given(seed=st.integers(0, 1000), widths=st.lists(st.integers(2, 9), min_size=3, max_size=6))
def test_layers_of_equal_channels_answer_alike(seed: int, widths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    shapes = zip(widths[1:], widths[:-1], strict=True)
    layers = [dense(rng, shape) for shape in shapes]
    inputs = rng.normal(size=(20, widths[0]))
    before = through(layers, inputs)
    tflite_equalization.even_out(list(pairwise(layers)))
    np.testing.assert_allclose(through(layers, inputs), before, rtol=1e-9, atol=1e-12)


def test_both_layers_get_channels_of_one_size() -> None:
    first = Layer(np.array([[4.0, -16.0], [1.0, 0.5]]), np.array([8.0, 8.0]), 0, 1)
    second = Layer(np.array([[1.0, 9.0]]), None, 0, 1)
    tflite_equalization.even_out([(first, second)])
    np.testing.assert_allclose(first.given(), [4.0, 3.0])
    np.testing.assert_allclose(second.taken(2), [4.0, 3.0])
    np.testing.assert_allclose(first.bias, [2.0, 24.0])


@pytest.mark.parametrize(("size", "left"), [(2.0**-10, True), (2.0**-10 * 1.001, False)])
def test_a_channel_that_is_as_good_as_dead_is_left_alone(size: float, left: bool) -> None:
    first = Layer(np.array([[1.0], [size]]), np.array([1.0, 1.0]), 0, 1)
    second = Layer(np.array([[1.0, 1.0]]), None, 0, 1)
    tflite_equalization.even_out([(first, second)])
    assert (first.given()[1] == size) == left


def test_pixels_that_are_flattened_share_the_factor_of_their_channel() -> None:
    rng = np.random.default_rng(1)
    first = Layer(rng.normal(size=(3, 1, 1, 2)), rng.normal(size=3), 0, 3)
    second = Layer(rng.normal(size=(4, 12)), None, 0, 1)
    pixels = rng.normal(size=(5, 4, 2))

    def answer() -> NDArray[np.float64]:
        assert first.bias is not None
        hidden = np.maximum(pixels @ first.weights[:, 0, 0].T + first.bias, 0)
        return np.asarray(hidden.reshape(5, 12) @ second.weights.T)

    before = answer()
    tflite_equalization.even_out([(first, second)])
    np.testing.assert_allclose(answer(), before)
    np.testing.assert_allclose(first.given(), second.taken(3), rtol=1e-3)


def test_an_equalized_file_answers_as_before(spotter: bytes, rows: NDArray[np.float32]) -> None:
    made = run("tflite-equalize", spotter)
    assert made.notes == {"tflite-equalize": {"pairs": 9}}
    np.testing.assert_allclose(answers(made.data, rows), answers(spotter, rows), atol=1e-5)
    assert run("tflite-equalize", spotter).data == made.data


def activate(place: int, kind: int) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph.subgraphs[0].operators[place].builtinOptions.fusedActivationFunction = kind

    return change


def show(place: int) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        part = graph.subgraphs[0]
        shown = part.operators[place].outputs[0]
        part.outputs = np.append(part.outputs, shown).astype(np.int32)

    return change


def average(*axes: int) -> Callable[[Any], None]:
    """Put a mean over some axes in the place of the pooling."""

    def change(graph: Any) -> None:
        part = graph.subgraphs[0]
        tensor = schema.TensorT()
        tensor.shape, tensor.type = np.array([len(axes)], np.int32), INT32
        tensor.buffer = tflite_graph.added_buffer(graph, np.array(axes, np.int32))
        part.tensors.append(tensor)
        operator = part.operators[9]
        operator.opcodeIndex = tflite_graph.code_of(graph, MEAN)
        operator.builtinOptions, operator.builtinOptionsType = schema.ReducerOptionsT(), 27
        operator.inputs = np.array([operator.inputs[0], len(part.tensors) - 1], np.int32)

    return change


def share_bias(graph: Any) -> None:
    first, second = (graph.subgraphs[0].operators[place] for place in (2, 4))
    second.inputs = np.array([*second.inputs[:2], first.inputs[2]], np.int32)


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        (activate(0, RELU), 9),
        (activate(0, NONE), 9),
        (activate(0, RELU6), 8),
        (activate(4, RELU6), 8),
        (show(3), 8),
        (share_bias, 5),  # neither of the two may change
        (average(1, 2), 9),
        (average(1, -1), 8),
    ],
    ids=["relu", "none", "clipped", "later", "shown", "shared bias", "mean", "mean of channels"],
)
def test_only_layers_whose_channels_are_free_are_paired(
    spotter: bytes, change: Callable[[Any], None], pairs: int
) -> None:
    graph = tflite_graph.read(changed(spotter, change))
    found = list(tflite_equalization._following(graph, graph.subgraphs[0]))
    assert len(found) == pairs


def test_a_network_without_two_layers_in_a_row_is_refused(spotter: bytes) -> None:
    def clip(graph: Any) -> None:
        for place in range(9):
            activate(place, RELU6)(graph)

    with pytest.raises(UnsupportedError, match="no two layers follow each other with nothing but"):
        run("tflite-equalize", changed(spotter, clip))


# -- biases ------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80))
def test_biases_come_back_within_a_step(values: list[float]) -> None:
    exact = np.array([*values, 1.0], np.float32)
    whole, scale, zero = tflite_biases.rounded(exact)
    assert -128 <= zero <= 127
    back = np.float64(scale) * (whole.astype(np.float64) - zero)
    # Half a step of its own, and half a step by which the range shifts so that 0 is exact.
    assert np.abs(back - exact).max() <= float(scale) * 1.001


def test_a_range_without_zero_is_extended_to_it() -> None:
    whole, scale, zero = tflite_biases.rounded(np.array([51.0, 102.0, 255.0], np.float32))
    assert (whole.tolist(), float(scale), zero) == ([-77, -26, 127], 1.0, -128)
    whole, scale, zero = tflite_biases.rounded(np.array([-255.0, -1.0], np.float32))
    assert (whole.tolist(), float(scale), zero) == ([-128, 126], 1.0, 127)


@pytest.mark.parametrize(
    ("values", "pays"),
    [
        (np.ones(48, np.float32), True),
        (np.ones(47, np.float32), False),
        (np.zeros(64, np.float32), False),
        (np.append(np.ones(63, np.float32), np.float32(np.nan)), False),
        (np.ones(64, np.int8), False),
    ],
)
def test_biases_are_rounded_where_that_saves_bytes(values: NDArray[np.generic], pays: bool) -> None:
    assert tflite_biases._pays(values) == pays


def test_a_bias_of_two_layers_is_turned_back_once(
    spotter: bytes, rows: NDArray[np.float32]
) -> None:
    shared = changed(spotter, share_bias)
    made = tflite_biases.store_in_8_bits(shared)
    graph = tflite_graph.read(made)
    kinds = [tflite_graph.kind_of(graph, one) for one in graph.subgraphs[0].operators]
    assert kinds.count(tflite_graph.DEQUANTIZE) == 8  # of nine layers of 64; the tenth has 12
    np.testing.assert_allclose(answers(made, rows), answers(shared, rows), atol=0.2)


def test_old_runtimes_take_small_files(spotter: bytes) -> None:
    small = run("tflite-weights", run("tflite-equalize", spotter).data, biases="int8").data
    graph = tflite_graph.read(small)
    versions = {code.builtinCode: code.version for code in graph.operatorCodes}
    assert versions[tflite_graph.DEQUANTIZE] == 2  # 5 only with a scale for each channel
    for runtime, release in (("tflite-runtime", "2.14.0"), ("ai-edge-litert", "2.3.0")):
        assert check.check(small, runtime, release).fits


def test_a_small_file_can_be_worked_on_again(spotter: bytes, rows: NDArray[np.float32]) -> None:
    small = run("tflite-weights", spotter, biases="int8").data
    again = run("tflite-float", small).data
    assert {tensor.type for tensor in tflite_graph.tensors(tflite_graph.read(again))} == {0, 2}
    np.testing.assert_allclose(answers(again, rows), answers(small, rows), atol=1e-5)


def test_a_converter_to_another_format_sees_float_weights(
    spotter: bytes, rows: NDArray[np.float32]
) -> None:
    small = run("tflite-weights", spotter, biases="int8").data
    plain = tflite_graph.plain(small)
    graph = tflite_graph.read(plain)
    kinds = {tflite_graph.kind_of(graph, one) for one in graph.subgraphs[0].operators}
    assert tflite_graph.DEQUANTIZE not in kinds
    np.testing.assert_allclose(answers(plain, rows), answers(small, rows), atol=1e-5)
