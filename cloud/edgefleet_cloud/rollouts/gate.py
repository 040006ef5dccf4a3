"""Whether a rollout may go on: a pure function of a stage's figures and a policy.

The running stage is compared with its *control group*: devices that still run the previous version
at the same time. Rules, in this order:

1. *Installation.* A device that failed, or has been silent past `silence_s`, counts as failed.
   Once `min_executed` devices have ended, a failed share over `max_failed_share` is a breach.
2. *Errors.* With `min_rows` rows, an error rate over `max_error_rate` is a breach.
3. *Accuracy.* With `min_labelled` labelled rows on both sides, the stage must not be worse than
   the control group by more than `max_accuracy_drop`. It is a breach if a one-sided two-proportion
   test at 99 % says that it is; if only the point estimate says so, the gate waits for more rows.
4. *Latency.* Like is compared with like: for each variant on both sides with `min_rows` rows, the
   ratio of the median latencies must not be over `max_latency_ratio`.
5. *Predictions.* Where labels cannot decide (rule 3 lacks rows), a distribution of predicted
   classes that is over `max_prediction_shift` away from the control group's pauses the rollout: it
   shows that the version answers otherwise, not that it answers worse. PSI less its null
   expectation is measured, so small samples do not pause.
6. *Enough seen.* The stage proceeds when every device has ended, `min_rows` rows and
   `min_labelled` labelled rows were served by the stage, `min_reporting` of its devices have
   reported, and `min_soak_s` has passed since the last device ended. Until then it waits; after
   `decide_within_s` it pauses, and a person decides. With `min_rows` 0 nothing has to be served.

A breach rolls back, or pauses where `on_breach` says so. A comparison for which no control group
is left (the last stage) is not made, and the reason says so.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from edgefleet_cloud.errors import InvalidError

Verdict = Literal["proceed", "wait", "pause", "roll_back"]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0)]
Number = Annotated[int, Meta(ge=0)]

# One-sided 99 % quantile of the standard normal distribution.
Z_99 = 2.3263478740408408


class GatePolicy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Thresholds of a rollout. The defaults suit windows of seconds as well as of hours.

    Attributes:
        silence_s: a device whose attempt makes no progress for so long counts as failed.
        decide_within_s: a stage that is not decided by then is paused.
        max_latency_ratio, max_prediction_shift: None for no such check.
    """

    max_failed_share: Share = 0.2
    min_executed: Annotated[int, Meta(ge=1)] = 1
    silence_s: Annotated[float, Meta(gt=0)] = 3600.0
    min_rows: Number = 500
    min_labelled: Number = 0
    min_reporting: Share = 0.5
    min_soak_s: Seconds = 0.0
    decide_within_s: Annotated[float, Meta(gt=0)] = 2 * 86_400.0
    max_error_rate: Share = 0.01
    max_accuracy_drop: Share = 0.02
    max_latency_ratio: Annotated[float, Meta(gt=0)] | None = 4.0
    max_prediction_shift: Annotated[float, Meta(gt=0)] | None = 0.25
    on_breach: Literal["roll_back", "pause"] = "roll_back"


