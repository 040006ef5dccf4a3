"""Estimators that solve a small system of linear equations for each row, by elimination.

1. A system is `(n, m, m + 1)`: symmetric and positive definite, its right-hand side last. A sweep
   on unknown j (Gauss and Jordan) makes column j that of the identity; behind sweeps on a set of
   unknowns the last column holds their solution, and for the others what that leaves over.
2. It is done in float64, whatever the numbers of the graph are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, SparseCoder
from sklearn.manifold import LocallyLinearEmbedding

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import nearest
from edgefleet_converters.routes.sklearn_converters.graph import Graph, transforms
from edgefleet_converters.routes.sklearn_converters.neighbors import training_rows

_Floats = NDArray[np.float64]
# Squares and pivots up to it end a pursuit: scikit-learn's `_gram_omp`.
_LEAST = float(np.finfo(np.float64).eps)


@transforms(LocallyLinearEmbedding, width=lambda model: model.n_components)
def locally_linear_embedding(graph: Graph, model: Any, X: str) -> str:
    """Mean of the nearest training rows' places, in the weights that make the row of those rows.

    Reference: S. T. Roweis, L. K. Saul (2000), Nonlinear Dimensionality Reduction by Locally Linear
    Embedding; and scikit-learn's `barycenter_weights`.
    """
    count, wide = model.n_neighbors, graph.wide()
    rows, points, metric, p = training_rows(wide, model.nbrs_, wide.cast(X))
    _, index = nearest(wide, rows, points, count, metric, p)
    ways = wide.op(
        "Sub",
        wide.op("Gather", points, index, axis=0),
        wide.op("Unsqueeze", rows, np.array([1])),
    )
    product = wide.op("MatMul", ways, wide.op("Transpose", ways, perm=[0, 2, 1]))
    # The trace of the product is the sum of all squares.
    trace = wide.op("ReduceSumSquare", ways, np.array([1, 2]), keepdims=1)
    none = wide.op("Equal", trace, np.array(0.0))
    extra = wide.op("Mul", wide.op("Where", none, np.array(1.0), trace), np.array(model.reg))
    system = wide.op("Add", product, wide.op("Mul", extra, np.eye(count)))
    ones = wide.op("Add", wide.op("Mul", extra, np.zeros((count, 1))), np.array(1.0))
    weights = _solved(wide, wide.op("Concat", system, ones, axis=2), count)
    places = wide.op("Gather", np.asarray(model.embedding_, np.float64), index, axis=0)
    total = wide.reduce("ReduceSum", wide.op("Mul", places, weights), keepdims=0)
    return graph.cast(wide.op("Div", total, wide.reduce("ReduceSum", weights, keepdims=0)))


@transforms(SparseCoder, width=lambda model: _code_width(model, model.dictionary))
def sparse_coder(graph: Graph, model: Any, X: str) -> str:
    """Weights of a few atoms of a given dictionary."""
    return _coded(graph, model, X, np.asarray(model.dictionary, np.float64))


@transforms(
    DictionaryLearning,
    MiniBatchDictionaryLearning,
    width=lambda model: _code_width(model, model.components_),
)
def dictionary_learning(graph: Graph, model: Any, X: str) -> str:
    """Weights of a few atoms of the dictionary that was learned."""
    return _coded(graph, model, X, np.asarray(model.components_, np.float64))


def _code_width(model: Any, atoms: Any) -> int:
    return len(atoms) * (2 if model.split_sign else 1)


def _coded(graph: Graph, model: Any, X: str, atoms: _Floats) -> str:
    """Return the weights of `(m, width)` atoms, `(n, m)`, or their two signs side by side."""
    wide = graph.wide()
    match = wide.op("MatMul", wide.cast(X), atoms.T)
    if model.transform_algorithm == "omp":
        wanted = model.transform_n_nonzero_coefs
        count = min(max(atoms.shape[1] / 10, 1), len(atoms)) if wanted is None else wanted
        code = _pursued(wide, match, atoms @ atoms.T, int(count))
    elif model.transform_algorithm == "threshold":
        least = model.transform_alpha
        least = getattr(model, "alpha", 1.0) if least is None else least
        code = wide.op("Shrink", match, bias=float(least), lambd=float(least))
        code = wide.op("Relu", code) if model.positive_code else code
    else:
        raise UnsupportedError(
            f"sparse codes by {model.transform_algorithm!r}; expected 'omp' or 'threshold'"
        )
    if model.split_sign:
        code = wide.concat([wide.op("Relu", code), wide.op("Relu", wide.op("Neg", code))])
    return graph.cast(code)


def _pursued(graph: Graph, match: str, gram: _Floats, count: int) -> str:
    """Return weights of at most `count` atoms, `(n, m)`: orthogonal matching pursuit.

    Of the atoms that are not taken yet, take the one that what is left over matches best, until it
    matches none or the atom depends on those taken. Reference: R. Rubinstein, M. Zibulevsky,
    M. Elad (2008), Efficient Implementation of the K-SVD Algorithm using Batch Orthogonal Matching
    Pursuit; the system is the Gram matrix of the atoms, with the matches on the right.
    """
    size = len(gram)
    right = graph.op("Unsqueeze", match, np.array([2]))
    every = graph.op("Add", graph.op("Mul", right, np.array(0.0)), gram)
    system = graph.op("Concat", every, right, axis=2)
    taken = graph.op("Mul", match, np.array(0.0))
    for step in range(count):
        over = graph.op("Mul", _last(graph, system, size), graph.op("Sub", np.array(1.0), taken))
        best = graph.op("ArgMax", graph.op("Abs", over), axis=1, keepdims=0)
        chosen = graph.op("Gather", np.eye(size), best, axis=0)
        across = graph.op("Unsqueeze", chosen, np.array([1]))
        row = graph.op("MatMul", across, system)
        down = graph.op("Unsqueeze", chosen, np.array([2]))
        column = graph.op("MatMul", graph.op("Gather", system, np.arange(size), axis=2), down)
        pivot = graph.op("MatMul", across, column)
        square = graph.reduce("ReduceSumSquare", graph.op("Mul", over, chosen))
        going = graph.op("GreaterOrEqual", square, np.array(_LEAST))
        if step:
            apart = graph.op("Greater", pivot, np.array(_LEAST))
            going = graph.op("And", going, graph.op("Squeeze", apart, np.array([2])))
        taken = graph.op("Add", taken, graph.op("Mul", chosen, graph.cast(going)))
        swept = _swept(graph, system, row, column, pivot, down)
        system = graph.op("Where", graph.op("Unsqueeze", going, np.array([2])), swept, system)
    return graph.op("Mul", _last(graph, system, size), taken)


def _solved(graph: Graph, system: str, size: int) -> str:
    """Return the solution of each system, `(n, m, 1)`."""
    for at in range(size):
        row = graph.op("Gather", system, np.array([at]), axis=1)
        column = graph.op("Gather", system, np.array([at]), axis=2)
        pivot = graph.op("Gather", row, np.array([at]), axis=2)
        system = _swept(graph, system, row, column, pivot, np.eye(size)[:, [at]])
    return graph.op("Gather", system, np.array([size]), axis=2)


def _swept(
    graph: Graph, system: str, row: str, column: str, pivot: str, unit: str | _Floats
) -> str:
    """Return the system less (column - unit) row / pivot, of which that row is row / pivot."""
    share = graph.op("Div", row, pivot)
    return graph.op("Sub", system, graph.op("MatMul", graph.op("Sub", column, unit), share))


def _last(graph: Graph, system: str, size: int) -> str:
    """Return the last column, `(n, m)`."""
    return graph.op("Gather", system, np.array(size), axis=2)
