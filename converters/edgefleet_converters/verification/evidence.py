"""How sure a comparison is: what a variant loses, with an interval. Pure.

The loss is judged on the rows at hand, and other rows would give another figure. So rows are drawn
again, with replacement, many times, and original and variant are scored on the *same* draw (paired
bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13): what
both get wrong does not count as noise. The interval is that of the percentiles.

Rows on which original and variant never differ would give an interval of no width, however few they
are. So for accuracy two more units take part: one that only the original gets right, and one that
only the variant does (pseudo-counts, as Agresti and Min, Statistics in Medicine 24, 2005, add to
the table of pairs). No difference in 300 rows then means a loss of up to one point, which is the
rule of three (Hanley and Lippman-Hand, JAMA 249, 1983).

A budget is the largest loss that is accepted. The loss is

- *within* it when the upper end of the interval is at most the budget,
- *over* it when the lower end is above the budget,
- *undecided* otherwise: more rows are needed.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.verification import truth as truths
from edgefleet_converters.verification.truth import Floats, Metric, Rating, Truth

CONFIDENCE = 0.95
# Ends of a 95 % interval settle to a twentieth of its width within 2,000 draws.
RESAMPLES = 2000
# Weights held at once, 16 MB.
_CHUNK = 2_000_000
# Rows of float32 or int8 probabilities add up to 1 within this.
_UNIT_TOLERANCE = 0.05
# Figures are shares of counts; their difference carries rounding errors.
ROUNDING = 1e-9

BudgetVerdict = Literal["within", "over", "undecided"]


class Interval(Struct, frozen=True):
    """A figure, and between which bounds it lies with the chosen confidence."""

    point: float
    low: float
    high: float


class Evidence(Struct, frozen=True):
    """How a variant compares with the original.

    Attributes:
        metric: of `original`, `score` and `drop`.
        labelled: whether against labels; without them the original is right by definition.
        units: rows or groups that were resampled.
        original: the metric of the original model.
        score: of the variant.
        drop: original - score, paired.
        confidence: of the intervals.
        parity_max, parity_mean: largest and mean absolute difference of a score.
        agreement: share of rows with the same answer.
    """

    metric: Metric
    labelled: bool
    units: int
    original: Interval
    score: Interval
    drop: Interval
    confidence: float
    parity_max: float
    parity_mean: float
    agreement: float


def compare(
    truth: Truth,
    scores: Floats,
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Evidence:
    """Compare a variant with the original model.

    Args:
        truth: what is right.
        scores: of the variant, of the original's shape, all finite.
        tolerance: difference of scores that counts as the same answer, in units of `scale`.
        seed: of the draws. Equal seeds draw the same rows for every variant.
        confidence: of the intervals.
        resamples: number of draws.

    Raises:
        BadInputError: the metric does not go with the model or the labels.
    """
    before, after = truths.rate(truth, truth.original), truths.rate(truth, scores)
    drawn = _draw(truth, before, after, seed, resamples)
    off = np.abs(scores - truth.original)
    return Evidence(
        truth.judged_by,
        truth.labels is not None,
        before.units,
        interval(before.value, drawn[0], confidence),
        interval(after.value, drawn[1], confidence),
        interval(before.value - after.value, drawn[0] - drawn[1], confidence),
        confidence,
        float(off.max()),
        float(off.mean()),
        agreement(truth, scores, tolerance * scale(truth)),
    )


def interval(point: float, drawn: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Return the percentile interval of a figure.

    Args:
        point: the figure on all data.
        drawn: the figure on each resample, `(k,)`.
        confidence: share of the resamples between the bounds.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(point, min(float(low), point), max(float(high), point))


def budget_verdict(drop: Interval, budget: float) -> BudgetVerdict:
    """Tell whether a loss is within a budget, by the rule of this module."""
    if drop.high <= budget + ROUNDING:
        return "within"
    return "over" if drop.low > budget + ROUNDING else "undecided"


def units_to_decide(evidence: Evidence, budget: float) -> int | None:
    """Estimate how many rows (or groups) would decide an undecided budget.

    The interval narrows with the square root of their number; the figure itself is taken to stay.

    Returns:
        The number, or None where the loss lies on the budget itself and no number is enough.
    """
    drop = evidence.drop
    room = budget - drop.point
    reach = drop.high - drop.point if room > 0 else drop.point - drop.low
    if abs(room) <= ROUNDING:
        return None
    return math.ceil(evidence.units * max(1.0, (reach / room) ** 2))


def scale(truth: Truth) -> float:
    """Return by what differences of scores are divided: 1 for probabilities, else their spread."""
    if truth.task == "classification" and are_probabilities(truth.original):
        return 1.0
    return float(truth.original.std()) or 1.0


def are_probabilities(scores: Floats) -> bool:
    """Tell probabilities from decision values, which some classifiers give instead."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < _UNIT_TOLERANCE)


def agreement(truth: Truth, scores: Floats, tolerance: float) -> float:
    """Return the share of rows with the same answer.

    Args:
        truth: with the original's scores.
        scores: of the variant.
        tolerance: a class whose score in the original is this near to the best is as good; a value
            this near is the same.
    """
    if truth.task == "classification":
        rows = np.arange(len(scores))
        given = truth.original[rows, scores.argmax(axis=1)]
        return float((given >= truth.original.max(axis=1) - tolerance).mean())
    return float((np.abs(scores - truth.original).max(axis=1) <= tolerance).mean())


def _draw(
    truth: Truth, before: Rating, after: Rating, seed: int, resamples: int
) -> NDArray[np.float64]:
    """Return the metric of original and variant on each draw, `(2, resamples)`."""
    rng = np.random.default_rng(seed)
    units = before.units
    phantoms = 2 if truth.judged_by == "accuracy" else 0
    parts = []
    for weights, extra in _weights(rng, units, resamples, phantoms):
        first, second = before.of(weights), after.of(weights)
        if phantoms:
            # Each stands for a unit of mean size, right in one of the two models.
            total = weights.sum(axis=1)
            size = total + extra.sum(axis=1)
            first = (first * total + extra[:, 0]) / size
            second = (second * total + extra[:, 1]) / size
        parts.append([first, second])
    return np.concatenate(parts, axis=1)


def _weights(
    rng: np.random.Generator, units: int, resamples: int, phantoms: int
) -> Iterator[tuple[Floats, Floats]]:
    """Draw units with replacement, in pieces: how often each came, and each of the phantoms."""
    width = units + phantoms
    size = max(1, _CHUNK // width)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = rng.integers(0, width, (count, width)) + width * np.arange(count)[:, np.newaxis]
        counts = np.bincount(drawn.ravel(), minlength=width * count).astype(np.float64)
        weights = counts.reshape(count, width)
        yield weights[:, :units], weights[:, units:]
