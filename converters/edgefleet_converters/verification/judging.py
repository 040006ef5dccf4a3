"""Accept or refuse a variant by what it did in its trial. Pure.

A variant is accepted if

1. every score is finite, and there are as many as the original gives,
2. single rows give what batches give,
3. exact recipes (float32): no score is further from the original's than `parity`, and at least
   `agreement` of the rows have the same answer (a class that ties with the original's within
   `parity` is the same),
4. with labels: its score on held-out rows is at most the allowed drop below the original's,
5. without labels, other recipes: it answers like the original on `lossy_agreement` of the rows, or
   R² against the original is at most `lossy_score_drop` below 1,
6. its memory stays below the limit, where there is one.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.conversion import Limits
from edgefleet_converters.verification import evidence, goldens
from edgefleet_converters.verification.evidence import CONFIDENCE, ROUNDING, Evidence
from edgefleet_converters.verification.trial import Trial
from edgefleet_converters.verification.truth import Truth
from edgefleet_protocol.manifest import Measured

_NAMES = {"accuracy": "accuracy", "r2": "R²", "auc": "AUC", "reconstruction-auc": "AUC"}


class Judgement(Struct, frozen=True):
    """What is found about a variant.

    Attributes:
        measured: figures for the manifest.
        reasons: every reason to refuse it; empty if there is none.
        evidence: with intervals; None where scores cannot be compared at all.
    """

    measured: Measured
    reasons: list[str]
    evidence: Evidence | None


def judge(
    trial: Trial,
    truth: Truth,
    limits: Limits,
    *,
    exact: bool,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Judgement:
    """Judge a variant.

    Args:
        trial: what it did.
        truth: what is right.
        limits: how far it may be off.
        exact: whether its recipe is to answer like the original, up to float32 rounding.
        seed: of the bootstrap.
        confidence: of the intervals.

    Raises:
        BadInputError: the metric does not go with the model or the labels.
    """
    broken = _broken(trial.scores, truth.original)
    if broken:
        return Judgement(Measured(float("inf"), 0.0, trial.latency.p50_us), broken, None)
    found = evidence.compare(
        truth, trial.scores, tolerance=limits.parity, seed=seed, confidence=confidence
    )
    scale = evidence.scale(truth)
    reasons = _single_row_faults(trial, truth)
    if exact:
        reasons += _parity_faults(found, scale, limits)
    if found.labelled:
        reasons += _score_faults(found, limits.score_drop if exact else limits.lossy_score_drop)
    elif not exact:
        reasons += _fidelity_faults(found, limits)
    if 0 < limits.peak_memory_bytes < trial.peak_bytes:
        reasons.append(
            f"takes {trial.peak_bytes} bytes of memory; at most {limits.peak_memory_bytes} are"
            " allowed"
        )
    return Judgement(_measured(trial, found), reasons, found)


def _broken(scores: NDArray[np.float64], original: NDArray[np.float64]) -> list[str]:
    if scores.shape != original.shape:
        return [f"gives scores of the shape {scores.shape}; the original {original.shape}"]
    count = int((~np.isfinite(scores)).sum())
    return [f"{count} scores are not finite"] if count else []


def _measured(trial: Trial, found: Evidence) -> Measured:
    return Measured(
        found.parity_max,
        found.agreement,
        trial.latency.p50_us,
        found.score.point if found.labelled else None,
        len(trial.scores) if found.labelled else 0,
    )


def _single_row_faults(trial: Trial, truth: Truth) -> list[str]:
    gap = float(np.abs(trial.single - trial.scores[: len(trial.single)]).max())
    if gap <= goldens.atol(trial.arithmetic, truth.task, trial.scores):
        return []
    return [f"a row alone scores up to {gap:.3g} differently than in a batch"]


def _parity_faults(found: Evidence, scale: float, limits: Limits) -> list[str]:
    reasons = []
    if found.parity_max > limits.parity * scale:
        reasons.append(
            f"a score is {found.parity_max:.3g} off the original's; at most"
            f" {limits.parity * scale:.3g} is allowed"
        )
    if found.agreement < limits.agreement:
        reasons.append(_disagreement(found.agreement, limits.agreement))
    return reasons


def _score_faults(found: Evidence, allowed: float) -> list[str]:
    if found.drop.point <= allowed + ROUNDING:
        return []
    what = "groups of held-out rows" if found.metric == "reconstruction-auc" else "held-out rows"
    text = (
        f"{_NAMES[found.metric]} {found.score.point:.4f} on {found.units} {what}; the original has"
        f" {found.original.point:.4f} and may lose {allowed:g}"
    )
    return [text]


def _fidelity_faults(found: Evidence, limits: Limits) -> list[str]:
    if found.metric == "accuracy":
        if found.agreement >= limits.lossy_agreement:
            return []
        return [_disagreement(found.agreement, limits.lossy_agreement)]
    if found.score.point >= 1 - limits.lossy_score_drop:
        return []
    least = 1 - limits.lossy_score_drop
    return [f"R² against the original is {found.score.point:.4f}; at least {least:g} must"]


def _disagreement(agreement: float, least: float) -> str:
    return (
        f"{agreement:.2%} of the rows are answered like by the original; at least {least:.2%} must"
    )
