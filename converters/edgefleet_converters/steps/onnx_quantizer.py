"""Static quantization of an ONNX graph: calibrate once, then quantize any layers in any form.

The arithmetic is ONNX Runtime's (`onnxruntime.quantization`); what is decided here is what it is
applied to, because its defaults cost accuracy, bytes or speed (all measured on MLPerf Tiny):

1. Only operators for which the CPU has integer kernels are quantized; around others, quantizing
   costs a conversion in and one out. Softmax and ArgMax stay in float, and so does whatever comes
   after the last layer: rounding probabilities to 1/256 loses the order of near answers.
2. What leaves integer arithmetic for good leaves it unrounded: a last dense layer gives the float
   sums that it has anyway.
3. Calibration runs in batches, so that histograms of large activations never lie in memory all at
   once; and always says whether ranges are symmetric (Percentile's own default halves the
   resolution behind a ReLU).
4. Weights have a scale a channel only where that keeps more of them (`granularity`): elsewhere
   scales are a fifth of a small layer's bytes.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx
from msgspec import Meta, Struct
from onnx import numpy_helper

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.steps import graph, weight_forms
from edgefleet_protocol.rows import Tensors

TYPES = {"u8": "QUInt8", "s8": "QInt8", "u16": "QUInt16", "s16": "QInt16"}
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
# More bins cut off more of what follows a ReLU: KWS falls from .902 to .896 (512) and .812 (2048).
_ENTROPY_BINS, _PERCENTILE_BINS = 128, 2048
_INTEGER_OPERATORS = {
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
    *("MaxPool", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Reshape", "Transpose", "Squeeze"),
    *("Unsqueeze", "Flatten", "Resize", "Pad", "Split", "Gather"),
}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How ranges are found, and what numbers become.

    Attributes:
        activations: unsigned is fastest on x86, signed on some ARM boards: measure. 16 bits keep
            accuracy, but have no integer kernels on CPUs (ONNX Runtime 1.16 refuses them, 1.18
            runs them).
        weights: `u8` goes with `u8` activations alone.
        granularity: `channel`: a scale for each output channel; `tensor`: one a layer; `auto`: one
            a layer where that costs at most half a bit of the weights' precision.
        reduce_range: weights of 7 bits. For x86 before VNNI, whose 16-bit sums saturate.
        calibration: `minmax` takes all values in; `percentile` cuts off the outermost; `entropy`
            cuts where the quantized distribution is nearest to the real one (Kullback-Leibler).
        percentile: share of values kept, for `percentile`.
        moving_average: `minmax` of batches averaged (constant 0.01), so that one odd batch does
            not widen the range.
        symmetric: ranges around zero, as some accelerators need; half the resolution is lost
            behind a ReLU.
        rows: of the samples that are run for the ranges, spread evenly over them.
    """

    activations: Literal["u8", "s8", "u16", "s16"] = "u8"
    weights: Literal["s8", "u8"] = "s8"
    granularity: weight_forms.Granularity = "auto"
    reduce_range: bool = False
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Meta(gt=50.0, le=100.0)] = 99.99
    moving_average: bool = False
    symmetric: bool = False
    rows: Annotated[int, Meta(ge=1, le=100_000)] = 512


@dataclass(frozen=True)
class Calibrated:
    """A prepared graph and the ranges of its activations.

    Attributes:
        proto: `onnx.ModelProto` of `graph.prepared`.
        ranges: `onnxruntime.quantization.TensorsData`.
    """

    proto: Any
    ranges: Any


