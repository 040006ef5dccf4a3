"""Booster files without scikit-learn around them → ONNX. Runs in a child process.

XGBoost writes `.json` and `.ubj`, LightGBM `.txt`; all are data, and load without running code.
A booster knows neither the names of its classes nor how rows are given to it: `_Booster` fills that
in, and the rest is the route of scikit-learn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from edgefleet_converters.answers import class_names
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import sklearn as sklearn_route
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile

_Floats = NDArray[np.float64]


class _Booster(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type information
    """A booster in the manner of a fitted estimator.

    Attributes:
        booster: of its library.
        n_features_in_: columns of its rows.
        feature_names_in_: their names, where the file has any.
    """

    def __init__(self, booster: Any = None) -> None:
        self.booster = booster

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def named(self, names: Sequence[str], width: int, samples: Samples) -> "_Booster":
        """Return itself, with the columns: by name if the samples have them all, else by place."""
        self.n_features_in_ = width
        if names and samples.table is not None and set(names) <= set(samples.table.names):
            self.feature_names_in_ = np.array(names, object)
        return self

    def values(self, rows: Any) -> _Floats:
        """Return what the booster predicts, `(n,)` or `(n, n_classes)`."""
        return np.asarray(self.booster.predict(np.asarray(rows, np.float64)), np.float64)


class XgboostModel(_Booster):
    """A booster of XGBoost."""

    def values(self, rows: Any) -> _Floats:
        """Return what the booster predicts, `(n,)` or `(n, n_classes)`."""
        import xgboost

        matrix = xgboost.DMatrix(
            np.asarray(rows, np.float32),
            feature_names=self.booster.feature_names,
            feature_types=self.booster.feature_types,
        )
        return np.asarray(self.booster.predict(matrix), np.float64)


class _Classifier(ClassifierMixin, _Booster):  # type: ignore[misc]  # as above
    def classed(self, classes: list[str]) -> "_Classifier":
        self.classes_ = np.array(classes)
        return self

    def predict_proba(self, rows: Any) -> _Floats:
        """Return the probability of each class, `(n, n_classes)`."""
        values = self.values(rows)
        return np.column_stack([1 - values, values]) if values.ndim == 1 else values


class _Regressor(RegressorMixin, _Booster):  # type: ignore[misc]  # as above
    def predict(self, rows: Any) -> _Floats:
        """Return the value of each row, `(n,)`."""
        return self.values(rows)


class XgboostClassifier(_Classifier, XgboostModel):
    """A classifying booster of XGBoost."""


class XgboostRegressor(_Regressor, XgboostModel):
    """Any other booster of XGBoost."""


class LightGbmClassifier(_Classifier):
    """A classifying booster of LightGBM."""


class LightGbmRegressor(_Regressor):
    """Any other booster of LightGBM."""


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:  # all routes
    """Convert a booster file to ONNX and predict all samples with the original.

    Args:
        file: of XGBoost or LightGBM.
        samples: feature rows.
        hints: with the names of the classes.

    Raises:
        BadInputError: the file or the rows cannot be used.
        UnsupportedError: the booster has no ONNX form, or its library is not installed.
    """
    read = _read_xgboost if file.kind == "xgboost" else _read_lightgbm
    try:
        model, classes = read(file, samples)
    except ImportError as error:
        raise UnsupportedError(
            f"{file.path}: {file.kind} is not installed; install it beside the converters"
        ) from error
    if isinstance(model, _Classifier):
        model.classed(class_names(classes, hints.labels, hints.classes))
    return sklearn_route.opened(file, model, samples)


def _read_xgboost(file: ModelFile, samples: Samples) -> tuple[_Booster, int]:
    import xgboost

    from edgefleet_converters.routes.sklearn_converters import xgboost_trees

    booster = xgboost.Booster()
    try:
        booster.load_model(file.path)
        document = xgboost_trees.document(booster)
    except (xgboost.core.XGBoostError, ValueError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error
    objective = xgboost_trees.objective_of(document)
    names, width = booster.feature_names or [], booster.num_features()
    if objective not in xgboost_trees.CLASSIFIES:
        return XgboostRegressor(booster).named(names, width, samples), 1
    if objective == "multi:softmax":
        # The same trees; with this objective the library gives the label only.
        booster.set_param({"objective": "multi:softprob"})
    count = int(document["learner"]["learner_model_param"]["num_class"])
    return XgboostClassifier(booster).named(names, width, samples), max(2, count)


def _read_lightgbm(file: ModelFile, samples: Samples) -> tuple[_Booster, int]:
    import lightgbm

    from edgefleet_converters.routes.sklearn_converters import lightgbm_trees

    try:
        booster = lightgbm.Booster(model_file=file.path)
        dump = booster.dump_model()
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise _unreadable(file, error) from error
    objective = lightgbm_trees.objective_of(dump)[0]
    names, width = booster.feature_name(), booster.num_feature()
    if objective not in lightgbm_trees.CLASSIFIES:
        return LightGbmRegressor(booster).named(names, width, samples), 1
    model = LightGbmClassifier(booster).named(names, width, samples)
    return model, max(2, int(dump["num_class"]))


def _unreadable(file: ModelFile, error: Exception) -> BadInputError:
    lines = str(error).strip().splitlines() or [""]
    return BadInputError(f"{file.path}: no whole {file.kind} model: {lines[0][:200]}")
