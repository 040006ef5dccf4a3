"""What is right, and how well scores meet it. Pure.

| metric | of what | formula |
|---|---|---|
| `accuracy` | classes | share of rows whose highest score is the label's |
| `r2` | values | 1 - Σ(y - ŷ)² / Σ(y - ȳ)², 0 where y is constant |
| `auc` | two classes, or one score | P(score of a 1 > score of a 0) + ½ P(equal) |
| `reconstruction-auc` | auto-encoders | `auc` of the mean squared difference of output and input |

Rows of one group (windows of one recording, frames of one person) are not independent, so a group
is what is resampled. `reconstruction-auc` judges groups: the error is averaged over a group's rows.
Every metric is a function of *weights*, how often each unit (row or group) counts, which is what a
bootstrap varies.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError
from edgefleet_protocol.manifest import Task

Metric = Literal["accuracy", "r2", "auc", "reconstruction-auc"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Floats = NDArray[np.float64]


class Truth(Struct, frozen=True):
    """What a variant is compared with.

    Attributes:
        original: scores of the original model, `(n, width)` float64.
        labels: class indices, values or 0/1 of the same rows, `(n,)`; None without labels. Then
            the original's own answers are what is right.
        metric: None for accuracy of classes and R² of values.
        groups: number of the group of each row, `(n,)`; None where each row is its own.
        inputs: what an auto-encoder is to reconstruct, `(n, width)`; only for that metric.
    """

    task: Task
    original: Floats
    labels: Floats | None
    metric: Metric | None = None
    groups: NDArray[np.int64] | None = None
    inputs: Floats | None = None

    @property
    def judged_by(self) -> Metric:
        """The metric; without labels accuracy or R² against the original."""
        if self.metric is not None and self.labels is not None:
            return self.metric
        return "accuracy" if self.task == "classification" else "r2"


class Rating(Struct, frozen=True):
    """How good scores are, for any weights of the units.

    Attributes:
        units: rows or groups.
        of: weights `(k, units)` → the metric `(k,)`.
    """

    units: int
    of: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The metric with every unit counted once."""
        return float(self.of(np.ones((1, self.units)))[0])


def rate(truth: Truth, scores: Floats) -> Rating:
    """Return how good scores are.

    Args:
        truth: what is right.
        scores: `(n, width)`, of the original's shape.

    Raises:
        BadInputError: the metric does not go with the model or the labels.
    """
    unit = _units(truth, len(scores))
    metric = truth.judged_by
    if metric == "accuracy":
        return _accuracy(unit, scores.argmax(axis=1) == class_labels(truth))
    if metric == "r2":
        return _r2(unit, *_values(truth, scores))
    if metric == "auc":
        return _auc(unit, _one_score(truth, scores), _zero_one(truth.labels))
    counts = np.bincount(unit)
    error = np.bincount(unit, reconstruction_error(truth, scores)) / counts
    label = np.bincount(unit, _zero_one(truth.labels)) / counts
    if not np.isin(label, (0, 1)).all():
        raise BadInputError(
            f"group {int((~np.isin(label, (0, 1))).argmax())} has rows of both labels; a group is"
            " judged as one"
        )
    return _auc(np.arange(len(label)), error, label)


def class_labels(truth: Truth) -> Floats:
    """Return the right class of each row: its label's, or the original's answer."""
    if truth.labels is not None:
        return truth.labels
    answers: Floats = truth.original.argmax(axis=1).astype(np.float64)
    return answers


def reconstruction_error(truth: Truth, scores: Floats) -> Floats:
    """Return the mean squared difference of output and input of each row, `(n,)`.

    Raises:
        BadInputError: if the output is not as wide as the input.
    """
    if truth.inputs is None or truth.inputs.shape != scores.shape:
        shape = None if truth.inputs is None else truth.inputs.shape
        raise BadInputError(
            f"reconstruction-auc needs a model whose output is like its one input; output"
            f" {scores.shape}, input {shape}"
        )
    error: Floats = ((scores - truth.inputs) ** 2).mean(axis=1)
    return error


def _units(truth: Truth, rows: int) -> NDArray[np.int64]:
    if truth.groups is None:
        return np.arange(rows)
    return np.unique(truth.groups, return_inverse=True)[1].astype(np.int64)


def _values(truth: Truth, scores: Floats) -> tuple[Floats, Floats]:
    if truth.labels is None:
        return scores, truth.original
    return scores[:, :1], truth.labels.reshape(-1, 1)


def _one_score(truth: Truth, scores: Floats) -> Floats:
    if scores.shape[1] > 2:
        raise BadInputError(
            f"auc needs two classes or one score; the model has {scores.shape[1]} ({truth.task})"
        )
    return scores[:, -1]


def _zero_one(labels: Floats | None) -> Floats:
    found = [] if labels is None else np.unique(labels).tolist()
    if labels is None or found != [0, 1]:
        raise BadInputError(f"auc needs labels 0 and 1, both present; found {found[:5]}")
    return labels


def _accuracy(unit: NDArray[np.int64], right: NDArray[np.bool_]) -> Rating:
    hits, rows = np.bincount(unit, right), np.bincount(unit).astype(np.float64)
    return Rating(len(rows), lambda weights: (weights @ hits) / _at_least_one(weights @ rows))


def _at_least_one(rows: Floats) -> Floats:
    """Return the divisor of a share: of few units, a resample may hold none."""
    return np.maximum(rows, 1.0)


def _r2(unit: NDArray[np.int64], predicted: Floats, right: Floats) -> Rating:
    # Centred first, so that the difference of sums below keeps its digits.
    centred = right - right.mean(axis=0)
    units = int(unit.max()) + 1
    sums = np.zeros((units, centred.shape[1]))
    np.add.at(sums, unit, centred)
    squares = np.bincount(unit, (centred**2).sum(axis=1))
    errors = np.bincount(unit, ((right - predicted) ** 2).sum(axis=1))
    rows = np.bincount(unit).astype(np.float64)

    def of(weights: Floats) -> Floats:
        count = _at_least_one(weights @ rows)
        spread = weights @ squares - ((weights @ sums) ** 2).sum(axis=1) / count
        known = spread > 0
        return np.where(known, 1 - (weights @ errors) / np.where(known, spread, 1), 0.0)

    return Rating(units, of)


def _auc(unit: NDArray[np.int64], scores: Floats, labels: Floats) -> Rating:
    order = np.argsort(scores, kind="stable")
    unit_of, positive = unit[order], labels[order] == 1
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])

    def of(weights: Floats) -> Floats:
        each = weights[:, unit_of]
        ones = np.add.reduceat(each * positive, starts, axis=1)
        zeros = np.add.reduceat(each * ~positive, starts, axis=1)
        below = np.cumsum(zeros, axis=1) - zeros
        pairs = ones.sum(axis=1) * zeros.sum(axis=1)
        won = (ones * (below + zeros / 2)).sum(axis=1)
        # A resample without one of the classes says nothing; it counts as chance.
        return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), 0.5)

    return Rating(int(unit.max()) + 1, of)
