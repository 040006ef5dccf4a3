"""The reference profile: what training rows and the original model's answers look like. Pure.

Of tensors, mean, standard deviation, least and greatest value of each row are counted.
"""

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.samples import Samples
from edgefleet_converters.tables import Table
from edgefleet_protocol import rows as binding
from edgefleet_protocol import sketch
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.sketch import Feature, ReferenceProfile


def reference_profile(
    samples: Samples, signature: Signature, scores: NDArray[np.float64]
) -> ReferenceProfile:
    """Count training samples, and the original model's answers to them.

    Args:
        samples: those that were trained on.
        signature: of the original model; its columns, or the names under which its tensors are
            counted, are the features.
        scores: of the original model, `(n, width)`.
    """
    if samples.table is not None:
        table = samples.table.select(signature.columns)
        features = [_feature(table, name) for name in table.names]
        numbers = binding.numbers(features, table.rows())
    else:
        numbers = binding.count(signature, [], samples.bind(signature))
        columns = zip(signature.features, numbers.T, strict=True)
        features = [sketch.numeric_feature(name, column) for name, column in columns]
    counts = sketch.count_rows(features, numbers)
    classes = signature.classes if signature.task == "classification" else []
    predictions: list[int] = []
    confidences: list[int] = []
    if signature.task == "classification":
        predictions = np.bincount(scores.argmax(axis=1), minlength=len(classes)).tolist()
        bins = sketch.confidence_bin(scores.max(axis=1))
        confidences = np.bincount(bins, minlength=sketch.CONFIDENCE_BINS).tolist()
    return ReferenceProfile(
        len(samples),
        features,
        sketch.pack_counts(counts, features),
        sketch.pack_moments(sketch.moments_of(numbers)),
        classes,
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
