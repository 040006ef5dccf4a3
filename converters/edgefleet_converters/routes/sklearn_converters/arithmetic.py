"""What several converters compute: distances, kernels, interpolation. All shapes are `(n, …)`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.graph import Graph

_Floats = NDArray[np.float64]


def squared_distances(graph: Graph, X: str, points: _Floats) -> str:
    """Return squared Euclidean distances to `(m, width)` points, `(n, m)`.

    Differences are squared, not expanded (|x|² - 2xp + |p|²): a row that is a point is at 0.
    """
    apart, axis = _differences(graph, X, points)
    return graph.reduce("ReduceSumSquare", apart, axis, keepdims=0)


def distances(graph: Graph, X: str, points: _Floats, metric: str, p: float = 2.0) -> str:
    """Return distances to `(m, width)` points, `(n, m)`.

    Raises:
        UnsupportedError: a metric that has no form here.
    """
    return from_reduced(graph, _reduced(graph, X, points, metric, p), metric, p)


def nearest(
    graph: Graph, X: str, points: _Floats, count: int, metric: str, p: float = 2.0
) -> tuple[str, str]:
    """Return the least reduced distances to `(m, width)` points and their places, `(n, count)`.

    Of equals the first. Points are ordered before roots are taken, which would make equals of some
    that are not; `from_reduced` takes the roots of those that remain.

    Raises:
        UnsupportedError: a metric that has no form here.
    """
    return graph.top(_reduced(graph, X, points, metric, p), count)


def from_reduced(graph: Graph, values: str, metric: str, p: float = 2.0) -> str:
    """Return the distances whose reduced form are these values."""
    metric = _named(metric, p)
    if metric == "euclidean":
        return graph.op("Sqrt", values)
    return graph.op("Pow", values, np.array(1.0 / p)) if metric == "minkowski" else values


def _reduced(graph: Graph, X: str, points: _Floats, metric: str, p: float) -> str:
    """Return values that rise with the distances, `(n, m)`: distances without their roots."""
    metric = _named(metric, p)
    if metric == "euclidean":
        return squared_distances(graph, X, points)
    if metric == "cosine":
        return graph.op("Sub", np.array(1.0), _cosine(graph, X, points))
    difference, axis = _differences(graph, X, points)
    apart = graph.op("Abs", difference)
    if metric == "manhattan":
        return graph.reduce("ReduceSum", apart, axis, keepdims=0)
    if metric == "chebyshev":
        return graph.reduce("ReduceMax", apart, axis, keepdims=0)
    if metric == "minkowski":
        powers = graph.op("Pow", apart, np.array(float(p)))
        return graph.reduce("ReduceSum", powers, axis, keepdims=0)
    raise UnsupportedError(f"the metric {metric!r} has no ONNX form here")


def _named(metric: str, p: float) -> str:
    """Return a metric under the first of its names."""
    if metric == "minkowski":
        return {1.0: "manhattan", 2.0: "euclidean"}.get(float(p), metric)
    return {"l2": "euclidean", "l1": "manhattan", "cityblock": "manhattan"}.get(metric, metric)


def kernel(graph: Graph, X: str, points: _Floats, name: Any, parameters: dict[str, Any]) -> str:
    """Return a kernel between rows and `(m, width)` points, `(n, m)`.

    Args:
        graph: to add to.
        X: `(n, width)`.
        points: of the fitted model.
        name: as scikit-learn's `pairwise_kernels` has it.
        parameters: `gamma`, `coef0`, `degree`; scikit-learn's defaults where they are None.

    Raises:
        UnsupportedError: a kernel that has no form here.
    """
    gamma = parameters.get("gamma")
    gamma = 1.0 / points.shape[1] if gamma is None else float(gamma)
    if name == "rbf":
        return graph.op(
            "Exp", graph.op("Mul", squared_distances(graph, X, points), np.array(-gamma))
        )
    if name == "laplacian":
        apart = distances(graph, X, points, "manhattan")
        return graph.op("Exp", graph.op("Mul", apart, np.array(-gamma)))
    if name == "cosine":
        return _cosine(graph, X, points)
    product = graph.op("MatMul", X, points.T)
    if name == "linear":
        return product
    coef0, degree = parameters.get("coef0"), parameters.get("degree")
    shifted = graph.op(
        "Add",
        graph.op("Mul", product, np.array(gamma)),
        np.array(1.0 if coef0 is None else float(coef0)),
    )
    if name in ("poly", "polynomial"):
        return graph.op("Pow", shifted, np.array(3.0 if degree is None else float(degree)))
    if name == "sigmoid":
        return graph.op("Tanh", shifted)
    raise UnsupportedError(f"the kernel {name!r} has no ONNX form here")


def interpolate(
    graph: Graph,
    x: str,
    knots: _Floats,
    values: _Floats,
    *,
    before: _Floats | None = None,
    passed: str = "GreaterOrEqual",
) -> str:
    """Return `numpy.interp`: linear between `(m,)` rising knots, constant outside.

    Args:
        graph: to add to.
        x: `(n, 1)`.
        knots: distinct and rising.
        values: at the knots, and where lines begin there.
        before: where lines end at the knots, if that differs (a jump).
        passed: how a row on a knot compares: `GreaterOrEqual` begins a line there, `Greater` ends
            one.
    """
    if len(knots) == 1:
        return graph.op("Add", graph.op("Mul", x, np.array(0.0)), values)
    ends = values if before is None else before
    inside = graph.op("Max", graph.op("Min", x, knots[-1:]), knots[:1])
    index = _interval(graph, inside, knots, passed)
    slope = (ends[1:] - values[:-1]) / np.diff(knots)
    run = graph.op("Sub", inside, _look_up(graph, knots[:-1], index))
    rise = graph.op("Mul", run, _look_up(graph, slope, index))
    return graph.op("Add", _look_up(graph, values[:-1], index), rise)


def piecewise(graph: Graph, x: str, knots: _Floats, coefficients: _Floats) -> str:
    """Return piecewise polynomials of `x`, `(n, n_outputs)`.

    Args:
        graph: to add to.
        x: `(n, 1)`.
        knots: `(m,)` rising; interval 0 lies below the first, interval m above the last.
        coefficients: `(m + 1, degree + 1, n_outputs)` of powers of `x - origin`, where the origin
            of an interval is the knot where it begins, and of interval 0 the first knot.
    """
    above = graph.op("Greater", x, knots[-1:])
    reached = graph.op("GreaterOrEqual", x, knots[:-1])
    count = graph.op(
        "Add",
        graph.reduce("ReduceSum", graph.cast(reached, np.int64), keepdims=0),
        graph.op("Reshape", graph.cast(above, np.int64), np.array([-1])),
    )
    origin = np.concatenate([knots[:1], knots])
    local = graph.op("Sub", x, _look_up(graph, origin, count))
    total = graph.op("Gather", coefficients[:, -1], count, axis=0)
    for power in range(coefficients.shape[1] - 2, -1, -1):
        lower = graph.op("Gather", coefficients[:, power], count, axis=0)
        total = graph.op("Add", graph.op("Mul", total, local), lower)
    return total


def affine_of(call: Any, width: int) -> tuple[_Floats, _Floats]:
    """Return weights `(width, n_outputs)` and offset of a function that is affine.

    Args:
        call: `(n, width)` → `(n, n_outputs)` or `(n,)`, in float64.
        width: of its rows.
    """
    answers = np.asarray(call(np.vstack([np.zeros((1, width)), np.eye(width)])), np.float64)
    answers = answers.reshape(width + 1, -1)
    return answers[1:] - answers[0], answers[0]


def _differences(graph: Graph, X: str, points: _Floats) -> tuple[str, int]:
    """Return the differences of all columns from `(m, width)` points, and the axis of the columns.

    Points come last, `(n, width, m)`, unless there are fewer than columns: ONNX Runtime subtracts
    and adds up along the last axis, and does so ten times faster where that is long.
    """
    if len(points) < points.shape[1]:
        return graph.op("Sub", graph.op("Unsqueeze", X, np.array([1])), points[None]), 2
    return graph.op("Sub", graph.op("Unsqueeze", X, np.array([2])), points.T[None]), 1


def _cosine(graph: Graph, X: str, points: _Floats) -> str:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.where(length == 0, 1.0, length)
    own = graph.reduce("ReduceL2", X)
    zero = graph.op("Equal", own, np.array(0.0))
    safe = graph.op("Where", zero, np.array(1.0), own)
    return graph.op("MatMul", graph.op("Div", X, safe), unit.T)


def _interval(graph: Graph, x: str, knots: _Floats, passed: str) -> str:
    """Return the index of the interval between knots in which each value lies, `(n,)` int64."""
    if len(knots) == 2:
        nothing = graph.op("Mul", x, np.array(0.0))
        return graph.cast(graph.op("Reshape", nothing, np.array([-1])), np.int64)
    count = graph.cast(graph.op(passed, x, knots[1:-1]), np.int64)
    return graph.reduce("ReduceSum", count, keepdims=0)


def _look_up(graph: Graph, table: _Floats, index: str) -> str:
    return graph.op("Gather", np.asarray(table, np.float64)[:, None], index, axis=0)
