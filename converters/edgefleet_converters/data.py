"""The rows of a conversion: those it may learn from, and those it is judged on.

With labels, a quarter of the sample is held out by a seeded shuffle, unless held-out rows are
given. If the model was trained on the whole sample, scores on that quarter flatter it: give rows
that it has not seen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import answers, tables
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.tables import Column, Table
from edgefleet_protocol.manifest import Task

HOLDOUT_SHARE = 0.25
# Rows for parity where nothing is held out; more would only repeat what these show.
PARITY_ROWS = 2000


@dataclass(frozen=True)
class Data:
    """All rows, without the label.

    Attributes:
        features: training rows first, then those held out.
        labels: of all rows, `(n,)`; None without a label.
        training: number of training rows.
        label: name of the label column, for error texts.
    """

    features: Table
    labels: Column | None
    training: int
    label: str = ""

    @property
    def training_rows(self) -> NDArray[np.int64]:
        """Index of the rows to calibrate, fine-tune and profile on."""
        return np.arange(self.training)

    @property
    def trial_rows(self) -> NDArray[np.int64]:
        """Index of the rows on which variants are compared: held out, else some of the sample."""
        total = len(self.features)
        if self.labels is not None:
            return np.arange(self.training, total)
        return np.unique(np.linspace(0, total - 1, min(total, PARITY_ROWS)).astype(np.int64))

    def truth(self, task: Task, classes: list[str]) -> NDArray[np.float64] | None:
        """Return the label of each row as class index or value, `(n,)`; None if none applies.

        Raises:
            BadInputError: a regression label that is no number.
        """
        if self.labels is None or task == "score":
            return None
        if task == "classification":
            return answers.class_indices(self.labels, classes).astype(np.float64)
        return Table(self.features.source, {self.label: self.labels}).numbers(self.label)


def read(request: ConversionRequest) -> Data:
    """Read and check the tables of a request, and hold rows out.

    Raises:
        BadInputError: a table or its label column cannot be used.
    """
    sample = tables.read_table(request.sample_path)
    label = request.label
    if label is None:
        if request.holdout_path is not None:
            raise BadInputError("held-out rows need a label column; give its name")
        return Data(sample, None, len(sample))
    answers.check_labels(sample.column(label), f"{sample.source}: label column {label!r}")
    if request.holdout_path is not None:
        held = tables.read_table(request.holdout_path)
        answers.check_labels(held.column(label), f"{held.source}: label column {label!r}")
        rows, training = sample.below(held), len(sample)
    else:
        training = len(sample) - int(len(sample) * HOLDOUT_SHARE)
        if training == len(sample):
            raise BadInputError(
                f"{sample.source}: {len(sample)} rows are too few to hold a quarter out; give"
                " held-out rows"
            )
        rows = sample.take(np.random.default_rng(request.seed).permutation(len(sample)))
    return Data(rows.without(label), rows.column(label), training, label)
