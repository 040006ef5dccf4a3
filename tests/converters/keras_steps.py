"""Steps on small Keras models, for the tests: everything with TensorFlow, in one child process."""

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from sklearn import datasets

from edgefleet_converters import keras_files
from edgefleet_converters.errors import ConversionError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import channels, registry
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_protocol.manifest import Signature, Tensor

TRAINING_ROWS = 1257
# That steps learn from: few, because these tests are to take seconds.
STEP_ROWS = 512
# Name → the steps behind the base, with their options.
Chains = dict[str, list[tuple[str, dict[str, Any]]]]


class Made(Struct):
    """What chains of steps made, or why they did not."""

    models: dict[str, Model]
    refused: dict[str, str]


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return `(1797, 8, 8, 1)` pictures from 0 to 1 and their digits, in a fixed random order."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return images, labels[order]


def make(chains: Chains) -> Made:
    """Train a small network on digits and carry out chains of steps on it."""
    base, context = _trained()
    return carry_out(base, context, chains)


def carry_out(base: Model, context: Context, chains: Chains) -> Made:
    """Carry out chains of steps on a model."""
    made = Made({"base": base}, {})
    for name, chain in chains.items():
        model = base
        try:
            for call, options in chain:
                step = registry.find(call)
                model = step.run(model, step.configure(options), context)
            made.models[name] = model
        except ConversionError as error:
            made.refused[name] = f"{type(error).__name__}: {error}"
    return made


def _trained() -> tuple[Model, Context]:
    keras = keras_files.import_keras(1)
    layers = keras.layers
    taken = layers.Input((8, 8, 1), name="X")
    left = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(taken)
    left = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(left))
    right = layers.Conv2D(16, 3, padding="same", activation="relu", name="second")(left)
    both = layers.MaxPooling2D(name="pool")(layers.Add(name="sum")([left, right]))
    given = layers.Dense(32, "relu", name="dense")(layers.Flatten(name="flat")(both))
    given = layers.Dense(10, "softmax", name="scores")(given)
    network = keras.Model(taken, given, name="digits")
    network.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    images, labels = digits()
    rows, right_answers = images[:TRAINING_ROWS], labels[:TRAINING_ROWS]
    network.fit(rows, right_answers, epochs=8, batch_size=64, verbose=0)
    scores = np.asarray(network.predict(rows, verbose=0, batch_size=256), np.float64)
    signature = Signature(
        "classification",
        [Tensor("X", "float32", [None, 8, 8, 1])],
        [Tensor("scores", "float32", [None, 10])],
        "scores",
        classes=[str(digit) for digit in range(10)],
    )
    few = slice(0, STEP_ROWS)
    samples = Samples("digits", None, {"X": rows[few]})
    truth = right_answers[few].astype(np.float64)
    context = Context("classification", samples, scores[few], truth, 3)
    return Model("keras", keras_files.write(network), signature), context


class Students(Struct):
    """What one process with TensorFlow made for the tests of distillation."""

    keras: Made
    others: dict[str, Made]


def distill(
    of_keras: Chains, student: Chains, others: dict[str, tuple[Model, Context]]
) -> Students:
    """Carry out chains on the small network, and one on each of the other models."""
    made = make(of_keras)
    return Students(made, {name: carry_out(*other, student) for name, other in others.items()})


class Rebuilt(Struct):
    """One network, with every second free channel silenced, and the same without those channels.

    Attributes:
        free: number of channels that could go.
        difference: largest between the answers of the two, by the largest answer.
        weights: of the network, and `left` of the smaller one.
    """

    free: int
    difference: float
    weights: int
    left: int


class Pruned(Struct):
    """What one process with TensorFlow made for the tests of pruning."""

    made: Made
    rebuilt: dict[str, Rebuilt]


def prune(chains: Chains) -> Pruned:
    """Carry out chains on the small network, and rebuild every topology without half of it."""
    made = make(chains)
    keras = keras_files.import_keras(5)
    return Pruned(made, {name: _rebuild(keras, build(keras)) for name, build in TOPOLOGIES.items()})


def _rebuild(keras: Any, network: Any) -> Rebuilt:
    rng = np.random.default_rng(0)
    for weight in network.weights:  # biases and statistics begin as zeros and ones
        weight.assign(rng.uniform(0.1, 1, weight.shape) * rng.choice([-1, 1], weight.shape))
        if "variance" in weight.name:
            weight.assign(np.abs(weight))
    found = channels.trace(network)
    gone = set(sorted(found.free)[::2])
    for layer in network.layers:
        if layer.weights:
            _silence(layer, found, gone)
    smaller = channels.without(keras, network, found, gone)
    rows = [rng.normal(size=(4, *shape[1:])).astype(np.float32) for shape in _shapes(network)]
    rows = rows if len(rows) > 1 else rows[0]
    before, after = (np.asarray(one(rows, training=False)) for one in (network, smaller))
    return Rebuilt(
        len(found.free),
        float(np.abs(before - after).max() / np.abs(before).max()),
        int(network.count_params()),
        int(smaller.count_params()),
    )


