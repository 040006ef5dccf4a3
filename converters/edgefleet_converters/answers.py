"""Right answers: names of classes, labels as indices, and how well scores meet them. Pure.

- accuracy: share of rows whose highest score is the label's.
- F1 (macro): mean over the classes that occur of 2PR / (P + R).
- R²: 1 - Σ(y - ŷ)² / Σ(y - ȳ)², 0 where y is constant.
- MAE: mean of |y - ŷ|.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Column
from edgefleet_protocol.manifest import Task

# A label that the model has no class for; it is never predicted, so it always counts as wrong.
UNKNOWN = -1
Scores = NDArray[np.float64]


def label_text(value: object) -> str:
    """Return the name of a class: `3` for 3, 3.0 and numpy's 3, text as it is."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def check_labels(column: Column, what: str) -> None:
    """Refuse a label column with empty cells.

    Raises:
        BadInputError: names the first such row.
    """
    if column.dtype == object:
        empty = np.array([cell is None for cell in column])
    else:
        empty = np.isnan(column.astype(np.float64))
    if empty.any():
        raise BadInputError(
            f"{what} has no value in {int(empty.sum())} rows, the first is data row"
            f" {int(empty.argmax()) + 1}; every row needs its right answer"
        )


def class_names(width: int, labels: Column | None, given: Sequence[str] | None) -> list[str]:
    """Return the names of a model's classes in the order of its scores.

    Given names are taken as they are; labels that are all integers from 0 to `width` - 1 mean
    0, 1, …; other labels must have as many values as there are scores and are sorted.

    Args:
        width: number of scores.
        labels: of the sample, if it has any.
        given: by the caller.

    Raises:
        BadInputError: if there are not as many names as scores.
    """
    if given is not None:
        if len(given) != width or len(set(given)) != width:
            raise BadInputError(f"the model has {width} classes; {len(given)} names were given")
        return list(given)
    numbered = [str(index) for index in range(width)]
    if labels is None:
        return numbered
    values = np.unique(labels.astype(str) if labels.dtype == object else labels)
    names = [label_text(value) for value in values]
    if set(names) <= set(numbered):
        return numbered
    if len(names) != width:
        raise BadInputError(
            f"the model has {width} classes and the label {len(names)} values; give the names of"
            " the classes in the order of the model's outputs"
        )
    return names


def class_indices(labels: Column, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each label's class, -1 for a label that is none of them."""
    index = {name: position for position, name in enumerate(classes)}
    return np.array([index.get(label_text(label), UNKNOWN) for label in labels], np.int64)


def score_of(task: Task, scores: Scores, truth: Scores) -> float:
    """Return accuracy (classification) or R² (else).

    Args:
        task: of the model.
        scores: `(n, width)`.
        truth: `(n,)` class indices, or values.
    """
    if task == "classification":
        return float((scores.argmax(axis=1) == truth).mean())
    return r2(scores[:, 0], truth)


def r2(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Return the coefficient of determination of `(n,)` predictions."""
    spread = float(((truth - truth.mean(axis=0)) ** 2).sum())
    return 1 - float(((truth - predicted) ** 2).sum()) / spread if spread else 0.0


def metrics_of(task: Task, scores: Scores, truth: Scores) -> dict[str, float]:
    """Return accuracy and macro F1 (classification), or R² and MAE (else), with the rows."""
    rows = float(len(truth))
    if task == "classification":
        f1 = _macro_f1(scores.argmax(axis=1), truth)
        return {"accuracy": score_of(task, scores, truth), "f1": f1, "rows": rows}
    error = float(np.abs(scores[:, 0] - truth).mean())
    return {"r2": score_of(task, scores, truth), "mae": error, "rows": rows}


def _macro_f1(predicted: NDArray[np.int64], truth: Scores) -> float:
    each = []
    for label in np.union1d(predicted, truth):
        hits = ((predicted == label) & (truth == label)).sum()
        each.append(2 * hits / ((predicted == label).sum() + (truth == label).sum()))
    return float(np.mean(each))
