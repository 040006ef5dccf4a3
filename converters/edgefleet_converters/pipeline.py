"""From a model file and a table to verified variants: the one way in for hub and command line.

1. Tell the kind of model file; read and check the tables; hold rows out.
2. Export in a child process: the original's answers, and the files that its route makes.
3. Quantize `onnx-fp32` in a child process, where int8 has something to work on.
4. Run each file on its runtime in a child process of its own; accept or refuse it.
5. Count the training rows into the reference profile.

A variant that cannot be made, or crashes its child, is refused with the reason; the others go on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from edgefleet_converters import (
    answers,
    child,
    keras_export,
    onnx_source,
    profile,
    quantize,
    sklearn_onnx,
    sources,
    verify,
)
from edgefleet_converters import data as rows_of
from edgefleet_converters.bundles import Bundle, write_bundle
from edgefleet_converters.conversion import (
    VARIANTS,
    Compiled,
    ConversionRequest,
    ConversionResult,
    Limits,
)
from edgefleet_converters.data import Data
from edgefleet_converters.errors import (
    BadInputError,
    ChildError,
    ConversionError,
    NothingVerifiedError,
)
from edgefleet_converters.exports import Export
from edgefleet_converters.keras_export import KerasOptions
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.tables import Table
from edgefleet_converters.verify import Trial, Truth
from edgefleet_protocol import golden, sketch
from edgefleet_protocol.manifest import Needs

__all__ = [
    "VARIANTS",
    "Bundle",
    "Compiled",
    "ConversionRequest",
    "ConversionResult",
    "Limits",
    "Progress",
    "convert",
    "write_bundle",
]

# Called with the share done, 0 to 1, and what is being done now. It cancels by raising.
Progress = Callable[[float, str], None]

# Share of the progress at which each step ends, as measured on a small Keras model.
_READ, _EXPORTED, _QUANTIZED = 0.05, 0.6, 0.7


@dataclass
class _Work:
    """One conversion under way, and where its time goes."""

    request: ConversionRequest
    file: ModelFile
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._begun, 3)
        self._begun = now

    def wants(self, variant: str) -> bool:
        return self.request.variants is None or variant in self.request.variants


def convert(request: ConversionRequest, progress: Progress | None = None) -> ConversionResult:
    """Convert, compress and verify one model.

    Args:
        request: what to convert, and how.
        progress: is told how far it is; if it raises, the children are killed and the exception
            goes on.

    Raises:
        BadInputError: the model file or the table cannot be used.
        UnsupportedError: no route converts the model.
        NothingVerifiedError: every variant was refused.
        ChildError: an export crashed, hung or ran out of memory.
    """
    _check(request)
    work = _Work(request, sources.recognise(request.model_path), progress or _tell_nobody)
    work.progress(0.0, "reading the data")
    data = rows_of.read(request)
    work.end("read")
    export = _export(work, data)
    features = data.features.select(export.columns)
    truth = data.truth(export.task, export.classes)
    work.end("export")
    if work.wants("onnx-int8"):
        export = _with_int8(work, export, features, data)
        work.end("quantize")
    known = Truth(
        export.task,
        export.scores[data.trial_rows],
        None if truth is None else truth[data.trial_rows],
    )
    trial_rows = features.take(data.trial_rows)
    compiled = [
        _compile(work, name, export, trial_rows, known)
        for name in VARIANTS
        if work.wants(name) and (name in export.made or name in export.refused)
    ]
    work.end("verify")
    _require_one(work, compiled)
    training = data.training_rows
    reference = profile.reference_profile(
        features.take(training), export.scores[training], export.task, export.classes
    )
    work.progress(1.0, "done")
    return ConversionResult(
        export.task,
        export.columns,
        export.classes,
        sketch.encode_profile(reference),
        {} if known.labels is None else answers.metrics_of(*msgspec.structs.astuple(known)),
        compiled,
        work.seconds | {f"export: {step}": s for step, s in export.timings_s.items()},
    )


def _tell_nobody(fraction: float, text: str) -> None:
    del fraction, text


def _check(request: ConversionRequest) -> None:
    unknown = sorted(set(request.variants or ()) - set(VARIANTS))
    if unknown or request.variants == []:
        raise BadInputError(
            f"unknown variants {', '.join(unknown) or '(none given)'}; expected some of"
            f" {', '.join(VARIANTS)}"
        )
    if not 0 < request.sparsity < 1:
        raise BadInputError(f"sparsity {request.sparsity}: expected a share between 0 and 1")


def _export(work: _Work, data: Data) -> Export:
    if work.file.kind == "keras":
        return _export_keras(work, data)
    what = f"converting {work.file.path}"
    work.progress(_READ, what)
    if work.file.kind == "onnx":
        classes = work.request.classes
        export = child.run(
            what,
            onnx_source.export,
            work.file,
            data.features,
            data.labels,
            classes,
            returns=Export,
        )
    else:
        export = child.run(what, sklearn_onnx.export, work.file, data.features, returns=Export)
    for name in work.request.variants or ():
        if name not in ("onnx-fp32", "onnx-int8"):
            export.refused[name] = f"is made from Keras models only; this is {work.file.kind}"
    return export


def _export_keras(work: _Work, data: Data) -> Export:
    """Export in one child; where a variant crashes it, leave that one out and begin again."""
    wanted = [name for name in keras_export.ROUTES if work.wants(name)]
    if work.wants("onnx-int8") and "onnx-fp32" not in wanted:
        wanted.insert(0, "onnx-fp32")  # onnx-int8 is made from it
    refused: dict[str, str] = {}
    request = work.request
    current = ""

    def follow(fraction: float, variant: str) -> None:
        nonlocal current
        current = variant
        work.progress(_READ + fraction * (_EXPORTED - _READ), f"making {variant}")

    while True:
        options = KerasOptions(
            wanted, data.training, request.classes, request.sparsity, request.seed
        )
        try:
            export = child.run(
                f"converting {work.file.path}",
                keras_export.export,
                work.file,
                data.features,
                data.labels,
                options,
                returns=Export,
                progress=follow,
            )
        except ChildError as error:
            if current not in wanted or len(wanted) == 1:
                raise
            wanted.remove(current)
            refused[current] = f"the converter failed: {error}"
        else:
            export.refused.update(refused)
            return export


def _with_int8(work: _Work, export: Export, features: Table, data: Data) -> Export:
    """Return the export with `onnx-int8`, made or refused."""
    work.progress(_EXPORTED, "making onnx-int8")
    made, refused = export.made, export.refused
    if "onnx-fp32" not in made:
        refused["onnx-int8"] = "is made from onnx-fp32, which could not be made"
    elif not export.quantizable:
        refused["onnx-int8"] = (
            "int8 does not apply: the model has no Conv, Gemm or MatMul with constant weights"
            " (trees, and linear models of ai.onnx.ml, compute in float)"
        )
    else:
        trial_rows = data.trial_rows
        calibration = data.training_rows[: quantize.CALIBRATION_ROWS]
        try:
            best = child.run(
                "quantizing onnx-fp32",
                quantize.quantize,
                made["onnx-fp32"],
                features.take(calibration).rows(),
                features.take(trial_rows).rows(),
                export.scores[trial_rows],
                returns=quantize.Quantized,
            )
        except ConversionError as error:
            refused["onnx-int8"] = str(error)
        else:
            made["onnx-int8"] = best.made
    return msgspec.structs.replace(export, made=made, refused=refused)


def _compile(work: _Work, name: str, export: Export, rows: Table, truth: Truth) -> Compiled:
    """Verify one variant, and give it golden vectors."""
    runtime = VARIANTS[name]
    if name in export.refused:
        return Compiled(name, runtime, "refused", export.refused[name])
    position = list(VARIANTS).index(name) / len(VARIANTS)
    work.progress(_QUANTIZED + position * (1 - _QUANTIZED), f"verifying {name}")
    made = export.made[name]
    try:
        trial = child.run(
            f"verifying {name}", verify.measure, runtime, made, rows.rows(), returns=Trial
        )
    except ConversionError as error:
        return Compiled(name, runtime, "refused", str(error), made.model)
    measured, reasons = verify.judge(name, trial, truth, work.request.limits)
    vectors = b""
    if not reasons:
        vectors = golden.encode(verify.golden_vectors(name, rows, trial.scores, export.task))
    return Compiled(
        name,
        runtime,
        "refused" if reasons else "verified",
        "; ".join(reasons),
        made.model,
        vectors,
        made.signature,
        Needs(
            runtime,
            made.runtime_min,
            trial.memory_bytes,
            max_latency_us=work.request.budget.max_latency_us,
            max_memory_bytes=work.request.budget.max_memory_bytes,
        ),
        measured,
    )


def _require_one(work: _Work, compiled: list[Compiled]) -> None:
    if any(variant.state == "verified" for variant in compiled):
        return
    reasons = {variant.name: variant.reason for variant in compiled}
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    raise NothingVerifiedError(f"{work.file.path}: no variant could be verified:{listed}", reasons)
