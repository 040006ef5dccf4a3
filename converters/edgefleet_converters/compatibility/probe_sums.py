"""Small TFLite models of one layer with weights whose answer is known: does a runtime compute it?

That a runtime takes an operator version does not say that it computes it: tflite-runtime 2.14 and
LiteRT 1.0 take 4-bit weights under float activations, and give nonsense without an error. So every
kind of layer is asked for: operator × activations × weights × one scale, or one for each channel.

The layers sum up eight products for each of four channels. The channels' scales are so different
that a runtime which takes the first for all is off by far more than rounding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.compatibility.tflite_schema import (
    OPERATORS,
    SCHEMA_VERSION,
    TYPES,
    BufferField,
    CodeField,
    ModelField,
    OperatorField,
    QuantizationField,
    SubgraphField,
    TensorField,
)

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
ACTIVATIONS, WEIGHTS = ("float32", "int8", "int16"), ("int8", "int4")
# Numbers of the tables of options in the schema's union.
_OPTIONS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 8}
_CHANNELS, _TERMS = 4, 8
_SCALES = np.array([0.02, 0.01, 0.005, 0.0025])
_INPUT_SCALE, _OUTPUT_SCALE = 1 / 64, 1 / 8
_LARGEST = {"int8": 100, "int4": 7}
# Of the largest answer: 8-bit rounding of activations and result.
_TOLERANCE = 0.08


@dataclass(frozen=True)
class Tensor:
    """A tensor of a probe; `data` is None for activations."""

    kind: str
    shape: tuple[int, ...]
    data: bytes | None = None
    scales: tuple[float, ...] = ()
    dimension: int = 0


def name_of(layer: str, activations: str, weights: str, *, per_channel: bool) -> str:
    """Return the name under which a kind of layer stands in the table."""
    return f"{layer} {activations}*{weights} {'per channel' if per_channel else 'per tensor'}"


def questions() -> dict[str, dict[str, Any]]:
    """Return kind of layer → model (hexadecimal), input, expected output and tolerance."""
    return {
        name_of(layer, activations, weights, per_channel=per_channel): _question(
            layer, activations, weights, per_channel
        )
        for layer in LAYERS
        for activations in ACTIVATIONS
        for weights in WEIGHTS
        for per_channel in (False, True)
    }


def _question(layer: str, activations: str, weights: str, per_channel: bool) -> dict[str, Any]:
    terms = 1 if layer == "DEPTHWISE_CONV_2D" else _TERMS
    generator = np.random.default_rng(7)
    top = _LARGEST[weights]
    w = generator.integers(top // 2, top + 1, (_CHANNELS, terms))
    scales = _SCALES if per_channel else _SCALES[:1]
    x = generator.integers(16, 64, _CHANNELS if terms == 1 else terms)
    # Sums in real numbers: the input's scale is there for float activations too.
    total = (w * (x[:, None] if terms == 1 else x)).sum(axis=1) * scales * _INPUT_SCALE
    # Results in a range that 8 bits hold.
    gain = 100 * _OUTPUT_SCALE / total.max()
    scales, total = scales * gain, total * gain
    model = _model(layer, activations, weights, w, scales)
    is_float = activations == "float32"
    return {
        "model": model.hex(),
        "input": (x * _INPUT_SCALE if is_float else x).tolist(),
        "expected": (total if is_float else total / _OUTPUT_SCALE).tolist(),
        "tolerance": float((total if is_float else total / _OUTPUT_SCALE).max() * _TOLERANCE),
    }


def _model(
    layer: str, activations: str, weights: str, w: NDArray[np.int64], scales: NDArray[np.float64]
) -> bytes:
    is_float = activations == "float32"
    depthwise = layer == "DEPTHWISE_CONV_2D"
    terms = _CHANNELS if depthwise else _TERMS
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "FULLY_CONNECTED": ((1, terms), (_CHANNELS, terms), (1, _CHANNELS)),
        "CONV_2D": ((1, 1, 1, terms), (_CHANNELS, 1, 1, terms), (1, 1, 1, _CHANNELS)),
        "DEPTHWISE_CONV_2D": ((1, 1, 1, terms), (1, 1, 1, terms), (1, 1, 1, _CHANNELS)),
    }
    given, held, result = shapes[layer]
    bias = {"float32": ("float32", "<f4"), "int8": ("int32", "<i4"), "int16": ("int64", "<i8")}
    kind, dtype = bias[activations]
    tensors = [
        Tensor(activations, given, None, () if is_float else (_INPUT_SCALE,)),
        Tensor(weights, held, _packed(w, weights), tuple(scales), 3 if depthwise else 0),
        Tensor(
            kind, (_CHANNELS,), np.zeros(_CHANNELS, dtype).tobytes(),
            () if is_float else tuple(scales * _INPUT_SCALE),
        ),
        Tensor(activations, result, None, () if is_float else (_OUTPUT_SCALE,)),
    ]  # fmt: skip
    return _file(layer, tensors)


def _packed(values: NDArray[np.int64], kind: str) -> bytes:
    """Return weights as stored: 4-bit ones by twos, the first in the lower half."""
    if kind == "int8":
        return values.astype("i1").tobytes()
    flat = values.reshape(-1) & 15
    return (flat[0::2] | flat[1::2] << 4).astype("u1").tobytes()


def _file(layer: str, tensors: list[Tensor]) -> bytes:
    """Write a file of one operator: inputs are all tensors but the last, which is its output."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)

    def links(offsets: list[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def numbers(values: Any, dtype: str) -> int:
        return int(builder.CreateNumpyVector(np.asarray(values, dtype)))

    def table(slots: dict[int, int], **scalars: tuple[int, int]) -> int:
        builder.StartObject(12)
        for slot, offset in slots.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for kind, (slot, value) in scalars.items():
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(builder.EndObject())

    buffers = [table({})]
    made = []
    numbers_of = {name: number for number, (name, _) in enumerate(TYPES)}
    for tensor in tensors:
        slots = {TensorField.SHAPE: numbers(tensor.shape, "i4")}
        if tensor.scales:
            slots[TensorField.QUANTIZATION] = table(
                {
                    QuantizationField.SCALE: numbers(tensor.scales, "f4"),
                    QuantizationField.ZERO_POINT: numbers([0] * len(tensor.scales), "i8"),
                },
                Int32=(QuantizationField.DIMENSION, tensor.dimension),
            )
        buffer = 0
        if tensor.data is not None:
            buffer = len(buffers)
            buffers.append(table({BufferField.DATA: int(builder.CreateByteVector(tensor.data))}))
        made.append(
            table(slots, Int8=(TensorField.TYPE, numbers_of[tensor.kind]),
                  Uint32=(TensorField.BUFFER, buffer))
        )  # fmt: skip
    options = _options(builder, layer)
    ports = {
        OperatorField.INPUTS: numbers(range(len(tensors) - 1), "i4"),
        OperatorField.OUTPUTS: numbers([len(tensors) - 1], "i4"),
        OperatorField.OPTIONS: options,
    }
    operator = table(ports, Uint8=(OperatorField.OPTIONS_TYPE, _OPTIONS[layer]))
    graph = table({
        SubgraphField.TENSORS: links(made),
        SubgraphField.INPUTS: numbers([0], "i4"),
        SubgraphField.OUTPUTS: numbers([len(tensors) - 1], "i4"),
        SubgraphField.OPERATORS: links([operator]),
    })  # fmt: skip
    number = OPERATORS.index(layer)
    code = table({}, Int8=(CodeField.OLD_CODE, number), Int32=(CodeField.CODE, number))
    parts = {
        ModelField.OPERATOR_CODES: links([code]),
        ModelField.SUBGRAPHS: links([graph]),
        ModelField.BUFFERS: links(buffers),
    }
    builder.Finish(table(parts, Uint32=(ModelField.VERSION, SCHEMA_VERSION)), b"TFL3")
    return bytes(builder.Output())


def _options(builder: Any, layer: str) -> int:
    """Write options: strides and dilation of 1, one channel out for each in."""
    strides = {"CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2, 3), "FULLY_CONNECTED": ()}
    builder.StartObject(7)
    for slot in strides[layer]:
        builder.PrependInt32Slot(slot, 1, 0)
    return int(builder.EndObject())
