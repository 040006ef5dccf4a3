"""ONNX weights in 8 or 4 bits, computed with in float32: small files without int8 arithmetic.

Forms of the weights in the file:

- `folded`: standard operators of any opset turn them into float32 when the model is loaded
  (constant folding), so it runs at float32's speed and memory on every runtime and CPU.
- `dequantize`: DequantizeLinear. The weights stay small in memory; those of convolutions are turned
  into float32 again at every call (KWS takes 690 µs instead of 85), those of dense layers ONNX
  Runtime multiplies in integers. Blocks of 4 bits need opset 21 and ONNX Runtime
  1.20 (1.18 refuses them).
- `matmul-nbits`: ONNX Runtime's own MatMulNBits (from 1.16). The weights stay small in memory.

Biases and scales become float16, as `onnx-fp16-weights` does it.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import float16, graph, onnx_compaction, weight_forms
from edgefleet_converters.steps.registry import Context, Model, step

_RTN = "https://arxiv.org/abs/2301.12017 (Wu et al. 2023: 4-bit weights in blocks)"
_NAGEL = "https://arxiv.org/abs/2106.08295 (Nagel et al. 2021, section 2.2)"
_BLOCK_OPSET, _BLOCK_IR = 21, 10
# Operator → its last input that holds weights; the first is input 1.
_LAST_WEIGHTS = dict.fromkeys(graph.LAYERS, 1) | dict.fromkeys(("LSTM", "GRU", "RNN"), 2)
# A channel of fewer weights, as depthwise convolutions have, is left with too few scales to share.
_FEWEST_IN_CHANNEL = 16


class Int8WeightsOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-int8-weights`.

    Attributes:
        form: of the weights in the file.
        granularity: `channel`: a scale for each output channel; `tensor`: one a layer; `auto`: one
            a layer where that costs at most half a bit of the weights' precision.
    """

    form: Literal["folded", "dequantize"] = "folded"
    granularity: weight_forms.Granularity = "auto"


