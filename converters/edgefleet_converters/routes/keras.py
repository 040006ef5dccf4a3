"""Keras 3 models (`.keras`), and HDF5 files of whole models (`.h5`) that older versions wrote.

The base is the model with class probabilities as its scores: a softmax is put behind logits, and a
sigmoid p of one value becomes the two columns 1 - p and p, so that every classifier gives a row of
class probabilities. Preprocessing layers stay in the graph, further outputs too.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import keras_files, runners
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes import ports
from edgefleet_converters.routes.clock import Clock
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.rows import Tensors

# Names that Keras makes up for inputs. A single such input is called as scikit-learn's models call
# theirs.
_MADE_UP = re.compile(r"(input_layer|keras_tensor|input|inputs|args)(_\d+)?")
_ONLY_INPUT = "X"


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Open a Keras model and predict all samples with it. Call this in a child process.

    Args:
        file: `.keras`, or an HDF5 file of a whole model.
        samples: rows, or tensors in the order of the model's inputs.
        hints: of the person.

    Raises:
        BadInputError: the file or the samples cannot be used.
        UnsupportedError: a form of model that cannot be shipped.
    """
    clock = Clock()
    keras = keras_files.import_keras(hints.seed)
    clock.lap("import TensorFlow")
    model = keras_files.read(Path(file.path).read_bytes(), file.path)
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise UnsupportedError(
            f"{file.path}: the model is not built: its inputs have no shapes; call it once on a"
            " batch before saving it"
        )
    clock.lap("load")
    found = _inputs(model)
    inputs = ports.fill(file.path, found, samples)
    names = [tensor.name for tensor in found]
    # A functional model around it: tf2onnx cannot read a Sequential of Keras 3.
    ordered = [model.inputs[names.index(tensor.name)] for tensor in inputs]
    model = keras.Model(ordered, model.outputs)
    outputs = _outputs(model)
    score = ports.choose_score(file.path, outputs, hints.score_output)
    signature = Signature("score", inputs, outputs, score)
    tensors = samples.bind(signature)
    scores = predict(model, signature, tensors)
    position = [tensor.name for tensor in outputs].index(score)
    probabilities = _probabilities(keras, model.outputs[position], scores, signature, hints)
    if probabilities is not None:
        given = list(model.outputs)
        given[position] = probabilities
        model = keras.Model(ordered, given)
        outputs = _outputs(model)
        signature = Signature("score", inputs, outputs, outputs[position].name)
        scores = predict(model, signature, tensors)
    clock.lap("predict")
    data = keras_files.write(model)
    clock.lap("save")
    return ports.opened(Model("keras", data, signature), scores, hints, clock.seconds)


def predict(model: Any, signature: Signature, tensors: Tensors) -> NDArray[np.float64]:
    """Return the scores of a Keras model, `(n, width)` float64.

    Args:
        model: functional.
        signature: of it, inputs and outputs in its order.
        tensors: bound to the signature.
    """
    import tensorflow as tf

    position = [tensor.name for tensor in signature.outputs].index(signature.score_output)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def call(given: list[Any]) -> Any:
        answers = model(given if len(given) > 1 else given[0], training=False)
        return answers[position] if isinstance(answers, list | tuple) else answers

    def run(piece: Tensors) -> NDArray[np.generic]:
        answer: NDArray[np.generic] = call([tf.constant(array) for array in piece.values()]).numpy()
        return answer

    fixed = model.inputs[0].shape[0]
    rows = len(next(iter(tensors.values())))
    return runners.in_pieces(tensors, fixed or min(rows, runners.BATCH_ROWS), run)


def _inputs(model: Any) -> list[Tensor]:
    names = _distinct([tensor.name for tensor in model.inputs])
    if len(names) == 1 and _MADE_UP.fullmatch(names[0]):
        names = [_ONLY_INPUT]
    return [
        Tensor(name, tensor.dtype, [None, *map(_size, tensor.shape[1:])])
        for name, tensor in zip(names, model.inputs, strict=True)
    ]


def _outputs(model: Any) -> list[Tensor]:
    names = _distinct(list(model.output_names))
    return [
        Tensor(name, tensor.dtype, [None, *map(_size, tensor.shape[1:])])
        for name, tensor in zip(names, model.outputs, strict=True)
    ]


def _size(size: Any) -> int | None:
    return None if size is None else int(size)


def _distinct(names: list[str]) -> list[str]:
    """Return the names, numbered from the second of its kind on."""
    found: list[str] = []
    for name in names:
        taken, number = name, 1
        while taken in found:
            taken, number = f"{name}_{number}", number + 1
        found.append(taken)
    return found


def _probabilities(
    keras: Any, output: Any, scores: NDArray[np.float64], signature: Signature, hints: Hints
) -> Any:
    """Return the class probabilities behind an output; None where it stays as it is.

    Args:
        keras: the module.
        output: the symbolic tensor of the scores.
        scores: what it is for the samples.
        signature: of the model.
        hints: with the labels, if there are any.
    """
    width = scores.shape[1]
    is_settled = ports.are_probabilities(scores) or ports.is_reconstruction(signature, hints)
    if len(output.shape) != 2 or is_settled:
        return None
    last = _last_activation(output)
    if width == 1:
        if last != "sigmoid":
            return None
        return keras.layers.Concatenate(name="probabilities")([1.0 - output, output])
    if hints.labels is None:
        return None
    if last == "sigmoid":
        raise UnsupportedError("the model predicts several labels at once (sigmoid); expected one")
    return keras.layers.Softmax(name="probabilities")(output)


def _last_activation(output: Any) -> str:
    """Return the name of the activation that gives an output, looking into nested models."""
    history = output._keras_history
    operation = history.operation
    while getattr(operation, "outputs", None) and getattr(operation, "layers", None):
        history = operation.outputs[history.tensor_index]._keras_history
        operation = history.operation
    name = getattr(getattr(operation, "activation", None), "__name__", "")
    return name or type(operation).__name__.lower()
