"""Which layers may be int8: measured, layer by layer.

1. Each layer alone is quantized, the others stay in float32: what the model's answers lose by it is
   that layer's sensitivity. Large models are measured in groups of neighbouring layers, so that the
   number of evaluations is bounded.
2. Layers become int8 in the order of their sensitivity, the least sensitive first. The largest
   number of them whose answers together are near enough to the original's is found by bisection.
3. Operators without weights follow the layers around them (`onnx_quantizer.without_islands`).

Ranges come from the calibration rows, losses from samples that are not among them (`fidelity`).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, to_builtins

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps import fidelity, graph, onnx_int8, onnx_quantizer, onnx_weights
from edgefleet_converters.steps.onnx_quantizer import Calibrated, Settings
from edgefleet_converters.steps.registry import Context, Model, step

_WU = "https://arxiv.org/abs/2004.09602 (Wu et al. 2020, section 5: partial quantization)"


class MixedOptions(Settings, frozen=True, forbid_unknown_fields=True):
    """Of `onnx-mixed-precision`: those of `Settings`, and these.

    Attributes:
        fidelity: to be kept on the samples: share of rows with the original's class, or R² against
            its values.
        groups: most groups of layers that are measured.
        form: of the file, as for `onnx-int8-static`.
        float_weights: how layers that stay in float32 store their weights; `int8` as
            `onnx-int8-weights` does.
    """

    fidelity: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.99
    groups: Annotated[int, Meta(ge=1, le=1000)] = 24
    form: onnx_int8.Form = "operators"
    float_weights: Literal["float32", "int8"] = "int8"


class Sensitivity(Struct, frozen=True):
    """What int8 does to one layer, or to one group of neighbours.

    Attributes:
        layer: name of the node, or names separated by a blank.
        op: its operator, or theirs.
        loss: of the model's answers with this layer alone in int8, as `fidelity.loss`.
        bytes: of its weights in float32.
    """

    layer: str
    op: str
    loss: float
    bytes: int

    @property
    def layers(self) -> list[str]:
        """Names of the nodes."""
        return self.layer.split(" ")


class _Trials:
    """Quantizes some of the layers of a model and compares the answers with the original's."""

    def __init__(self, model: Model, context: Context, options: MixedOptions) -> None:
        self.proto = graph.prepared(graph.read(model))
        self.layers = graph.layers_or_refuse(self.proto.graph, "int8")
        self._model, self._options, self._task = model, options, context.task
        samples = fidelity.calibration_rows(context, options.rows).bind(model.signature)
        self._calibrated: Calibrated = onnx_quantizer.calibrate(self.proto, samples, options)
        self._samples, self._original = fidelity.judged_rows(context, options.rows)
        self._others = set(onnx_quantizer.integer_nodes(self.proto, [], [])) - {
            node.name for node in self.layers
        }

    def quantized(self, layers: list[str], *, others: bool) -> Any:
        """Return the graph with these layers in int8.

        Args:
            layers: names.
            others: also quantize the operators without weights between them.
        """
        names = set(layers) | (self._others if others else set())
        kept = onnx_quantizer.without_islands(self.proto.graph, names)
        return onnx_quantizer.quantize(self._calibrated, self._options, kept)

    def loss(self, layers: list[str]) -> float:
        """Return what the answers lose with these layers alone in int8."""
        return fidelity.loss(self._scores(self.quantized(layers, others=False)), self._original)

    def likeness(self, layers: list[str]) -> float:
        """Return how near the answers are with all these layers in int8."""
        scores = self._scores(self.quantized(layers, others=True))
        return fidelity.fidelity(self._task, scores, self._original)

    def _scores(self, proto: Any) -> fidelity.Scores:
        return fidelity.scores(proto.SerializeToString(), self._model.signature, self._samples)


@step(
    "onnx-mixed-precision",
    takes="onnx",
    gives="onnx",
    reference=_WU,
    options=MixedOptions,
)
def mixed_precision(model: Model, options: MixedOptions, context: Context) -> Model:
    """Measure what int8 costs each layer, and leave the most sensitive ones in float32.

    Pays where `onnx-int8-static` loses more than is allowed: mostly one or two layers (often the
    first or the last) cause most of the loss. Layers that stay in float32 store their weights in 8
    bits, so the file is hardly larger than the int8 one. Does not pay where all layers together
    keep the fidelity asked for: then it gives the same as `onnx-int8-static`, after measuring. Each
    change between float32 and int8 costs time: ResNet8 with three of ten layers in int8 takes
    371 µs, all in float32 287, all in int8 242.

    Raises:
        UnsupportedError: no layer has constant float weights, or the least sensitive alone already
            costs more than is allowed.
    """
    trials = _Trials(model, context, options)
    groups = grouped(trials.layers, options.groups)
    sensitivities = [_sensitivity(trials, group) for group in groups]
    ordered = sorted(sensitivities, key=lambda found: found.loss)
    tried: dict[int, float] = {}

    def keeps(count: int) -> bool:
        tried[count] = trials.likeness([n for found in ordered[:count] for n in found.layers])
        return tried[count] >= options.fidelity

    count = largest(len(ordered), keeps)
    if not count:
        raise UnsupportedError(
            f"the least sensitive layer, {ordered[0].layer}, in int8 alone keeps"
            f" {tried[1]:.4f} of the original's answers; {options.fidelity:g} is asked for"
        )
    chosen = [name for found in ordered[:count] for name in found.layers]
    made = onnx_int8.finish(trials.quantized(chosen, others=True), options.form, options)
    if options.float_weights == "int8" and count < len(ordered):
        onnx_weights.store_in_8_bits(made)
    note = {
        "int8": chosen,
        "float32": [name for found in ordered[count:] for name in found.layers],
        "fidelity": tried[count],
        "evaluations": len(groups) + len(tried),
    }
    written = graph.written(model, made, "onnx-mixed-precision", note)
    listed = [to_builtins(found) for found in ordered]
    return msgspec.structs.replace(written, notes=written.notes | {"sensitivity": listed})


def grouped(layers: list[Any], groups: int) -> list[list[Any]]:
    """Return layers in at most `groups` groups of neighbours, of sizes that differ by one."""
    count = min(groups, len(layers))
    bounds = [len(layers) * place // count for place in range(count + 1)]
    return [layers[start:end] for start, end in pairwise(bounds)]


def largest(highest: int, keeps: Callable[[int], bool]) -> int:
    """Return the largest count that keeps what is asked for, 0 if none does.

    Found by bisection, so exact where more never keep what fewer do not; what it returns has been
    tried in any case.

    Args:
        highest: count there is.
        keeps: tries a count of 1 or more.
    """
    if keeps(highest):
        return highest
    low, high = 0, highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _sensitivity(trials: _Trials, group: list[Any]) -> Sensitivity:
    held = graph.constants(trials.proto.graph)
    return Sensitivity(
        " ".join(node.name for node in group),
        " ".join(sorted({node.op_type for node in group})),
        trials.loss([node.name for node in group]),
        sum(4 * math.prod(held[node.input[1]].dims) for node in group),
    )
