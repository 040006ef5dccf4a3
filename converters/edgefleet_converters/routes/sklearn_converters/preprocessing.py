"""Preprocessing: functions, bins, splines, quantiles, imputers."""

from typing import Any

import numpy as np
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # brings IterativeImputer
from sklearn.impute import IterativeImputer, MissingIndicator, SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    QuantileTransformer,
    SplineTransformer,
    TargetEncoder,
)

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import interpolate, piecewise
from edgefleet_converters.routes.sklearn_converters.graph import Graph, regresses, transforms

# Of numpy, by name: what each is in ONNX, where one operator is enough.
_SAME = {
    "abs": "Abs",
    "absolute": "Abs",
    "arctan": "Atan",
    "ceil": "Ceil",
    "cos": "Cos",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "negative": "Neg",
    "reciprocal": "Reciprocal",
    "rint": "Round",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}


def function(graph: Graph, called: Any, X: str) -> str:
    """Add a function of numpy (or None, which changes nothing) to a graph.

    Raises:
        UnsupportedError: any other function.
    """
    one = np.array(1.0)
    name = getattr(called, "__name__", "") if isinstance(called, np.ufunc) else ""
    if called is None:
        return X
    if name in _SAME:
        return graph.op(_SAME[name], X)
    if name == "log1p":
        return graph.op("Log", graph.op("Add", X, one))
    if name == "expm1":
        return graph.op("Sub", graph.op("Exp", X), one)
    if name == "square":
        return graph.op("Mul", X, X)
    if name in ("log2", "log10"):
        return graph.op("Div", graph.op("Log", X), np.array(np.log(float(name[3:]))))
    raise UnsupportedError(
        f"FunctionTransformer with {called!r}: Python code has no ONNX form; functions of numpy"
        f" have: {', '.join(sorted({*_SAME, 'log1p', 'expm1', 'square', 'log2', 'log10'}))}"
    )


@transforms(FunctionTransformer, width=lambda model: getattr(model, "n_features_in_", None))
def function_transformer(graph: Graph, model: Any, X: str) -> str:
    """One function of numpy on all columns."""
    if model.kw_args:
        raise UnsupportedError("FunctionTransformer with keyword arguments")
    return function(graph, model.func, X)


@transforms(KBinsDiscretizer)
def k_bins(graph: Graph, model: Any, X: str) -> str:
    """Number of inner edges at or below a value, as it is or as one column for each bin."""
    columns = []
    for at, edges in enumerate(model.bin_edges_):
        value = graph.columns(X, [at])
        inner = np.asarray(edges[1:-1], np.float64)
        code = graph.cast(graph.op("Mul", value, np.array(0.0)), np.int64)
        if len(inner):
            passed = graph.cast(graph.op("GreaterOrEqual", value, inner), np.int64)
            code = graph.reduce("ReduceSum", passed)
        if model.encode == "ordinal":
            columns.append(graph.cast(code))
            continue
        columns.append(graph.cast(graph.op("Equal", code, np.arange(len(edges) - 1)[None])))
    return graph.concat(columns)


@transforms(SplineTransformer)
def splines(graph: Graph, model: Any, X: str) -> str:
    """Piecewise polynomials between the knots; their coefficients are found by asking the model."""
    if model.extrapolation == "error":
        raise UnsupportedError("SplineTransformer that raises outside its knots")
    if getattr(model, "handle_missing", "error") != "error":
        raise UnsupportedError("SplineTransformer that encodes missing values")
    degree, count = model.degree, model.n_features_in_
    blocks = []
    for at, spline in enumerate(model.bsplines_):
        knots = np.asarray(spline.t[degree : len(spline.t) - degree], np.float64)
        value = graph.columns(X, [at])
        if model.extrapolation == "periodic":
            value = _wrapped(graph, value, knots)
        blocks.append(piecewise(graph, value, knots, _pieces(model, at, knots, count)))
    return graph.concat(blocks)


