"""Estimators that are affine once fitted, found by asking them, and what else is one product."""

from typing import Any

import numpy as np
from sklearn.cluster import FeatureAgglomeration
from sklearn.cross_decomposition import CCA, PLSSVD, PLSCanonical
from sklearn.decomposition import FactorAnalysis, FastICA, MiniBatchSparsePCA, SparsePCA
from sklearn.dummy import DummyRegressor
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.neural_network import BernoulliRBM
from sklearn.random_projection import SparseRandomProjection

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import affine_of
from edgefleet_converters.routes.sklearn_converters.graph import Graph, regresses, transforms


@transforms(FactorAnalysis, FastICA, SparsePCA, MiniBatchSparsePCA, PLSSVD)
def projection(graph: Graph, model: Any, X: str) -> str:
    """Projection of the centred row."""
    return graph.affine(X, *affine_of(model.transform, model.n_features_in_))


@transforms(SparseRandomProjection)
def random_projection(graph: Graph, model: Any, X: str) -> str:
    """Product with the random matrix."""
    components = model.components_
    dense = components.toarray() if hasattr(components, "toarray") else components
    return graph.op("MatMul", X, np.asarray(dense).T)


@transforms(BernoulliRBM, width=lambda model: len(model.components_))
def boltzmann_machine(graph: Graph, model: Any, X: str) -> str:
    """Sigmoid of a projection."""
    return graph.op("Sigmoid", graph.affine(X, model.components_.T, model.intercept_hidden_))


@transforms(FeatureAgglomeration)
def feature_agglomeration(graph: Graph, model: Any, X: str) -> str:
    """Mean of each group of columns."""
    if model.pooling_func is not np.mean:
        raise UnsupportedError("a pooling function other than the mean")
    return graph.affine(X, *affine_of(model.transform, model.n_features_in_))


@transforms(SequentialFeatureSelector)
def selection(graph: Graph, model: Any, X: str) -> str:
    """Some of the columns."""
    return graph.columns(X, np.flatnonzero(model.get_support()))


@regresses(DummyRegressor, CCA, PLSCanonical)
def prediction(graph: Graph, model: Any, X: str) -> str:
    """An affine function of the row."""
    return graph.affine(X, *affine_of(model.predict, model.n_features_in_))
