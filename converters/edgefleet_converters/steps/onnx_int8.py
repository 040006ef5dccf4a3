"""ONNX float32 → int8: dynamic, static with every choice, and static chosen by measurement."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import onnx
from msgspec import Meta, Struct, field

from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.steps import (
    fidelity,
    graph,
    onnx_compaction,
    onnx_quantizer,
    weight_forms,
)
from edgefleet_converters.steps.onnx_quantizer import Settings
from edgefleet_converters.steps.registry import Context, Model, step

_JACOB = "https://arxiv.org/abs/1712.05877 (Jacob et al. 2018)"
_DOCUMENTATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"

# Latencies within this ratio are not told apart.
_EQUAL_SPEED = 1.1

Form = Literal["operators", "qdq"]


class DynamicOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-int8-dynamic`.

    Attributes:
        weights: type of the weights.
        per_channel: a scale for each output channel.
        op_types: what is quantized. Convolutions are left out: they become 14 times slower.
    """

    weights: Literal["s8", "u8"] = "s8"
    per_channel: bool = True
    op_types: list[str] = field(default_factory=lambda: ["MatMul", "Gemm", "LSTM", "Attention"])


class StaticOptions(Settings, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-int8-static`: those of `Settings`, and these.

    Attributes:
        form: `operators`: integer operators of ONNX and ONNX Runtime, the smallest file; `qdq`:
            float operators between QuantizeLinear and DequantizeLinear, standard operators alone,
            which other runtimes read too and ONNX Runtime fuses at load.
        op_types: quantize only these; none for all that have integer kernels.
        exclude: names of nodes that stay in float (`Conv_0`: operator and place, as
            `onnx-mixed-precision` lists them).
    """

    form: Form = "operators"
    op_types: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)


class MeasuredOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-int8-measured`.

    Attributes:
        activations: tried.
        calibrations: tried.
        granularities: tried.
        form: of the file.
        tolerance: candidates this near to the best one (share of rows, or R²) are good enough to
            win by speed.
        rows: of the samples that calibrate.
    """

    activations: Annotated[list[Literal["u8", "s8"]], Meta(min_length=1)] = field(
        default_factory=lambda: ["u8", "s8"]
    )
    calibrations: Annotated[
        list[Literal["minmax", "entropy", "percentile"]], Meta(min_length=1)
    ] = field(default_factory=lambda: ["minmax", "percentile"])
    granularities: Annotated[list[weight_forms.Granularity], Meta(min_length=1)] = field(
        default_factory=lambda: ["auto"]
    )
    form: Form = "operators"
    tolerance: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.005
    rows: Annotated[int, Meta(ge=1, le=100_000)] = 512


class Candidate(Struct, frozen=True):
    """One form that was tried.

    Attributes:
        name: `u8 minmax auto`.
        fidelity: to the original, as `fidelity.fidelity`.
        latency_us: median of one row on this machine.
    """

    name: str
    fidelity: float
    latency_us: float
    bytes: int


@step(
    "onnx-int8-dynamic",
    takes="onnx",
    gives="onnx",
    reference=_DOCUMENTATION,
    options=DynamicOptions,
)
def dynamic(model: Model, options: DynamicOptions, context: Context) -> Model:
    """Store weights as int8 and find the range of activations anew at each call.

    Pays for LSTMs and wide dense layers, and needs no samples (AD01 281 KB instead of 1,068 and no
    loss of AUC). Does not pay for convolutions: KWS takes 905 µs instead of 65, ResNet8 1.36 ms
    instead of 0.23; so they are left in float unless asked for.

    Raises:
        UnsupportedError: nothing in the model is of the asked types.
    """
    del context
    from onnxruntime import quantization

    prepared = graph.prepared(graph.read(model))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(prepared, source)
        try:
            quantization.quantize_dynamic(
                source,
                target,
                op_types_to_quantize=options.op_types,
                per_channel=options.per_channel,
                weight_type=quantization.QuantType[onnx_quantizer.TYPES[options.weights]],
            )
        except Exception as error:  # the quantizer's errors share no base class
            raise UnsupportedError(
                f"ONNX Runtime cannot quantize it: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        made = onnx.load(target)
    changed = _kinds(made) - _kinds(prepared)
    if not changed:
        raise UnsupportedError(
            f"no {', '.join(options.op_types)} with constant weights: dynamic int8 would change"
            " nothing (for convolutions use onnx-int8-static)"
        )
    made.ir_version = prepared.ir_version
    return graph.written(model, made, "onnx-int8-dynamic", {"operators": sorted(changed)})


@step(
    "onnx-int8-static",
    takes="onnx",
    gives="onnx",
    reference=_JACOB,
    options=StaticOptions,
)
def static(model: Model, options: StaticOptions, context: Context) -> Model:
    """Compute in int8 with ranges found on samples.

    Pays for convolutions and dense layers: a quarter of the size, and on CPUs with 8-bit dot
    products (x86 with VNNI, ARM from the Cortex-A55 and A76 on) up to twice the speed. Depthwise
    convolutions and first layers of one channel gain least (KWS is slower than in float on x86);
    trees and models of a few µs gain nothing. With one scale a layer MLPerf's AD01 loses 4.4 points
    of AUC, with one a channel none: `granularity: auto` finds which layers need it. Activations of
    16 bits are 3 to 25 times slower than float32: they are for runtimes with kernels for them.
    Minmax was the best calibration or within half a point of it on all models tried; entropy never
    was (AD01 loses 6 points by it).

    Raises:
        UnsupportedError: no layer has constant float weights.
    """
    proto = graph.prepared(graph.read(model))
    graph.layers_or_refuse(proto.graph, "int8")
    names = onnx_quantizer.integer_nodes(proto, options.op_types, options.exclude)
    quantized = _quantized(proto, names)
    samples = fidelity.calibration_rows(context, options.rows).bind(model.signature)
    calibrated = onnx_quantizer.calibrate(proto, samples, options)
    made = finish(onnx_quantizer.quantize(calibrated, options, names), options.form, options)
    return graph.written(model, made, "onnx-int8-static", {"layers": quantized})


@step(
    "onnx-int8-measured",
    takes="onnx",
    gives="onnx",
    reference=_JACOB,
    options=MeasuredOptions,
)
def measured(model: Model, options: MeasuredOptions, context: Context) -> Model:
    """Quantize statically in several forms and keep the fastest of those nearest to the original.

    Pays where the best form is not known: which activation type is faster depends on the CPU (on
    x86 with VNNI ResNet8 takes 0.13 ms as u8s8 and 0.29 ms as s8s8, against 0.23 ms in float), and
    which calibration is better on the model. Latency is measured on this machine, so convert on
    one like the target, or fix the form with `onnx-int8-static`. Only samples that did not
    calibrate are compared.

    Raises:
        UnsupportedError: no form could be made.
    """
    proto = graph.prepared(graph.read(model))
    graph.layers_or_refuse(proto.graph, "int8")
    names = onnx_quantizer.integer_nodes(proto, [], [])
    made, failures = {}, []
    calibration = fidelity.calibration_rows(context, options.rows).bind(model.signature)
    for method in options.calibrations:
        calibrated = onnx_quantizer.calibrate(proto, calibration, Settings(calibration=method))
        for kind in options.activations:
            for granularity in options.granularities:
                name = f"{kind} {method} {granularity}"
                settings = Settings(activations=kind, granularity=granularity)
                try:
                    quantized = onnx_quantizer.quantize(calibrated, settings, names)
                    form = finish(quantized, options.form, settings)
                    made[name] = graph.written(model, form, "onnx-int8-measured", {})
                except UnsupportedError as error:
                    failures.append(f"{name}: {error}")
    if not made:
        raise UnsupportedError(f"no int8 form could be made: {'; '.join(failures)}")
    candidates = [_measure(name, form, context, options.rows) for name, form in made.items()]
    best = choose(candidates, options.tolerance)
    note = made[best.name].notes["onnx-int8-measured"] | {
        "chosen": best.name,
        "candidates": [msgspec.to_builtins(candidate) for candidate in candidates],
        "failures": failures,
    }
    notes = model.notes | {"onnx-int8-measured": note}
    return msgspec.structs.replace(made[best.name], notes=notes)


def choose(candidates: list[Candidate], tolerance: float) -> Candidate:
    """Return the nearest to the original of the fast ones among those that are good.

    Good are those that are as near as the best within `tolerance`; fast are those within a tenth of
    the fastest good one, which is what timing on a busy machine can tell.
    """
    top = max(candidate.fidelity for candidate in candidates)
    good = [candidate for candidate in candidates if candidate.fidelity >= top - tolerance]
    fastest = min(candidate.latency_us for candidate in good)
    fast = [candidate for candidate in good if candidate.latency_us <= _EQUAL_SPEED * fastest]
    return max(fast, key=lambda candidate: candidate.fidelity)


def finish(quantized: Any, form: Form, settings: Settings) -> Any:
    """Return a QDQ graph in the form asked for.

    Raises:
        BadInputError: 16-bit activations have no integer operators.
    """
    if form == "qdq":
        return quantized
    if settings.activations in ("u16", "s16"):
        raise BadInputError(
            f"activations {settings.activations} have no integer operators: use form qdq"
        )
    return onnx_quantizer.as_operators(quantized)


def _quantized(proto: Any, names: list[str]) -> list[str]:
    """Return which layers are among the nodes; refuse if none is."""
    chosen = [node.name for node in graph.layers(proto.graph) if node.name in set(names)]
    if not chosen:
        raise UnsupportedError(
            "op_types and exclude leave no layer to quantize; the model's layers:"
            f" {', '.join(node.name for node in graph.layers(proto.graph))[:500]}"
        )
    return chosen


def _measure(name: str, made: Model, context: Context, rows: int) -> Candidate:
    samples, original = fidelity.judged_rows(context, rows)
    found = fidelity.scores(made.data, made.signature, samples)
    return Candidate(
        name,
        fidelity.fidelity(context.task, found, original),
        fidelity.median_us(made.data, made.signature, samples),
        len(made.data),
    )


def _kinds(proto: Any) -> set[str]:
    return {node.op_type for node in onnx_compaction.nodes(proto.graph)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice (to prepare the model, which was done) out of the log."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