def _wrapped(graph: Graph, value: str, knots: Any) -> str:
    period, start = np.array(knots[-1] - knots[0]), knots[:1]
    from_start = graph.op("Sub", value, start)
    turns = graph.op("Floor", graph.op("Div", from_start, period))
    return graph.op("Add", graph.op("Sub", from_start, graph.op("Mul", turns, period)), start)


def _pieces(model: Any, at: int, knots: Any, count: int) -> Any:
    """Return `(n_intervals, degree + 1, n_outputs)` coefficients of powers of x - origin."""
    step = knots[1] - knots[0]
    bounds = np.concatenate([[knots[0] - step], knots, [knots[-1] + step]])
    origins = np.concatenate([knots[:1], knots])
    width = model.transform(np.zeros((1, count)) + knots[0]).shape[1] // count
    found = []
    for low, high, origin in zip(bounds[:-1], bounds[1:], origins, strict=True):
        # Inside the interval, never on a knot, where the neighbour would answer.
        part = (np.arange(model.degree + 1) + 0.5) / (model.degree + 1)
        points = low + (high - low) * part
        rows = np.full((len(points), count), knots[0])
        rows[:, at] = points
        answers = model.transform(rows)
        answers = answers.toarray() if hasattr(answers, "toarray") else answers
        answers = answers[:, at * width : (at + 1) * width]
        scale = high - low
        powers = np.vander((points - origin) / scale, model.degree + 1, increasing=True)
        solved = np.linalg.solve(powers, answers)
        found.append(solved / scale ** np.arange(model.degree + 1)[:, None])
    return np.array(found)


@transforms(QuantileTransformer)
def quantiles(graph: Graph, model: Any, X: str) -> str:
    """Mean of the interpolation from both sides, which differ where quantiles are equal."""
    references = np.asarray(model.references_, np.float64)
    columns, from_above = [], []
    for at in range(model.n_features_in_):
        value = graph.columns(X, [at])
        all_knots = np.asarray(model.quantiles_[:, at], np.float64)
        knots, first = np.unique(all_knots, return_index=True)
        last = np.searchsorted(all_knots, knots, side="right") - 1
        low = graph.op("LessOrEqual", value, knots[:1])
        high = graph.op("GreaterOrEqual", value, knots[-1:])
        rank = _rank(graph, value, knots, references[first], references[last])
        rank = graph.op("Where", low, np.array(0.0), rank)
        columns.append(graph.op("Where", high, np.array(1.0), rank))
        if model.output_distribution == "normal":
            # By itself, because float32 has no 1 - rank of a rank near 1.
            rank = _rank(graph, value, knots, 1 - references[first], 1 - references[last])
            rank = graph.op("Where", low, np.array(1.0), rank)
            from_above.append(graph.op("Where", high, np.array(0.0), rank))
    ranks = graph.concat(columns)
    return _normal(graph, ranks, graph.concat(from_above)) if from_above else ranks


def _rank(graph: Graph, value: str, knots: Any, before: Any, after: Any) -> str:
    """Return the mean of both interpolations, `before` and `after` the jumps at the knots."""
    sides = [
        interpolate(graph, value, knots, after, before=before, passed=passed)
        for passed in ("GreaterOrEqual", "Greater")
    ]
    return graph.op("Mul", graph.op("Add", *sides), np.array(0.5))


def _normal(graph: Graph, ranks: str, from_above: str) -> str:
    """Return the quantiles of the normal distribution, within scikit-learn's bounds.

    Interpolated between 4,000 knots whose distance is even in the quantile, so that the error stays
    below 1e-5 in the tails too. The upper half mirrors the lower one.
    """
    from scipy.stats import norm

    values = np.linspace(norm.ppf(1e-7 - np.spacing(1)), 0.0, 2001)
    below = _interpolate_all(graph, ranks, norm.cdf(values), values)
    above = _interpolate_all(graph, from_above, norm.cdf(values), -values)
    return graph.op("Where", graph.op("Less", ranks, np.array(0.5)), below, above)


