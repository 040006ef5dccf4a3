"""Training by the original's answers, for the steps that prune and distil.

1. The original's scores are the teacher: they need no labels and pull towards what verification
   asks for. Labels, where there are any, are mixed in.
2. Training is seeded, uses TensorFlow's deterministic operators and counts epochs, never seconds:
   equal input gives equal weights.
3. The loss of classes is that of Hinton et al. (https://arxiv.org/abs/1503.02531),
   `w · CE(label, q) + (1 - w) · T² · CE(p^(1/T), q^(1/T))`, written with probabilities, because
   models end in them: the softmax of logits / T is `p^(1/T)`, made to sum to 1.
4. The loss of values is the mean squared error by the spread of the original's scores.
"""

from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgefleet_converters import keras_files
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Context, Model

Epochs = Annotated[int, Meta(ge=0, le=1000)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=1, le=100)]

_TINY = 1e-7
# Batch normalization's statistics follow within tens of steps, not hundreds: these trainings are
# short, and networks are judged by those statistics.
_MOMENTUM = 0.9


class Settings(Struct, frozen=True):
    """How to train.

    Attributes:
        epochs: passes over the rows.
        learning_rate: of Adam at the start; it falls to 0 by half a cosine.
        label_weight: share of the labels in the loss; 0 without labels.
        temperature: that softens the scores of classes.
        batch_rows: rows of a step.
    """

    epochs: int
    learning_rate: float = 1e-3
    label_weight: float = 0.0
    temperature: float = 1.0
    batch_rows: int = 32


def read(model: Model, context: Context) -> Any:
    """Return the Keras model, seeded for what follows.

    Raises:
        UnsupportedError: it has more outputs than its scores.
    """
    network = keras_files.read(model.data)
    if len(network.outputs) != 1:
        raise UnsupportedError(f"the model has {len(network.outputs)} outputs; training needs one")
    keras_files.import_keras(context.seed)
    return network


def inputs_of(model: Model, context: Context) -> list[NDArray[np.generic]]:
    """Return the training rows, one array for each input of the model, in its order."""
    bound = context.samples.bind(model.signature)
    return [bound[tensor.name] for tensor in model.signature.inputs]


def train(
    network: Any,
    rows: list[NDArray[np.generic]],
    context: Context,
    settings: Settings,
    callbacks: list[Any] | None = None,
) -> None:
    """Fit a Keras model to the original's scores, and to labels, in place.

    Args:
        network: with probabilities or values as its one output.
        rows: one array `(n, …)` for each input.
        context: with the scores of these rows.
        settings: of the training.
        callbacks: of Keras.
    """
    keras = keras_files.import_keras(context.seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOMENTUM)
    targets, loss = _objective(keras, context, tuple(network.outputs[0].shape[1:]), settings)
    count = len(targets)
    steps = max(1, settings.epochs * -(-count // settings.batch_rows))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    network.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    network.fit(
        rows if len(rows) > 1 else rows[0],
        targets,
        epochs=settings.epochs,
        batch_size=settings.batch_rows,
        verbose=0,
        callbacks=callbacks or [],
    )


def _objective(
    keras: Any, context: Context, shape: tuple[int, ...], settings: Settings
) -> tuple[NDArray[np.float32], Any]:
    """Return targets `(n, …)` and the loss between them and the model's output."""
    scores = context.scores
    weight = settings.label_weight if context.labels is not None else 0.0
    if context.task != "classification":
        scores = scores.reshape(-1, *shape)
        spread = max(float(np.var(scores)), _TINY)
        if weight and context.labels is not None and scores[0].size == 1:
            scores = (1 - weight) * scores + weight * context.labels.reshape(scores.shape)
        return scores.astype(np.float32), lambda y, q: keras.ops.mean((y - q) ** 2) / spread
    width = scores.shape[1]
    labels = np.zeros_like(scores)
    if weight and context.labels is not None:
        known = (context.labels >= 0) & (context.labels < width)
        labels[np.flatnonzero(known), context.labels[known].astype(np.int64)] = 1
    soft = _softened(scores, settings.temperature)
    square = settings.temperature**2

    def loss(y: Any, q: Any) -> Any:
        teacher, truth = y[:, :width], y[:, width:]
        logs = keras.ops.log(keras.ops.clip(q, _TINY, 1.0))
        softened = keras.ops.log_softmax(logs / settings.temperature)
        by_teacher = -keras.ops.sum(teacher * softened, axis=-1) * square
        by_label = -keras.ops.sum(truth * logs, axis=-1)
        return keras.ops.mean((1 - weight) * by_teacher + weight * by_label)

    return np.concatenate([soft, labels], axis=1).astype(np.float32), loss


def _softened(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    powers = np.clip(scores, 0, None) ** (1 / temperature)
    return np.asarray(powers / np.maximum(powers.sum(axis=1, keepdims=True), _TINY))