def _shapes(network: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in network.inputs]


def _silence(layer: Any, found: channels.Channels, gone: set[int]) -> None:
    """Make a layer give zeros for channels: the next one computes as if they were not there."""
    given = found.outputs[layer.name]
    stay = set(found.kept(given, gone).tolist())
    places = [place for place in range(len(given)) if place not in stay]
    for weight in layer.weights:
        values = np.array(weight)
        if weight.name in ("bias", "beta", "moving_mean"):
            values[places] = 0
        elif (
            weight.name in ("kernel", "pointwise_kernel")
            and "Depthwise" not in type(layer).__name__
        ):
            if "Transpose" in type(layer).__name__:
                values[..., places, :] = 0
            else:
                values[..., places] = 0
        weight.assign(values)


def _mobile(keras: Any) -> Any:
    """Depthwise and separable convolutions, and a global pooling."""
    layers = keras.layers
    taken = layers.Input((8, 8, 3))
    given = layers.Conv2D(8, 3, strides=2, padding="same")(taken)
    given = layers.ReLU()(layers.BatchNormalization()(given))
    given = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(given)
    given = layers.SeparableConv2D(12, 3, padding="same", depth_multiplier=2)(given)
    given = layers.PReLU(shared_axes=[1, 2])(layers.ZeroPadding2D()(given))
    given = layers.GlobalAveragePooling2D(keepdims=True)(given)
    return keras.Model(taken, layers.Dense(3)(layers.Reshape((12,))(given)))


def _branches(keras: Any) -> Any:
    """A residual sum over two stages and a concatenation of branches."""
    layers = keras.layers
    taken = layers.Input((8, 8, 1))
    stem = layers.Conv2D(8, 3, padding="same")(taken)
    inner = layers.Conv2D(6, 3, padding="same", activation="relu")(stem)
    stem = layers.Add()([stem, layers.Conv2D(8, 3, padding="same")(inner)])
    wide = layers.Concatenate()(
        [layers.Conv2D(4, 1)(stem), layers.Conv2D(6, 3, padding="same")(stem)]
    )
    wide = layers.MaxPooling2D()(layers.BatchNormalization()(wide))
    up = layers.Conv2DTranspose(4, 2, strides=2)(wide)
    flat = layers.Flatten()(layers.AveragePooling2D(2)(up))
    return keras.Model(taken, layers.Dense(5)(layers.Dense(16, "relu")(flat)))


def _gated(keras: Any) -> Any:
    """A squeeze-and-excitation gate: a dense layer's channels tied to a convolution's."""
    layers = keras.layers
    taken = layers.Input((6, 6, 2))
    given = layers.Conv2D(8, 3, activation="relu")(taken)
    gate = layers.Dense(4, "relu")(layers.GlobalMaxPooling2D()(given))
    gate = layers.Reshape((1, 1, 8))(layers.Dense(8)(gate))
    given = layers.Flatten()(layers.Multiply()([given, gate]))
    return keras.Model(taken, layers.Dense(2)(given))


def _two_inputs(keras: Any) -> Any:
    """Two inputs: a series and a row of features."""
    layers = keras.layers
    series, features = layers.Input((12, 2)), layers.Input((5,))
    one = layers.MaxPooling1D()(layers.Conv1D(6, 3, activation="relu")(series))
    both = layers.Concatenate()([layers.Flatten()(one), layers.Dense(4, "relu")(features)])
    return keras.Model([series, features], layers.Dense(1)(layers.Dense(8, "relu")(both)))


def _unknown(keras: Any) -> Any:
    """Layers that keep all their channels: shared, grouped, or before a normalization of layers."""
    layers = keras.layers
    taken = layers.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same")
    given = shared(shared(taken))
    given = layers.LayerNormalization()(layers.Conv2D(4, 1)(given))
    given = layers.Conv2D(8, 1, groups=2)(given)
    return keras.Model(taken, layers.Dense(2)(layers.GlobalAveragePooling2D()(given)))


TOPOLOGIES = {
    "mobile": _mobile,
    "branches": _branches,
    "gated": _gated,
    "two inputs": _two_inputs,
    "unknown": _unknown,
}
