"""Verify a variant: run it on its real runtime, compare it with the original, accept or refuse.

`measure` runs in a child process that holds nothing but the runtime: a file that crashes it refuses
one variant, and memory is that of the variant alone. `judge` is pure. A variant is accepted if

1. it runs, single rows give what batches give, and every score is finite,
2. float32: no score is further from the original's than `parity`, and at least `agreement` of the
   rows have the same answer (a class that ties with the original's within `parity` is the same),
3. with labels: its accuracy or R² on held-out rows is at most the allowed drop below the
   original's,
4. without labels, int8 and pruned: it answers like the original on `lossy_agreement` of the rows,
   or R² against the original is at most `lossy_score_drop` below 1.
"""

import os
import time
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters import answers, runners
from edgefleet_converters.conversion import Limits
from edgefleet_converters.exports import Made
from edgefleet_converters.tables import Table
from edgefleet_protocol import golden
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Measured, Runtime, Task
from edgefleet_protocol.rows import Rows, bind

GOLDEN_ROWS = 32
# One of 32 rows may lie between two classes.
GOLDEN_AGREEMENT = 31 / 32
# Float kernels of different CPUs add in different orders: 1e-6 was measured between x86 and ARM.
GOLDEN_ATOL = 1e-4
# Integer kernels may round a step apart in each layer. Behind a softmax four steps of 1/256 move a
# probability by up to 0.05; values move by four steps of their range.
GOLDEN_INT8_ATOL, GOLDEN_INT8_STEPS = 0.05, 4

# Rows of float32 or int8 probabilities add up to 1 within this.
_UNIT_TOLERANCE = 0.05
_SINGLE_ROWS = 8
# Scores are shares of counts; their difference carries rounding errors.
_ROUNDING = 1e-9
_WARM_UP, _TIMED_RUNS, _TIMED_S = 20, 300, 0.3


class Trial(Struct, frozen=True):
    """What a variant did on its runtime.

    Attributes:
        scores: `(n, width)` float64, from batches.
        single: scores of the first rows, each run alone.
        latency_us: median of one row.
        memory_bytes: resident memory added by loading and running it.
    """

    scores: NDArray[np.float64]
    single: NDArray[np.float64]
    latency_us: float
    memory_bytes: int


class Truth(Struct, frozen=True):
    """What a variant is compared with.

    Attributes:
        original: scores of the original model, `(n, width)`.
        labels: class indices or values of the same rows, `(n,)`; None without labels.
    """

    task: Task
    original: NDArray[np.float64]
    labels: NDArray[np.float64] | None


def is_lossy(variant: str) -> bool:
    """Return whether a variant differs from the original on purpose."""
    return not variant.endswith("fp32")


def measure(runtime: Runtime, made: Made, rows: Rows) -> Trial:
    """Run a variant on its runtime. Call this in a child process.

    Args:
        runtime: family name.
        made: the variant.
        rows: at least one.
    """
    _load_runtime(runtime)
    before = _resident_bytes()
    runner = runners.load(runtime, made.model, made.signature)
    tensors = bind(made.signature, rows)
    ones = [{name: v[i : i + 1] for name, v in tensors.items()} for i in range(_SINGLE_ROWS)]
    ones = [one for one in ones if len(next(iter(one.values())))]
    single = np.concatenate([runner.run(one) for one in ones])
    latency_us = _latency_us(runner, ones)
    memory = max(_resident_bytes() - before, len(made.model))
    return Trial(runners.scores(runner, made.signature, rows), single, latency_us, memory)


def judge(variant: str, trial: Trial, truth: Truth, limits: Limits) -> tuple[Measured, list[str]]:
    """Compare a variant with the original model.

    Args:
        variant: its name; `…-fp32` is held to parity, the others to their score.
        trial: what it did.
        truth: what is right.
        limits: how far it may be off.

    Returns:
        The figures for the manifest, and every reason to refuse it; empty if there is none.
    """
    scores, original = trial.scores, truth.original
    if scores.shape != original.shape:
        reason = f"gives scores of the shape {scores.shape}; the original {original.shape}"
        return Measured(float("inf"), 0.0, trial.latency_us), [reason]
    if not np.isfinite(scores).all():
        count = int((~np.isfinite(scores)).sum())
        return Measured(float("inf"), 0.0, trial.latency_us), [f"{count} scores are not finite"]
    scale = _scale(truth)
    parity = float(np.abs(scores - original).max())
    agreement = _agreement(truth, scores, limits.parity * scale)
    score = None
    if truth.labels is not None:
        score = answers.score_of(truth.task, scores, truth.labels)
    measured = Measured(
        parity, agreement, trial.latency_us, score, 0 if score is None else len(scores)
    )
    reasons = _single_row_faults(trial, _atol(variant, truth.task, scores))
    if not is_lossy(variant):
        reasons += _parity_faults(parity, agreement, scale, limits)
    if score is not None and truth.labels is not None:
        allowed = limits.lossy_score_drop if is_lossy(variant) else limits.score_drop
        before = answers.score_of(truth.task, original, truth.labels)
        name = "accuracy" if truth.task == "classification" else "R²"
        if before - score > allowed + _ROUNDING:
            reasons.append(
                f"{name} {score:.4f} on {len(scores)} held-out rows; the original has {before:.4f}"
                f" and may lose {allowed:g}"
            )
    elif is_lossy(variant):
        reasons += _fidelity_faults(truth, scores, agreement, limits)
    return measured, reasons


