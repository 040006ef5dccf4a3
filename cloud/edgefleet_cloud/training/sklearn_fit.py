"""Training with scikit-learn. Runs in the job's process.

The fitted model is one pipeline that takes the raw columns: whatever a feature needs (imputing,
scaling, one-hot) is part of it, and so part of what is converted.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.training.trainers import ESTIMATORS, Fitted, Progress
from edgefleet_cloud.values import Json
from edgefleet_converters.tables import Table

# Trees split on order alone, and these take missing values as they are.
_TREES = ("Tree", "Forest", "Boosting")


def fit(
    table: Table, label: str, parameters: Json, seed: int, folder: Path, progress: Progress
) -> Fitted:
    """Fit a pipeline; see `trainers.Fit`."""
    from skops import io

    progress(0.1, "loading scikit-learn")
    features = table.without(label)
    given = dict(parameters)
    estimator = _estimator(given.pop("estimator"), given, seed)
    pipeline = _pipeline(features, estimator)
    progress(0.3, f"fitting {type(estimator).__name__} on {len(table)} rows")
    target = _target(table, label, estimator)
    try:
        pipeline.fit(features.frame(), target)
    except ValueError as error:
        raise InvalidError(f"{type(estimator).__name__} cannot be fitted: {error}") from error
    path = folder / "model.skops"
    io.dump(pipeline, path)
    progress(1.0, "fitted")
    return Fitted(path)


def _estimator(name: str, parameters: Json, seed: int) -> Any:
    kind = getattr(import_module(ESTIMATORS[name]), name)
    known = kind().get_params()
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise InvalidError(f"{name} takes no parameter {', '.join(unknown)}")
    if "random_state" in known:
        parameters = {"random_state": seed, **parameters}
    return kind(**parameters)


def _pipeline(features: Table, estimator: Any) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    numeric = [name for name in features.names if features.is_numeric(name)]
    text = [name for name in features.names if name not in numeric]
    gaps = any(np.isnan(features.numbers(name)).any() for name in numeric)
    steps = _numeric_steps(type(estimator).__name__, gaps)
    if not text:
        return make_pipeline(*steps, estimator)
    numbers = make_pipeline(*steps) if steps else "passthrough"
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = [("text", one_hot, text)]
    if numeric:
        columns.insert(0, ("numbers", numbers, numeric))
    return make_pipeline(ColumnTransformer(columns), estimator)


def _numeric_steps(estimator: str, gaps: bool) -> list[Any]:
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    steps: list[Any] = []
    if gaps and not estimator.startswith("Hist"):
        steps.append(SimpleImputer(strategy="median"))
    if not any(word in estimator for word in _TREES):
        steps.append(StandardScaler())
    return steps


def _target(table: Table, label: str, estimator: Any) -> Any:
    from sklearn.base import is_classifier

    if not is_classifier(estimator):
        return table.numbers(label)
    cells = table.column(label)
    if table.is_numeric(label) and (cells == np.round(cells.astype(float))).all():
        # Whole numbers stay numbers, so that a class is called 3 and not 3.0.
        return cells.astype(np.int64)
    return cells
