"""ONNX graphs: made smaller without changing what they answer, and made ready for other steps.

1. What a step writes keeps the IR version and the opsets that came in, so that it still loads on
   the runtime releases that loaded it before: ONNX Runtime and onnx would write their own newest.
2. What a step writes is compact (`onnx_compaction`), and has the names of inputs and outputs that
   the signature has.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from google.protobuf.message import (  # type: ignore[import-untyped]  # protobuf has no stubs
    DecodeError,
)
from numpy.typing import NDArray
from onnx import numpy_helper

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.steps.onnx_compaction import STANDARD, compact, nodes
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step
from edgefleet_protocol.rows import Tensors

# Layers whose weights techniques work on; every other node has few constants or none.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BATCH_ROWS = 64

# Float layers stay what they are, so that other steps and runtimes know them.
_FLOAT_FUSIONS = ["ConvActivationFusion", "ConvAddActivationFusion", "GemmActivationFusion"]
# The first that knows scales for each channel.
_QUANTIZED_OPSET = 13
_KEEPS_SHAPE = {"Scaler", "Imputer", "Normalizer", "Binarizer"}
_KINDS = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(bool)": onnx.TensorProto.BOOL,
    "tensor(string)": onnx.TensorProto.STRING,
}
_OPTIMIZE = "https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html"


@step(
    "onnx-optimize",
    takes="onnx",
    gives="onnx",
    reference=_OPTIMIZE,
    exact=True,
)
def optimize(model: Model, options: NoOptions, context: Context) -> Model:
    """Fold constants, fuse normalisation into layers, drop dead nodes and names.

    Pays on every export: KWS as tf2onnx writes it falls from 98 KB to 92 KB, and the work is not
    done again at each load. Speed after loading is the same, since sessions optimize anyway. Only
    standard operators are written: fused into ONNX Runtime's own, the files were larger (KWS 93 KB)
    and AD01 took 86 µs instead of 61.

    Raises:
        UnsupportedError: if ONNX Runtime cannot load the model.
    """
    del options, context
    return written(model, optimized(read(model), "basic"), "onnx-optimize", {})


@step(
    "onnx-compact",
    takes="onnx",
    gives="onnx",
    reference="https://github.com/onnx/onnx/blob/main/docs/IR.md",
    exact=True,
)
def shrink(model: Model, options: NoOptions, context: Context) -> Model:
    """Shorten names, share equal constants, and leave out what says nothing.

    Pays on small models, whose files are up to half names: a KWS model quantized by ONNX Runtime
    falls from 74 KB to 35 KB, ResNet8 from 124 KB to 88 KB. Every other ONNX step of ours ends
    with it. Answers and speed stay bit for bit.
    """
    del options, context
    return written(model, read(model), "onnx-compact", {})


def read(model: Model) -> Any:
    """Return the graph of a model as `onnx.ModelProto`.

    Raises:
        BadInputError: no ONNX file.
    """
    try:
        proto = onnx.load_model_from_string(model.data)
    except DecodeError as error:
        raise BadInputError(f"truncated, or no ONNX model: {error}") from error
    if not proto.graph.node:
        raise BadInputError("no ONNX model: it has no graph")
    return proto


def written(model: Model, proto: Any, name: str, note: dict[str, Any]) -> Model:
    """Return `proto` as the compact file that follows `model`.

    Args:
        model: the file before, whose signature stays.
        proto: the graph now.
        name: of the step.
        note: what it found out; `bytes_before` and `bytes` are added.
    """
    compact(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    note = note | {"bytes_before": len(model.data), "bytes": len(data)}
    return msgspec.structs.replace(model, data=data, notes=model.notes | {name: note})


def constants(graph: Any) -> dict[str, Any]:
    """Return name → `TensorProto` of the values of a graph that never change."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            value = next((a for a in node.attribute if a.name == "value"), None)
            if value is not None:
                held[node.output[0]] = value.t
    return held


