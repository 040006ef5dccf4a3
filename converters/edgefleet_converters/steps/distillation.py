"""Distillation: a small student learns the scores of the original.

The original may be anything: a student learns from the scores in the context, so a forest can
become a small neural network that runs where trees are slow.

1. Inputs are made comparable while training, and the scaling goes into the first layer's weights
   afterwards. Conversion does the same with the normalization behind convolutions.
2. A student of named columns takes them as one input, in the original's order. Texts and missing
   values have no number, so models that take them have no student.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from edgefleet_converters import keras_files
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import channels, training
from edgefleet_converters.steps.pruning import ChannelOptions, choose
from edgefleet_converters.steps.registry import Context, Model, step
from edgefleet_converters.steps.training import Epochs, Rate, Settings, Share, Temperature
from edgefleet_protocol.manifest import Signature, Tensor

_HINTON = "https://arxiv.org/abs/1503.02531"
Width = Annotated[int, Meta(ge=1, le=4096)]
_TINY = 1e-6


class NarrowOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to train a narrower copy of a Keras model.

    Attributes:
        width: channels of each layer, as a share of the original's.
        epochs: passes over the rows.
        learning_rate: at the start.
        temperature: that softens the scores of classes.
        label_weight: share of the labels in the loss.
    """

    width: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    epochs: Epochs = 60
    learning_rate: Rate = 3e-3
    temperature: Temperature = 2.0
    label_weight: Share = 0.3


class StudentOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to train a small network of another kind.

    Attributes:
        architecture: dense layers, or convolutions for pictures and spectrograms.
        layers: widths of the dense layers, or channels of the convolutions; from the second
            convolution on they are depthwise separable and halve height and width.
        epochs: passes over the rows.
        learning_rate: at the start.
        temperature: that softens the scores of classes.
        label_weight: share of the labels in the loss.
        batch_rows: rows of a training step.
    """

    architecture: Literal["mlp", "cnn"] = "mlp"
    layers: Annotated[list[Width], Meta(min_length=1, max_length=16)] = field(
        default_factory=lambda: [32, 16]
    )
    epochs: Epochs = 60
    learning_rate: Rate = 5e-3
    temperature: Temperature = 2.0
    label_weight: Share = 0.3
    batch_rows: Annotated[int, Meta(ge=1, le=65_536)] = 64


@step("distill-narrow", takes="keras", gives="keras", reference=_HINTON, options=NarrowOptions)
def narrow(model: Model, options: NarrowOptions, context: Context) -> Model:
    """Train a copy of the network with fewer channels from nothing, by the original's scores.

    `prune-channels` begins with the original's weights and mostly ends better after fewer epochs;
    this finds another way where those weights hold it back.
    """
    keras = keras_files.import_keras(context.seed)
    network = training.read(model, context)
    found = channels.trace(network)
    if not found.free:
        raise UnsupportedError("no layer of the model has channels that can be made fewer")
    equal = dict.fromkeys(found.free, 1.0)
    gone = choose(found.free, equal, ChannelOptions(keep=options.width))
    student = channels.without(keras, network, found, gone, with_weights=False)
    settings = Settings(
        options.epochs, options.learning_rate, options.label_weight, options.temperature
    )
    training.train(student, training.inputs_of(model, context), context, settings)
    facts = {"weights": int(network.count_params()), "weights_kept": int(student.count_params())}
    return msgspec.structs.replace(
        model, data=keras_files.write(student), notes=model.notes | {"distill-narrow": facts}
    )


@step(
    "distill",
    takes=("keras", "savedmodel", "onnx", "tflite"),
    gives="keras",
    reference=_HINTON,
    options=StudentOptions,
)
def student(model: Model, options: StudentOptions, context: Context) -> Model:
    """Train a small network of dense layers or convolutions by the original's scores.

    Pays where the original is of another kind, such as a forest of hundreds of trees, or far larger
    than its task asks for. Learns from the rows alone: give many.
    """
    signature = _signature(model.signature, context)
    values = np.asarray(context.samples.bind(signature)[signature.inputs[0].name], np.float64)
    if not np.isfinite(values).all():
        raise UnsupportedError("the rows have missing values; a student takes numbers only")
    keras = keras_files.import_keras(context.seed)
    shift, scale = _spread(values, options.architecture)
    shape = [size for size in signature.inputs[0].shape[1:] if size is not None]
    network = _network(keras, options, shape, context)
    targets = _Targets(context)
    settings = Settings(
        options.epochs,
        options.learning_rate,
        options.label_weight,
        options.temperature,
        options.batch_rows,
    )
    training.train(
        network, [((values - shift) / scale).astype(np.float32)], targets.context, settings
    )
    _fold_inputs(network, shift, scale, options.architecture)
    targets.fold(network)
    facts = {"weights": int(network.count_params())}
    return Model("keras", keras_files.write(network), signature, model.notes | {"distill": facts})


def _signature(original: Signature, context: Context) -> Signature:
    """Return what the student takes and gives.

    Raises:
        UnsupportedError: texts, or several inputs that are not made of columns.
    """
    if any(tensor.dtype == "string" for tensor in original.inputs):
        raise UnsupportedError("the model takes texts; a student takes numbers only")
    if original.is_tabular:
        columns = original.columns
        taken = Tensor("X", "float32", [None, len(columns)], columns)
    elif len(original.inputs) == 1:
        taken = Tensor("X", "float32", [None, *original.inputs[0].shape[1:]])
    else:
        raise UnsupportedError(f"the model has {len(original.inputs)} inputs; a student takes one")
    width = context.scores.shape[1]
    return Signature(
        original.task,
        [taken],
        [Tensor("scores", "float32", [None, width])],
        "scores",
        classes=original.classes,
    )


def _network(keras: Any, options: StudentOptions, shape: list[int], context: Context) -> Any:
    last = "softmax" if context.task == "classification" else "linear"
    taken = keras.layers.Input(shape, name="X")
    body = _dense if options.architecture == "mlp" else _convolutions
    given = body(keras.layers, options.layers, shape, taken)
    given = keras.layers.Dense(context.scores.shape[1], last, name="scores")(given)
    return keras.Model(taken, given, name="student")


def _dense(layers: Any, widths: list[int], shape: list[int], given: Any) -> Any:
    if len(shape) > 1:
        given = layers.Flatten(name="flat")(given)
    for place, width in enumerate(widths):
        given = layers.Dense(width, "relu", name=f"dense_{place}")(given)
    return given


def _convolutions(layers: Any, widths: list[int], shape: list[int], given: Any) -> Any:
    """Return the mean over the picture of a stack of convolutions, each with a normalization.

    The first has no border of zeros, so that what is taken off its inputs can go into its bias.
    """
    if len(shape) != 3 or min(shape[:2]) < 3:
        raise UnsupportedError(
            f"rows have the shape {shape}; a cnn takes at least 3 x 3 values and their channels"
        )
    for place, width in enumerate(widths):
        name = f"convolution_{place}"
        if place == 0:
            given = layers.Conv2D(width, 3, name=name)(given)
        else:
            given = layers.SeparableConv2D(width, 3, 2, padding="same", use_bias=False, name=name)(
                given
            )
        given = layers.BatchNormalization(name=f"norm_{place}")(given)
        given = layers.ReLU(name=f"relu_{place}")(given)
    return layers.GlobalAveragePooling2D(name="pooled")(given)


def _spread(
    values: NDArray[np.float64], architecture: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is taken off and divided by: of each value, or of each channel of pictures."""
    axes = (0, 1, 2) if architecture == "cnn" else 0
    return values.mean(axis=axes), np.maximum(values.std(axis=axes), _TINY)


