"""The reference profile: what training rows and the original model's answers look like. Pure."""

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tables import Table
from edgefleet_protocol import rows as binding
from edgefleet_protocol import sketch
from edgefleet_protocol.manifest import Task
from edgefleet_protocol.sketch import Feature, ReferenceProfile


def reference_profile(
    table: Table, scores: NDArray[np.float64], task: Task, classes: list[str]
) -> ReferenceProfile:
    """Count training rows, and the original model's answers to them.

    Args:
        table: feature columns in the order in which a device gives them.
        scores: of the original model, `(n, width)`.
        task: of the model.
        classes: names in the order of the scores.
    """
    features = [_feature(table, name) for name in table.names]
    numbers = binding.numbers(features, table.rows())
    counts = sketch.count_rows(features, numbers)
    predictions: list[int] = []
    confidences: list[int] = []
    if task == "classification":
        predictions = np.bincount(scores.argmax(axis=1), minlength=len(classes)).tolist()
        bins = sketch.confidence_bin(scores.max(axis=1))
        confidences = np.bincount(bins, minlength=sketch.CONFIDENCE_BINS).tolist()
    return ReferenceProfile(
        len(table),
        features,
        sketch.pack_counts(counts, features),
        sketch.pack_moments(sketch.moments_of(numbers)),
        classes if task == "classification" else [],
        predictions,
        confidences,
    )


def _feature(table: Table, name: str) -> Feature:
    if table.is_numeric(name):
        return sketch.numeric_feature(name, table.numbers(name))
    # As many categories as a sketch has bins; rarer ones count as unknown.
    cells = [str(cell)[:200] for cell in table.column(name) if cell is not None]
    values, counts = np.unique(np.array(cells, str), return_counts=True)
    common = values[np.argsort(-counts, kind="stable")[: sketch.MAX_BINS]]
    return Feature(name, "categorical", vocabulary=sorted(map(str, common)))