def golden_vectors(
    variant: str, table: Table, scores: NDArray[np.float64], task: Task
) -> GoldenVectors:
    """Return rows with the scores that this variant gave them when it was verified.

    Args:
        variant: its name, which decides the tolerance.
        table: feature rows, in the order of the signature.
        scores: of the variant for them, `(n, width)`.
        task: of the model.
    """
    picked = np.unique(np.linspace(0, len(table) - 1, GOLDEN_ROWS).astype(np.int64))
    rows = table.take(picked)
    text = {
        name: ["" if cell is None else str(cell) for cell in rows.column(name)]
        for name in rows.names
        if not rows.is_numeric(name)
    }
    numeric = [
        np.full(len(rows), np.nan) if name in text else rows.numbers(name) for name in rows.names
    ]
    return GoldenVectors(
        rows.names,
        len(rows),
        np.array(numeric).T.astype("<f8").tobytes(),
        scores[picked].astype("<f4").tobytes(),
        scores.shape[1],
        _atol(variant, task, scores),
        GOLDEN_AGREEMENT if task == "classification" else 0.0,
        text,
    )


def golden_faults(runtime: Runtime, made: Made, vectors: bytes) -> list[str]:
    """Run golden vectors on the installed runtime. Call this in a child process.

    Args:
        runtime: family name.
        made: the variant.
        vectors: bytes of the bundle's golden file.

    Returns:
        Every way in which the runtime's scores differ too much; empty if it is right.
    """
    expected = golden.decode(vectors)
    runner = runners.load(runtime, made.model, made.signature)
    return golden.faults(expected, runners.scores(runner, made.signature, expected.inputs()))


def _load_runtime(runtime: Runtime) -> None:
    """Import the runtime, so that its own memory is not counted as the model's."""
    if runtime == "onnxruntime":
        import onnxruntime  # noqa: F401  # imported for its effect
    else:
        import ai_edge_litert.interpreter  # noqa: F401  # imported for its effect


def _latency_us(runner: runners.Runner, ones: list[dict[str, NDArray[np.generic]]]) -> float:
    times: list[float] = []
    begin = time.perf_counter()
    for turn in range(_WARM_UP + _TIMED_RUNS):
        start = time.perf_counter()
        runner.run(ones[turn % len(ones)])
        times.append(time.perf_counter() - start)
        if start - begin > _TIMED_S:
            break
    # A slow model keeps at least its last run.
    timed = times[min(_WARM_UP, len(times) - 1) :]
    return float(np.median(timed)) * 1e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _scale(truth: Truth) -> float:
    """Return by what differences of scores are divided: 1 for probabilities, else their spread."""
    if truth.task == "classification" and _are_probabilities(truth.original):
        return 1.0
    return float(truth.original.std()) or 1.0


def _are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Tell probabilities from decision values, which some classifiers give instead."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < _UNIT_TOLERANCE)


def _agreement(truth: Truth, scores: NDArray[np.float64], tolerance: float) -> float:
    if truth.task == "classification":
        rows = np.arange(len(scores))
        given = truth.original[rows, scores.argmax(axis=1)]
        return float((given >= truth.original.max(axis=1) - tolerance).mean())
    return float((np.abs(scores - truth.original).max(axis=1) <= tolerance).mean())


def _atol(variant: str, task: Task, scores: NDArray[np.float64]) -> float:
    """Return by how much right runtimes may differ in a score."""
    if variant.endswith("int8"):
        if task == "classification" and _are_probabilities(scores):
            return GOLDEN_INT8_ATOL
        return GOLDEN_INT8_STEPS * float(np.ptp(scores)) / 256
    return GOLDEN_ATOL * max(1.0, float(np.abs(scores).max()))


def _single_row_faults(trial: Trial, atol: float) -> list[str]:
    gap = float(np.abs(trial.single - trial.scores[: len(trial.single)]).max())
    if gap <= atol:
        return []
    return [f"a row alone scores up to {gap:.3g} differently than in a batch"]


def _parity_faults(parity: float, agreement: float, scale: float, limits: Limits) -> list[str]:
    reasons = []
    if parity > limits.parity * scale:
        reasons.append(
            f"a score is {parity:.3g} off the original's; at most {limits.parity * scale:.3g} is"
            " allowed"
        )
    if agreement < limits.agreement:
        reasons.append(_disagreement(agreement, limits.agreement))
    return reasons


def _fidelity_faults(
    truth: Truth, scores: NDArray[np.float64], agreement: float, limits: Limits
) -> list[str]:
    if truth.task == "classification":
        if agreement >= limits.lossy_agreement:
            return []
        return [_disagreement(agreement, limits.lossy_agreement)]
    fit = answers.r2(scores, truth.original)
    if fit >= 1 - limits.lossy_score_drop:
        return []
    return [f"R² against the original is {fit:.4f}; at least {1 - limits.lossy_score_drop:g} must"]


def _disagreement(agreement: float, least: float) -> str:
    return (
        f"{agreement:.2%} of the rows are answered like by the original; at least {least:.2%} must"
    )
