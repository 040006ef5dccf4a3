"""A fitted estimator → an ONNX graph. Call this in a child process only.

Inputs of the graph: an estimator on numbers takes one input `X` `(n, n_columns)`; one with text
columns takes an input of shape `(n, 1)` for each column, under the column's name.

Numbers are float32, or float64 where the caller finds that float32 gives other answers (see
`routes.sklearn`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from msgspec import Struct

from edgefleet_converters import onnx_files
from edgefleet_converters.errors import UnsupportedError

_OPSETS = {"": onnx_files.OPSET, "ai.onnx.ml": onnx_files.ML_OPSET}
_INPUT = "X"


class Column(Struct, frozen=True):
    """A column of the rows that an estimator was fitted on."""

    name: str
    is_numeric: bool


def to_onnx(estimator: Any, columns: Sequence[Column], dtype: type[np.floating[Any]]) -> Any:
    """Convert a fitted estimator: predictor, pipeline, or transformer alone.

    Args:
        estimator: of scikit-learn, XGBoost or LightGBM.
        columns: that it was fitted on, in order.
        dtype: of numeric inputs, `np.float32` or `np.float64`.

    Returns:
        `onnx.ModelProto` of the opsets and IR version that old devices load.

    Raises:
        UnsupportedError: the estimator, or a part of it, has no ONNX form.
    """
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    from edgefleet_converters.routes import sklearn_converters
    from edgefleet_converters.routes.sklearn_converters.graph import score_options

    sklearn_converters.register()
    _bound_thresholds(estimator)
    last = final(estimator)
    number = DoubleTensorType if dtype is np.float64 else FloatTensorType
    numeric = all(column.is_numeric for column in columns)
    by_name = not numeric or _selects_by_name(estimator)
    kinds: list[tuple[str, Any]] = [(_INPUT, number([None, len(columns)]))]
    if by_name:
        kinds = [
            (column.name, (number if column.is_numeric else StringTensorType)([None, 1]))
            for column in columns
        ]
    try:
        model = skl2onnx.convert_sklearn(
            estimator,
            name="model",  # else the graph is named by a random number
            initial_types=kinds,
            target_opset=_OPSETS,
            options={id(last): score_options(estimator, last)},
        )
    except UnsupportedError as error:
        raise UnsupportedError(f"{describe(estimator)}: {error}") from error
    except Exception as error:  # skl2onnx raises a dozen types for what it cannot convert
        raise UnsupportedError(_reason(estimator, error)) from error
    model.ir_version = onnx_files.IR_VERSION
    _use_portable_locale(model)
    if by_name and numeric:
        _join_inputs(model, [column.name for column in columns], dtype)
    return model


def parts(value: Any) -> Iterator[Any]:
    """Yield an estimator and all fitted estimators in it."""
    from sklearn.base import BaseEstimator

    if isinstance(value, BaseEstimator):
        yield value
        value = list(vars(value).values())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            yield from parts(item)


def describe(estimator: Any) -> str:
    """Return the class of an estimator, for error texts."""
    last = final(estimator)
    name = type(last).__name__
    return name if last is estimator else f"{type(estimator).__name__} ending in {name}"


def _join_inputs(model: Any, names: list[str], dtype: type[np.floating[Any]]) -> None:
    """Replace the inputs `(n, 1)` of a graph by one input `X`, of which each takes its column."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    del model.graph.input[:]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(_INPUT, element, [None, len(names)])
    )
    for index, name in enumerate(names):
        column = onnx.numpy_helper.from_array(np.array([index], np.int64), f"{name}_index")
        model.graph.initializer.append(column)
        # Gather has the same form in every opset, and the exporter picks the lowest that does.
        gather = onnx.helper.make_node("Gather", [_INPUT, column.name], [name], axis=1)
        model.graph.node.insert(index, gather)
    if not any(entry.domain == "" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", onnx_files.OPSET))


def _bound_thresholds(estimator: Any) -> None:
    """Make infinite thresholds of trees finite, in place; rows, which are finite, go as before.

    A split between missing and all other values has the threshold infinity, for which skl2onnx 1.20
    searches the next float32 without end.
    """
    bound = float(np.finfo(np.float32).max)
    for part in parts(estimator):
        if hasattr(part, "tree_"):
            np.clip(part.tree_.threshold, -bound, bound, out=part.tree_.threshold)


def _use_portable_locale(model: Any) -> None:
    """Lower text by the rules of `C.UTF-8`: a device without `en_US` does not load the model."""
    for node in model.graph.node:
        if node.op_type == "StringNormalizer":
            for attribute in list(node.attribute):
                if attribute.name == "locale":
                    node.attribute.remove(attribute)
            node.attribute.append(onnx.helper.make_attribute("locale", "C.UTF-8"))


def _selects_by_name(estimator: Any) -> bool:
    return any(type(part).__name__ == "ColumnTransformer" for part in parts(estimator)) and hasattr(
        estimator, "feature_names_in_"
    )


def final(estimator: Any) -> Any:
    """Return the estimator at the end of a pipeline, or of the search that found it."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        else:
            return estimator


def _reason(estimator: Any, error: Exception) -> str:
    from skl2onnx import get_model_alias

    unknown = set()
    for part in parts(estimator):
        try:
            get_model_alias(type(part))
        except RuntimeError:
            unknown.add(type(part).__name__)
    unknown = {name for name in unknown if not name.startswith("_")}  # parts of known estimators
    what = f"operator {', '.join(sorted(unknown))}" if unknown else "an option of it"
    lines = str(error).strip().splitlines() or [""]
    return (
        f"{describe(estimator)}: {what} has no ONNX form ({type(error).__name__}: {lines[0][:200]})"
    )
