import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from edgefleet_converters import verify
from edgefleet_converters.conversion import Limits
from edgefleet_converters.tables import Table
from edgefleet_converters.verify import Trial, Truth
from edgefleet_protocol import golden

ROWS = 100


def probabilities(right: int) -> NDArray[np.float64]:
    """Return two-class scores of which the first `right` choose class 0."""
    scores = np.tile([0.9, 0.1], (ROWS, 1))
    scores[right:] = [0.1, 0.9]
    return scores


def trial(scores: NDArray[np.float64]) -> Trial:
    return Trial(scores, scores[:8].copy(), 12.0, 1000)


def reasons(variant: str, scores: NDArray[np.float64], truth: Truth) -> list[str]:
    return verify.judge(variant, trial(scores), truth, Limits())[1]


LABELLED = Truth("classification", probabilities(ROWS), np.zeros(ROWS))
UNLABELLED = structs.replace(LABELLED, labels=None)


def test_figures_of_an_equal_variant() -> None:
    measured, found = verify.judge("onnx-fp32", trial(probabilities(ROWS)), LABELLED, Limits())
    assert found == []
    assert (measured.parity_max, measured.agreement, measured.score) == (0.0, 1.0, 1.0)
    assert (measured.score_rows, measured.latency_us) == (ROWS, 12.0)


@pytest.mark.parametrize(("gap", "accepted"), [(0.00099, True), (0.00101, False)])
def test_float32_is_held_to_parity(gap: float, accepted: bool) -> None:
    scores = probabilities(ROWS)
    scores[50] += [-gap, gap]
    found = reasons("onnx-fp32", scores, LABELLED)
    assert (found == []) is accepted
    assert accepted or "a score is 0.00101 off the original's; at most 0.001" in found[0]


@pytest.mark.parametrize(("wrong", "accepted"), [(2, True), (3, False)])
def test_int8_and_pruned_are_held_to_their_score(wrong: int, accepted: bool) -> None:
    for variant in ("onnx-int8", "tflite-pruned"):
        found = reasons(variant, probabilities(ROWS - wrong), LABELLED)
        assert (found == []) is accepted
        assert (
            accepted or "accuracy 0.9700 on 100 held-out rows; the original has 1.0000" in found[0]
        )


@pytest.mark.parametrize(("wrong", "accepted"), [(5, True), (6, False)])
def test_without_labels_int8_must_answer_like_the_original(wrong: int, accepted: bool) -> None:
    found = reasons("onnx-int8", probabilities(ROWS - wrong), UNLABELLED)
    assert (found == []) is accepted
    assert accepted or "94.00% of the rows are answered like by the original" in found[0]


def test_a_tie_counts_as_the_same_answer() -> None:
    original = np.tile([0.5, 0.5], (ROWS, 1))
    scores = original.copy()
    scores[:, 1] += 1e-7
    assert reasons("onnx-fp32", scores, Truth("classification", original, None)) == []


def test_values_are_compared_on_their_own_scale() -> None:
    values = np.linspace(0, 3000, ROWS).reshape(-1, 1)
    truth = Truth("regression", values, values[:, 0])
    near, far = values.copy(), values.copy()
    near[7] += 0.0009 * values.std()
    far[7] += 0.0011 * values.std()
    assert reasons("onnx-fp32", near, truth) == []
    assert len(reasons("onnx-fp32", far, truth)) == 2  # the gap, and one row of a hundred
    unlabelled = structs.replace(truth, labels=None)
    noisy = values + 0.2 * values.std() * np.where(np.arange(ROWS) % 2, 1, -1)[:, None]
    assert reasons("onnx-int8", far, unlabelled) == []
    assert "R² against the original is 0.96" in reasons("onnx-int8", noisy, unlabelled)[0]


def test_scores_that_are_not_finite_refuse() -> None:
    scores = probabilities(ROWS)
    scores[3, 1] = np.nan
    assert reasons("onnx-int8", scores, LABELLED) == ["1 scores are not finite"]


def test_scores_of_another_shape_refuse() -> None:
    found = reasons("onnx-fp32", probabilities(ROWS)[:, :1], LABELLED)
    assert found == ["gives scores of the shape (100, 1); the original (100, 2)"]


def test_a_row_alone_must_score_as_in_a_batch() -> None:
    scores = probabilities(ROWS)
    alone = structs.replace(trial(scores), single=scores[:8] + 0.01)
    found = verify.judge("onnx-fp32", alone, LABELLED, Limits())[1]
    assert found == ["a row alone scores up to 0.01 differently than in a batch"]


def test_golden_vectors_cover_the_rows_and_fit_the_technique() -> None:
    table = Table(
        "t", {"a": np.arange(ROWS, dtype=np.float64), "b": np.array(["x", None] * 50, object)}
    )
    scores = probabilities(60)
    exact = verify.golden_vectors("onnx-fp32", table, scores, "classification")
    assert golden.decode(golden.encode(exact)) == exact
    assert (exact.rows, exact.columns, exact.atol) == (32, ["a", "b"], 1e-4)
    given = exact.inputs()
    assert isinstance(given, dict)
    assert np.asarray(given["a"])[[0, -1]].tolist() == [0.0, 99.0]
    assert set(given["b"]) == {"x", ""}
    assert golden.faults(exact, exact.expected()) == []
    assert golden.faults(exact, exact.expected() + 2e-4) != []
    rounded = verify.golden_vectors("onnx-int8", table, scores, "classification")
    assert rounded.atol == 0.05
    flipped = rounded.expected().copy()
    flipped[:2] = flipped[:2, ::-1]
    assert any("expected class" in fault for fault in golden.faults(rounded, flipped))


def test_golden_tolerance_of_values_follows_their_size() -> None:
    table = Table("t", {"a": np.arange(4.0)})
    values = np.array([[0.0], [100.0], [200.0], [512.0]])
    assert verify.golden_vectors("onnx-fp32", table, values, "regression").atol == pytest.approx(
        0.0512
    )
    # Four of the 256 steps of an int8 output over the range seen.
    assert verify.golden_vectors("onnx-int8", table, values, "regression").atol == pytest.approx(
        8.0
    )