def _interpolate_all(graph: Graph, X: str, knots: Any, values: Any) -> str:
    """Return `interpolate` of every column of `(n, width)`."""
    flat = interpolate(graph, graph.op("Reshape", X, np.array([-1, 1])), knots, values)
    return graph.op("Reshape", flat, graph.op("Shape", X))


@transforms(SimpleImputer, only=lambda model: model.add_indicator)
def imputer_with_indicator(graph: Graph, model: Any, X: str) -> str:
    """Filled columns, then whether the value was missing, of the columns in which any was."""
    if not _is_nan(model.missing_values) or np.isnan(model.statistics_).any():
        raise UnsupportedError("SimpleImputer with an indicator: missing values other than NaN")
    filled = graph.op("Where", graph.op("IsNaN", X), model.statistics_, X)
    return graph.concat([filled, missing_indicator(graph, model.indicator_, X)])


@transforms(TargetEncoder, only=lambda model: model.target_type_ == "multiclass")
def target_encoder(graph: Graph, model: Any, X: str) -> str:
    """For each class the encoding of the category; its mean where the category is not known."""
    width = len(model.classes_)
    columns = []
    for at, known in enumerate(model.categories_):
        encodings = np.array(model.encodings_[at * width : (at + 1) * width])
        table = np.vstack([encodings.T, np.ravel(model.target_mean_)[None]])
        codes = {"values_int64s": list(range(len(known))), "default_int64": len(known)}
        column = graph.columns(X, [at])
        if known.dtype.kind in "OU":
            code = graph.ml("LabelEncoder", column, keys_strings=list(map(str, known)), **codes)
        else:
            column = graph.cast(column, np.float32)
            code = graph.ml("LabelEncoder", column, keys_floats=list(map(float, known)), **codes)
        columns.append(graph.op("Gather", table, graph.op("Reshape", code, np.array([-1])), axis=0))
    return graph.concat(columns)


@transforms(MissingIndicator)
def missing_indicator(graph: Graph, model: Any, X: str) -> str:
    """Whether a value is missing, of the columns in which any was."""
    if not _is_nan(model.missing_values):
        raise UnsupportedError("missing values other than NaN")
    return graph.cast(graph.op("IsNaN", graph.columns(X, model.features_)))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


@transforms(IterativeImputer)
def iterative_imputer(graph: Graph, model: Any, X: str) -> str:
    """The rounds of regressions, each in the order in which they were fitted."""
    if model.sample_posterior or model.add_indicator:
        raise UnsupportedError("IterativeImputer that draws from the posterior or adds indicators")
    count = model.n_features_in_
    if np.isnan(model.initial_imputer_.statistics_).any():
        raise UnsupportedError("a column without any value")
    missing = [graph.op("IsNaN", graph.columns(X, [at])) for at in range(count)]
    columns = [
        graph.op(
            "Where",
            missing[at],
            model.initial_imputer_.statistics_[at : at + 1],
            graph.columns(X, [at]),
        )
        for at in range(count)
    ]
    for at, others, estimator in model.imputation_sequence_:
        given = graph.concat([columns[other] for other in others])
        (answer,) = graph.apply(estimator, given, len(others))
        value = graph.op("Reshape", answer, np.array([-1, 1]))
        low, high = model._min_value[at : at + 1], model._max_value[at : at + 1]
        value = graph.op("Max", graph.op("Min", value, high), low)
        columns[at] = graph.op("Where", missing[at], value, columns[at])
    return graph.concat(columns)


@regresses(IsotonicRegression)
def isotonic(graph: Graph, model: Any, X: str) -> str:
    """Interpolation between the steps."""
    if model.out_of_bounds != "clip":
        raise UnsupportedError(
            f"IsotonicRegression(out_of_bounds={model.out_of_bounds!r}); expected 'clip'"
        )
    return interpolate(graph, X, *steps(model))


def steps(model: Any) -> tuple[Any, Any]:
    """Return the knots of an isotonic regression and its values there."""
    return np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64)
