import numpy as np
import pytest
from sklearn import metrics

from edgefleet_converters import answers
from edgefleet_converters.errors import BadInputError


def text(*values: object) -> np.ndarray:
    return np.array(values, object)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "3"),
        (3.0, "3"),
        (np.float64(3), "3"),
        (2.5, "2.5"),
        ("a", "a"),
        (np.bool_(True), "True"),
    ],
)
def test_equal_labels_have_one_name(value: object, name: str) -> None:
    assert answers.label_text(value) == name


def test_a_row_without_its_answer_is_named() -> None:
    with pytest.raises(BadInputError, match="y has no value in 2 rows, the first is data row 2"):
        answers.check_labels(np.array([1.0, np.nan, np.nan]), "y")
    with pytest.raises(BadInputError, match="the first is data row 1"):
        answers.check_labels(text(None, "a"), "y")
    answers.check_labels(text("a", "b"), "y")


def test_classes_are_named_by_the_caller_or_by_the_labels() -> None:
    assert answers.class_names(2, text("b", "a"), ["x", "y"]) == ["x", "y"]
    assert answers.class_names(3, np.array([2.0, 0.0]), None) == ["0", "1", "2"]
    assert answers.class_names(2, np.array([10.0, 9.0]), None) == ["9", "10"]
    assert answers.class_names(2, text("dog", "cat"), None) == ["cat", "dog"]
    assert answers.class_names(2, None, None) == ["0", "1"]


def test_classes_that_do_not_fit_the_scores_are_refused() -> None:
    with pytest.raises(BadInputError, match="3 classes; 2 names were given"):
        answers.class_names(3, None, ["a", "b"])
    with pytest.raises(BadInputError, match="2 classes; 2 names were given"):
        answers.class_names(2, None, ["a", "a"])
    with pytest.raises(BadInputError, match="3 classes and the label 2 values"):
        answers.class_names(3, text("cat", "dog"), None)


def test_a_label_of_no_class_is_never_right() -> None:
    truth = answers.class_indices(text("a", "c"), ["a", "b"])
    assert truth.tolist() == [0, answers.UNKNOWN]
    scores = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert answers.score_of("classification", scores, truth) == 0.5


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    scores, truth = rng.random((200, 4)), rng.integers(0, 3, 200)
    predicted = scores.argmax(axis=1)
    assert answers.metrics_of("classification", scores, truth) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(truth, predicted),
            "f1": metrics.f1_score(truth, predicted, average="macro"),
            "rows": 200,
        }
    )
    values, right = rng.random((200, 1)), rng.random(200)
    assert answers.metrics_of("regression", values, right) == pytest.approx(
        {
            "r2": metrics.r2_score(right, values),
            "mae": metrics.mean_absolute_error(right, values),
            "rows": 200,
        }
    )


def test_r2_of_a_constant_is_zero() -> None:
    assert answers.r2(np.array([1.0, 2.0]), np.array([5.0, 5.0])) == 0.0