def layers(graph: Any) -> list[Any]:
    """Return the nodes that hold constant float weights, in the order of computation."""
    held = {name for name, value in constants(graph).items() if value.data_type == value.FLOAT}
    return [
        node
        for node in graph.node
        if node.op_type in LAYERS
        and node.domain in STANDARD
        and len(node.input) > 1
        and node.input[1] in held
    ]


def channel_axis(node: Any, dimensions: int) -> int:
    """Return the axis of the output channels in the weights of a layer or recurrent node."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return dimensions - 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1


def opset(proto: Any) -> int:
    """Return the version of the standard operators that a graph is written in."""
    return max((e.version for e in proto.opset_import if e.domain in STANDARD), default=0)


def at_opset(proto: Any, version: int) -> Any:
    """Return a graph in the version of the standard operators asked for, if its own is older.

    Raises:
        UnsupportedError: if onnx cannot convert it.
    """
    if opset(proto) >= version:
        return proto
    try:
        made = onnx.version_converter.convert_version(proto, version)
    except Exception as error:  # the converter raises errors of its C++ code
        raise UnsupportedError(
            f"opset {version} is needed, to which onnx cannot convert this model of opset"
            f" {opset(proto)}: {str(error)[:200]}; export it anew"
        ) from error
    made.ir_version = proto.ir_version
    return made


def layers_or_refuse(graph: Any, technique: str) -> list[Any]:
    """Return the layers of a graph.

    Raises:
        UnsupportedError: if there are none.
    """
    found = layers(graph)
    if not found:
        raise UnsupportedError(
            f"{technique} does not apply: the model has no {', '.join(LAYERS[:-1])} or"
            f" {LAYERS[-1]} with constant float weights (trees, and linear models of ai.onnx.ml,"
            " compute in float; a quantized model is not quantized again)"
        )
    return found


def replace_initializer(graph: Any, name: str, values: NDArray[Any]) -> None:
    """Give an initializer of a graph another value, under its name."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def unfold(proto: Any, tensor: Any, held: dict[str, NDArray[Any]], made: list[Any]) -> None:
    """Store a constant in another form, from which nodes compute it.

    Args:
        proto: `onnx.ModelProto`, changed in place.
        tensor: the initializer, which is removed.
        held: initializers in its place.
        made: nodes that compute it from them, in order. ONNX Runtime folds them at load.
    """
    for name, values in held.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    proto.graph.initializer.remove(tensor)
    for position, node in enumerate(made):
        proto.graph.node.insert(position, node)


def batches(proto: Any, tensors: Tensors) -> Iterator[Tensors]:
    """Yield inputs in pieces: of the number of rows that the graph is built for, if it is.

    Rows that fill no piece of that number are left out.
    """
    first = proto.graph.input[0].type.tensor_type.shape.dim[:1]
    fixed = first[0].dim_value if first else 0
    size = fixed or BATCH_ROWS
    count = len(next(iter(tensors.values())))
    for start in range(0, count - count % fixed if fixed else count, size):
        yield {name: values[start : start + size] for name, values in tensors.items()}


