"""The samples of a conversion: those it may learn from, and those it is judged on.

With labels, a quarter of the sample is held out by a seeded shuffle, unless held-out rows are
given. If the model was trained on the whole sample, scores on that quarter flatter it: give rows
that it has not seen. Beside held-out rows the sample needs no labels: steps that learn then go by
the original's answers. Where rows belong to groups (recordings, persons, machines), whole groups
are held out: rows of one group look alike, and would let a model be judged on what it has learned.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import answers, tables, tensor_files
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.samples import Samples
from edgefleet_converters.tables import Column, Table
from edgefleet_converters.verification.truth import Metric
from edgefleet_protocol.manifest import Task

HOLDOUT_SHARE = 0.25
# Rows for parity where nothing is held out; more would only repeat what these show.
PARITY_ROWS = 2000


@dataclass(frozen=True)
class Part:
    """Samples from one file.

    Attributes:
        samples: without label and group.
        labels: `(n,)`; None without them.
        groups: `(n,)` numbers of groups; None without them.
    """

    samples: Samples
    labels: Column | None
    groups: NDArray[np.int64] | None

    def take(self, index: NDArray[np.int64]) -> "Part":
        """Return the rows at `index`."""
        return Part(
            self.samples.take(index),
            None if self.labels is None else self.labels[index],
            None if self.groups is None else self.groups[index],
        )

    def below(self, other: "Part") -> "Part":
        """Return these rows and then those of `other`, whose groups are others."""
        groups = None
        labels = other.labels
        if self.labels is not None and other.labels is not None:
            labels = np.concatenate([self.labels, other.labels])
        if other.groups is not None:
            # Only held-out rows are judged by groups; without their own, the first rows are one.
            first = np.zeros(len(self.samples), np.int64) if self.groups is None else self.groups
            groups = np.concatenate([first, other.groups + first.max() + 1])
        return Part(self.samples.below(other.samples), labels, groups)


@dataclass(frozen=True)
class Data:
    """All samples, training rows first, then those held out.

    Attributes:
        samples: without label and group.
        labels: of all rows, `(n,)`, or of those held out, where the sample has none; None without.
        groups: number of the group of each row, `(n,)`; None where each row stands for itself.
        training: number of training rows.
        label: name of the label, for error texts.
    """

    samples: Samples
    labels: Column | None
    groups: NDArray[np.int64] | None
    training: int
    label: str = ""

    @property
    def training_rows(self) -> NDArray[np.int64]:
        """Index of the rows to calibrate, fine-tune and profile on."""
        return np.arange(self.training)

    @property
    def trial_rows(self) -> NDArray[np.int64]:
        """Index of the rows on which variants are compared: held out, else some of the sample."""
        total = len(self.samples)
        if self.labels is not None:
            return np.arange(self.training, total)
        return np.unique(np.linspace(0, total - 1, min(total, PARITY_ROWS)).astype(np.int64))

    def truth(
        self, task: Task, classes: list[str], metric: Metric | None
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        """Return the labels of training rows and of held-out rows, as class index or number.

        Each is `(n,)`, or None where there are none, or none apply.

        Raises:
            BadInputError: a label that must be a number and is none.
        """
        if self.labels is None or (task == "score" and metric is None):
            return None, None
        if task == "classification":
            found = answers.class_indices(self.labels, classes).astype(np.float64)
        else:
            found = Table(self.samples.source, {self.label: self.labels}).numbers(self.label)
        held = len(self.samples) - self.training
        taught = found[: self.training] if len(found) == len(self.samples) else None
        return taught, found[-held:]


def read(request: ConversionRequest) -> Data:
    """Read and check the samples of a request, and hold rows out.

    Raises:
        BadInputError: a file, its labels or its groups cannot be used.
    """
    label = request.label or tensor_files.LABEL
    sample = _read(request.sample_path, request, may_lack_label=request.holdout_path is not None)
    if request.holdout_path is not None:
        held = _read(request.holdout_path, request)
        if held.labels is None:
            raise BadInputError(
                f"{held.samples.source}: no labels; held-out rows need them: give the name of the"
                " label"
            )
        part, training = sample.below(held), len(sample.samples)
    elif sample.labels is None:
        return Data(sample.samples, None, sample.groups, len(sample.samples))
    else:
        order, training = _shuffled(sample, request.seed)
        part = sample.take(order)
    return Data(part.samples, part.labels, part.groups, training, label)


def _read(path: str, request: ConversionRequest, *, may_lack_label: bool = False) -> Part:
    if tensor_files.is_tensor_file(path):
        found = tensor_files.read(path, request.label, request.group, may_lack_label=may_lack_label)
        samples = Samples(path, None, found.inputs)
        labels = None if found.labels is None else _column(found.labels)
        groups = None if found.groups is None else _numbered(_column(found.groups))
    else:
        table = tables.read_table(path)
        label, group = request.label, request.group
        if may_lack_label and label not in table.columns:
            label = None
        labels = None if label is None else table.column(label)
        groups = None if group is None else _numbered(table.column(group))
        samples = Samples(path, table.without(label).without(group), {})
    if labels is not None:
        name = request.label or tensor_files.LABEL
        answers.check_labels(labels, f"{path}: label column {name!r}")
    return Part(samples, labels, groups)


def _column(values: NDArray[np.generic]) -> Column:
    """Return numbers as float64 and text as objects, as tables hold them."""
    if values.dtype.kind != "U":
        return values.astype(np.float64)
    cells = np.empty(len(values), object)
    cells[:] = [str(value) for value in values]
    return cells


def _numbered(names: Column) -> NDArray[np.int64]:
    texts = np.array([answers.label_text(name) for name in names])
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def _shuffled(part: Part, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return an order of the rows, and how many of them, from the first, are for training."""
    rng = np.random.default_rng(seed)
    total, source = len(part.samples), part.samples.source
    if part.groups is None:
        held = int(total * HOLDOUT_SHARE)
        if held == 0:
            raise BadInputError(
                f"{source}: {total} rows are too few to hold a quarter out; give held-out rows"
            )
        return rng.permutation(total), total - held
    sizes = np.bincount(part.groups)
    if len(sizes) < 2:
        raise BadInputError(f"{source}: there is one group only; give held-out rows of others")
    order = rng.permutation(len(sizes))
    # As many groups as stay within a quarter of the rows, and at least one.
    held_groups = max(1, int((np.cumsum(sizes[order]) <= total * HOLDOUT_SHARE).sum()))
    is_held = np.isin(part.groups, order[:held_groups])
    rows = rng.permutation(total)
    return np.concatenate([rows[~is_held[rows]], rows[is_held[rows]]]), int((~is_held).sum())
