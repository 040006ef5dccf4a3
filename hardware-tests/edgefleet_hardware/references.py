"""What a model without golden vectors should answer: what the newest runtime answers here.

A runtime that disagrees with the newest release is not proven wrong by that; but no model should
change its answers with the runtime, and where real labels are known they decide as well (`zoo.py`).
Rules:

1. The newest release of the model's kind, on this machine's own processor, is the reference. Where
   it refuses the model there is no reference, and any finite answer of another release stands.
2. float32 kernels of different CPUs and releases add in different orders: 1e-6 was seen, 1e-4 of
   the largest value is allowed. Integer kernels may round a step of 1/256 apart in each layer:
   four steps of the output's range are allowed.
3. Behind a softmax such a step counts by where a row lies: from tflite-runtime 2.14, with kernels
   of its own, to LiteRT 2.3, with XNNPACK's, a probability of an int8 model moved by 0.26, while
   its accuracy stayed. On a Cortex-A53, for which XNNPACK has kernels of its own, a uint8 MobileNet
   is off by up to 17 steps of 256 from what Cortex-A72 and x86-64 give. So of probabilities at
   reduced precision, classes are compared: nine of ten rows must keep theirs, which a runtime that
   computes nonsense misses by far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgefleet_hardware.cases import Arrays, Case, Expected
from edgefleet_hardware.local import LocalTarget
from edgefleet_hardware.runtimes import NEWEST, Runtime, own

Precision = Literal["float32", "reduced"]
FLOAT32_SHARE = 1e-4
STEPS = 4
MIN_AGREEMENT = 0.9
# Probabilities of a row add up to 1 within this; as steps of 1/256, in which small ones vanish, to
# less: 0.836 was seen over 1,001 classes.
_UNIT_TOLERANCE, _STEPS_TOLERANCE = 0.05, 0.25


@dataclass(frozen=True)
class Truth:
    """What is known of a model besides its file.

    Attributes:
        precision: whether its kernels compute in float32, so that answers must be all but equal.
        labels: right class of each row, or None.
        min_accuracy: least share of rows whose label must be found.
    """

    precision: Precision = "reduced"
    labels: NDArray[np.int64] | None = None
    min_accuracy: float = 0.0


def fill(cases: Sequence[Case], truths: dict[str, Truth]) -> list[Case]:
    """Return the cases with what the newest runtime answers, where they expect nothing yet.

    Args:
        cases: to be filled in.
        truths: name of a case → what is known of it.

    Raises:
        TargetUnavailableError: the newest runtime cannot be had.
    """
    filled = {case.name: case for case in cases}
    for format_, newest in NEWEST.items():
        open_ = [case for case in cases if case.format == format_ and case.expected is None]
        if not open_:
            continue
        target = LocalTarget(Runtime.parse(newest), own())
        for case, (outcome, outputs) in zip(open_, target.answer(open_), strict=True):
            if outcome.is_right:
                truth = truths.get(case.name, Truth())
                filled[case.name] = case.expecting(expectation(outputs, truth))
    return [filled[case.name] for case in cases]


def expectation(outputs: Arrays, truth: Truth) -> Expected:
    """Return what other runtimes have to answer.

    Args:
        outputs: of the newest runtime, `(calls, …)`.
        truth: what else is known.
    """
    rows = len(next(iter(outputs.values())))
    if truth.labels is not None:
        rows = len(truth.labels)
    return Expected(
        outputs,
        {name: allowed(values, rows, truth.precision) for name, values in outputs.items()},
        rows,
        MIN_AGREEMENT if _has_classes(outputs.values(), rows) else 0.0,
        truth.labels,
        truth.min_accuracy,
    )


def allowed(values: NDArray[np.generic], rows: int, precision: Precision) -> float:
    """Return by how much a right runtime may differ in an output.

    Args:
        values: that the reference gave.
        rows: in it.
        precision: of the model's kernels.
    """
    if values.dtype.kind in "US":
        return 0.0
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0
    if precision == "float32" and values.dtype.kind == "f":
        return FLOAT32_SHARE * max(1.0, float(np.abs(finite).max()))
    if _are_probabilities(values, rows):
        return _one(values)
    return STEPS * float(np.ptp(finite)) / 256


def _one(values: NDArray[np.generic]) -> float:
    """Return what stands for 1 in probabilities of this type."""
    return 256.0 if values.dtype.kind in "iu" else 1.0


def _are_probabilities(values: NDArray[np.generic], rows: int) -> bool:
    if values.dtype.kind not in "f" and values.dtype.itemsize != 1:
        return False
    table = values.astype(np.float64).reshape(rows, -1)
    if table.shape[1] < 2:
        return False
    low = -128.0 if values.dtype == np.int8 else 0.0
    table = (table - low) / _one(values)
    sums = table.sum(axis=1)
    short = _UNIT_TOLERANCE if values.dtype.kind == "f" else _STEPS_TOLERANCE
    in_range = (sums > 1 - short) & (sums < 1 + _UNIT_TOLERANCE)
    return bool(table.min() >= 0 and in_range.all())


def _has_classes(outputs: Iterable[NDArray[np.generic]], rows: int) -> bool:
    return any(_are_probabilities(values, rows) for values in outputs)
