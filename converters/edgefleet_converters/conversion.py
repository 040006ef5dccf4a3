"""What goes into a conversion and what comes out of it. Values only."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from edgefleet_protocol.manifest import Measured, Needs, Runtime, Signature, Task

# Every variant that this release can make, in the order in which they are shown.
VARIANTS: dict[str, Runtime] = {
    "onnx-fp32": "onnxruntime",
    "onnx-int8": "onnxruntime",
    "onnx-pruned": "onnxruntime",
    "tflite-fp32": "litert",
    "tflite-int8": "litert",
    "tflite-pruned": "litert",
}


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
    """

    parity: float = 1e-3
    agreement: float = 0.999
    score_drop: float = 0.01
    lossy_score_drop: float = 0.02
    lossy_agreement: float = 0.95


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
        model_path: `.skops`, `.joblib`, `.pkl`, `.pickle`, `.onnx` or `.keras`. A pickle runs
            code when it is loaded: it is loaded only in a child process, but with your rights.
        sample_path: CSV or Parquet of training rows. They give the reference profile and the
            calibration; column names become the names of the features.
        label: column of `sample_path` (and `holdout_path`) that holds the right answer.
        holdout_path: rows that the model has not seen, for scores. None: where there is a label,
            a quarter of the sample (by `seed`) is held out.
        variants: names out of `VARIANTS`; None for all that apply to the model.
        classes: names of the classes in the order of the model's outputs, for formats that do not
            carry them (Keras, ONNX). None: the label's values, or 0, 1, ….
        sparsity: share of weights that pruned variants set to zero.
        seed: of the split, the golden rows and the fine-tuning.
        budget: on the device; travels in the manifest.
    """

    model_path: str
    sample_path: str
    label: str | None = None
    holdout_path: str | None = None
    variants: list[str] | None = None
    classes: list[str] | None = None
    limits: Limits = field(default_factory=Limits)
    sparsity: float = 0.5
    seed: int = 0
    budget: DeviceBudget = field(default_factory=DeviceBudget)


class Compiled(Struct, frozen=True):
    """One variant: made and verified, or refused with the reason.

    Attributes:
        model: the model file; empty if it could not be made.
        golden: golden vectors, empty if refused.
        signature, needs, measured: as in the manifest; present if verified, and where the variant
            ran but missed a limit.
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


class ConversionResult(Struct, frozen=True):
    """What became of one model.

    Attributes:
        columns: feature names in the order in which a device gives them.
        classes: names in the order of the scores (classification), else empty.
        reference: bytes of the reference profile, shared by all variants.
        metrics: of the original model on held-out rows: `accuracy` and `f1` (macro), or `r2` and
            `mae`, with `rows`; empty without a label.
        compiled: in the order of `VARIANTS`; at least one is verified.
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
