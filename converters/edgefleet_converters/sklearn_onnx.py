"""scikit-learn → ONNX. `export` runs in a child process: opening a pickle runs its code.

Inputs of the graph: an estimator on numbers takes one float32 input `X` `(n, n_columns)`; one with
text columns takes an input of shape `(n, 1)` for each column, under the column's name.

HistGradientBoosting compares with float64 thresholds, which often are values of the training rows,
and a graph has float32 ones. For rows that are float32 already, x <= t holds exactly if x <= t
rounded *down*. For float64 rows, which a device rounds to the *nearest* float32, thresholds must be
rounded the same way. The wrong choice misroutes every row that lies on a threshold (48 of 442 rows
of the diabetes data, by up to 16), so both are tried on the rows and the better one is kept.
"""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet_converters import onnx_files, runners, sources
from edgefleet_converters.answers import label_text
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.exports import Export, Made
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.tables import Table
from edgefleet_protocol.manifest import Task

Rounding = Literal["nearest", "down"]
_OPSETS = {"": onnx_files.OPSET, "ai.onnx.ml": onnx_files.ML_OPSET}


def export(file: ModelFile, table: Table) -> Export:
    """Convert the estimator in a file to float32 ONNX and predict all rows with the original.

    Args:
        file: skops or pickle.
        table: feature rows, without the label.

    Raises:
        BadInputError: the file or the rows cannot be used.
        UnsupportedError: the estimator, or a part of it, has no ONNX form.
    """
    estimator = sources.load_estimator(file)
    task = _task(estimator)
    features = _features(file, estimator, table)
    classes = _classes(estimator) if task == "classification" else []
    scores = _predict(file, estimator, features, task)
    made = _convert_best(estimator, features, task, classes, scores)
    return Export(
        task,
        features.names,
        classes,
        scores,
        {"onnx-fp32": made},
        quantizable=onnx_files.quantizable(onnx.load_model_from_string(made.model)),
    )


def round_thresholds(estimator: Any, rounding: Rounding) -> bool:
    """Round the split thresholds of HistGradientBoosting models to float32, in place.

    Args:
        estimator: any fitted estimator; those inside it are found too.
        rounding: `down` for rows that are float32, `nearest` for rows that will be rounded.

    Returns:
        Whether any threshold moved.
    """
    moved = False
    for part in _parts(estimator):
        for predictor in (p for group in getattr(part, "_predictors", []) for p in group):
            thresholds = predictor.nodes["num_threshold"]
            rounded = thresholds.astype(np.float32)
            if rounding == "down":
                above = rounded.astype(np.float64) > thresholds
                rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
            moved |= bool((rounded.astype(np.float64) != thresholds).any())
            predictor.nodes["num_threshold"] = rounded
    return moved


def _convert_best(
    estimator: Any, features: Table, task: Task, classes: list[str], scores: NDArray[np.float64]
) -> Made:
    """Convert with each rounding of thresholds, where there are any, and keep the nearer model."""
    down = copy.deepcopy(estimator)
    round_thresholds(estimator, "nearest")
    width = scores.shape[1]
    made = _convert(estimator, features, task, classes, width)
    if not round_thresholds(down, "down"):
        return made
    rows = features.rows()
    candidates = [made, _convert(down, features, task, classes, width)]
    gaps = []
    for candidate in candidates:
        runner = runners.OnnxRunner(candidate.model, candidate.signature)
        got = runners.scores(runner, candidate.signature, rows)
        gaps.append(float(np.abs(got - scores).mean()))
    return candidates[int(np.argmin(gaps))]


def _task(estimator: Any) -> Task:
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor

    if is_classifier(estimator):
        return "classification"
    if is_regressor(estimator):
        return "regression"
    if is_outlier_detector(estimator):
        return "score"
    raise UnsupportedError(
        f"{_name(estimator)} is no classifier, regressor or outlier detector; convert the pipeline"
        " that ends in one"
    )


