"""ONNX float32 → float16: as the arithmetic of the graph, or only as the form of its weights."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import fidelity, graph, onnx_compaction
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step
from edgefleet_protocol.rows import Tensors

_HIGHEST = float(np.finfo(np.float16).max)
# Smaller constants save fewer bytes than the node costs that turns them back.
MIN_VALUES = 64
_MICIKEVICIUS = "https://arxiv.org/abs/1710.03740 (Micikevicius et al. 2018)"


class Float16Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-fp16`.

    Attributes:
        block: operator types that stay in float32, beside those that ONNX Runtime knows to have no
            float16 form (trees, TopK, Min, Max, …).
        headroom: how many times the largest value seen on samples must fit below 65,504, float16's
            highest; nodes with larger values stay in float32.
        rows: of the samples that are looked at.
    """

    block: list[str] = field(default_factory=list)
    headroom: Annotated[float, Meta(ge=1.0)] = 4.0
    rows: Annotated[int, Meta(ge=1, le=100_000)] = 256


@step(
    "onnx-fp16",
    takes="onnx",
    gives="onnx",
    reference=_MICIKEVICIUS,
    options=Float16Options,
)
def float16(model: Model, options: Float16Options, context: Context) -> Model:
    """Compute in float16, with float32 inputs and outputs.

    Half the size. Pays on GPUs and on ARM CPUs with float16 arithmetic (from the Cortex-A55 and A76
    on); on x86 ONNX Runtime converts around almost every operator and is slower than float32, and
    `onnx-fp16-weights` is the better half. Answers differ from board to board in the third digit
    (6e-3 measured on a Cortex-A76).

    Raises:
        UnsupportedError: no layer has constant float weights.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    proto = graph.prepared(graph.read(model))
    graph.layers_or_refuse(proto.graph, "float16")
    samples = fidelity.calibration_rows(context, options.rows).bind(model.signature)
    large = _too_large(proto, samples, _HIGHEST / options.headroom)
    made = convert_float_to_float16(
        proto,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *options.block],
        node_block_list=large,
    )
    _join_float32(made.graph)
    halves = sum(t.data_type == t.FLOAT16 for t in made.graph.initializer)
    if not halves:
        raise UnsupportedError(
            f"float16 would change nothing: all of {', '.join(sorted(set(large)))[:300]} hold"
            f" values over {_HIGHEST / options.headroom:g} or are blocked"
        )
    return graph.written(model, made, "onnx-fp16", {"float32_nodes": large})


@step("onnx-fp16-weights", takes="onnx", gives="onnx", reference=_MICIKEVICIUS)
def float16_weights(model: Model, options: NoOptions, context: Context) -> Model:
    """Store weights as float16 and turn them back into float32 when the model is loaded.

    Half the size at float32's speed and memory, on every runtime and CPU: the conversion is folded
    away at load. The accuracy of all models tried stayed the same to the row. Weights that float16
    cannot hold stay as they are.

    Raises:
        UnsupportedError: no constant is large enough to gain from it.
    """
    del options, context
    proto = graph.read(model)
    graph.dequantize_weights(proto.graph)
    kept = store_in_16_bits(proto)
    if not any(tensor.data_type == tensor.FLOAT16 for tensor in proto.graph.initializer):
        raise UnsupportedError(
            f"float16 weights would change nothing: no float32 constant of {MIN_VALUES} values or"
            f" more lies below {_HIGHEST:g}"
        )
    return graph.written(model, proto, "onnx-fp16-weights", {"float32_constants": kept})


def store_in_16_bits(proto: Any) -> list[str]:
    """Store all large float32 constants as float16, in place; return those that it cannot hold."""
    kept = []
    for tensor, values in large_constants(proto):
        if not np.abs(values).max() <= _HIGHEST:
            kept.append(tensor.name)
            continue
        half = f"{tensor.name}_half"
        back = helper.make_node("Cast", [half], [tensor.name], to=tensor.FLOAT)
        graph.unfold(proto, tensor, {half: values.astype(np.float16)}, [back])
    return kept


def _join_float32(held: Any) -> None:
    """Let nodes that stay in float32 pass their values on as they are.

    The converter puts a float16 between any two of them, in which large values are lost.
    """
    halved = {n.output[0]: n.input[0] for n in held.node if _casts_to(n, TensorProto.FLOAT16)}
    whole = {
        n.output[0]: halved[n.input[0]]
        for n in held.node
        if _casts_to(n, TensorProto.FLOAT) and n.input[0] in halved
    }
    for info in held.output:
        whole.pop(info.name, None)
    for node in onnx_compaction.nodes(held):
        node.input[:] = [whole.get(name, name) for name in node.input]
    read = {name for node in onnx_compaction.nodes(held) for name in node.input}
    read |= {info.name for info in held.output}
    for node in [n for n in held.node if n.op_type == "Cast" and n.output[0] not in read]:
        held.node.remove(node)


def _casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def large_constants(proto: Any) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Yield the float32 initializers that gain from another form, with their values."""
    for tensor in list(proto.graph.initializer):
        if tensor.data_type == tensor.FLOAT and math.prod(tensor.dims) >= MIN_VALUES:
            yield tensor, numpy_helper.to_array(tensor)


def _too_large(proto: Any, samples: Tensors, limit: float) -> list[str]:
    """Return the names of the nodes that read or give values over `limit` on the samples."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | samples
    highest = {
        name: float(np.abs(array).max(initial=0.0))
        for name, array in values.items()
        if array.dtype.kind == "f"
    }
    highest |= _magnitudes(proto, samples)
    large = {name for name, value in highest.items() if not value <= limit}
    return [node.name for node in proto.graph.node if large & {*node.input, *node.output}]


def _magnitudes(proto: Any, samples: Tensors) -> dict[str, float]:
    """Return the largest absolute value of each inner float value on the samples."""
    names = [
        info.name
        for info in proto.graph.value_info
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    session = graph.shown(proto, names)
    highest = dict.fromkeys(names, 0.0)
    for batch in graph.batches(proto, samples):
        for name, values in zip(names, session.run(names, batch), strict=True):
            highest[name] = max(highest[name], float(np.abs(values).max(initial=0.0)))
    return highest
