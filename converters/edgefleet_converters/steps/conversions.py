"""Conversions between formats. Recipes need not name them: the workshop fills them in.

Each keeps the order of inputs and outputs, and their names as far as the other format allows.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet_converters import (
    keras_files,
    onnx_exports,
    onnx_files,
    onnx_float_ports,
    tensorflow_graphs,
    tflite_files,
    tflite_ports,
)
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.onnx_float_ports import Scale
from edgefleet_converters.steps import tflite_graph
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step

_TF2ONNX = "https://github.com/onnx/tensorflow-onnx"
_INT32, _DOUBLE = 6, 11  # TensorProto.INT32, TensorProto.DOUBLE
_TFLITE = "https://ai.google.dev/edge/litert/conversion/tensorflow/overview"


@step("keras-to-onnx", takes="keras", gives="onnx", reference=_TF2ONNX, exact=True)
def keras_to_onnx(model: Model, options: NoOptions, context: Context) -> Model:
    """Convert a Keras model to float32 ONNX of opset 18."""
    del options, context
    return _graph_to_onnx(model)


@step("savedmodel-to-onnx", takes="savedmodel", gives="onnx", reference=_TF2ONNX, exact=True)
def savedmodel_to_onnx(model: Model, options: NoOptions, context: Context) -> Model:
    """Convert the function `serving_default` of a SavedModel to float32 ONNX of opset 18."""
    del options, context
    return _graph_to_onnx(model)


@step("tflite-to-onnx", takes="tflite", gives="onnx", reference=_TF2ONNX, exact=True)
def tflite_to_onnx(model: Model, options: NoOptions, context: Context) -> Model:
    """Convert a TFLite model to ONNX of opset 18; what is int8 in it becomes QDQ."""
    del options, context
    keras_files.import_keras()
    import tf2onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(tflite_graph.plain(model.data))
        proto = _run(tf2onnx.convert.from_tflite, str(path))
    taken, given = tflite_ports.of(model)
    wanted = (*model.signature.inputs, *model.signature.outputs)
    scales = {
        port.tensor: Scale(port.scale, port.zero_point)
        for port, tensor in zip((*taken, *given), wanted, strict=True)
        if port.scale and tensor.dtype == "float32"
    }
    onnx_float_ports.give_float_ports(proto, scales)
    return onnx_exports.finish(
        proto,
        model,
        inputs=[port.tensor for port in taken],
        outputs=[port.tensor for port in given],
        batch=taken[0].sizes[0],
    )


@step("keras-to-tflite", takes="keras", gives="tflite", reference=_TFLITE, exact=True)
def keras_to_tflite(model: Model, options: NoOptions, context: Context) -> Model:
    """Convert a Keras model to float32 TFLite."""
    del options, context
    return tflite_files.finish(tflite_files.converter(model), model)


@step("savedmodel-to-tflite", takes="savedmodel", gives="tflite", reference=_TFLITE, exact=True)
def savedmodel_to_tflite(model: Model, options: NoOptions, context: Context) -> Model:
    """Convert the function `serving_default` of a SavedModel to float32 TFLite."""
    del options, context
    return tflite_files.finish(tflite_files.converter(model), model)


def _graph_to_onnx(model: Model) -> Model:
    graph = tensorflow_graphs.graph(model)
    import tf2onnx

    proto = _run(
        tf2onnx.convert.from_function,
        graph.call,
        input_signature=graph.specs,
        custom_op_handlers=_HANDLERS,
    )
    return onnx_exports.finish(
        proto,
        model,
        inputs=[spec.name for spec in graph.specs],
        outputs=[info.name for info in proto.graph.output],
        batch=graph.specs[0].shape[0],
    )


def _erfc(graph: Any, node: Any, name: str, args: object) -> None:
    """Write erfc(x) as 1 - erf(x), for tf2onnx: the exact form of gelu has it."""
    del args
    inner = graph.make_node("Erf", [node.input[0]])
    _subtract(graph, node, _one(graph, node, name), inner.output[0])


def _expm1(graph: Any, node: Any, name: str, args: object) -> None:
    """Write exp(x) - 1, for tf2onnx: celu has it."""
    del args
    inner = graph.make_node("Exp", [node.input[0]])
    _subtract(graph, node, inner.output[0], _one(graph, node, name))


def _bucketize(graph: Any, node: Any, name: str, args: object) -> None:
    """Count the boundaries that a value reaches, for tf2onnx: Discretization has it."""
    del args
    bounds = np.array(node.get_attr_value("boundaries"), np.float32)
    last = graph.make_const(f"{name}_axis", np.array([-1], np.int64)).output[0]
    limits = graph.make_const(f"{name}_bounds", bounds).output[0]
    wide = graph.make_node("Unsqueeze", [node.input[0], last])
    reached = graph.make_node("GreaterOrEqual", [wide.output[0], limits])
    counted = graph.make_node("Cast", [reached.output[0]], attr={"to": _INT32})
    node.type = "ReduceSum"
    node.set_attr("keepdims", 0)
    graph.replace_inputs(node, [counted.output[0], last])


def _one(graph: Any, node: Any, name: str) -> str:
    dtype = np.float64 if graph.get_dtype(node.input[0]) == _DOUBLE else np.float32
    found: str = graph.make_const(f"{name}_one", np.array(1, dtype)).output[0]
    return found


def _subtract(graph: Any, node: Any, left: str, right: str) -> None:
    node.type = "Sub"
    graph.replace_inputs(node, [left, right])


# TensorFlow operators that tf2onnx would leave in the graph under their own names.
_HANDLERS: dict[str, Any] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
    "Bucketize": (_bucketize, []),
}


def _run(convert: Callable[..., Any], source: Any, **settings: Any) -> Any:
    """Return the `ModelProto` that one of tf2onnx's functions gives.

    Raises:
        UnsupportedError: whatever it could not do.
    """
    try:
        proto, _ = convert(source, opset=onnx_files.OPSET, **settings)
    except Exception as error:  # tf2onnx lets errors of TensorFlow, onnx and its own through
        text = " ".join(str(error).split())[:400]
        raise UnsupportedError(
            f"tf2onnx cannot convert it: {type(error).__name__}: {text}"
        ) from error
    return _settled(proto)


def _settled(proto: Any) -> Any:
    """Optimize a graph until it gets no smaller.

    What tf2onnx's own pass finds depends on the memory addresses of its nodes: one Keras model in
    forty came out with six nodes more for the shape of a Reshape. From either form a second pass
    leads to the same graph.
    """
    from tf2onnx.graph import GraphUtil

    while True:
        smaller = GraphUtil.optimize_model_proto(proto)
        if len(smaller.graph.node) >= len(proto.graph.node):
            return smaller
        proto = smaller