def _fold_inputs(
    network: Any, shift: NDArray[np.float64], scale: NDArray[np.float64], architecture: str
) -> None:
    """Put the scaling of the inputs into the first layer: W/σ, b - Σ W·μ/σ."""
    layer = next(layer for layer in network.layers if layer.weights)
    kernel, bias = (np.asarray(weight, np.float64) for weight in layer.weights)
    if architecture == "mlp":
        shift, scale = shift.reshape(-1), scale.reshape(-1)
    kernel = kernel / scale[:, np.newaxis]
    taken_off = (kernel * shift[:, np.newaxis]).reshape(-1, kernel.shape[-1]).sum(axis=0)
    layer.set_weights([kernel, bias - taken_off])


class _Targets:
    """Scores as they are learned: values are centred and scaled, probabilities are not.

    Attributes:
        context: with those scores.
    """

    def __init__(self, context: Context) -> None:
        self._is_values = context.task != "classification"
        self._centre = context.scores.mean(axis=0)
        self._scale = np.maximum(context.scores.std(axis=0), _TINY)
        self.context = context
        if self._is_values:
            self.context = replace(
                context,
                scores=(context.scores - self._centre) / self._scale,
                labels=self._scaled_labels(context.labels),
            )

    def _scaled_labels(self, labels: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        if labels is None or len(self._centre) != 1:
            return None
        return np.asarray((labels - self._centre[0]) / self._scale[0])

    def fold(self, network: Any) -> None:
        """Put the scaling of the scores into the last layer: W·σ, b·σ + μ."""
        if self._is_values:
            kernel, bias = (np.asarray(weight) for weight in network.layers[-1].weights)
            network.layers[-1].set_weights(
                [kernel * self._scale, bias * self._scale + self._centre]
            )
