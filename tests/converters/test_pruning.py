"""Pruning: masks, choice of channels, and networks that are really smaller."""

import importlib.util

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgefleet_converters import child
from edgefleet_converters.steps import tflite_graph
from edgefleet_converters.steps.pruning import (
    ChannelOptions,
    choose,
    magnitude_mask,
    two_in_four_mask,
)
from edgefleet_converters.steps.registry import Model
from tests.converters import keras_steps
from tests.converters.keras_steps import Chains, Pruned

FLOAT = ("keras-to-tflite", {})
CHAINS: Chains = {
    "float": [FLOAT],
    "half": [("prune-channels", {"epochs": 6}), FLOAT],
    "half again": [("prune-channels", {"epochs": 6}), FLOAT],
    "network": [
        ("prune-channels", {"keep": 0.6, "scope": "network", "importance": "taylor", "epochs": 4}),
        FLOAT,
    ],
    "bn-gamma": [("prune-channels", {"importance": "bn-gamma", "multiple": 4, "epochs": 0})],
    "weights": [("prune-weights", {"sparsity": 0.5, "epochs": 10}), FLOAT],
    "2 in 4": [("prune-2-in-4", {"epochs": 10}), FLOAT],
    "one channel": [("prune-channels", {"keep": 0.99, "multiple": 64, "epochs": 0})],
}


@pytest.fixture(scope="module")
def pruned() -> Pruned:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs edgefleet-converters[keras]")
    return child.run("pruning", keras_steps.prune, CHAINS, returns=Pruned)


def accuracy(model: Model) -> float:
    images, labels = keras_steps.digits()
    interpreter = Interpreter(model_content=model.data, num_threads=1)
    taken, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    held = images[keras_steps.TRAINING_ROWS :]
    interpreter.resize_tensor_input(taken["index"], held.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], held)
    interpreter.invoke()
    scores = interpreter.get_tensor(answer["index"])
    return float((scores.argmax(axis=1) == labels[keras_steps.TRAINING_ROWS :]).mean())


def kernels(model: Model) -> list[NDArray[np.float32]]:
    """Return the float32 weights of two axes and more in a TFLite file."""
    graph = tflite_graph.read(model.data)
    found = []
    for tensor in tflite_graph.tensors(graph):
        data = graph.buffers[tensor.buffer].data
        if data is not None and tensor.type == tflite_graph.FLOAT32 and len(tensor.shape) > 1:
            found.append(np.frombuffer(bytes(data), np.float32).reshape(tensor.shape))
    return found


def test_pruned_channels_make_a_smaller_file_that_is_still_right(pruned: Pruned) -> None:
    models = pruned.made.models
    before = accuracy(models["float"])
    assert before > 0.95
    assert len(models["half"].data) < 0.4 * len(models["float"].data)
    assert len(models["network"].data) < 0.8 * len(models["float"].data)
    for name in ("half", "network"):
        assert accuracy(models[name]) > before - 0.06
    facts = models["half"].notes["prune-channels"]
    assert (facts["channels"], facts["kept"]) == (48, 24)  # 16 tied by the sum, 32 of the dense
    assert facts["weights_kept"] < 0.4 * facts["weights"]


def test_equal_input_gives_equal_bytes(pruned: Pruned) -> None:
    models = pruned.made.models
    assert models["half"].data == models["half again"].data


def test_half_by_scales_of_normalization_keeps_multiples_of_four(pruned: Pruned) -> None:
    assert pruned.made.models["bn-gamma"].format == "keras"
    assert pruned.made.models["bn-gamma"].notes["prune-channels"]["kept"] == 24


def test_channels_that_cannot_be_taken_out_are_refused(pruned: Pruned) -> None:
    assert pruned.made.refused == {
        "one channel": "UnsupportedError: its layers have too few channels to take any out"
    }


def test_half_of_the_weights_are_zero_after_pruning_them(pruned: Pruned) -> None:
    model = pruned.made.models["weights"]
    for kernel in kernels(model):
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert accuracy(model) > accuracy(pruned.made.models["float"]) - 0.08


def test_two_of_every_four_inputs_are_zero(pruned: Pruned) -> None:
    model = pruned.made.models["2 in 4"]
    eligible = [kernel for kernel in kernels(model) if kernel.shape[-1] % 4 == 0]
    assert len(eligible) == 3  # of the first convolution's one input there are no four
    for kernel in eligible:  # TFLite keeps the inputs last
        fours = kernel.reshape(-1, 4)
        assert ((fours == 0).sum(axis=1) >= 2).all()
    assert accuracy(model) > accuracy(pruned.made.models["float"]) - 0.05


@pytest.mark.parametrize("name", ["mobile", "branches", "gated", "two inputs"])
def test_a_network_without_silent_channels_answers_the_same(pruned: Pruned, name: str) -> None:
    rebuilt = pruned.rebuilt[name]
    assert rebuilt.free >= 12
    assert rebuilt.left < 0.7 * rebuilt.weights
    assert rebuilt.difference < 1e-5


def test_layers_outside_the_rules_keep_their_channels(pruned: Pruned) -> None:
    assert pruned.rebuilt["unknown"].free == 0
    assert pruned.rebuilt["unknown"].left == pruned.rebuilt["unknown"].weights


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.5, 4), (0.49, 3), (0.01, 0), (0.99, 7)])
def test_the_mask_takes_the_smallest_weights(sparsity: float, zeros: int) -> None:
    weights = np.array([[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, 0.1]])
    kept = magnitude_mask(weights, sparsity)
    assert (kept == 0).sum() == zeros
    assert zeros == 0 or np.abs(weights[kept == 0]).max() <= np.abs(weights[kept == 1]).min()


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4).map(lambda n: 4 * n), st.integers(1, 5)),
        elements=st.floats(-2, 2, width=32),
    )
)
def test_two_in_four_keeps_the_two_largest_along_the_inputs(weights: NDArray[np.float32]) -> None:
    mask = two_in_four_mask(weights)
    sizes, kept = (np.moveaxis(values, -2, -1).reshape(-1, 4) for values in (abs(weights), mask))
    assert (kept.sum(axis=1) == 2).all()
    for size, keep in zip(sizes, kept, strict=True):
        assert size[keep == 1].min() >= size[keep == 0].max()


FREE = {place: [("a" if place < 4 else "b", place)] for place in range(12)}
RISING = {place: float(place) for place in FREE}


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (ChannelOptions(keep=0.5), {0, 1, 4, 5, 6, 7}),
        (ChannelOptions(keep=0.51), {0, 4, 5, 6}),
        (ChannelOptions(keep=0.01), {0, 1, 2, 4, 5, 6, 7, 8, 9, 10}),
        (ChannelOptions(keep=0.5, multiple=4), {4, 5, 6, 7}),
        (ChannelOptions(keep=0.5, scope="network"), {0, 1, 2, 4, 5}),
    ],
)
def test_the_least_important_channels_of_each_group_go(
    options: ChannelOptions, gone: set[int]
) -> None:
    assert choose(FREE, RISING, options) == gone
