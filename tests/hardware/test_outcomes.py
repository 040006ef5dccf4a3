"""Outcomes: when an answer is right, at the threshold and one step beyond."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet_hardware import references
from edgefleet_hardware.cases import Case, Expected
from edgefleet_hardware.outcomes import Answer, judge, latency
from edgefleet_hardware.references import Truth

ANSWERED = Answer("answered")
SCORES = np.array([[[0.5, 0.25]], [[0.125, 0.75]]], np.float32)


def case(expected: Expected | None) -> Case:
    return Case("m", "onnx", b"model", expected=expected)


def near(
    atol: float = 0.125, min_agreement: float = 0.0, outputs: NDArray[np.generic] = SCORES
) -> Case:
    return case(Expected({"y": outputs}, {"y": atol}, 2, min_agreement))


def test_an_answer_as_far_off_as_allowed_is_right() -> None:
    outcome = judge(near(), ANSWERED, {"y": SCORES + np.float32(0.125)})
    assert (outcome.kind, outcome.error_max) == ("right", 0.125)
    assert outcome.detail == "off by up to 0.125"


def test_an_answer_a_step_further_off_is_wrong() -> None:
    outcome = judge(near(), ANSWERED, {"y": SCORES + np.float32(0.1251)})
    assert outcome.kind == "wrong"
    assert outcome.detail == "'y' is off by up to 0.1251; 0.125 is allowed"
    assert outcome.error_max == pytest.approx(0.1251, abs=1e-6)


def test_rows_with_another_class_are_counted_against_the_least_agreement() -> None:
    swapped = SCORES.copy()
    swapped[0] = swapped[0, :, ::-1]
    assert judge(near(1.0, 0.5), ANSWERED, {"y": swapped}).kind == "right"
    outcome = judge(near(1.0, 0.51), ANSWERED, {"y": swapped})
    assert (outcome.kind, outcome.agreement) == ("wrong", 0.5)
    assert outcome.detail == "50.0% of the rows have the expected class; at least 51.0% must"


def test_of_classes_that_are_equal_in_the_reference_either_will_do() -> None:
    tied = np.array([[[7, 73, 73]], [[1, 9, 8]]], np.uint8)
    other = np.array([[[7, 72, 74]], [[1, 8, 9]]], np.uint8)
    expected = Expected({"y": tied}, {"y": 256.0}, 2, 0.5)
    outcome = judge(case(expected), ANSWERED, {"y": other})
    assert (outcome.kind, outcome.agreement) == ("right", 0.5)


@pytest.mark.parametrize("least", [0.5, 0.500001])
def test_labels_decide_at_the_least_accuracy(least: float) -> None:
    labels = np.array([0, 0])
    expected = Expected({"y": SCORES}, {"y": 1.0}, 2, labels=labels, min_accuracy=least)
    outcome = judge(case(expected), ANSWERED, {"y": SCORES})
    assert outcome.accuracy == 0.5
    assert outcome.kind == ("right" if least == 0.5 else "wrong")


def test_a_class_that_the_model_gives_itself_is_compared_with_the_label() -> None:
    classes = np.array([[3, 1]])
    expected = Expected({"y": classes}, {"y": 0.0}, 2, labels=np.array([3, 2]), min_accuracy=0.5)
    assert judge(case(expected), ANSWERED, {"y": classes}).accuracy == 0.5


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({}, "gave no output 'y' but []"),
        ({"z": SCORES}, "gave no output 'y' but ['z']"),
        ({"y": SCORES[:1]}, "'y' has the shape (1, 1, 2); expected (2, 1, 2)"),
        (
            {"y": np.where(SCORES == 0.5, np.nan, SCORES)},
            "'y': 1 values are finite or not against what is expected",
        ),
    ],
)
def test_what_cannot_be_compared_is_wrong(
    outputs: dict[str, NDArray[np.generic]], text: str
) -> None:
    outcome = judge(near(), ANSWERED, outputs)
    assert (outcome.kind, outcome.detail) == ("wrong", text)


def test_infinite_values_are_right_where_they_are_expected() -> None:
    values = np.array([[[np.inf, 1.0]], [[2.0, 3.0]]], np.float32)
    assert judge(near(outputs=values), ANSWERED, {"y": values}).kind == "right"


def test_text_must_be_equal() -> None:
    words = np.array([["yes", "no"]])
    expected = case(Expected({"y": words}, {"y": 0.0}, 2))
    assert judge(expected, ANSWERED, {"y": words}).kind == "right"
    outcome = judge(expected, ANSWERED, {"y": words[:, ::-1]})
    assert outcome.detail == "'y' has other text than expected"


def test_without_an_expectation_finite_numbers_are_right_and_others_wrong() -> None:
    assert judge(case(None), ANSWERED, {"y": SCORES}).kind == "right"
    assert judge(case(None), ANSWERED, {"y": SCORES * np.nan}).detail == "'y' is not finite"
    assert judge(case(None), ANSWERED, {}).detail == "gave no output"


@pytest.mark.parametrize("state", ["refused", "crashed", "hung", "over-memory"])
def test_a_case_that_did_not_answer_keeps_its_state(state: str) -> None:
    outcome = judge(near(), Answer(state, "why"), {})  # type: ignore[arg-type]  # a parameter
    assert (outcome.kind, outcome.detail, outcome.is_right) == (state, "why", False)


def test_latency_is_the_distribution_of_the_samples() -> None:
    assert latency([]) is None
    found = latency([float(value) for value in range(101)])
    assert found is not None
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)


def test_float32_may_differ_by_a_ten_thousandth_of_its_largest_value() -> None:
    values = np.array([[-200.0, 3.0]], np.float32)
    assert references.allowed(values, 1, "float32") == pytest.approx(0.02)
    assert references.allowed(values / 1000, 1, "float32") == references.FLOAT32_SHARE


def test_integers_may_differ_by_four_steps_of_their_range() -> None:
    values = np.array([[-128, 127], [0, 64]], np.int8)
    assert references.allowed(values, 2, "reduced") == 4 * 255 / 256


def test_of_probabilities_at_reduced_precision_only_the_classes_count() -> None:
    steps = np.array([[-128, 127], [0, -1]], np.int8)  # 0 + 255 and 128 + 127 of 256
    expected = references.expectation({"y": steps}, Truth())
    assert expected.atol == {"y": 256.0}
    assert expected.min_agreement == references.MIN_AGREEMENT


def test_values_that_add_up_to_something_else_are_no_probabilities() -> None:
    expected = references.expectation({"y": np.array([[1.0, 2.0]], np.float32)}, Truth())
    assert expected.min_agreement == 0.0
    assert expected.atol == {"y": 4 / 256}


def test_the_first_calls_of_a_case_keep_their_expectation_and_drop_the_labels() -> None:
    expected = Expected({"y": SCORES}, {"y": 0.0}, 2, labels=np.array([0, 1]), min_accuracy=0.9)
    whole = Case("m", "onnx", b"", inputs={"x": SCORES}, expected=expected)
    head = whole.head(1)
    assert head.expected is not None
    assert (len(head.inputs["x"]), head.expected.rows, head.expected.labels) == (1, 1, None)
    assert judge(head, ANSWERED, {"y": SCORES[:1]}).kind == "right"
    assert whole.head(2) is whole