def _features(file: ModelFile, estimator: Any, table: Table) -> Table:
    """Return the columns that the estimator was fitted on: by name where it knows names."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return table.select(str(name) for name in names)
    count = getattr(estimator, "n_features_in_", None)
    if count is not None and count != len(table.names):
        raise BadInputError(
            f"{file.path}: {_name(estimator)} was fitted on {count} columns; {table.source} has"
            f" {len(table.names)} besides the label: {', '.join(table.names[:20])}"
        )
    return table


def _classes(estimator: Any) -> list[str]:
    classes = estimator.classes_
    if isinstance(classes, list):
        raise UnsupportedError(f"{_name(estimator)} predicts several labels at once; expected one")
    return [label_text(value) for value in classes]


def _predict(file: ModelFile, estimator: Any, features: Table, task: Task) -> NDArray[np.float64]:
    # An estimator fitted without names is given none, or it warns.
    named = hasattr(estimator, "feature_names_in_")
    rows = features.frame() if named else features.matrix()
    try:
        if task == "regression":
            values = estimator.predict(rows)
        elif task == "score" or not hasattr(estimator, "predict_proba"):
            values = estimator.decision_function(rows)
        else:
            values = estimator.predict_proba(rows)
    except (ValueError, TypeError) as error:
        raise BadInputError(
            f"{file.path}: {_name(estimator)} cannot predict the rows of {features.source}: {error}"
        ) from error
    scores = np.asarray(values, np.float64).reshape(len(features), -1)
    if task == "classification" and scores.shape[1] == 1:
        # A binary decision value: the exporter writes one column for each class.
        return np.hstack([-scores, scores])
    return scores


def _convert(estimator: Any, features: Table, task: Task, classes: list[str], width: int) -> Made:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    names = features.names
    numeric = all(features.is_numeric(name) for name in names)
    by_name = not numeric or _selects_by_name(estimator)
    kinds: list[tuple[str, Any]] = [("X", FloatTensorType([None, len(names)]))]
    if by_name:
        kinds = [
            (name, (FloatTensorType if features.is_numeric(name) else StringTensorType)([None, 1]))
            for name in names
        ]
    try:
        model = skl2onnx.convert_sklearn(
            estimator,
            name="model",  # else the graph is named by a random number
            initial_types=kinds,
            target_opset=_OPSETS,
            options=_options(estimator) if task == "classification" else None,
        )
    except Exception as error:  # skl2onnx raises a dozen types for what it cannot convert
        raise UnsupportedError(_reason(estimator, error)) from error
    model.ir_version = onnx_files.IR_VERSION
    if by_name and numeric:
        _join_inputs(model, names)
    found = onnx_files.ports(model)
    columns = [names] if len(found.inputs) == 1 else [[tensor.name] for tensor in found.inputs]
    return Made(
        model.SerializeToString(deterministic=True),
        onnx_files.signature(found, columns, task, classes, width),
        onnx_files.runtime_min(model),
    )


def _options(estimator: Any) -> dict[int, dict[str, bool]]:
    """Ask for scores as a tensor, and for decision values where there are no probabilities."""
    from skl2onnx import get_model_alias
    from skl2onnx.common._registration import get_converter

    final = _final(estimator)
    wanted = {"zipmap": False}
    if not hasattr(estimator, "predict_proba"):
        wanted["raw_scores"] = True
    try:
        allowed = get_converter(get_model_alias(type(final))).get_allowed_options() or {}
    except (RuntimeError, ValueError):
        return {}  # there is no converter; the conversion itself says so
    return {id(final): {name: value for name, value in wanted.items() if name in allowed}}


def _join_inputs(model: Any, names: list[str]) -> None:
    """Replace the inputs `(n, 1)` of a graph by one input `X`, of which each takes its column."""
    del model.graph.input[:]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [None, len(names)])
    )
    for index, name in enumerate(names):
        column = onnx.numpy_helper.from_array(np.array([index], np.int64), f"{name}_index")
        model.graph.initializer.append(column)
        # Gather has the same form in every opset, and the exporter picks the lowest that does.
        gather = onnx.helper.make_node("Gather", ["X", column.name], [name], axis=1)
        model.graph.node.insert(index, gather)
    if not any(entry.domain == "" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", onnx_files.OPSET))


def _selects_by_name(estimator: Any) -> bool:
    return any(
        type(part).__name__ == "ColumnTransformer" for part in _parts(estimator)
    ) and hasattr(estimator, "feature_names_in_")


def _final(estimator: Any) -> Any:
    """Return the estimator at the end of a pipeline, or of the search that found it."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        else:
            return estimator


def _parts(value: Any) -> Iterator[Any]:
    """Yield an estimator and all fitted estimators in it."""
    from sklearn.base import BaseEstimator

    if isinstance(value, BaseEstimator):
        yield value
        value = list(vars(value).values())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            yield from _parts(item)


def _reason(estimator: Any, error: Exception) -> str:
    from skl2onnx import get_model_alias

    unknown = set()
    for part in _parts(estimator):
        try:
            get_model_alias(type(part))
        except RuntimeError:
            unknown.add(type(part).__name__)
    unknown = {name for name in unknown if not name.startswith("_")}  # parts of known estimators
    what = f"operator {', '.join(sorted(unknown))}" if unknown else "an option of it"
    lines = str(error).strip().splitlines() or [""]
    return (
        f"{_name(estimator)}: {what} has no ONNX form in skl2onnx"
        f" ({type(error).__name__}: {lines[0][:200]})"
    )


def _name(estimator: Any) -> str:
    final = _final(estimator)
    name = type(final).__name__
    return name if final is estimator else f"{type(estimator).__name__} ending in {name}"
