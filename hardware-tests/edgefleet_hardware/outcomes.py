"""Outcomes: what a case did on a target, judged. Decisions only.

An `Answer` is what the target reports. `judge` makes an `Outcome` of it:

1. A case that did not answer keeps its state: refused, crashed, hung, over-memory.
2. An answer without one of the expected outputs, of another size, or with values that are not
   finite where finite ones are expected, is wrong.
3. So is one that is further off than `atol` or agrees in fewer rows than `min_agreement`; where
   only the largest value counts (labels), one that finds the label in fewer than `min_accuracy`.
4. Without an expectation, finite numbers are right.
"""

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edgefleet_hardware.cases import Arrays, Case, Expected
from edgefleet_hardware.loads import Load

Floats = NDArray[np.float64]

State = Literal["answered", "refused", "crashed", "hung", "over-memory"]
Kind = Literal["right", "wrong", "refused", "crashed", "hung", "over-memory"]


class Answer(Struct, frozen=True):
    """What a target reports of one case.

    Attributes:
        text: why it did not answer.
        samples_us: times of single calls, in the order in which they were taken.
        memory_bytes: resident memory that loading and running the model added.
        memory_peak_bytes: peak of resident memory of the whole process.
        temperature_c: of the target after the case, where it can be read.
        loads: the fresh loads that times were taken from, in their order.
    """

    state: State
    text: str = ""
    calls: int = 0
    samples_us: list[float] = field(default_factory=list)
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    temperature_c: float | None = None
    loads: list[Load] = field(default_factory=list)


class Latency(Struct, frozen=True):
    """Distribution of the time of one call, in µs."""

    p50: float
    p90: float
    p99: float


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What happened to one case on one target.

    Attributes:
        kind: right, or how it failed.
        detail: one line: the largest difference, or the reason.
        latency_us: None where it was not measured (always so under emulation).
        samples_us: what the latency was taken from: times of single calls of all loads.
        memory_bytes: resident memory that loading and running the model added.
        memory_peak_bytes: peak of resident memory of the whole process, runtime included.
        temperature_c: of the target after the case.
        error_max: largest absolute difference from what was expected, over all outputs.
        agreement: share of rows with the expected class, where there are classes.
        accuracy: share of rows whose label was found, where there are labels.
        loads: the fresh loads that times were taken from; what speed is compared by.
    """

    kind: Kind
    detail: str = ""
    latency_us: Latency | None = None
    samples_us: list[float] = field(default_factory=list)
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    temperature_c: float | None = None
    error_max: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    loads: list[Load] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether the model ran and gave what it should."""
        return self.kind == "right"


def judge(case: Case, answer: Answer, outputs: Arrays) -> Outcome:
    """Compare an answer with what the case expects.

    Args:
        case: what was asked.
        answer: what the target reports.
        outputs: output name → `(calls, …)`; empty if it did not answer.
    """
    found = _Found()
    if answer.state != "answered":
        kind: Kind = answer.state
        detail = answer.text
    else:
        found = _compare(case.expected, outputs)
        kind = "wrong" if found.faults else "right"
        detail = "; ".join(found.faults) or found.text()
    return Outcome(
        kind,
        detail,
        latency(answer.samples_us),
        answer.samples_us,
        answer.memory_bytes,
        answer.memory_peak_bytes,
        answer.temperature_c,
        found.error_max,
        found.agreement,
        found.accuracy,
        answer.loads,
    )


def latency(samples_us: list[float]) -> Latency | None:
    """Return the distribution of times; None without any."""
    if not samples_us:
        return None
    p50, p90, p99 = np.percentile(samples_us, [50, 90, 99])
    return Latency(round(float(p50), 2), round(float(p90), 2), round(float(p99), 2))


@dataclass
class _Found:
    """What a comparison finds: every fault, and the figures of `Outcome`."""

    faults: list[str] = dataclass_field(default_factory=list)
    error_max: float | None = None
    agreement: float | None = None
    accuracy: float | None = None

    def text(self) -> str:
        """Return the figures of a right answer in one line."""
        if self.error_max is None:
            return "finite; nothing to compare with"
        parts = [] if self.accuracy is None else [f"accuracy {self.accuracy:.1%}"]
        return ", ".join([*parts, f"off by up to {self.error_max:.3g}"])


def _compare(expected: Expected | None, outputs: Arrays) -> _Found:
    found = _Found()
    if expected is None:
        wild = [name for name, values in outputs.items() if not _is_finite(values)]
        found.faults = [f"{name!r} is not finite" for name in wild]
        if not outputs:
            found.faults = ["gave no output"]
        return found
    found.error_max = 0.0
    for name, right in expected.outputs.items():
        got = outputs.get(name)
        if got is None:
            found.faults.append(f"gave no output {name!r} but {sorted(outputs)}")
        elif got.size != right.size:
            found.faults.append(f"{name!r} has the shape {got.shape}; expected {right.shape}")
        elif right.dtype.kind == "U" or got.dtype.kind == "U":
            if not np.array_equal(got.astype(str).ravel(), right.astype(str).ravel()):
                found.faults.append(f"{name!r} has other text than expected")
        else:
            _compare_numbers(name, got, right, expected, found)
    first = outputs.get(next(iter(expected.outputs)))
    if expected.labels is not None and first is not None and first.size >= expected.rows:
        found.accuracy = float((_largest(first, expected.rows) == expected.labels).mean())
        if found.accuracy < expected.min_accuracy:
            found.faults.append(
                f"accuracy {found.accuracy:.1%}; at least {expected.min_accuracy:.1%} is right"
            )
    return found


def _compare_numbers(
    name: str,
    got: NDArray[np.generic],
    right: NDArray[np.generic],
    expected: Expected,
    found: _Found,
) -> None:
    a, b = got.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        count = int((np.isfinite(a) != finite).sum())
        found.faults.append(f"{name!r}: {count} values are finite or not against what is expected")
        return
    gap = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    found.error_max = max(found.error_max or 0.0, gap)
    if gap > expected.atol[name]:
        found.faults.append(
            f"{name!r} is off by up to {gap:.4g}; {expected.atol[name]:.4g} is allowed"
        )
    if expected.min_agreement and b.size > expected.rows and found.agreement is None:
        agreement = _agreement(a, b, expected.rows)
        found.agreement = agreement
        if agreement < expected.min_agreement:
            found.faults.append(
                f"{agreement:.1%} of the rows have the expected class; at least"
                f" {expected.min_agreement:.1%} must"
            )


def _agreement(got: Floats, right: Floats, rows: int) -> float:
    """Return the share of rows whose largest value is a largest one of what is expected too.

    Of classes that are equal in what is expected (73 of 256 for two kinds of cat), either will do.
    """
    table = right.reshape(rows, -1)
    chosen = np.take_along_axis(table, _largest(got, rows)[:, np.newaxis], axis=1)
    return float((chosen[:, 0] == table.max(axis=1)).mean())


def _largest(values: NDArray[np.generic], rows: int) -> NDArray[np.int64]:
    """Return the class of each row: the place of the largest value, or the one value itself."""
    table = values.reshape(rows, -1)
    if table.shape[1] == 1 and table.dtype.kind in "iu":
        return table[:, 0].astype(np.int64)
    classes: NDArray[np.int64] = table.argmax(axis=1)
    return classes


def _is_finite(values: NDArray[np.generic]) -> bool:
    return values.dtype.kind not in "fc" or bool(np.isfinite(values).all())