class Int4WeightsOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-int4-weights`.

    Attributes:
        form: of the weights in the file; the forms other than `folded` are for dense layers alone.
        block: weights that share a scale. Smaller is nearer, and larger in the file.
    """

    form: Literal["folded", "dequantize", "matmul-nbits"] = "folded"
    block: Literal[16, 32, 64, 128, 256] = 32


class _Weights(NamedTuple):
    """Weights of a node: the initializer, its values, and the axis of its output channels."""

    node: Any
    tensor: Any
    values: NDArray[np.float32]
    axis: int


@step(
    "onnx-int8-weights",
    takes="onnx",
    gives="onnx",
    reference=_NAGEL,
    options=Int8WeightsOptions,
)
def int8_weights(model: Model, options: Int8WeightsOptions, context: Context) -> Model:
    """Store weights in 8 bits and compute in float32.

    A quarter of the size at float32's speed, and no samples are needed: the way for models that
    int8 arithmetic slows down or harms, and for recurrent layers. KWS falls from 98 KB to 26 KB,
    ResNet8 from 321 KB to 81 KB, AD01 from 1,068 KB to 273 KB, and none loses accuracy or time.
    Where int8 arithmetic is faster (ResNet8, AD01), `onnx-int8-static` is the better one.

    Raises:
        UnsupportedError: no layer has enough constant float weights.
    """
    del context
    proto = graph.read(model)
    graph.dequantize_weights(proto.graph)
    count = store_in_8_bits(proto, options)
    if not count:
        raise _nothing()
    return graph.written(model, proto, "onnx-int8-weights", {"weights": count})


@step(
    "onnx-int4-weights",
    takes="onnx",
    gives="onnx",
    reference=_RTN,
    options=Int4WeightsOptions,
)
def int4_weights(model: Model, options: Int4WeightsOptions, context: Context) -> Model:
    """Store weights in 4 bits, a scale for each block, and compute in float32.

    A fifth to a seventh of the size. Pays where the file counts and layers have room to spare, as
    MLPs on tables have (an MLP for digits keeps every answer at 6.4 KB instead of 28.3); MLPerf
    Tiny's models, which have none, lose 2 to 19 points: judge by samples. Layers that the form does
    not fit (channels of fewer than 16 weights; for forms other than `folded`, all but dense layers)
    get 8 bits. MatMulNBits by ONNX Runtime's own tool does nothing, silently, on graphs whose dense
    layers were fused to Gemm; here Gemm is taken apart first.

    Raises:
        UnsupportedError: no layer gets 4 bits.
    """
    del context
    proto = graph.read(model)
    graph.dequantize_weights(proto.graph)
    if options.form == "dequantize":
        proto = graph.at_opset(proto, _BLOCK_OPSET)
        proto.ir_version = max(proto.ir_version, _BLOCK_IR)
    fours = 0
    found = list(_weights(proto))
    if not found:
        raise _nothing()
    for node, tensor, values, axis in found:
        if not _fits(node, values, axis, options):
            weight_forms.unfold_8(proto, tensor, values, axis)
            continue
        fours += 1
        rows = np.moveaxis(values, axis, 0)
        if options.form == "folded":
            blocks = weight_forms.in_blocks(rows, options.block, even=True)
            weight_forms.unfold_4(proto, tensor, blocks, axis)
        elif options.form == "dequantize":
            blocks = weight_forms.in_blocks(rows, options.block, even=False)
            weight_forms.dequantize_4(proto, tensor, blocks, axis, options.block)
        else:
            blocks = weight_forms.in_blocks(rows, options.block, even=False)
            weight_forms.multiply_4(proto, node, tensor, blocks, options.block)
    if not fours:
        raise UnsupportedError(
            f"4-bit weights ({options.form}) would change nothing: no"
            f" {'layer' if options.form == 'folded' else 'dense layer'} has {_FEWEST_IN_CHANNEL}"
            " weights a channel"
        )
    float16.store_in_16_bits(proto)
    note = {"weights_4_bit": fours, "weights_8_bit": len(found) - fours}
    return graph.written(model, proto, "onnx-int4-weights", note)


def store_in_8_bits(proto: Any, options: Int8WeightsOptions | None = None) -> int:
    """Store all float32 weights of layers in 8 bits, in place; return how many there were.

    Other large constants (biases, scales) become float16.
    """
    options = options or Int8WeightsOptions()
    found = list(_weights(proto))
    for _, tensor, values, axis in found:
        channels = weight_forms.channels_of(values, axis, options.granularity)
        if options.form == "folded":
            weight_forms.unfold_8(proto, tensor, values, channels)
        else:
            weight_forms.dequantize_8(proto, tensor, values, channels)
    float16.store_in_16_bits(proto)
    return len(found)


def _nothing() -> UnsupportedError:
    return UnsupportedError(
        "weights in fewer bits do not apply: no dense, convolutional or recurrent layer has"
        f" {float16.MIN_VALUES} constant float32 weights"
    )


def _weights(proto: Any) -> Iterator[_Weights]:
    """Yield the weights that are large enough, each initializer once."""
    held = {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    for node in proto.graph.node:
        if node.domain not in onnx_compaction.STANDARD:
            continue
        for name in node.input[1 : _LAST_WEIGHTS.get(node.op_type, 0) + 1]:
            if name in held and np.prod(held[name].dims) >= float16.MIN_VALUES:
                tensor = held.pop(name)
                values = numpy_helper.to_array(tensor)
                yield _Weights(node, tensor, values, graph.channel_axis(node, values.ndim))


def _fits(node: Any, values: NDArray[np.float32], axis: int, options: Int4WeightsOptions) -> bool:
    """Return whether a layer's weights can have 4 bits in the form asked for."""
    if values.size // values.shape[axis] < _FEWEST_IN_CHANNEL:
        return False
    if options.form == "folded":
        return True
    if values.ndim != 2 or node.op_type not in ("MatMul", "Gemm"):
        return False
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    return options.form == "dequantize" or plain
