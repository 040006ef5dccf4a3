"""Training with Keras. Runs in the job's process.

A model takes one row of raw values: scaling and, for pictures, the reshape are layers of its
graph. Classes are the label's values, sorted; a label that is a measure makes a regression with
one output, its scale folded into a last layer.
"""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_cloud.datasets.content import is_classes
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.training.trainers import CnnParameters, Fitted, MlpParameters, Progress
from edgefleet_cloud.values import Json
from edgefleet_converters.answers import class_indices, label_text
from edgefleet_converters.tables import Column, Table


def fit_cnn(
    table: Table, label: str, parameters: Json, seed: int, folder: Path, progress: Progress
) -> Fitted:
    """Fit a convolutional classifier; see `trainers.Fit`."""
    settings = msgspec.convert(parameters, CnnParameters)
    if not is_classes(table.column(label)):
        raise InvalidError(f"keras-cnn classifies; {label!r} is a measure: use keras-mlp")
    progress(0.0, "loading TensorFlow")
    keras = _keras(seed)
    layers = keras.layers
    rows, classes, target = _rows_and_target(table, label)
    assert classes is not None
    assert settings.image_shape is not None
    low, high = float(rows.min()), float(rows.max())
    scale = 1.0 / ((high - low) or 1.0)
    inputs = keras.Input((rows.shape[1],), name="row")
    hidden = layers.Rescaling(scale, -low * scale)(inputs)
    hidden = layers.Reshape(settings.image_shape)(hidden)
    for index, filters in enumerate(settings.filters):
        hidden = layers.Conv2D(filters, 3, padding="same", activation="relu")(hidden)
        if index and min(hidden.shape[1:3]) > 1:
            hidden = layers.MaxPooling2D()(hidden)
    hidden = layers.Dense(settings.dense, activation="relu")(layers.Flatten()(hidden))
    hidden = layers.Dropout(settings.dropout)(hidden)
    outputs = layers.Dense(len(classes), activation="softmax", name="probabilities")(hidden)
    model = keras.Model(inputs, outputs)
    facts = _train(
        keras, model, rows, target, "sparse_categorical_crossentropy", settings, progress
    )
    return _saved(model, folder, classes, facts)


def fit_mlp(
    table: Table, label: str, parameters: Json, seed: int, folder: Path, progress: Progress
) -> Fitted:
    """Fit a dense classifier or regressor; see `trainers.Fit`."""
    settings = msgspec.convert(parameters, MlpParameters)
    progress(0.0, "loading TensorFlow")
    keras = _keras(seed)
    layers = keras.layers
    rows, classes, target = _rows_and_target(table, label)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = 1.0 / np.where(deviation > 0, deviation, 1.0)
    inputs = keras.Input((rows.shape[1],), name="row")
    hidden = layers.Rescaling(scale.tolist(), (-mean * scale).tolist())(inputs)
    for units in settings.units:
        hidden = layers.Dense(units, activation="relu")(hidden)
    if classes is not None:
        outputs = layers.Dense(len(classes), activation="softmax", name="probabilities")(hidden)
        loss = "sparse_categorical_crossentropy"
    else:
        # The network learns a value of unit scale; a layer that is not trained gives it its own.
        spread = float(target.std()) or 1.0
        hidden = layers.Dense(1)(hidden)
        outputs = layers.Rescaling(spread, float(target.mean()), name="value")(hidden)
        loss = "mean_squared_error"
    model = keras.Model(inputs, outputs)
    facts = _train(keras, model, rows, target, loss, settings, progress)
    return _saved(model, folder, classes, facts)


def _keras(seed: int) -> Any:
    # Read by TensorFlow when it is imported: no banner, no list of missing GPUs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    keras.utils.set_random_seed(seed)
    return keras


def _rows_and_target(
    table: Table, label: str
) -> tuple[NDArray[np.float32], list[str] | None, NDArray[Any]]:
    """Return features `(n, n_features)`, class names (None for a measure) and targets `(n,)`."""
    rows = table.without(label).matrix().astype(np.float32)
    if not np.isfinite(rows).all():
        raise InvalidError(
            "Keras trainers need every feature in every row; fill the gaps, or use"
            " sklearn with HistGradientBoosting"
        )
    cells = table.column(label)
    if not is_classes(cells):
        return rows, None, table.numbers(label).astype(np.float32)
    classes = _classes(cells)
    return rows, classes, class_indices(cells, classes)


def _classes(cells: Column) -> list[str]:
    values = np.unique(cells.astype(str) if cells.dtype == object else cells)
    if len(values) < 2:
        raise InvalidError(f"the label has only the value {values[0]!r}; there is nothing to learn")
    return [label_text(value) for value in values]


def _train(
    keras: Any,
    model: Any,
    rows: NDArray[np.float32],
    target: NDArray[Any],
    loss: str,
    settings: CnnParameters | MlpParameters,
    progress: Progress,
) -> dict[str, float]:
    model.compile(keras.optimizers.Adam(settings.learning_rate), loss)

    def report(epoch: int, logs: dict[str, float]) -> None:
        text = f"epoch {epoch + 1} of {settings.epochs}, loss {logs['loss']:.4f}"
        progress(0.2 + 0.8 * (epoch + 1) / settings.epochs, text)

    started = time.monotonic()
    history = model.fit(
        rows,
        target,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
    )
    losses = history.history["loss"]
    if not np.isfinite(losses[-1]):
        raise InvalidError("the loss is no longer a number; try a lower learning_rate")
    seconds = round(time.monotonic() - started, 3)
    return {"train_loss": float(losses[-1]), "epochs": float(len(losses)), "train_s": seconds}


def _saved(model: Any, folder: Path, classes: list[str] | None, facts: dict[str, float]) -> Fitted:
    path = folder / "model.keras"
    model.save(path)
    return Fitted(path, classes, facts)
