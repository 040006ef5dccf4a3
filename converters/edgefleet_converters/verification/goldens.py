"""Golden vectors of a variant: some rows, its scores for them, and how near a runtime must come."""

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.samples import Samples
from edgefleet_converters.tables import Table
from edgefleet_converters.verification.arithmetic import Arithmetic
from edgefleet_converters.verification.evidence import are_probabilities
from edgefleet_protocol import golden
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.manifest import Signature, Task

ROWS = 32
# One of 32 rows may lie between two classes.
AGREEMENT = 31 / 32
# Of tensors: enough for every row of a small model, and one picture of a large one travels anyway.
_TENSOR_BYTES = 1 << 20
# Float kernels of different CPUs add in different orders: 1e-6 was measured between x86 and ARM.
FLOAT32_ATOL = 1e-4
# CPUs with float16 arithmetic use it, others compute in float32: 6e-3 was measured between a
# Cortex-A76 and x86.
FLOAT16_ATOL = 0.0125
# Integer kernels were bitwise equal between x86 and ARM, but may round a step apart in each layer.
# Behind a softmax four steps of 1/256 move a probability by up to 0.05; values move by four steps
# of their range. Activations of 16 bits have steps 256 times finer, but weights of 8 bits.
INT8_ATOL, INT16_ATOL = 0.05, 0.005
INT8_STEP, INT16_STEP = 4 / 256, 4 / 2560


def vectors_of(
    signature: Signature,
    samples: Samples,
    scores: NDArray[np.float64],
    arithmetic: Arithmetic,
) -> GoldenVectors:
    """Return rows with the scores that a variant gave them when it was verified.

    Args:
        signature: of the variant.
        samples: those of its trial.
        scores: of the variant for them, `(n, width)`.
        arithmetic: in what numbers it computes, which decides the tolerance.
    """
    rows = _rows(signature, samples)
    picked = np.unique(np.linspace(0, len(samples) - 1, rows).astype(np.int64))
    chosen = samples.take(picked)
    columns, numeric, text = _cells(signature, chosen.table)
    tensors = {} if chosen.table is not None else chosen.bind(signature)
    return GoldenVectors(
        columns,
        len(picked),
        numeric.astype("<f8").tobytes(),
        scores[picked].astype("<f4").tobytes(),
        scores.shape[1],
        atol(arithmetic, signature.task, scores),
        AGREEMENT if signature.task == "classification" else 0.0,
        text,
        {
            name: values.astype(values.dtype.newbyteorder("<")).tobytes()
            for name, values in tensors.items()
        },
    )


def atol(arithmetic: Arithmetic, task: Task, scores: NDArray[np.float64]) -> float:
    """Return by how much right runtimes may differ in a score.

    Args:
        arithmetic: in what numbers the model computes.
        task: of the model.
        scores: of the model, `(n, width)`.
    """
    largest = max(1.0, float(np.abs(scores).max()))
    if arithmetic in ("int8", "int16"):
        if task == "classification" and are_probabilities(scores):
            return INT8_ATOL if arithmetic == "int8" else INT16_ATOL
        step = INT8_STEP if arithmetic == "int8" else INT16_STEP
        return max(step * float(np.ptp(scores)), FLOAT32_ATOL * largest)
    return (FLOAT16_ATOL if arithmetic == "float16" else FLOAT32_ATOL) * largest


def encode(
    signature: Signature,
    samples: Samples,
    scores: NDArray[np.float64],
    arithmetic: Arithmetic,
) -> bytes:
    """Return the bytes of a bundle's `golden` file; arguments as of `vectors_of`."""
    return golden.encode(vectors_of(signature, samples, scores, arithmetic))


def _rows(signature: Signature, samples: Samples) -> int:
    if not signature.takes_batches:
        return 1
    size = sum(values[:1].nbytes for values in samples.tensors.values())
    return max(1, min(ROWS, len(samples), _TENSOR_BYTES // max(size, 1)))


def _cells(
    signature: Signature, table: Table | None
) -> tuple[list[str], NDArray[np.float64], dict[str, list[str]]]:
    """Return columns, their numbers `(n, columns)` (NaN for text) and their texts."""
    if table is None:
        return [], np.zeros((0, 0)), {}
    names = signature.columns
    text = {
        name: ["" if cell is None else str(cell) for cell in table.column(name)]
        for name in names
        if not table.is_numeric(name)
    }
    numbers = [
        np.full(len(table), np.nan) if name in text else table.numbers(name) for name in names
    ]
    return names, np.array(numbers).T, text
