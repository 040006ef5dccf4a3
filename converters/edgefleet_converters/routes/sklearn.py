"""scikit-learn (also with XGBoost and LightGBM estimators) → ONNX. Runs in a child process.

`open` keeps the model right on every row:

1. A graph takes float32. Trees that compare float64 (HistGradientBoosting, LightGBM) get their
   thresholds rounded *down*: for rows that are float32 already, `x <= t` then holds as before.
2. Where such trees meet rows that float32 does not hold exactly (21.55), a row that lies on a
   threshold could go the wrong way, in the sample or later on a device. Then the graph takes
   float64 and compares as the original does.
3. Any other model that is off on a row of the sample by more than `TOLERANCE` in float32 is made in
   float64 too, and the nearer of both is kept.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import onnx_files, runners, sources
from edgefleet_converters.answers import label_text
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import sklearn_export
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.routes.sklearn_export import Column, describe
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Task

# Of a probability, or of a value divided by the spread of all values. Float32 arithmetic in another
# order costs 1e-7 to 1e-5; a wrong branch of one tree of a hundred costs 1e-3 and more.
TOLERANCE = 1e-4


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:  # all routes
    """Convert the estimator in a file to ONNX and predict all samples with the original.

    Args:
        file: skops or pickle.
        samples: feature rows.
        hints: not needed; an estimator knows its classes.

    Raises:
        BadInputError: the file or the rows cannot be used.
        UnsupportedError: the estimator, or a part of it, has no ONNX form.
    """
    del hints
    return opened(file, sources.load_estimator(file), samples)


def opened(file: ModelFile, estimator: Any, samples: Samples) -> Opened:
    """Return what `open` returns, for an estimator that is loaded already.

    Raises:
        BadInputError: the rows do not fit the estimator.
        UnsupportedError: it has no ONNX form.
    """
    if samples.table is None:
        raise BadInputError(
            f"{samples.source}: holds tensors; {describe(estimator)} takes rows of a table"
        )
    task = _task(estimator)
    features = _features(file, estimator, samples.table)
    classes = _classes(estimator) if task == "classification" else []
    scores = _predict(file, estimator, features, task)
    model = _convert(estimator, features, task, classes, scores)
    return Opened(task, features.names, classes, scores, {"onnx": model})


def _task(estimator: Any) -> Task:
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor
    from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

    last = sklearn_export.final(estimator)
    if isinstance(last, FixedThresholdClassifier | TunedThresholdClassifierCV):
        threshold = getattr(last, "best_threshold_", getattr(last, "threshold", None))
        raise UnsupportedError(
            f"{describe(estimator)}: a device answers the class of the greatest score, which is not"
            f" its threshold of {threshold}; convert its `estimator_`, and compare the probability"
            " with the threshold in the application"
        )
    if is_classifier(estimator):
        return "classification"
    if is_regressor(estimator):
        return "regression"
    if is_outlier_detector(estimator):
        return "score"
    raise UnsupportedError(
        f"{describe(estimator)} is no classifier, regressor or outlier detector; convert the"
        " pipeline that ends in one"
    )


def _features(file: ModelFile, estimator: Any, table: Table) -> Table:
    """Return the columns that the estimator was fitted on: by name where it knows names."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return table.select(str(name) for name in names)
    count = getattr(estimator, "n_features_in_", None)
    if count is not None and count != len(table.names):
        raise BadInputError(
            f"{file.path}: {describe(estimator)} was fitted on {count} columns; {table.source} has"
            f" {len(table.names)} besides the label: {', '.join(table.names[:20])}"
        )
    return table


def _classes(estimator: Any) -> list[str]:
    classes = estimator.classes_
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise UnsupportedError(
            f"{describe(estimator)} predicts several labels at once; expected one: convert the"
            " estimator of each label by itself"
        )
    return [label_text(value) for value in classes]


