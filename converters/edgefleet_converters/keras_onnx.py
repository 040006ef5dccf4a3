"""Keras → ONNX by tf2onnx, for `keras_export`.

Of tf2onnx's ways in, `from_keras` is the only one that keeps a Normalization layer right. Equal
models give equal bytes: tf2onnx needs `PYTHONHASHSEED=0` for that, which every child process has,
and names by place (`onnx_names`).
"""

from typing import Any

from edgefleet_converters import onnx_files, onnx_names
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.exports import Made
from edgefleet_protocol.manifest import Task


def convert(
    model: Any, shape: tuple[int, ...], columns: list[str], task: Task, classes: list[str]
) -> Made:
    """Convert a functional Keras model to float32 ONNX.

    Args:
        model: with one input and one output.
        shape: of one input row.
        columns: names of the values of a row.
        task: of the model.
        classes: in the order of the output.

    Raises:
        UnsupportedError: names the operators that have no ONNX form.
    """
    import tensorflow as tf
    import tf2onnx

    spec = tf.TensorSpec((None, *shape), tf.float32, name="X")
    try:
        proto, _ = tf2onnx.convert.from_keras(model, input_signature=[spec], opset=onnx_files.OPSET)
    except Exception as error:  # tf2onnx lets errors of TensorFlow, onnx and its own through
        raise UnsupportedError(
            f"tf2onnx cannot convert it: {type(error).__name__}: {str(error)[:400]}"
        ) from error
    unknown = onnx_files.unknown_operators(proto)
    if unknown:
        raise UnsupportedError(
            f"the TensorFlow operators {', '.join(unknown)} have no ONNX form in tf2onnx"
        )
    onnx_names.rename_by_place(proto)
    proto.ir_version = onnx_files.IR_VERSION
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "batch"
    found = onnx_files.ports(proto)
    width = int(model.outputs[0].shape[1])
    signature = onnx_files.signature(found, [columns], task, classes, width)
    return Made(
        proto.SerializeToString(deterministic=True), signature, onnx_files.runtime_min(proto)
    )
