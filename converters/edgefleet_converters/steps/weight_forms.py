"""How rounded weights are stored in an ONNX file, and which nodes turn them back into float32.

Rounding is symmetric: w ≈ scale * q with |q| ≤ 2^(bits-1) - 1, one scale a row of weights. A row is
a channel in 8 bits and a block of a channel in 4 bits. In 4 bits the scale is lowered to where the
squared error of the row is least, which cuts off its outermost weights.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgefleet_converters.steps import graph, onnx_compaction

Rows = NDArray[np.float32]
Granularity = Literal["auto", "channel", "tensor"]
_HIGHEST_4, _HIGHEST_8 = 7, 127
_SHRINKS = np.linspace(0.5, 1.0, 26)
_NOISE_RATIO = 2.0
# Share of a scale that float16 may cost; 2^-11 is its own rounding.
_HALF_ERROR = 2.0**-11
# Rows whose largest weight is under this count as zeros: float32 holds no exact scale for them.
_SMALLEST = _HIGHEST_8 * float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Blocks:
    """4-bit weights: `(channels * blocks, block)` int8 from -7 to 7, and a scale each row.

    Attributes:
        shape: of the weights with the channels first.
        per_channel: blocks of a channel; the last is filled up with zeros.
    """

    values: NDArray[np.int8]
    scales: Rows
    shape: tuple[int, ...]
    per_channel: int


def channels_of(weights: Rows, axis: int, granularity: Granularity) -> int | None:
    """Return the axis that scales go along, or None where one scale will do for all weights.

    `auto` takes one scale where the rounding noise, relative to each channel's own weights and
    averaged over the channels, is at most 3 dB (half a bit) over that of a scale for each channel.
    """
    if granularity != "auto":
        return axis if granularity == "channel" else None
    flat = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.float64)
    flat = flat[(flat != 0).any(axis=1)]
    if not len(flat):
        return None
    each = _noise(flat, np.abs(flat).max(axis=1, keepdims=True))
    return None if _noise(flat, np.abs(flat).max()) <= _NOISE_RATIO * each else axis


def in_blocks(weights: Rows, block: int, *, even: bool) -> Blocks:
    """Round weights with the channels first to 4 bits.

    Args:
        weights: `(channels, …)`.
        block: weights that share a scale.
        even: divide a channel into equal blocks of at most `block`, so that little is filled up.
    """
    rows = weights.reshape(len(weights), -1)
    count = -(-rows.shape[1] // block)
    size = block if not even else -(-rows.shape[1] // count)
    size += size % 2
    padded = np.zeros((len(rows), count * size), np.float32)
    padded[:, : rows.shape[1]] = rows
    values, scales = _rounded(padded.reshape(-1, size))
    return Blocks(values, scales, weights.shape, count)


def unfold_8(proto: Any, tensor: Any, weights: Rows, axis: int | None) -> None:
    """Store a constant in 8 bits, a scale for each index of `axis` (None: one for all).

    Args:
        proto: `onnx.ModelProto`, changed in place.
        tensor: the initializer.
        weights: its values.
        axis: of the channels.
    """
    values, scales = _in_8_bits(weights, axis)
    stem = tensor.name
    nodes = [
        helper.make_node("Cast", [f"{stem}_q"], [f"{stem}_f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{stem}_f", f"{stem}_s"], [stem]),
    ]
    graph.unfold(proto, tensor, {f"{stem}_q": values, f"{stem}_s": scales}, nodes)


def dequantize_8(proto: Any, tensor: Any, weights: Rows, axis: int | None) -> None:
    """Store a constant in 8 bits for DequantizeLinear; see `unfold_8`."""
    values, scales = _in_8_bits(weights, axis)
    stem = tensor.name
    held = {f"{stem}_q": values, f"{stem}_s": scales.reshape(() if axis is None else -1)}
    node = helper.make_node("DequantizeLinear", [f"{stem}_q", f"{stem}_s"], [stem])
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    graph.unfold(proto, tensor, held, [node])


def dequantize_4(proto: Any, tensor: Any, blocks: Blocks, axis: int, block: int) -> None:
    """Store the weights of a dense layer in 4 bits for DequantizeLinear in blocks.

    Args:
        proto: `onnx.ModelProto` of opset 21 or later, changed in place.
        tensor: the initializer, of two dimensions.
        blocks: its weights, the channels of `axis` first.
        axis: of the channels in the initializer.
        block: weights that share a scale.
    """
    stem = tensor.name
    channels, width = blocks.shape
    values = blocks.values.reshape(channels, -1)[:, :width]
    scales = blocks.scales.reshape(channels, -1)
    if axis:
        values, scales = values.T, scales.T
    flat = np.append(values.ravel(), np.zeros(values.size % 2, np.int8)) & 0xF
    packed = (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
    stored = TensorProto(
        name=f"{stem}_q", data_type=TensorProto.INT4, dims=values.shape, raw_data=packed
    )
    node = helper.make_node(
        "DequantizeLinear",
        [stored.name, f"{stem}_s"],
        [stem],
        axis=1 - axis,
        block_size=block,
    )
    graph.unfold(proto, tensor, {f"{stem}_s": np.ascontiguousarray(scales)}, [node])
    proto.graph.initializer.append(stored)


def multiply_4(proto: Any, node: Any, tensor: Any, blocks: Blocks, block: int) -> None:
    """Let MatMulNBits multiply by a dense layer's weights as they lie in 4 bits.

    Args:
        proto: `onnx.ModelProto`, changed in place.
        node: MatMul, or Gemm that only multiplies and adds.
        tensor: the initializer of its weights.
        blocks: its weights, `(outputs, inputs)`.
        block: weights that share a scale, a power of two.
    """
    stem = tensor.name
    outputs, inputs = blocks.shape
    shifted = (blocks.values + 8).astype(np.uint8)
    packed = (shifted[:, ::2] | shifted[:, 1::2] << 4).reshape(outputs, blocks.per_channel, -1)
    result, sums = node.output[0], f"{stem}_sums"
    adds = node.op_type == "Gemm" and len(node.input) > 2
    made = [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{stem}_q", f"{stem}_s"],
            [sums if adds else result],
            domain=onnx_compaction.CONTRIB,
            K=inputs,
            N=outputs,
            bits=4,
            block_size=block,
        )
    ]
    if adds:
        made.append(helper.make_node("Add", [sums, node.input[2]], [result]))
    place = list(proto.graph.node).index(node)
    proto.graph.node.remove(node)
    graph.unfold(proto, tensor, {f"{stem}_q": packed, f"{stem}_s": blocks.scales}, [])
    for offset, following in enumerate(made):
        proto.graph.node.insert(place + offset, following)
    if all(entry.domain != onnx_compaction.CONTRIB for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(onnx_compaction.CONTRIB, 1))


def unfold_4(proto: Any, tensor: Any, blocks: Blocks, axis: int) -> None:
    """Store a constant in 4 bits, two in a byte; any runtime unpacks them at load.

    The first half of a row lies in the low half of its bytes and the second in the high one, so
    that low and high halves only have to be put side by side.

    Args:
        proto: `onnx.ModelProto`, changed in place.
        tensor: the initializer.
        blocks: its weights, the channels of `axis` first.
        axis: of the channels in the initializer.
    """
    stem = tensor.name
    half = blocks.values.shape[1] // 2
    shifted = (blocks.values + 8).astype(np.uint8)
    held: dict[str, NDArray[Any]] = {
        f"{stem}_q": shifted[:, :half] | shifted[:, half:] << 4,
        f"{stem}_16": np.array(16, np.float32),
        f"{stem}_8": np.array(8, np.float32),
    }
    make = helper.make_node
    nodes = [
        make("Cast", [f"{stem}_q"], [f"{stem}_f"], to=TensorProto.FLOAT),
        make("Mod", [f"{stem}_f", f"{stem}_16"], [f"{stem}_low"], fmod=1),
        make("Sub", [f"{stem}_f", f"{stem}_low"], [f"{stem}_rest"]),
        make("Div", [f"{stem}_rest", f"{stem}_16"], [f"{stem}_high"]),
        make("Concat", [f"{stem}_low", f"{stem}_high"], [f"{stem}_both"], axis=1),
        make("Sub", [f"{stem}_both", f"{stem}_8"], [f"{stem}_signed"]),
    ]
    held[f"{stem}_s"] = blocks.scales[:, None]
    nodes.append(make("Mul", [f"{stem}_signed", f"{stem}_s"], [f"{stem}_scaled"]))
    reshaping, constants = _reshaped(stem, blocks, axis)
    graph.unfold(proto, tensor, held | constants, [*nodes, *reshaping])


def _reshaped(
    stem: str, blocks: Blocks, axis: int
) -> tuple[list[Any], dict[str, NDArray[np.int64]]]:
    """Return the nodes from rows of blocks to the shape of the weights, and their constants."""
    make, value = helper.make_node, f"{stem}_scaled"
    nodes: list[Any] = []
    held: dict[str, NDArray[np.int64]] = {}

    def then(kind: str, constants: dict[str, NDArray[np.int64]]) -> None:
        nonlocal value
        held.update(constants)
        following = f"{stem}_{len(nodes)}"
        nodes.append(make(kind, [value, *constants], [following]))
        value = following

    channels, width = blocks.shape[0], int(np.prod(blocks.shape[1:]))
    filled = blocks.per_channel * blocks.values.shape[1]
    if filled != width:
        then("Reshape", {f"{stem}_rows": np.array([channels, filled])})
        then(
            "Slice",
            {
                f"{stem}_from": np.array([0]),
                f"{stem}_to": np.array([width]),
                f"{stem}_along": np.array([1]),
            },
        )
    then("Reshape", {f"{stem}_shape": np.array(blocks.shape)})
    if axis:
        order = list(range(1, len(blocks.shape)))
        order.insert(axis, 0)
        then("Transpose", {})
        nodes[-1].attribute.append(helper.make_attribute("perm", order))
    nodes[-1].output[0] = stem
    return nodes, held


def _in_8_bits(weights: Rows, axis: int | None) -> tuple[NDArray[np.int8], Rows]:
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    limits = np.abs(weights).max(axis=others, keepdims=axis is not None)
    scales = np.asarray(np.where(limits >= _SMALLEST, limits, 1.0) / _HIGHEST_8, np.float32)
    return np.rint(weights / scales).astype(np.int8), scales


def _noise(rows: NDArray[np.float64], limit: Any) -> float:
    """Return the mean over rows of what rounding to 8 bits takes of their energy."""
    scale = limit / _HIGHEST_8
    lost = ((np.rint(rows / scale) * scale - rows) ** 2).sum(axis=1)
    return float((lost / (rows**2).sum(axis=1)).mean())


def _rounded(rows: Rows) -> tuple[NDArray[np.int8], Rows]:
    highest = np.abs(rows).max(axis=1)
    highest = np.where(highest >= _SMALLEST, highest, 1.0).astype(np.float32)
    best_error = np.full(len(rows), np.inf)
    scales = highest
    for shrink in _SHRINKS:
        tried = (highest * (shrink / _HIGHEST_4)).astype(np.float32)
        # In scales, not in weights: squares of small weights would vanish in float32.
        off = rows / highest[:, None] - _integers(rows, tried) * np.float32(shrink / _HIGHEST_4)
        error = (off**2).sum(axis=1)
        scales = np.where(error < best_error, tried, scales)
        best_error = np.minimum(error, best_error)
    if _fits_half(scales):
        scales = scales.astype(np.float16).astype(np.float32)
    return _integers(rows, scales), scales


def _integers(rows: Rows, scales: Rows) -> NDArray[np.int8]:
    whole = np.rint(rows / scales[:, None])
    clipped: NDArray[np.int8] = np.clip(whole, -_HIGHEST_4, _HIGHEST_4).astype(np.int8)
    return clipped


def _fits_half(scales: Rows) -> bool:
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    return bool((np.abs(half - scales) <= _HALF_ERROR * scales).all())
