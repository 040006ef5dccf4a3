"""Open a model with its samples: everything that recipes and verification need.

1. Tell the kind of model file; read and check the samples; hold rows out.
2. Open the file in a child process, by the route of its kind: the original's answers for all
   samples, and the bases from which recipes start.
3. Split what is learned from (context) and what is judged on (trial, truth).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edgefleet_converters import child, sources
from edgefleet_converters import data as rows_of
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.data import Data
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import Kind, ModelFile
from edgefleet_converters.steps.registry import TARGETS, Context, Format, Model
from edgefleet_converters.verification.arithmetic import arithmetic_of
from edgefleet_converters.verification.truth import Truth
from edgefleet_protocol.manifest import Runtime, Signature

# Which module of `routes` opens which kind.
ROUTES: dict[Kind, str] = {
    "pickle": "sklearn",
    "skops": "sklearn",
    "xgboost": "boosters",
    "lightgbm": "boosters",
    "keras": "keras",
    "savedmodel": "savedmodel",
    "torch": "torch",
    "onnx": "onnx",
    "tflite": "tflite",
}


@dataclass(frozen=True)
class Prepared:
    """An opened model with its samples split.

    Attributes:
        file: the model file.
        opened: by its route.
        context: what steps learn from: the training rows.
        trial: what variants are judged on.
        truth: what is right on those.
    """

    file: ModelFile
    opened: Opened
    context: Context
    trial: Samples
    truth: Truth

    @property
    def signature(self) -> Signature:
        """The signature of the first base: columns, or names under which tensors are counted."""
        return next(iter(self.opened.bases.values())).signature


def prepare(
    request: ConversionRequest,
    data: Data | None = None,
    remember: Callable[[Callable[[], Opened]], Opened] | None = None,
) -> Prepared:
    """Open a model with its samples.

    Args:
        request: what to open; its variants and limits are not looked at.
        data: the samples, where they have been read already.
        remember: returns what the route gave to the same request before, or runs it; None to run.

    Raises:
        BadInputError: the model file or the samples cannot be used.
        UnsupportedError: the route cannot open the model.
        ChildError: the route crashed, hung or ran out of memory.
    """
    file = sources.recognise(request.model_path)
    data = data or rows_of.read(request)
    hints = Hints(data.labels, request.classes, request.score_output, request.seed)

    def run_route() -> Opened:
        return child.run(
            f"converting {file.path}", open_file, file, data.samples, hints, returns=Opened
        )

    opened = run_route() if remember is None else remember(run_route)
    return _split(request, file, data, _named(opened, data.samples))


def open_file(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Open a model file by its route; called in a child process."""
    route = importlib.import_module(f"edgefleet_converters.routes.{ROUTES[file.kind]}")
    opened: Opened = route.open(file, samples, hints)
    for kind, base in opened.bases.items():
        if kind in TARGETS:
            # Only a file that a device could run can compute in anything but float32 already.
            runtime: Runtime = "onnxruntime" if kind == "onnx" else "litert"
            arithmetic = arithmetic_of(runtime, base.data)
            opened = msgspec.structs.replace(opened, arithmetic=arithmetic)
    return opened


def _split(request: ConversionRequest, file: ModelFile, data: Data, opened: Opened) -> Prepared:
    """Put training rows into the context, and the others into trial and truth."""
    samples = data.samples
    if samples.table is not None:
        samples = Samples(samples.source, samples.table.select(opened.columns), {})
    taught, labels = data.truth(opened.task, opened.classes, request.metric)
    training, held = data.training_rows, data.trial_rows
    context = Context(
        opened.task,
        samples.take(training),
        opened.scores[training],
        taught,
        request.seed,
    )
    truth = Truth(
        opened.task,
        opened.scores[held],
        labels,
        request.metric,
        None if data.groups is None else data.groups[held],
    )
    prepared = Prepared(file, opened, context, samples.take(held), truth)
    if request.metric == "reconstruction-auc":
        return replace(prepared, truth=_with_inputs(prepared))
    return prepared


def _named(opened: Opened, samples: Samples) -> Opened:
    """Let every base count its tensors under the names of the samples, which are the person's."""
    if samples.table is not None:
        return opened
    bases: dict[Format, Model] = {
        kind: msgspec.structs.replace(model, signature=count_as(model.signature, samples))
        for kind, model in opened.bases.items()
    }
    return msgspec.structs.replace(opened, bases=bases)


def count_as(signature: Signature, samples: Samples) -> Signature:
    """Return a signature whose inputs are counted under the names of the samples' tensors."""
    if samples.table is not None or len(samples.tensors) != len(signature.inputs):
        return signature
    inputs = [
        msgspec.structs.replace(tensor, counted_as="" if name == tensor.name else name)
        for tensor, name in zip(signature.inputs, samples.tensors, strict=True)
    ]
    return msgspec.structs.replace(signature, inputs=inputs)


def _with_inputs(prepared: Prepared) -> Truth:
    """Return the truth with what an auto-encoder is to reconstruct."""
    bound = prepared.trial.bind(prepared.signature)
    if len(bound) != 1:
        raise BadInputError(
            f"{prepared.file.path}: reconstruction-auc needs a model of one input; it has"
            f" {len(bound)}"
        )
    values = next(iter(bound.values()))
    inputs = values.reshape(len(values), -1).astype(np.float64)
    return msgspec.structs.replace(prepared.truth, inputs=inputs)
