"""Quantization to TFLite: of Keras models and SavedModels, and of float TFLite files.

1. Files take and give float32 whatever is inside, so that a device feeds all variants alike.
2. Models that TensorFlow can read go through its converter, which knows the most operators; float
   TFLite files, and settings that the converter lacks, through ai-edge-quantizer.
3. A dense layer whose activations are quantized at every call needs a runtime of 2.17 for scales
   per channel (FULLY_CONNECTED version 12); older ones load the file and answer nonsense. So every
   file is stamped with the versions that its operators need, and old runtimes refuse it.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from edgefleet_converters import tflite_files
from edgefleet_converters.steps import (
    tflite_biases,
    tflite_compaction,
    tflite_graph,
    tflite_quantizer,
    weight_forms,
)
from edgefleet_converters.steps.registry import Context, Model, NoOptions, step
from edgefleet_converters.steps.tflite_quantizer import Calibration

_GUIDE = "https://ai.google.dev/edge/litert/models/post_training_quantization"
_QUANTIZER = "https://github.com/google-ai-edge/ai-edge-quantizer"
_SCHEMA = "https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs"
_JACOB = "https://arxiv.org/abs/1712.05877"
_EVERYTHING = ".*"
_ALL = "*"

Bits = Literal[4, 8]
Rows = Annotated[int, Meta(ge=1, le=100_000)]


class IntegerOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to compute in integers.

    Attributes:
        per_channel: one scale for each output channel of a weight, else one for the whole.
        calibration_rows: rows that ranges of activations are taken from.
        percentile: share of the values, in percent, that a range holds; 100 for all.
        float_layers: layers that stay float32: regular expressions on the names of their outputs.
    """

    per_channel: bool = True
    calibration_rows: Rows = 300
    percentile: Annotated[float, Meta(gt=50, le=100)] = 100.0
    float_layers: list[str] = field(default_factory=list)


class WeightOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to store weights.

    Attributes:
        bits: of a weight.
        granularity: `channel`: a scale for each output channel; `tensor`: one a layer; `auto`: one
            a layer where 8 bits lose at most half a bit of the weights' precision by it.
        biases: `int8`: also those of 48 values or more, one scale a layer.
    """

    bits: Bits = 8
    granularity: weight_forms.Granularity = "auto"
    biases: Literal["float32", "int8"] = "float32"


class DynamicOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to store weights whose activations are quantized at every call.

    Attributes:
        bits: of a weight.
        block: weights of a dense layer's row that share a scale; 0 for one scale a channel. Layers
            whose rows are no multiple of it have one scale a channel. With 4 bits only.
    """

    bits: Bits = 8
    block: Literal[0, 32, 64, 128, 256] = 0

    def __post_init__(self) -> None:
        """Refuse blocks of 8-bit weights, which the quantizer does not know."""
        if self.block and self.bits != 4:
            raise ValueError("a block size needs 4 bits")


@step("tflite-float", takes="tflite", gives="tflite", reference=_GUIDE)
def float32(model: Model, options: NoOptions, context: Context) -> Model:
    """Turn weights stored in 8 or 16 bits back into float32, so that they can be quantized anew.

    A file that takes and gives float32 often holds them so (MLPerf Tiny's `kws_ref_model_float32`
    does), and then computes with activations that are quantized at every call.
    """
    del options, context
    return _compacted(_as_tflite(model))


@step("tflite-compact", takes="tflite", gives="tflite", reference=_SCHEMA, exact=True)
def compact(model: Model, options: NoOptions, context: Context) -> Model:
    """Leave out what no runtime reads: names of inner tensors, notes, equal tables, dead buffers.

    Nothing that is computed changes. Every other step that writes weights of TFLite files ends with
    it.
    """
    del options, context
    return _compacted(model)