def _predict(file: ModelFile, estimator: Any, features: Table, task: Task) -> NDArray[np.float64]:
    # An estimator fitted without names is given none, or it warns.
    named = hasattr(estimator, "feature_names_in_")
    rows = features.frame() if named else features.matrix()
    try:
        values = _call(estimator, rows, task)
    except (ValueError, TypeError) as error:
        raise BadInputError(
            f"{file.path}: {describe(estimator)} cannot predict the rows of {features.source}:"
            f" {error}"
        ) from error
    scores = np.asarray(values, np.float64).reshape(len(features), -1)
    _check_scores(file, estimator, scores, task)
    if task == "classification" and scores.shape[1] == 1:
        # A binary decision value: the exporter writes one column for each class.
        return np.hstack([-scores, scores])
    return scores


def _call(estimator: Any, rows: Any, task: Task) -> Any:
    if task == "regression":
        return estimator.predict(rows)
    if task == "score":
        return estimator.decision_function(rows)
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(rows)
    if hasattr(estimator, "decision_function"):
        return estimator.decision_function(rows)
    raise UnsupportedError(f"{describe(estimator)} gives labels only, and no scores to compare by")


def _check_scores(file: ModelFile, estimator: Any, scores: NDArray[np.float64], task: Task) -> None:
    if task == "regression" and scores.shape[1] != 1:
        raise UnsupportedError(
            f"{describe(estimator)} predicts {scores.shape[1]} values at once; expected one:"
            " convert the regressor of each value by itself"
        )
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise BadInputError(
            f"{file.path}: {describe(estimator)} gives scores that are not finite for rows of the"
            f" sample; the first is row {row + 1}"
        )


def _convert(
    estimator: Any, features: Table, task: Task, classes: list[str], scores: NDArray[np.float64]
) -> Model:
    """Convert in float32, in float64, or in both, by the rules of this module."""
    kinds: list[type[np.floating[Any]]] = [np.float32, np.float64]
    if compares_float64(estimator) and not _is_float32(features):
        kinds.reverse()
    found: list[tuple[float, Model]] = []
    refused: UnsupportedError | None = None
    for kind in kinds:
        try:
            model = _make(estimator, features, task, classes, scores.shape[1], kind)
            gap = _gap(model, features, task, scores)
        except UnsupportedError as error:
            refused = refused or error
            continue
        found.append((gap, model))
        if gap <= TOLERANCE:
            return model
    if not found:
        raise refused or AssertionError("two kinds were tried")
    return min(found, key=lambda entry: entry[0])[1]


def compares_float64(estimator: Any) -> bool:
    """Return whether trees in an estimator compare rows with float64 thresholds."""
    return any(
        type(part).__name__.startswith(("HistGradientBoosting", "LGBM", "LightGbm"))
        for part in sklearn_export.parts(estimator)
    )


def _is_float32(features: Table) -> bool:
    numbers = [features.numbers(name) for name in features.names if features.is_numeric(name)]
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(column.astype(np.float32).astype(np.float64), column, equal_nan=True)
            for column in numbers
        )


def _make(
    estimator: Any,
    features: Table,
    task: Task,
    classes: list[str],
    width: int,
    dtype: type[np.floating[Any]],
) -> Model:
    columns = [Column(name, features.is_numeric(name)) for name in features.names]
    graph = sklearn_export.to_onnx(estimator, columns, dtype)
    found = onnx_files.ports(graph)
    names = features.names
    inputs = [names] if len(found.inputs) == 1 else [[tensor.name] for tensor in found.inputs]
    return Model(
        "onnx",
        graph.SerializeToString(deterministic=True),
        onnx_files.signature(found, inputs, task, classes, width),
    )


def _gap(model: Model, features: Table, task: Task, scores: NDArray[np.float64]) -> float:
    """Return the largest difference from the original over all rows, in units of `TOLERANCE`."""
    tensors = Samples(features.source, features, {}).bind(model.signature)
    try:
        got = runners.scores(runners.OnnxRunner(model.data, model.signature), tensors)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise UnsupportedError(f"ONNX Runtime does not run the converted model: {error}") from error
    if got.shape != scores.shape:
        raise UnsupportedError(
            f"the converted model gives {got.shape[1]} scores a row, the original {scores.shape[1]}"
        )
    spread = 1.0 if task == "classification" else float(scores.std()) or 1.0
    return float(np.nan_to_num(np.abs(got - scores), nan=np.inf).max()) / spread
