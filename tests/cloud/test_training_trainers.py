"""What is refused before a training starts, and the defaults that are filled in."""

from typing import Any

import pytest

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.training.trainers import TRAINERS, check


def columns(count: int, kind: str = "numeric") -> list[dict[str, str]]:
    return [{"name": f"c{i}", "kind": kind} for i in range(count)]


def test_defaults_are_filled_in_so_that_a_run_keeps_them() -> None:
    filled = check("keras-cnn", {"epochs": 5}, columns(64))
    assert filled == {
        "image_shape": [8, 8, 1], "filters": [16, 32], "dense": 64, "dropout": 0.2, "epochs": 5,
        "batch_size": 32, "learning_rate": 0.002,
    }  # fmt: skip
    assert check("keras-mlp", {}, columns(3))["units"] == [64, 32]


def test_parameters_of_an_estimator_are_left_to_it() -> None:
    given = {"estimator": "RandomForestClassifier", "n_estimators": 7}
    assert check("sklearn", given, columns(2, "categorical")) == given


@pytest.mark.parametrize(
    ("trainer", "parameters", "features", "complaint"),
    [
        ("xgboost", {}, columns(4), "'xgboost' is no trainer; expected one of sklearn, keras-cnn"),
        ("sklearn", {}, columns(4), "missing required field `estimator`"),
        ("sklearn", {"estimator": "SGDClassifier"}, columns(4), "estimator 'SGDClassifier': expec"),
        ("keras-cnn", {"epoch": 5}, columns(64), "unknown field `epoch`"),
        ("keras-cnn", {"epochs": 0}, columns(64), "`int` >= 1"),
        ("keras-cnn", {"epochs": 1001}, columns(64), "`int` <= 1000"),
        ("keras-cnn", {"dropout": 1.0}, columns(64), "`float` < 1.0"),
        ("keras-cnn", {"image_shape": [8, 8]}, columns(64), "length >= 3"),
        ("keras-cnn", {"image_shape": [8, 7, 1]}, columns(64), "8 x 7 x 1 holds 56 pixels; the"),
        ("keras-cnn", {}, columns(63), "63 features are no square picture; give image_shape"),
        ("keras-mlp", {}, columns(2, "categorical"), "takes numbers only; c0, c1 hold text"),
        ("keras-mlp", {"units": []}, columns(2), "length >= 1"),
    ],
)
def test_what_can_never_work_is_refused(
    trainer: str, parameters: dict[str, Any], features: list[dict[str, str]], complaint: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        check(trainer, parameters, features)
    assert complaint in str(refused.value)


def test_every_trainer_says_what_it_is() -> None:
    assert all(trainer.summary for trainer in TRAINERS.values())
