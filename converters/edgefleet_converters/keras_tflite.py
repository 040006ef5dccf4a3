"""Keras → TFLite, float32 and static int8, for `keras_export`.

`TFLiteConverter.from_concrete_functions` gets no second argument: with one it writes a model whose
variables are missing, without an error. Such a file has no signature definition, so the names in
the manifest are those of the tensors. An int8 model takes and gives float32, with quantize and
dequantize inside the graph: a device feeds every variant alike.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.exports import Made
from edgefleet_protocol.manifest import Signature, Task, Tensor

# The converter of TensorFlow 2.20 and later writes operator versions that LiteRT 2 knows; an older
# runtime may load such a file without an error and compute it wrongly.
RUNTIME_MIN = "2.0"
# Post-training calibration settles within a few hundred rows (TensorFlow's guide says 100-500).
CALIBRATION_ROWS = 300


def convert(
    model: Any,
    shape: tuple[int, ...],
    calibration: NDArray[np.float32] | None,
    columns: list[str],
    task: Task,
    classes: list[str],
) -> Made:
    """Convert a functional Keras model to TFLite, with a free batch size.

    Args:
        model: with one input and one output.
        shape: of one input row.
        calibration: `(n, *shape)` rows for int8; None for float32.
        columns: names of the values of a row.
        task: of the model.
        classes: in the order of the output.

    Raises:
        UnsupportedError: names the operators that LiteRT does not have.
    """
    import tensorflow as tf

    spec = tf.TensorSpec((None, *shape), tf.float32, name="X")
    function = tf.function(lambda x: model(x, training=False), input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    if calibration is not None:
        rows = calibration[:CALIBRATION_ROWS]

        def one_by_one() -> Iterator[list[NDArray[np.float32]]]:
            for row in rows:
                yield [row[np.newaxis]]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = one_by_one
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        data = bytes(converter.convert())
    except Exception as error:  # the converter's errors share no base class
        raise UnsupportedError(_reason(str(error))) from error
    return Made(data, _signature(data, shape, columns, task, classes), RUNTIME_MIN)


def _signature(
    data: bytes, shape: tuple[int, ...], columns: list[str], task: Task, classes: list[str]
) -> Signature:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    return Signature(
        task,
        [Tensor(taken["name"], "float32", [None, *shape], columns)],
        [Tensor(given["name"], "float32", [None, *map(int, given["shape_signature"][1:])])],
        given["name"],
        classes=classes,
    )


def _reason(text: str) -> str:
    operators = sorted(set(re.findall(r"\btf\.[A-Z]\w+", text)))
    if operators:
        return f"the TensorFlow operators {', '.join(operators)} are not in LiteRT's built-in set"
    return f"the TFLite converter failed: {' '.join(text.split())[:400]}"
