"""Keras → ONNX and TFLite, all of it in one child process, because importing TensorFlow is slow.

The model that is converted ends in probabilities: a softmax is put behind logits, and a sigmoid p
of one value becomes the two columns 1 - p and p, so that every classifier gives a row of class
probabilities. Preprocessing layers stay in the graph.
"""

import os
import time
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters import child, keras_onnx, keras_tflite, prune
from edgefleet_converters.answers import class_names
from edgefleet_converters.errors import BadInputError, ConversionError, UnsupportedError
from edgefleet_converters.exports import Export, Made
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.tables import Column, Table
from edgefleet_protocol.manifest import Task

# Made by this route; `onnx-int8` is made from `onnx-fp32` without TensorFlow. Pruned variants come
# last, because pruning changes the model that the others are made from.
ROUTES = ["onnx-fp32", "tflite-fp32", "tflite-int8", "onnx-pruned", "tflite-pruned"]


class KerasOptions(Struct, frozen=True):
    """How to export.

    Attributes:
        variants: out of `ROUTES`.
        training_rows: the first rows of the table, on which is calibrated and fine-tuned.
        classes: names of the classes, if they were given.
        sparsity: share of weights that pruning sets to zero.
        seed: of the fine-tuning.
    """

    variants: list[str]
    training_rows: int
    classes: list[str] | None
    sparsity: float
    seed: int


def export(file: ModelFile, table: Table, labels: Column | None, options: KerasOptions) -> Export:
    """Convert a Keras model to the asked-for variants and predict all rows with the original.

    Reports the name of each variant before it is begun, so that the parent knows which one
    crashed the converter.

    Args:
        file: the `.keras` file.
        table: feature rows, without the label.
        labels: of the rows, if there are any.
        options: what to make, and how.

    Raises:
        BadInputError: the file or the rows cannot be used.
        UnsupportedError: a form of model that cannot be shipped.
    """
    clock = _Clock()
    keras = _import_keras(options.seed)
    clock.lap("import TensorFlow")
    loaded = _load(keras, file)
    shape = _input_shape(file, loaded, table)
    task, model = _with_probabilities(keras, loaded, labels)
    rows = table.matrix().astype(np.float32).reshape(-1, *shape)
    scores = _predict(model, rows)
    clock.lap("predict")
    classes = (
        class_names(scores.shape[1], labels, options.classes) if task == "classification" else []
    )
    made: dict[str, Made] = {}
    refused: dict[str, str] = {}
    training = rows[: options.training_rows]
    pruned = False
    for position, name in enumerate(options.variants):
        child.report(position / len(options.variants), name)
        if name.endswith("pruned") and not pruned:
            prune.prune(model, training, scores[: len(training)], task, options.sparsity)
            pruned = True
            clock.lap("prune and fine-tune")
        try:
            if name.startswith("onnx"):
                made[name] = keras_onnx.convert(model, shape, table.names, task, classes)
            else:
                calibration = training if name.endswith("int8") else None
                made[name] = keras_tflite.convert(
                    model, shape, calibration, table.names, task, classes
                )
        except ConversionError as error:
            refused[name] = str(error)
        clock.lap(name)
    return Export(
        task, table.names, classes, scores, made, refused, "onnx-fp32" in made, clock.seconds
    )


class _Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 3)
        self._last = now


def _import_keras(seed: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU would only change the last bits
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise UnsupportedError(
            "converting a Keras model needs TensorFlow: install edgefleet-converters[keras]"
        ) from error
    tf.config.threading.set_inter_op_parallelism_threads(2)
    keras.utils.set_random_seed(seed)
    return keras


def _load(keras: Any, file: ModelFile) -> Any:
    try:
        model = keras.models.load_model(file.path, compile=False, safe_mode=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:400]
        raise UnsupportedError(
            f"{file.path}: Keras cannot build the model without code of yours (a Lambda or custom"
            f" layer?), or the file is damaged: {text}"
        ) from error
    except (OSError, KeyError) as error:
        raise BadInputError(f"{file.path}: damaged, or no .keras file: {error}") from error
    for side, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            raise UnsupportedError(
                f"{file.path}: the model has {len(tensors)} {side}s; expected one"
            )
    return model


def _input_shape(file: ModelFile, model: Any, table: Table) -> tuple[int, ...]:
    shape = tuple(model.inputs[0].shape[1:])
    if None in shape:
        raise UnsupportedError(
            f"{file.path}: the input has the shape {(None, *shape)}; expected fixed sizes after the"
            " batch"
        )
    if int(np.prod(shape)) != len(table.names):
        raise BadInputError(
            f"{file.path}: the input takes {int(np.prod(shape))} values a row {shape};"
            f" {table.source} has {len(table.names)} columns besides the label"
        )
    return tuple(int(size) for size in shape)


def _with_probabilities(keras: Any, model: Any, labels: Column | None) -> tuple[Task, Any]:
    """Tell the task from the last layer, and return the model with probabilities as its output."""
    output = model.outputs[0]
    if len(output.shape) != 2:
        raise UnsupportedError(
            f"the model's output has the shape {tuple(output.shape)}; expected one row of scores"
            " for each row"
        )
    activation = model.layers[-1]
    while getattr(activation, "layers", None):
        activation = activation.layers[-1]
    last = getattr(getattr(activation, "activation", None), "__name__", "")
    if not last:
        last = type(activation).__name__.lower()
    width = output.shape[1]
    task: Task = "classification"
    if width == 1 and last == "sigmoid":
        output = keras.layers.Concatenate(name="probabilities")([1.0 - output, output])
    elif width > 1 and last == "sigmoid":
        raise UnsupportedError("the model predicts several labels at once (sigmoid); expected one")
    elif width > 1 and last != "softmax" and labels is not None:
        output = keras.layers.Softmax(name="probabilities")(output)
    elif last != "softmax":
        task = "regression"
    # A functional model around it: tf2onnx cannot read a Sequential of Keras 3.
    return task, keras.Model(model.inputs, output)


def _predict(model: Any, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    scores = np.asarray(model.predict(rows, batch_size=512, verbose=0), np.float64)
    if not np.isfinite(scores).all():
        raise BadInputError(
            "the original model gives scores that are not finite for rows of the sample"
        )
    return scores
