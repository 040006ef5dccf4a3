"""Keras models and SavedModels as one TensorFlow function, from which converters start.

1. The function takes the inputs of the signature in its order and under its names (as far as
   TensorFlow allows them), and gives the outputs in its order.
2. The batch is as free as in the source; sizes that the source leaves free are those of the
   signature, which has them from the samples.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgefleet_converters import keras_files, saved_models
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Model

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Graph:
    """A TensorFlow function.

    Attributes:
        call: `tf.function` with an input signature of `specs`; gives a list of tensors.
        specs: a `tf.TensorSpec` for each input.
    """

    call: Any
    specs: list[Any]


def load(data: bytes) -> Any:
    """Return the signature `serving_default` of a SavedModel, packed by `saved_models`.

    Raises:
        UnsupportedError: TensorFlow cannot load it, or it has no such signature.
    """
    keras_files.import_keras()
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        saved_models.unpack(data, folder)
        try:
            loaded = tf.saved_model.load(folder)
        except Exception as error:  # TensorFlow lets errors of protobuf, files and its own through
            text = " ".join(str(error).split())[:400]
            raise UnsupportedError(
                f"TensorFlow cannot load the SavedModel: {type(error).__name__}: {text}"
            ) from error
    known = list(loaded.signatures)
    if SIGNATURE not in known:
        raise UnsupportedError(
            f"the SavedModel has the signatures {', '.join(known) or 'none'}; expected {SIGNATURE}"
            " (Keras: model.export(folder))"
        )
    signature = loaded.signatures[SIGNATURE]
    signature.owner = loaded  # its variables live as long as what was loaded
    return signature


def graph(model: Model) -> Graph:
    """Return the function of a `keras` or `savedmodel` model."""
    if model.format == "keras":
        return of_keras(model, keras_files.read(model.data))
    signature = load(model.data)
    specs = signature.structured_input_signature[1]
    batches = [specs[tensor.name].shape[0] for tensor in model.signature.inputs]

    def call(*inputs: Any) -> list[Any]:
        names = (tensor.name for tensor in model.signature.inputs)
        found = signature(**dict(zip(names, inputs, strict=True)))
        return [found[tensor.name] for tensor in model.signature.outputs]

    return _frozen(call, specs_of(model, batches))


def of_keras(model: Model, source: Any, batch: int | None = None) -> Graph:
    """Return the function of a Keras model that was read.

    Args:
        model: that `source` was read from, or made from, with the same inputs and outputs.
        source: functional Keras model.
        batch: number of rows, fixed; None for that of the source.
    """

    def call(*inputs: Any) -> list[Any]:
        given = source(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
        return list(given) if isinstance(given, list | tuple) else [given]

    return _frozen(call, specs_of(model, [batch or tensor.shape[0] for tensor in source.inputs]))


def specs_of(model: Model, batches: list[int | None]) -> list[Any]:
    """Return a `tf.TensorSpec` for each input of the signature.

    Args:
        model: whose signature it is.
        batches: number of rows of each input; None for any.
    """
    import tensorflow as tf

    return [
        tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype, name=tensor_name(tensor.name))
        for tensor, batch in zip(model.signature.inputs, batches, strict=True)
    ]


def tensor_name(name: str) -> str:
    """Return a name that TensorFlow allows."""
    cleaned = re.sub(r"[^A-Za-z0-9_.\-/]", "_", name)
    return cleaned if cleaned[:1].isalnum() else f"x{cleaned}"


def _frozen(call: Callable[..., list[Any]], specs: list[Any]) -> Graph:
    """Return a function that holds its weights and constants in its graph.

    What a function captures (the variables of a model, the mean of a Normalization layer) stands in
    its graph under numbers that differ from run to run, and tf2onnx takes constants for inputs.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    eagerly = tf.config.functions_run_eagerly()
    # So that functions within the function become part of it; grouped convolutions are such.
    tf.config.run_functions_eagerly(True)
    try:
        traced = tf.function(call, input_signature=specs).get_concrete_function()
    finally:
        tf.config.run_functions_eagerly(eagerly)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    definition = frozen.graph.as_graph_def()
    _name_by_place(definition)
    taken = [tensor.name for tensor in frozen.inputs]
    given = [tensor.name for tensor in frozen.outputs]

    def embedded(*inputs: Any) -> list[Any]:
        found: list[Any] = tf.graph_util.import_graph_def(
            definition, dict(zip(taken, inputs, strict=True)), given, name="model"
        )
        return found

    return Graph(tf.function(embedded, input_signature=specs), specs)


def _name_by_place(definition: Any) -> None:
    """Give the nodes that are called by a number names that are equal for equal graphs."""
    numbered = [node.name for node in definition.node if node.name.isdigit()]
    names = {name: f"captured_{place}" for place, name in enumerate(numbered)}
    for node in definition.node:
        node.name = names.get(node.name, node.name)
        for place, used in enumerate(node.input):
            source, colon, port = used.lstrip("^").partition(":")
            if source in names:
                mark = "^" if used.startswith("^") else ""
                node.input[place] = f"{mark}{names[source]}{colon}{port}"