def calibrate(proto: Any, tensors: Tensors, settings: Settings) -> Calibrated:
    """Run samples through a prepared graph and note the range of each activation.

    Args:
        proto: by `graph.prepared`.
        tensors: inputs, `(n, …)`.
        settings: how.

    Raises:
        UnsupportedError: the graph holds something that the calibrator cannot follow.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Batch(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        """Gives one batch."""

        def __init__(self, batch: Tensors) -> None:
            self._batches = iter([batch])

        def get_next(self) -> Tensors | None:
            return next(self._batches, None)

    options: dict[str, object] = {"symmetric": settings.symmetric}
    if settings.calibration == "minmax":
        options["moving_average"] = settings.moving_average
    elif settings.calibration == "percentile":
        options |= {"percentile": settings.percentile, "num_bins": _PERCENTILE_BINS}
    else:
        options |= {"num_bins": _ENTROPY_BINS}
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder) / "prepared.onnx"
        onnx.save(proto, path)
        try:
            calibrator = create_calibrator(
                path,
                sorted(_INTEGER_OPERATORS),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod[_METHODS[settings.calibration]],
                extra_options=options,
            )
            for batch in graph.batches(proto, tensors):
                calibrator.collect_data(Batch(batch))
            ranges = calibrator.compute_data()
        except Exception as error:  # the calibrator's errors share no base class
            raise UnsupportedError(
                f"calibration failed: {type(error).__name__}: {str(error)[:300]}"
            ) from error
    return Calibrated(proto, ranges)


def quantize(calibrated: Calibrated, settings: Settings, names: Iterable[str]) -> Any:
    """Return the graph with these nodes quantized, in QDQ form.

    Args:
        calibrated: graph and ranges; it is not changed.
        settings: what numbers become.
        names: of the nodes.

    Raises:
        UnsupportedError: a pair of types that no kernel takes, or a graph that the quantizer
            cannot follow.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    class Quantizer(QDQQuantizer):  # type: ignore[misc]  # onnxruntime ships no types
        """Leaves in float what is read as float alone (rule 2)."""

        def quantize_activation_tensor(self, tensor_name: str) -> None:
            if tensor_name not in floats:
                super().quantize_activation_tensor(tensor_name)

    if settings.weights == "u8" and settings.activations != "u8":
        raise BadInputError(
            f"weights u8 with activations {settings.activations}: no kernel takes them; u8 weights"
            " go with u8 activations"
        )
    wanted = set(names)
    floats = _last_sums(calibrated.proto.graph, wanted)
    proto = type(calibrated.proto).FromString(calibrated.proto.SerializeToString())
    wide = settings.activations in ("u16", "s16")
    extra = {
        # Otherwise a ReLU is left out, because ranges that begin at zero do its work.
        "ActivationSymmetric": settings.symmetric,
        # Before opset 21 the standard operators know no 16 bits; ONNX Runtime's own do.
        "UseQDQContribOps": wide and graph.opset(proto) < 21,
        "TensorQuantOverrides": _per_layer(proto.graph, settings),
    }
    kinds = sorted({node.op_type for node in proto.graph.node if node.name in wanted})
    try:
        quantizer = Quantizer(
            proto,
            settings.granularity != "tensor",
            settings.reduce_range,
            QuantType[TYPES[settings.weights]],
            QuantType[TYPES[settings.activations]],
            calibrated.ranges,
            sorted(wanted),
            [],
            kinds,
            extra,
        )
        quantizer.quantize_model()
    except Exception as error:  # the quantizer's errors share no base class
        raise UnsupportedError(
            f"ONNX Runtime cannot quantize it: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    quantizer.model.topological_sort()
    made = quantizer.model.model
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise UnsupportedError(
            f"no activation could be quantized around {', '.join(sorted(wanted))[:300]}: their"
            " types are not known, or none is float32"
        )
    _drop_zero_points_of_biases(made.graph)
    return made


def integer_nodes(proto: Any, op_types: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Return the names of the nodes that integer kernels can compute.

    Args:
        proto: by `graph.prepared`.
        op_types: only these; none for all.
        exclude: names of nodes that stay in float.

    Raises:
        BadInputError: no node is called like one of `exclude`.
    """
    kinds, left = set(op_types) or _INTEGER_OPERATORS, set(exclude)
    unknown = left - {node.name for node in proto.graph.node}
    if unknown:
        raise BadInputError(
            f"no node is called {', '.join(sorted(unknown))}; the model has:"
            f" {', '.join(node.name for node in proto.graph.node)[:500]}"
        )
    return without_islands(
        proto.graph, {n.name for n in proto.graph.node if n.op_type in kinds} - left
    )


def without_islands(held: Any, names: set[str]) -> list[str]:
    """Return `names` without the nodes that gain nothing from int8 where they stand.

    A node without weights is computed in integers only where all that it reads is in integers (or
    enters the model), and something goes on in integers after it: a last Sigmoid would round
    probabilities to 1/256.
    """
    weighted = {node.name for node in graph.layers(held)}
    producers = {output: node.name for node in held.node for output in node.output}
    kept = set(names)
    while True:
        read = {name for node in held.node if node.name in kept for name in node.input}
        islands = {
            node.name
            for node in held.node
            if node.name in kept - weighted
            and (
                any(producers.get(name, node.name) not in kept for name in node.input)
                or read.isdisjoint(node.output)
            )
        }
        if not islands:
            return [node.name for node in held.node if node.name in kept]
        kept -= islands


def as_operators(proto: Any) -> Any:
    """Return a QDQ graph with its layers fused into integer operators (QLinearConv, QGemm, …).

    It is what a session makes of the QDQ form at load, and gives the same answers; the scales of
    biases and most of the others are no longer needed, so the file is smaller.
    """
    made = graph.optimized(proto, "extended")
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "QLinearConv" and node.input[5] in held:
            zero = numpy_helper.to_array(held[node.input[5]])
            if zero.ndim and (zero == zero[0]).all():
                graph.replace_initializer(made.graph, node.input[5], zero[0])
    return made


def _last_sums(held: Any, wanted: set[str]) -> set[str]:
    """Return the sums of dense layers that no node reads as integers."""
    integers = {name for node in held.node if node.name in wanted for name in node.input}
    return {
        node.output[0]
        for node in held.node
        if node.name in wanted
        and node.op_type in ("Gemm", "MatMul")
        and node.output[0] not in integers
    }


def _per_layer(held: Any, settings: Settings) -> dict[str, list[dict[str, object]]]:
    """Return the weights that get one scale, as the quantizer takes it: name → [settings]."""
    from onnxruntime.quantization import QuantType

    if settings.granularity != "auto":
        return {}
    values = graph.constants(held)
    found = {}
    for node in graph.layers(held):
        weights = numpy_helper.to_array(values[node.input[1]])
        axis = graph.channel_axis(node, weights.ndim)
        if weight_forms.channels_of(weights, axis, "auto") is None:
            found[node.input[1]] = [{"quant_type": QuantType[TYPES[settings.weights]]}]
    return found


def _drop_zero_points_of_biases(held: Any) -> None:
    """Biases are symmetric: their zero points are zero, and may be left out of the file."""
    stored = {tensor.name: tensor.data_type for tensor in held.initializer}
    for node in held.node:
        if (
            node.op_type == "DequantizeLinear"
            and len(node.input) == 3
            and stored.get(node.input[0]) == onnx.TensorProto.INT32
        ):
            del node.input[2]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the calibrators' progress off standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
