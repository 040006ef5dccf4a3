"""TensorFlow's converter to TFLite: one way in for Keras models and SavedModels, one way out.

1. `TFLiteConverter.from_concrete_functions` gets no second argument: with one it writes a model
   whose variables are missing, without an error.
2. A file made that way has no signature definition, so the names in the manifest are those of its
   tensors. Their order is that of the original's inputs and outputs, not that of the file.
3. Files take and give float32, however they compute inside: a device feeds all variants alike.
"""

import re
from typing import Any

import msgspec

from edgefleet_converters import keras_files, recurrent, tensorflow_graphs
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Tensor

# TensorFlow gives the outputs of a function these names, in order, unless there is a signature.
_OUTPUT = re.compile(r"Identity(?:_(\d+))?")


def converter(model: Model) -> Any:
    """Return a `tf.lite.TFLiteConverter` for a `keras` or `savedmodel` model.

    Its function takes the inputs of the signature in their order and with their names, with the
    batch as free as there; but a model with long recurrent layers takes one row (`recurrent`).
    """
    keras_files.import_keras()
    import tensorflow as tf

    if model.format == "keras":
        source = keras_files.read(model.data)
        call = tensorflow_graphs.of_keras(model, source, recurrent.prepare(source)).call
    else:
        call = tensorflow_graphs.graph(model).call
    return tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()])


def finish(converting: Any, model: Model) -> Model:
    """Run a converter and return the TFLite model, with the names of its file.

    Args:
        converting: from `converter`, with whatever settings.
        model: that it was made from.

    Raises:
        UnsupportedError: names the operators that LiteRT does not have.
    """
    try:
        data = bytes(converting.convert())
    except Exception as error:  # the converter's errors share no base class
        raise UnsupportedError(_reason(str(error))) from error
    return renamed(model, data)


def renamed(model: Model, data: bytes) -> Model:
    """Return `data`, a TFLite file made from `model`, with its own names in the signature.

    Ports are told by name: that of a signature definition where there is one, else of the tensor.
    Outputs without a known name are in order.

    Raises:
        UnsupportedError: the file's inputs and outputs are not those of the model.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    taken = {detail["name"]: detail["name"] for detail in interpreter.get_input_details()}
    given = {detail["name"]: detail["name"] for detail in interpreter.get_output_details()}
    ordered = sorted(given, key=_place) if all(map(_OUTPUT.fullmatch, given)) else list(given)
    for name in list(interpreter.get_signature_list())[:1]:
        runner = interpreter.get_signature_runner(name)
        taken |= {key: part["name"] for key, part in runner.get_input_details().items()}
        given |= {key: part["name"] for key, part in runner.get_output_details().items()}
    wanted = model.signature
    inputs = [_found(taken, tensor.name) for tensor in wanted.inputs]
    if len(ordered) != len(wanted.outputs):
        raise UnsupportedError(
            f"the TFLite file has {len(ordered)} outputs; the model has {len(wanted.outputs)}"
        )
    outputs = [given.get(t.name, name) for t, name in zip(wanted.outputs, ordered, strict=True)]
    score = [tensor.name for tensor in wanted.outputs].index(wanted.score_output)
    signature = msgspec.structs.replace(
        wanted,
        inputs=[_called(t, name) for t, name in zip(wanted.inputs, inputs, strict=True)],
        outputs=[_called(t, name) for t, name in zip(wanted.outputs, outputs, strict=True)],
        score_output=outputs[score],
    )
    return Model("tflite", data, signature, model.notes)


def _place(name: str) -> int:
    found = _OUTPUT.fullmatch(name)
    return int(found.group(1) or 0) if found else 0


def _found(taken: dict[str, str], name: str) -> str:
    for known in (name, tensorflow_graphs.tensor_name(name)):
        if known in taken:
            return taken[known]
    raise UnsupportedError(f"the TFLite file has the inputs {sorted(taken)}; expected {name!r}")


def _called(tensor: Tensor, name: str) -> Tensor:
    return msgspec.structs.replace(tensor, name=name)


def _reason(text: str) -> str:
    operators = sorted(set(re.findall(r"\btf\.[A-Z]\w+", text)))
    if operators:
        return f"the TensorFlow operators {', '.join(operators)} are not in LiteRT's built-in set"
    return f"the TFLite converter failed: {' '.join(text.split())[:400]}"