@step("tflite-fp16", takes=("keras", "savedmodel", "tflite"), gives="tflite", reference=_GUIDE)
def float16(model: Model, options: NoOptions, context: Context) -> Model:
    """Store weights as float16 and compute in float32.

    Half the size, the speed of float32 after loading, and next to no loss.
    """
    del options, context
    if model.format == "tflite":

        def rules(recipe: Any) -> None:
            recipe.add_weight_only_config(_EVERYTHING, _ALL, 16, algorithm_key="float_casting")

        return _quantized(model, rules)
    import tensorflow as tf

    converting = tflite_files.converter(model)
    converting.optimizations = [tf.lite.Optimize.DEFAULT]
    converting.target_spec.supported_types = [tf.float16]
    return _compacted(tflite_files.finish(converting, model))


@step(
    "tflite-int8",
    takes=("keras", "savedmodel", "tflite"),
    gives="tflite",
    reference=_JACOB,
    options=IntegerOptions,
)
def int8(model: Model, options: IntegerOptions, context: Context) -> Model:
    """Compute in 8-bit integers with ranges of activations calibrated on rows.

    A quarter of the size and, on most CPUs, 1.5 to 4 times the speed. Scales per channel matter
    most: MLPerf Tiny's auto-encoder loses 4.3 points of AUC with one scale a weight and none with
    one a channel.
    """
    return _integer(model, options, context, 8)


@step(
    "tflite-int16x8",
    takes=("keras", "savedmodel", "tflite"),
    gives="tflite",
    reference="https://ai.google.dev/edge/litert/models/post_training_integer_quant_16x8",
    options=IntegerOptions,
)
def int16x8(model: Model, options: IntegerOptions, context: Context) -> Model:
    """Compute with 16-bit activations and 8-bit weights.

    For models whose activations 8 bits are too few for. The kernels are plain C: measured 20 to
    170 times slower than float32 on x86, so this pays where size counts and time does not, or on
    accelerators made for it.
    """
    return _integer(model, options, context, 16)


@step(
    "tflite-dynamic",
    takes=("keras", "savedmodel", "tflite"),
    gives="tflite",
    reference=_QUANTIZER,
    options=DynamicOptions,
)
def dynamic(model: Model, options: DynamicOptions, context: Context) -> Model:
    """Store weights in 8 or 4 bits, and quantize activations at every call.

    Needs no rows. Suits dense layers; convolutions are often slower than in float32.
    """
    del context
    if model.format != "tflite" and options.bits == 8:
        import tensorflow as tf

        converting = tflite_files.converter(model)
        converting.optimizations = [tf.lite.Optimize.DEFAULT]
        return _compacted(tflite_files.finish(converting, model))
    made = _as_tflite(model)
    blocks = _blocks(made.data, options.block)

    def rules(recipe: Any) -> None:
        recipe.add_dynamic_config(_EVERYTHING, _ALL, options.bits)
        for name in blocks:
            recipe.add_dynamic_config(
                name, "FULLY_CONNECTED", options.bits, f"BLOCKWISE_{options.block}"
            )

    return _quantized(made, rules)


@step("tflite-weights", takes="tflite", gives="tflite", reference=_QUANTIZER, options=WeightOptions)
def weights(model: Model, options: WeightOptions, context: Context) -> Model:
    """Store weights in 8 or 4 bits, and compute in float32.

    Weights are turned back at loading: the size of the quantized file at the accuracy of exact
    activations, and with 8 bits at the speed of float32. 4 bits with one scale a channel ruin small
    convolutions (ResNet8: .87 to .56). Small files gain from `biases` and from `tflite-equalize`
    before: MLPerf Tiny's keyword spotter falls from 92.8 KB to 29.0 KB, and with both to 26.4 KB.
    """
    del context
    data = tflite_graph.with_float_weights(model.data)
    whole = list(_with_one_scale(data, options))

    def rules(recipe: Any) -> None:
        recipe.add_weight_only_config(_EVERYTHING, _ALL, options.bits)
        for layer in whole:
            recipe.add_weight_only_config(layer, _ALL, options.bits, "TENSORWISE")

    made = tflite_quantizer.quantize(data, rules)
    if options.biases == "int8":
        made = tflite_biases.store_in_8_bits(made)
    return _compacted(tflite_files.renamed(model, made))


