"""Nearest neighbours: distances to all training rows, of which the graph holds a copy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import Birch, BisectingKMeans
from sklearn.manifold import Isomap
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestCentroid,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
    RadiusNeighborsTransformer,
)

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import (
    distances,
    from_reduced,
    nearest,
    squared_distances,
)
from edgefleet_converters.routes.sklearn_converters.graph import (
    Graph,
    Result,
    classifies,
    regresses,
    transforms,
)


@classifies(KNeighborsClassifier)
def k_neighbors_classifier(graph: Graph, model: Any, X: str) -> str:
    """Share of the weights of each class among the nearest."""
    votes = np.eye(len(model.classes_))[_one_answer(model._y)]
    return _mean_of_nearest(graph, model, X, votes)


@regresses(KNeighborsRegressor)
def k_neighbors_regressor(graph: Graph, model: Any, X: str) -> str:
    """Weighted mean of the nearest."""
    values = np.reshape(model._y, (len(model._y), -1)).astype(np.float64)
    return _mean_of_nearest(graph, model, X, values)


@classifies(RadiusNeighborsClassifier)
def radius_neighbors_classifier(graph: Graph, model: Any, X: str) -> str:
    """Share of the weights of each class within the radius; the outlier's class without any."""
    codes = _one_answer(model._y)
    weights = _weights_within(graph, model, X)
    votes = graph.op("MatMul", weights, np.eye(len(model.classes_))[codes])
    outlier = model.outlier_label_
    alone = np.zeros(len(model.classes_))
    if outlier is not None:
        alone = (np.asarray(model.classes_) == np.ravel(outlier)[0]).astype(np.float64)
    total = graph.reduce("ReduceSum", votes)
    none = graph.op("Equal", total, np.array(0.0))
    shares = graph.op("Div", votes, graph.op("Where", none, np.array(1.0), total))
    return graph.op("Where", none, alone[None], shares)


@regresses(RadiusNeighborsRegressor)
def radius_neighbors_regressor(graph: Graph, model: Any, X: str) -> str:
    """Weighted mean within the radius; NaN without any."""
    values = np.reshape(model._y, (len(model._y), -1)).astype(np.float64)
    weights = _weights_within(graph, model, X)
    return graph.op("Div", graph.op("MatMul", weights, values), graph.reduce("ReduceSum", weights))


@classifies(NearestCentroid)
def nearest_centroid(graph: Graph, model: Any, X: str) -> Result:
    """Probabilities of a shared variance (Euclidean), else the negative distance.

    With equal priors the label is that of the nearest centroid, whatever the probabilities say.
    """
    prior = np.asarray(model.class_prior_)
    equal = bool(np.isclose(prior, 1 / len(prior)).all())
    nearness = graph.op("Neg", distances(graph, X, model.centroids_, model.metric))
    if model.metric != "euclidean":
        if not equal:
            raise UnsupportedError("unequal priors with a metric that is not Euclidean")
        return nearness
    scale = np.where(model.within_class_std_dev_ != 0, model.within_class_std_dev_, 1.0)
    apart = squared_distances(graph, graph.op("Div", X, scale), model.centroids_ / scale)
    score = graph.op("Sub", 2.0 * np.log(prior), apart)
    return graph.op("Softmax", score, axis=1), nearness if equal else score


@transforms(RadiusNeighborsTransformer, width=lambda model: len(model._fit_X))
def radius_neighbors_transformer(graph: Graph, model: Any, X: str) -> str:
    """Distances to the training rows within the radius, else 0."""
    if model.mode != "distance":
        raise UnsupportedError(f"mode {model.mode!r}; expected 'distance'")
    apart = _distances(graph, model, X)
    near = graph.op("LessOrEqual", apart, np.array(float(model.radius)))
    return graph.op("Where", near, apart, np.array(0.0))


