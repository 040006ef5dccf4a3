"""Kernel methods and random features. References: the estimators' `transform` and `predict`."""

from typing import Any

import numpy as np
from sklearn.covariance import EllipticEnvelope
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    Nystroem,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.kernel_ridge import KernelRidge

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import kernel
from edgefleet_converters.routes.sklearn_converters.graph import (
    Graph,
    detects,
    regresses,
    transforms,
)


@regresses(KernelRidge)
def kernel_ridge(graph: Graph, model: Any, X: str) -> str:
    """Kernel to the training rows, times the dual coefficients."""
    similar = _kernel(graph, model, X, model.X_fit_)
    return graph.op("MatMul", similar, np.reshape(model.dual_coef_, (len(model.X_fit_), -1)))


@transforms(Nystroem, width=lambda model: len(model.components_))
def nystroem(graph: Graph, model: Any, X: str) -> str:
    """Kernel to the basis rows, whitened."""
    return graph.op("MatMul", _kernel(graph, model, X, model.components_), model.normalization_.T)


@transforms(RBFSampler, width=lambda model: model.n_components)
def rbf_sampler(graph: Graph, model: Any, X: str) -> str:
    """Cosine of a random projection."""
    angle = graph.affine(X, model.random_weights_, model.random_offset_)
    return graph.op("Mul", graph.op("Cos", angle), np.array((2.0 / model.n_components) ** 0.5))


@transforms(SkewedChi2Sampler, width=lambda model: model.n_components)
def skewed_chi2_sampler(graph: Graph, model: Any, X: str) -> str:
    """Cosine of a random projection of the logarithm."""
    log = graph.op("Log", graph.op("Add", X, np.array(float(model.skewedness))))
    angle = graph.affine(log, model.random_weights_, model.random_offset_)
    return graph.op("Mul", graph.op("Cos", angle), np.array((2.0 / model.n_components) ** 0.5))


@transforms(
    AdditiveChi2Sampler, width=lambda model: model.n_features_in_ * (2 * model.sample_steps - 1)
)
def additive_chi2_sampler(graph: Graph, model: Any, X: str) -> str:
    """Cosines and sines of logarithms; zero stays zero."""
    interval = model.sample_interval
    if interval is None:
        interval = {1: 0.8, 2: 0.5, 3: 0.4}[model.sample_steps]
    zero = graph.op("Equal", X, np.array(0.0))
    safe = graph.op("Where", zero, np.array(1.0), X)
    log = graph.op("Mul", graph.op("Log", safe), np.array(interval))
    blocks = [graph.op("Sqrt", graph.op("Mul", safe, np.array(interval)))]
    for step in range(1, model.sample_steps):
        scale = 2 * interval / np.cosh(np.pi * step * interval)
        factor = graph.op("Sqrt", graph.op("Mul", safe, np.array(scale)))
        angle = graph.op("Mul", log, np.array(float(step)))
        blocks += [graph.op("Mul", factor, graph.op(wave, angle)) for wave in ("Cos", "Sin")]
    return graph.concat([graph.op("Where", zero, np.array(0.0), block) for block in blocks])


@transforms(PolynomialCountSketch, width=lambda model: model.n_components)
def polynomial_count_sketch(graph: Graph, model: Any, X: str) -> str:
    """Product of the Fourier transforms of count sketches, transformed back (all by matrices)."""
    X = graph.op("Mul", X, np.array(float(model.gamma) ** 0.5))
    size, offset = model.n_components, float(model.coef0) ** 0.5
    waves = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
    real = imaginary = ""
    for places, signs in zip(model.indexHash_, model.bitHash_, strict=True):
        sketch = np.zeros((len(places), size))
        sketch[np.arange(len(places)), places] = signs
        rows = len(places) - bool(model.coef0)
        constant = offset * sketch[rows:].sum(axis=0)
        here = graph.affine(X, sketch[:rows] @ np.cos(waves), constant @ np.cos(waves))
        there = graph.affine(X, -sketch[:rows] @ np.sin(waves), -constant @ np.sin(waves))
        if not real:
            real, imaginary = here, there
            continue
        real, imaginary = (
            graph.op("Sub", graph.op("Mul", real, here), graph.op("Mul", imaginary, there)),
            graph.op("Add", graph.op("Mul", real, there), graph.op("Mul", imaginary, here)),
        )
    return graph.op(
        "Sub",
        graph.op("MatMul", real, np.cos(waves) / size),
        graph.op("MatMul", imaginary, np.sin(waves) / size),
    )


@detects(EllipticEnvelope)
def elliptic_envelope(graph: Graph, model: Any, X: str) -> str:
    """Offset less the squared Mahalanobis distance."""
    centred = graph.op("Sub", X, model.location_)
    weighted = graph.op("Mul", graph.op("MatMul", centred, model.get_precision()), centred)
    squared = graph.reduce("ReduceSum", weighted)
    return graph.op("Sub", np.array(-float(model.offset_)), squared)


def _kernel(graph: Graph, model: Any, X: str, points: Any) -> str:
    if callable(model.kernel) or model.kernel_params:
        raise UnsupportedError("a kernel given as a Python function, or with parameters of its own")
    parameters = {name: getattr(model, name, None) for name in ("gamma", "coef0", "degree")}
    return kernel(graph, X, np.asarray(points), model.kernel, parameters)