def _integer(model: Model, options: IntegerOptions, context: Context, bits: int) -> Model:
    """Quantize weights to 8 bits and activations to `bits`."""
    plain = options.percentile == 100 and not options.float_layers
    if model.format != "tflite" and plain:
        return _by_tensorflow(model, options, context, bits)
    made = _as_tflite(model)
    inputs = context.samples.bind(made.signature)
    calibration = Calibration(options.calibration_rows, options.percentile)
    ranges = tflite_quantizer.watch(made.data, inputs, calibration)

    def rules(recipe: Any) -> None:
        weights = "CHANNELWISE" if options.per_channel else "TENSORWISE"
        recipe.add_static_config(_EVERYTHING, _ALL, bits, 8, weights)
        for port in ("INPUT", "OUTPUT"):
            recipe.add_quantization_config(_EVERYTHING, port, algorithm_key="no_quantize")
        for layer in options.float_layers:
            recipe.add_quantization_config(layer, _ALL, algorithm_key="no_quantize")

    return _quantized(made, rules, ranges)


def _by_tensorflow(model: Model, options: IntegerOptions, context: Context, bits: int) -> Model:
    import tensorflow as tf

    inputs = list(context.samples.bind(model.signature).values())

    def rows() -> Iterator[list[NDArray[np.generic]]]:
        for row in range(min(options.calibration_rows, len(context.samples))):
            yield [values[row : row + 1] for values in inputs]

    sets = tf.lite.OpsSet
    converting = tflite_files.converter(model)
    converting.optimizations = [tf.lite.Optimize.DEFAULT]
    converting.representative_dataset = rows
    converting.target_spec.supported_ops = [
        sets.TFLITE_BUILTINS_INT8
        if bits == 8
        else sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    ]
    # The converter has no public way to say these.
    converting._experimental_disable_per_channel = not options.per_channel
    converting._experimental_disable_per_channel_quantization_for_dense_layers = (
        not options.per_channel
    )
    return _compacted(tflite_files.finish(converting, model))


def _as_tflite(model: Model) -> Model:
    """Return the model as TFLite whose operators all have float32 weights."""
    if model.format != "tflite":
        model = tflite_files.finish(tflite_files.converter(model), model)
    return tflite_files.renamed(model, tflite_graph.with_float_weights(model.data))


def _quantized(
    model: Model, rules: tflite_quantizer.Configure, ranges: tflite_quantizer.Ranges | None = None
) -> Model:
    data = tflite_graph.with_float_weights(model.data)
    quantized = tflite_quantizer.quantize(data, rules, ranges)
    return _compacted(tflite_files.renamed(model, quantized))


def _compacted(model: Model) -> Model:
    return tflite_files.renamed(model, tflite_compaction.compact(model.data))


def _with_one_scale(data: bytes, options: WeightOptions) -> Iterator[str]:
    """Yield patterns for the layers whose weights share one scale."""
    granularity = options.granularity
    if granularity == "auto" and options.bits != 8:
        granularity = "channel"
    graph = tflite_graph.read(data)
    for part in graph.subgraphs:
        for operator in part.operators:
            axes = tflite_graph.AXES.get(tflite_graph.kind_of(graph, operator))
            if axes is None:
                continue
            values = tflite_graph.constant(graph, part.tensors[operator.inputs[1]])
            if values is None or values.dtype != np.float32:
                continue
            if weight_forms.channels_of(values.astype(np.float32), axes[0], granularity) is None:
                yield _pattern(part, operator)


def _pattern(part: Any, operator: Any) -> str:
    """Return the pattern by which the quantizer knows one operator: the name of its output."""
    return f"^{re.escape(tflite_graph.name_of(part.tensors[operator.outputs[0]]))};"


def _blocks(data: bytes, block: int) -> list[str]:
    """Return patterns for the dense layers whose rows divide into blocks."""
    if not block:
        return []
    graph = tflite_graph.read(data)
    found = []
    for part in graph.subgraphs:
        for operator in part.operators:
            if tflite_graph.kind_of(graph, operator) != tflite_graph.DENSE:
                continue
            if part.tensors[operator.inputs[1]].shape[1] % block == 0:
                found.append(_pattern(part, operator))
    return found