@transforms(Isomap, width=lambda model: model.embedding_.shape[1])
def isomap(graph: Graph, model: Any, X: str) -> str:
    """Shortest way over a near training row to all others, through the kernel PCA."""
    if model.n_neighbors is None:
        raise UnsupportedError("neighbours within a radius; expected a number of neighbours")
    X, points, metric, p = training_rows(graph, model.nbrs_, X)
    least, index = nearest(graph, X, points, model.n_neighbors, metric, p)
    least = from_reduced(graph, least, metric, p)
    ways = graph.op("Gather", np.asarray(model.dist_matrix_, np.float64), index, axis=0)
    whole = graph.op("Add", ways, graph.op("Unsqueeze", least, np.array([2])))
    shortest = graph.reduce("ReduceMin", whole, axis=1, keepdims=0)
    kernel = graph.op("Mul", graph.op("Mul", shortest, shortest), np.array(-0.5))
    pca = model.kernel_pca_
    centre = pca._centerer
    mean = graph.reduce("ReduceMean", kernel)
    centred = graph.op(
        "Add",
        graph.op("Sub", graph.op("Sub", kernel, centre.K_fit_rows_[None]), mean),
        np.array(float(centre.K_fit_all_)),
    )
    kept = np.flatnonzero(pca.eigenvalues_)
    scaled = np.zeros_like(pca.eigenvectors_)
    scaled[:, kept] = pca.eigenvectors_[:, kept] / np.sqrt(pca.eigenvalues_[kept])
    return graph.op("MatMul", centred, scaled)


@transforms(Birch, width=lambda model: len(model.subcluster_centers_))
def birch(graph: Graph, model: Any, X: str) -> str:
    """Distances to the centres of the subclusters."""
    return distances(graph, X, np.asarray(model.subcluster_centers_), "euclidean")


@transforms(BisectingKMeans, width=lambda model: model.n_clusters)
def bisecting_k_means(graph: Graph, model: Any, X: str) -> str:
    """Distances to the centres."""
    return distances(graph, X, np.asarray(model.cluster_centers_), "euclidean")


def _one_answer(codes: NDArray[Any]) -> NDArray[Any]:
    if codes.ndim > 1 and codes.shape[1] > 1:
        raise UnsupportedError("several labels at once; expected one")
    return codes.ravel()


def _distances(graph: Graph, model: Any, X: str) -> str:
    return distances(graph, *training_rows(graph, model, X))


def training_rows(graph: Graph, model: Any, X: str) -> tuple[str, NDArray[np.float64], str, float]:
    """Return rows, training rows `(m, width)`, metric and p: what distances of a model are between.

    Raises:
        UnsupportedError: a metric that is a Python function.
    """
    points = model._fit_X
    if hasattr(points, "toarray"):
        points = points.toarray()
    metric, parameters = model.effective_metric_, model.effective_metric_params_
    if callable(metric):
        raise UnsupportedError("a metric given as a Python function")
    p = float(parameters.get("p", model.p))
    points = np.asarray(points, np.float64)
    if parameters.get("w") is not None:  # the sum of w |x - p|^p
        scale = np.asarray(parameters["w"], np.float64) ** (1.0 / p)
        return graph.op("Mul", X, scale), points * scale, metric, p
    return X, points, metric, p


def _mean_of_nearest(graph: Graph, model: Any, X: str, values: NDArray[np.float64]) -> str:
    """Return the weighted mean of `(m, width)` values of training rows, over the nearest."""
    _check_weights(model)
    X, points, metric, p = training_rows(graph, model, X)
    least, index = nearest(graph, X, points, model.n_neighbors, metric, p)
    chosen = graph.op("Gather", values, index, axis=0)
    if model.weights == "uniform":
        return graph.reduce("ReduceMean", chosen, keepdims=0)
    weights = _inverse(graph, from_reduced(graph, least, metric, p))
    weighted = graph.op("Mul", chosen, graph.op("Unsqueeze", weights, np.array([2])))
    total = graph.reduce("ReduceSum", weights)
    return graph.op("Div", graph.reduce("ReduceSum", weighted, keepdims=0), total)


def _weights_within(graph: Graph, model: Any, X: str) -> str:
    apart = _distances(graph, model, X)
    _check_weights(model)
    near = graph.cast(graph.op("LessOrEqual", apart, np.array(float(model.radius))))
    if model.weights == "uniform":
        return near
    return graph.op("Mul", near, _inverse(graph, apart))


def _inverse(graph: Graph, apart: str) -> str:
    """Return 1 / distance; where a row has distances of 0, 1 for those and 0 for the others."""
    zero = graph.op("Equal", apart, np.array(0.0))
    safe = graph.op("Where", zero, np.array(1.0), apart)
    same = graph.cast(zero)
    any_same = graph.op("Greater", graph.reduce("ReduceMax", same), np.array(0.0))
    return graph.op("Where", any_same, same, graph.op("Div", np.array(1.0), safe))


def _check_weights(model: Any) -> None:
    if model.weights not in ("uniform", "distance"):
        raise UnsupportedError("weights given as a Python function")