def optimized(proto: Any, level: Literal["basic", "extended"]) -> Any:
    """Return the graph as ONNX Runtime optimizes it at load.

    Args:
        proto: `onnx.ModelProto`.
        level: `basic` gives standard operators alone; `extended` fuses quantized layers into
            integer operators, some of `com.microsoft`. The level above, which orders memory for
            one kind of CPU, is never written to a file.

    Raises:
        UnsupportedError: if ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if level == "basic"
        else onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                proto.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_FLOAT_FUSIONS,
            )
        except Exception as error:  # the runtime raises plain Exceptions of many kinds
            raise UnsupportedError(f"ONNX Runtime cannot load the model: {error}") from error
        made = onnx.load(path)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for entry in made.opset_import:
        entry.version = versions.get(entry.domain, entry.version)
    made.ir_version = proto.ir_version
    return made


def prepared(proto: Any) -> Any:
    """Return a float32 graph ready to be quantized: optimized, its nodes named, its types known.

    Weights that are stored as int8 and dequantized at run time become float32 again, so that
    models with quantized weights alone can be quantized as a whole.

    Raises:
        UnsupportedError: if ONNX Runtime cannot load the model, or it is quantized already.
    """
    proto = type(proto).FromString(proto.SerializeToString())
    dequantize_weights(proto.graph)
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in nodes(proto.graph)):
        raise UnsupportedError("the model is quantized already; start from its float32 form")
    proto = at_opset(proto, _QUANTIZED_OPSET)
    _tell_shapes(proto.graph)
    made = optimized(proto, "basic")
    for index, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{index}"
    _flatten_biases(made.graph)
    del made.graph.value_info[:]
    made.graph.value_info.extend(_types(made))
    return made


def shown(proto: Any, names: Iterable[str]) -> Any:
    """Return a session that gives inner values of a graph as outputs, unoptimized."""
    import onnxruntime

    open_ = type(proto).FromString(proto.SerializeToString())
    given = {info.name for info in open_.graph.output}
    open_.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        open_.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def dequantize_weights(graph: Any) -> None:
    """Fold the dequantization of constant weights, in place: they become float32 again."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "DequantizeLinear" or any(name not in held for name in node.input):
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if any(a.name == "block_size" and a.i for a in node.attribute):
            continue
        weights, scale, *zero = (numpy_helper.to_array(held[name]) for name in node.input)
        shape = [-1 if i == axis % weights.ndim else 1 for i in range(weights.ndim)]
        if scale.ndim:
            scale, zero = scale.reshape(shape), [z.reshape(shape) for z in zero]
        values = (weights.astype(np.float32) - sum(z.astype(np.float32) for z in zero)) * scale
        held[node.output[0]] = numpy_helper.from_array(values.astype(np.float32), node.output[0])
        graph.initializer.append(held[node.output[0]])
        graph.node.remove(node)


def _flatten_biases(graph: Any) -> None:
    """Give biases one dimension: the quantizer fails on `(1, n)`, which scikit-learn's MLP has."""
    names = {n.input[2] for n in graph.node if n.op_type == "Gemm" and len(n.input) > 2}
    names -= {
        i
        for n in graph.node
        for place, i in enumerate(n.input)
        if (n.op_type, place) != ("Gemm", 2)
    }
    for tensor in graph.initializer:
        if tensor.name in names and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def _tell_shapes(graph: Any) -> None:
    """Note the shapes that elementwise operators of ai.onnx.ml keep, which their schemas omit.

    Without them, what follows a Scaler is of unknown rank, and no dense layer is fused to Gemm.
    """
    known = {info.name: info.type.tensor_type.shape for info in graph.input}
    for node in graph.node:
        if node.domain == "ai.onnx.ml" and node.op_type in _KEEPS_SHAPE and node.input[0] in known:
            info = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
            info.type.tensor_type.shape.CopyFrom(known[node.input[0]])
            known[node.output[0]] = info.type.tensor_type.shape
            if all(existing.name != info.name for existing in graph.value_info):
                graph.value_info.append(info)


def _types(proto: Any) -> Iterator[Any]:
    """Yield type and shape of each inner value, as ONNX Runtime knows them.

    The inference of onnx stops at operators of ai.onnx.ml and of ONNX Runtime itself.
    """
    inner = {o for node in proto.graph.node for o in node.output if o}
    inner -= {info.name for info in proto.graph.output}
    for port in shown(proto, sorted(inner)).get_outputs():
        kind = _KINDS.get(port.type)
        if port.name in inner and kind is not None:
            # An unknown shape comes as that of a scalar; no shape at all is always right.
            yield onnx.helper.make_tensor_value_info(port.name, kind, port.shape or None)