class GroupStatistics(Struct, frozen=True):
    """What a group of devices has served.

    Attributes:
        devices: that have reported at least one window.
        rows: answered; errors: inferences that failed, which are not among the rows.
        labelled, correct: rows whose label is known, and those predicted right.
        predictions: rows per class.
        latency_us: variant → rows per power-of-two bin, as in `messages.Window`.
    """

    devices: int = 0
    rows: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    predictions: list[int] = field(default_factory=list)
    latency_us: dict[str, list[int]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of labelled rows that were predicted right; None without any."""
        return self.correct / self.labelled if self.labelled else None


class StageStatistics(Struct, frozen=True):
    """Figures of the running stage.

    Attributes:
        waiting, assigned, confirmed, failed: devices in these states; skipped ones are left out.
        elapsed_s: since the stage began.
        soaked_s: since its last device ended; 0 while some are under way.
        stage: what the stage's confirmed devices have served on the new version.
        control: what devices on the previous version have served since the stage began.
    """

    waiting: int = 0
    assigned: int = 0
    confirmed: int = 0
    failed: int = 0
    elapsed_s: float = 0.0
    soaked_s: float = 0.0
    stage: GroupStatistics = field(default_factory=GroupStatistics)
    control: GroupStatistics = field(default_factory=GroupStatistics)


class Judgement(Struct, frozen=True):
    """What the gate says, and why."""

    verdict: Verdict
    reason: str


def read_policy(given: Mapping[str, Any] | None) -> GatePolicy:
    """Return the policy that `given` describes; what it does not name has its default.

    Raises:
        InvalidError: unknown name, wrong type, or a value out of its limits: a threshold that
            cannot be read must never mean "not exceeded".
    """
    values = dict(given or {})
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidError(f"gate: {name} is {value}; expected a number")
    try:
        return msgspec.convert(values, GatePolicy)
    except msgspec.ValidationError as error:
        raise InvalidError(f"gate: {error}") from error


def judge(statistics: StageStatistics, policy: GatePolicy) -> Judgement:
    """Judge the running stage."""
    for check in (_installation, _errors, _accuracy, _latency):
        breach = check(statistics, policy)
        if breach is not None:
            return Judgement(policy.on_breach, breach)
    shift = _predictions(statistics, policy)
    if shift is not None:
        return Judgement("pause", shift)
    missing = _missing(statistics, policy)
    if missing is None:
        return Judgement("proceed", _passed(statistics, policy))
    if statistics.elapsed_s >= policy.decide_within_s:
        return Judgement("pause", f"not decided within {policy.decide_within_s:.0f} s: {missing}")
    return Judgement("wait", missing)


def accuracy_drop(statistics: StageStatistics, margin: float) -> tuple[float, float] | None:
    """Return how much worse the stage is than its control group, and how sure that is.

    z = (p_control - p_stage - margin) / √(p_c (1 - p_c) / n_c + p_s (1 - p_s) / n_s), the unpooled
    two-proportion statistic against a margin. Shares are taken with one row added on either side
    (Agresti and Caffo 2000), so that 0 of 2 is no certainty.

    Args:
        statistics: of the stage.
        margin: loss that is accepted.

    Returns:
        (drop, z), None where one side has no labelled row.
    """
    stage, control = statistics.stage, statistics.control
    if stage.accuracy is None or control.accuracy is None:
        return None
    parts = [((g.correct + 1) / (g.labelled + 2), g.labelled + 2) for g in (stage, control)]
    (low, n_low), (high, n_high) = parts
    error = math.sqrt(low * (1 - low) / n_low + high * (1 - high) / n_high)
    return control.accuracy - stage.accuracy, (high - low - margin) / error


def median_us(bins: list[int]) -> float:
    """Return the median of a power-of-two histogram, interpolated geometrically within its bin."""
    half, below = sum(bins) / 2, 0
    for index, count in enumerate(bins):
        if count and below + count >= half:
            return float(2 ** (index + (half - below) / count))
        below += count
    return 0.0


def latency_ratios(statistics: StageStatistics, min_rows: int) -> dict[str, float]:
    """Return variant → median latency of the stage over that of the control group."""
    ratios = {}
    for variant, bins in statistics.stage.latency_us.items():
        control = statistics.control.latency_us.get(variant, [])
        if min(sum(bins), sum(control)) >= max(min_rows, 1):
            ratios[variant] = median_us(bins) / median_us(control)
    return ratios


def prediction_shift(statistics: StageStatistics) -> float | None:
    """Return PSI of predicted classes, stage against control, less its null expectation.

    None where one side predicted nothing, or they have different classes.
    """
    a, b = (np.array(g.predictions) for g in (statistics.stage, statistics.control))
    if len(a) != len(b) or not a.sum() or not b.sum():
        return None
    used = (a + b) > 0
    a, b = a[used], b[used]
    p = (a + 0.5) / (a.sum() + 0.5 * len(a))
    q = (b + 0.5) / (b.sum() + 0.5 * len(b))
    null = (len(a) - 1) * (1 / a.sum() + 1 / b.sum())
    return float(((p - q) * np.log(p / q)).sum() - null)


# --- the checks -----------------------------------------------------------------------------------


def _installation(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    ended = statistics.confirmed + statistics.failed
    if ended < policy.min_executed or statistics.failed <= policy.max_failed_share * ended:
        return None
    return (
        f"{statistics.failed} of {ended} devices failed; at most {policy.max_failed_share:.0%} may"
    )


def _errors(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    stage = statistics.stage
    tried = stage.rows + stage.errors
    if tried < max(policy.min_rows, 1) or stage.errors <= policy.max_error_rate * tried:
        return None
    return f"{stage.errors} of {tried} inferences failed; at most {policy.max_error_rate:.2%} may"


def _accuracy(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    drop = accuracy_drop(statistics, policy.max_accuracy_drop)
    if drop is None or not _enough_labels(statistics, policy) or drop[1] <= Z_99:
        return None
    return f"{_accuracies(statistics)}: worse by more than {policy.max_accuracy_drop:.1%} (99 %)"


def _latency(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    limit = policy.max_latency_ratio
    if limit is None:
        return None
    for variant, ratio in latency_ratios(statistics, policy.min_rows).items():
        if ratio > limit:
            return f"{variant} takes {ratio:.2f} times as long as before; at most {limit:g} times"
    return None


def _predictions(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    limit, shift = policy.max_prediction_shift, prediction_shift(statistics)
    rows = min(sum(statistics.stage.predictions), sum(statistics.control.predictions))
    decided = _enough_labels(statistics, policy) and statistics.stage.labelled > 0
    if limit is None or shift is None or shift <= limit or decided or rows < policy.min_rows:
        return None
    return f"predictions differ from the control group's by PSI {shift:.2f}; at most {limit:g}"


def _missing(statistics: StageStatistics, policy: GatePolicy) -> str | None:
    """Return what the stage still lacks, None if it may proceed."""
    under_way = statistics.waiting + statistics.assigned
    stage = statistics.stage
    drop = accuracy_drop(statistics, policy.max_accuracy_drop)
    if under_way:
        return f"{under_way} devices are under way"
    if stage.rows < policy.min_rows:
        return f"{stage.rows} of {policy.min_rows} rows served"
    if stage.labelled < policy.min_labelled:
        return f"{stage.labelled} of {policy.min_labelled} labelled rows"
    if policy.min_rows and stage.devices < policy.min_reporting * statistics.confirmed:
        return f"{stage.devices} of {statistics.confirmed} devices have reported"
    if statistics.soaked_s < policy.min_soak_s:
        return f"soaking: {statistics.soaked_s:.0f} of {policy.min_soak_s:.0f} s"
    if drop is not None and drop[0] > policy.max_accuracy_drop and drop[1] > 0:
        return f"{_accuracies(statistics)}: worse, but with too few rows to be sure"
    return None


def _enough_labels(statistics: StageStatistics, policy: GatePolicy) -> bool:
    # Below 30 rows a side the normal approximation of the test means nothing.
    least = max(policy.min_labelled, 30)
    return min(statistics.stage.labelled, statistics.control.labelled) >= least


def _accuracies(statistics: StageStatistics) -> str:
    stage, control = statistics.stage, statistics.control
    return (
        f"accuracy {stage.accuracy or 0:.1%} of {stage.labelled} rows against"
        f" {control.accuracy or 0:.1%} of {control.labelled} in the control group"
    )


def _passed(statistics: StageStatistics, policy: GatePolicy) -> str:
    said = [f"{statistics.confirmed} devices confirmed, {statistics.failed} failed"]
    if statistics.stage.rows:
        said.append(f"{statistics.stage.rows} rows served")
    if accuracy_drop(statistics, policy.max_accuracy_drop) is not None:
        said.append(_accuracies(statistics))
    elif not statistics.control.rows:
        said.append("no control group to compare with")
    return "; ".join(said)
