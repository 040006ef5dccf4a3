"""The gate, at each threshold and one step to each side."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.rollouts import gate
from edgefleet_cloud.rollouts.gate import GatePolicy, GroupStatistics, StageStatistics

SERVED = GroupStatistics(devices=2, rows=1000, labelled=1000, correct=950)
CONTROL = GroupStatistics(devices=10, rows=5000, labelled=5000, correct=4750)
HEALTHY = StageStatistics(confirmed=2, elapsed_s=10, soaked_s=5, stage=SERVED, control=CONTROL)


def verdict(statistics: StageStatistics, **policy: Any) -> str:
    return gate.judge(statistics, GatePolicy(**policy)).verdict


def stage(**values: Any) -> StageStatistics:
    return replace(HEALTHY, stage=replace(SERVED, **values))


def test_a_healthy_stage_proceeds_and_says_on_what() -> None:
    judgement = gate.judge(HEALTHY, GatePolicy())
    assert judgement.verdict == "proceed"
    assert judgement.reason == (
        "2 devices confirmed, 0 failed; 1000 rows served; accuracy 95.0% of 1000 rows against"
        " 95.0% of 5000 in the control group"
    )


@pytest.mark.parametrize(("failed", "expected"), [(1, "proceed"), (2, "proceed"), (3, "roll_back")])
def test_the_failed_share(failed: int, expected: str) -> None:
    statistics = replace(HEALTHY, confirmed=10 - failed, failed=failed)
    assert verdict(statistics, max_failed_share=0.2, min_reporting=0) == expected


@pytest.mark.parametrize(("failed", "expected"), [(1, "wait"), (2, "wait"), (3, "roll_back")])
def test_failures_count_once_enough_have_ended(failed: int, expected: str) -> None:
    statistics = replace(HEALTHY, confirmed=0, assigned=7, failed=failed)
    assert verdict(statistics, min_executed=3) == expected


def test_a_breach_pauses_where_the_policy_says_so() -> None:
    statistics = replace(HEALTHY, confirmed=0, failed=2)
    assert verdict(statistics, on_breach="pause") == "pause"


@pytest.mark.parametrize(
    ("errors", "expected"), [(9, "proceed"), (10, "proceed"), (11, "roll_back")]
)
def test_the_error_rate(errors: int, expected: str) -> None:
    assert verdict(stage(rows=1000 - errors, errors=errors), max_error_rate=0.01) == expected


def test_errors_of_too_few_rows_are_not_judged() -> None:
    assert verdict(stage(rows=400, errors=99)) == "wait"
    assert verdict(stage(rows=400, errors=100)) == "roll_back"


@pytest.mark.parametrize(("rows", "expected"), [(499, "wait"), (500, "proceed"), (501, "proceed")])
def test_rows_before_judging(rows: int, expected: str) -> None:
    assert verdict(stage(rows=rows)) == expected


@pytest.mark.parametrize(("labelled", "expected"), [(199, "wait"), (200, "proceed")])
def test_labelled_rows_before_judging(labelled: int, expected: str) -> None:
    statistics = stage(labelled=labelled, correct=labelled)
    assert verdict(statistics, min_labelled=200) == expected


@pytest.mark.parametrize(("devices", "expected"), [(4, "wait"), (5, "proceed")])
def test_devices_that_must_have_reported(devices: int, expected: str) -> None:
    statistics = replace(stage(devices=devices), confirmed=10)
    assert verdict(statistics, min_reporting=0.5) == expected
    assert verdict(statistics, min_reporting=0.5, min_rows=0) == "proceed"


@pytest.mark.parametrize(("soaked", "expected"), [(59.9, "wait"), (60.0, "proceed")])
def test_the_soak(soaked: float, expected: str) -> None:
    assert verdict(replace(HEALTHY, soaked_s=soaked), min_soak_s=60) == expected


@pytest.mark.parametrize("field", ["waiting", "assigned"])
def test_a_stage_waits_for_its_last_device(field: str) -> None:
    judgement = gate.judge(replace(HEALTHY, **{field: 1}), GatePolicy())
    assert (judgement.verdict, judgement.reason) == ("wait", "1 devices are under way")


@pytest.mark.parametrize(("elapsed", "expected"), [(99.0, "wait"), (100.0, "pause")])
def test_an_undecided_stage_is_given_to_a_person(elapsed: float, expected: str) -> None:
    statistics = replace(stage(rows=0, labelled=0, correct=0), elapsed_s=elapsed)
    assert verdict(statistics, decide_within_s=100) == expected


def test_a_clear_loss_of_accuracy_rolls_back_and_an_unclear_one_waits() -> None:
    assert verdict(stage(correct=930)) == "proceed"
    unclear = gate.judge(stage(correct=925), GatePolicy())
    assert unclear.verdict == "wait"
    assert unclear.reason.endswith("worse, but with too few rows to be sure")
    assert verdict(stage(correct=900)) == "roll_back"


def test_a_few_wrong_rows_prove_nothing() -> None:
    assert verdict(stage(labelled=20, correct=0)) == "wait"
    assert verdict(stage(labelled=30, correct=0)) == "roll_back"


def test_without_a_control_group_nothing_is_compared_and_the_reason_says_so() -> None:
    statistics = replace(stage(correct=0), control=GroupStatistics())
    judgement = gate.judge(statistics, GatePolicy())
    assert judgement.verdict == "proceed"
    assert judgement.reason.endswith("no control group to compare with")


@given(st.integers(30, 3000), st.integers(30, 3000), st.data())
def test_the_accuracy_test_is_the_two_proportion_test(n: int, m: int, data) -> None:
    right, control = data.draw(st.integers(1, n - 1)), data.draw(st.integers(1, m - 1))
    statistics = StageStatistics(
        stage=GroupStatistics(labelled=n, correct=right),
        control=GroupStatistics(labelled=m, correct=control),
    )
    found = gate.accuracy_drop(statistics, 0.02)
    assert found is not None
    p, q = (right + 1) / (n + 2), (control + 1) / (m + 2)
    error = np.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    assert found[1] == pytest.approx((q - p - 0.02) / error)
    assert pytest.approx(stats.norm.ppf(0.99)) == gate.Z_99


def test_a_version_that_is_no_worse_is_rolled_back_in_under_one_percent_of_rollouts() -> None:
    rng = np.random.default_rng(1)
    breaches = sum(
        verdict(
            replace(
                HEALTHY,
                stage=replace(SERVED, correct=int(rng.binomial(1000, 0.93))),
                control=replace(CONTROL, correct=int(rng.binomial(5000, 0.95))),
            )
        )
        == "roll_back"
        for _ in range(2000)
    )
    # 2 points worse: exactly what the default policy accepts, the worst case of the null.
    assert breaches <= 30


def test_latency_is_compared_within_each_variant() -> None:
    fast, slow = [0] * 6 + [1000], [0] * 8 + [1000]
    mixed = replace(
        HEALTHY,
        stage=replace(SERVED, latency_us={"onnx-int8": slow}),
        control=replace(CONTROL, latency_us={"onnx-int8": slow, "tflite-int8": fast}),
    )
    assert verdict(mixed) == "proceed"
    slower = replace(mixed, control=replace(CONTROL, latency_us={"onnx-int8": fast}))
    assert gate.latency_ratios(slower, 500) == {"onnx-int8": 4.0}
    assert verdict(slower, max_latency_ratio=4.0) == "proceed"
    assert verdict(slower, max_latency_ratio=3.9) == "roll_back"
    assert verdict(slower, max_latency_ratio=None) == "proceed"
    assert gate.latency_ratios(slower, 1001) == {}


@given(st.lists(st.floats(1, 1e6), min_size=20, max_size=200))
def test_the_median_of_the_histogram_is_within_its_bin(values: list[float]) -> None:
    bins = np.bincount(np.floor(np.log2(values)).astype(int), minlength=32).tolist()
    ordered = sorted(values)
    low, high = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    assert low / 2 <= gate.median_us(bins) <= high * 2


def test_other_predictions_pause_only_where_labels_cannot_decide() -> None:
    other = replace(
        HEALTHY,
        stage=replace(SERVED, labelled=0, correct=0, predictions=[900, 100]),
        control=replace(CONTROL, predictions=[2500, 2500]),
    )
    assert verdict(other) == "pause"
    assert verdict(other, max_prediction_shift=None) == "proceed"
    labelled = replace(other, stage=replace(SERVED, predictions=[900, 100]))
    assert verdict(labelled) == "proceed"
    few = replace(other, stage=replace(other.stage, predictions=[400, 40]))
    assert verdict(few) == "proceed"


def test_predictions_of_the_same_distribution_do_not_pause() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        a, b = (rng.multinomial(n, np.full(10, 0.1)).tolist() for n in (500, 5000))
        statistics = replace(
            HEALTHY,
            stage=replace(SERVED, labelled=0, correct=0, predictions=a),
            control=replace(CONTROL, predictions=b),
        )
        assert verdict(statistics) == "proceed"


@pytest.mark.parametrize(
    "given_policy",
    [
        {"max_failed_share": 1.1},
        {"max_failed_share": -0.1},
        {"max_failed_share": "20%"},
        {"max_failed_share": None},
        {"max_error_rate": float("inf")},
        {"max_accuracy_drop": float("nan")},
        {"min_rows": 1.5},
        {"on_breach": "ignore"},
        {"max_faild_share": 0.1},
    ],
)
def test_a_threshold_that_cannot_be_read_is_refused(given_policy: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="gate: "):
        gate.read_policy(given_policy)


def test_what_is_not_named_has_its_default() -> None:
    assert gate.read_policy(None) == GatePolicy()
    assert gate.read_policy({"min_rows": 3, "max_latency_ratio": None}) == GatePolicy(
        min_rows=3, max_latency_ratio=None
    )
