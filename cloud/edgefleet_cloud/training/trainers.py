"""What a trainer is, and which there are. Imports no machine-learning package.

A trainer has two halves: `check` runs in the hub when a training is asked for, and refuses
parameters that can never work; `fit` names the function that runs in the job's process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.values import Json
from edgefleet_converters.tables import Table

Progress = Callable[[float, str], None]
PositiveInt = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class Fitted:
    """A fitted model in a file.

    Attributes:
        path: `.skops` or `.keras`.
        classes: names in the order of the model's outputs; None where the file carries them.
        facts: figures of the training itself (epochs run, final loss), for the run's metrics.
    """

    path: Path
    classes: list[str] | None = None
    facts: dict[str, float] = field(default_factory=dict)


class Fit(Protocol):
    """Trains one model in the job's process."""

    def __call__(
        self,
        table: Table,
        label: str,
        parameters: Any,
        seed: int,
        folder: Path,
        progress: Progress,
    ) -> Fitted:
        """Fit on every row of `table` and write the model into `folder`.

        Args:
            table: features and label, training rows only.
            label: name of the label column.
            parameters: of the trainer's own type, checked.
            seed: of everything random.
            folder: scratch of the job.
            progress: told the share done, 0 to 1.
        """


class SklearnParameters(Struct, forbid_unknown_fields=False):
    """Parameters of `sklearn`: the estimator's name; every other one goes to its constructor."""

    estimator: str


class CnnParameters(Struct, forbid_unknown_fields=True):
    """Parameters of `keras-cnn`.

    Attributes:
        image_shape: height, width and channels of one row's pixels, row-major; where it is not
            given, a square picture of one channel.
        filters: of each convolution; the picture is halved after every one but the first.
        dense: units of the layer before the output.
        dropout: share dropped before the output.
    """

    image_shape: Annotated[list[PositiveInt], Meta(min_length=3, max_length=3)] | None = None
    filters: Annotated[list[PositiveInt], Meta(min_length=1, max_length=8)] = msgspec.field(
        default_factory=lambda: [16, 32]
    )
    dense: PositiveInt = 64
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 25
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.002


class MlpParameters(Struct, forbid_unknown_fields=True):
    """Parameters of `keras-mlp`.

    Attributes:
        units: of each hidden layer.
    """

    units: Annotated[list[PositiveInt], Meta(min_length=1, max_length=8)] = msgspec.field(
        default_factory=lambda: [64, 32]
    )
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 60
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.003


# Estimators that the converters can turn into ONNX; nothing else is imported by name.
ESTIMATORS = {
    "ExtraTreesClassifier": "sklearn.ensemble",
    "ExtraTreesRegressor": "sklearn.ensemble",
    "GradientBoostingClassifier": "sklearn.ensemble",
    "GradientBoostingRegressor": "sklearn.ensemble",
    "HistGradientBoostingClassifier": "sklearn.ensemble",
    "HistGradientBoostingRegressor": "sklearn.ensemble",
    "RandomForestClassifier": "sklearn.ensemble",
    "RandomForestRegressor": "sklearn.ensemble",
    "LinearRegression": "sklearn.linear_model",
    "LogisticRegression": "sklearn.linear_model",
    "Ridge": "sklearn.linear_model",
    "KNeighborsClassifier": "sklearn.neighbors",
    "KNeighborsRegressor": "sklearn.neighbors",
    "MLPClassifier": "sklearn.neural_network",
    "MLPRegressor": "sklearn.neural_network",
    "SVC": "sklearn.svm",
    "DecisionTreeClassifier": "sklearn.tree",
    "DecisionTreeRegressor": "sklearn.tree",
}


@dataclass(frozen=True)
class Trainer:
    """A way to train.

    Attributes:
        parameters: their type.
        fit: `module:function` of its `Fit`.
        summary: for people.
    """

    parameters: type[Struct]
    fit: str
    summary: str


TRAINERS = {
    "sklearn": Trainer(
        SklearnParameters,
        "edgefleet_cloud.training.sklearn_fit:fit",
        "a scikit-learn estimator, with imputing, scaling and one-hot columns as it needs them",
    ),
    "keras-cnn": Trainer(
        CnnParameters,
        "edgefleet_cloud.training.keras_fit:fit_cnn",
        "a small convolutional network for rows that are pictures",
    ),
    "keras-mlp": Trainer(
        MlpParameters,
        "edgefleet_cloud.training.keras_fit:fit_mlp",
        "a dense network for rows of numbers",
    ),
}


def check(trainer: str, parameters: Json, columns: list[dict[str, str]]) -> Json:
    """Return the parameters as the trainer takes them, its defaults filled in.

    Args:
        trainer: name in `TRAINERS`.
        parameters: as given by a person.
        columns: features of the dataset, see `database.models.Dataset`.

    Raises:
        InvalidError: unknown trainer or estimator, a parameter that it does not take, or columns
            that it cannot use.
    """
    if trainer not in TRAINERS:
        raise InvalidError(f"{trainer!r} is no trainer; expected one of {', '.join(TRAINERS)}")
    try:
        checked = msgspec.convert(parameters, TRAINERS[trainer].parameters)
    except msgspec.ValidationError as error:
        raise InvalidError(f"parameters of {trainer}: {error}") from error
    if isinstance(checked, SklearnParameters):
        if checked.estimator not in ESTIMATORS:
            known = ", ".join(ESTIMATORS)
            raise InvalidError(f"estimator {checked.estimator!r}: expected one of {known}")
        return parameters
    text = [column["name"] for column in columns if column["kind"] == "categorical"]
    if text:
        raise InvalidError(f"{trainer} takes numbers only; {', '.join(text[:8])} hold text")
    if isinstance(checked, CnnParameters):
        checked.image_shape = _image_shape(checked.image_shape, len(columns))
    filled: Json = msgspec.to_builtins(checked)
    return filled


def _image_shape(given: list[int] | None, features: int) -> list[int]:
    side = math.isqrt(features)
    if given is None:
        if side * side != features:
            raise InvalidError(
                f"{features} features are no square picture; give image_shape, for example"
                " [8, 8, 1] for height, width and channels"
            )
        return [side, side, 1]
    if math.prod(given) != features:
        raise InvalidError(
            f"image_shape {' x '.join(map(str, given))} holds {math.prod(given)} pixels; the"
            f" dataset has {features} features"
        )
    return given
