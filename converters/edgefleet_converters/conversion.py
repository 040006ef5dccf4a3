"""What goes into a conversion and what comes out of it. Values only."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from edgefleet_converters.recipes.recipe import Recipe, Target, builtin
from edgefleet_converters.verification.evidence import Evidence
from edgefleet_converters.verification.trial import Latency
from edgefleet_converters.verification.truth import Metric
from edgefleet_protocol.manifest import Measured, Needs, Runtime, Signature, Task

RUNTIMES: dict[Target, Runtime] = {"onnx": "onnxruntime", "tflite": "litert"}
# Every variant that this release can make, in the order in which they are shown: the built-in
# recipes, and what runs each.
VARIANTS: dict[str, Runtime] = {name: RUNTIMES[recipe.gives] for name, recipe in builtin().items()}
# Made where none are asked for: each pays on many models and costs seconds.
DEFAULT_VARIANTS = (
    "onnx-fp32",
    "onnx-int8",
    "onnx-pruned",
    "tflite-fp32",
    "tflite-int8",
    "tflite-pruned",
)


class Limits(Struct, frozen=True):
    """How far a variant may be from the original model before it is refused.

    Attributes:
        parity: float32 variants: largest difference of a score. Class probabilities are compared
            as they are; values are first divided by the standard deviation of the original's
            predictions. 1e-3 is a hundred times what float32 arithmetic in another order costs
            (1e-7 to 1e-5 measured), and a tenth of what a wrong branch of one tree costs.
        agreement: float32 variants: least share of rows with the same answer. One row in a
            thousand may sit on a decision boundary.
        score_drop: float32 variants: largest loss of accuracy or R² on held-out rows.
        lossy_score_drop: int8 and pruned variants: likewise. They differ from the original on
            purpose, so only what they get right counts: two points is what MLPerf Tiny's quality
            targets leave between reference and quantized models.
        lossy_agreement: int8 and pruned variants where there are no labels to score by.
        peak_memory_bytes: most resident memory that a variant may add here, 0 for no limit.
    """

    parity: float = 1e-3
    agreement: float = 0.999
    score_drop: float = 0.01
    lossy_score_drop: float = 0.02
    lossy_agreement: float = 0.95
    peak_memory_bytes: int = 0


class DeviceBudget(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model may cost on a device. The device measures it in its trial, and refuses.

    Attributes:
        max_latency_us: for one row; 0 for no budget.
        max_memory_bytes: of resident memory added; 0 for no budget.
    """

    max_latency_us: Annotated[int, Meta(ge=0)] = 0
    max_memory_bytes: Annotated[int, Meta(ge=0)] = 0


class ConversionRequest(Struct, frozen=True):
    """One model to convert.

    Attributes:
        model_path: a file of one of the kinds of `sources.KINDS`, or a SavedModel folder. A pickle
            runs code when it is loaded: only in a child process, but with your rights.
        sample_path: CSV, Parquet or `.npz` of training rows. They give the reference profile and
            the calibration; names of columns or arrays become the names of the features.
        label: column (or array) of `sample_path` and `holdout_path` that holds the right answer.
        holdout_path: rows that the model has not seen, for scores. None: where there is a label,
            a quarter of the sample (by `seed`) is held out.
        variants: names out of `VARIANTS`; None for those of `DEFAULT_VARIANTS` that apply.
        classes: names of the classes in the order of the model's outputs, for formats that do not
            carry them (Keras, ONNX). None: the label's values, or 0, 1, ….
        sparsity: share of weights that pruned variants set to zero; None for the recipes' own.
        seed: of the split, the golden rows and the fine-tuning.
        budget: on the device; travels in the manifest.
        recipes: made besides `variants`, under their own names.
        metric: by which variants are judged; None for accuracy of classes and R² of values.
        group: column (or array) that says which rows belong together, and are held out together.
        score_output: output of the model that holds the scores; None to find it.
    """

    model_path: str
    sample_path: str
    label: str | None = None
    holdout_path: str | None = None
    variants: list[str] | None = None
    classes: list[str] | None = None
    limits: Limits = field(default_factory=Limits)
    sparsity: float | None = None
    seed: int = 0
    budget: DeviceBudget = field(default_factory=DeviceBudget)
    recipes: list[Recipe] = field(default_factory=list)
    metric: Metric | None = None
    group: str | None = None
    score_output: str | None = None


class Compiled(Struct, frozen=True):
    """One variant: made and verified, or refused with the reason.

    Attributes:
        model: the model file; empty if it could not be made.
        golden: golden vectors, empty if refused.
        signature, needs, measured: as in the manifest; present if verified, and where the variant
            ran but missed a limit.
        evidence: how it compares with the original, with intervals; present if it ran.
        latency: distribution on the converting machine; likewise.
        peak_bytes: most resident memory that it added there.
        notes: what the steps found out, step → anything that JSON can hold.
        recipe: by which it was made, as YAML.
    """

    name: str
    runtime: Runtime
    state: Literal["verified", "refused"]
    reason: str = ""
    model: bytes = b""
    golden: bytes = b""
    signature: Signature | None = None
    needs: Needs | None = None
    measured: Measured | None = None
    evidence: Evidence | None = None
    latency: Latency | None = None
    peak_bytes: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""


class ConversionResult(Struct, frozen=True):
    """What became of one model.

    Attributes:
        columns: feature names in the order in which a device gives them.
        classes: names in the order of the scores (classification), else empty.
        reference: bytes of the reference profile, shared by all variants.
        metrics: of the original model on held-out rows: `accuracy` and `f1` (macro), or `r2` and
            `mae`, or the metric asked for, with `rows`; empty without a label.
        compiled: in the order of `VARIANTS`, then of the request's recipes; at least one is
            verified.
        phases_s: phase → seconds of wall time.
    """

    task: Task
    columns: list[str]
    classes: list[str]
    reference: bytes
    metrics: dict[str, float]
    compiled: list[Compiled]
    phases_s: dict[str, float]

    @property
    def verified(self) -> list[Compiled]:
        """The variants that may be released."""
        return [compiled for compiled in self.compiled if compiled.state == "verified"]
