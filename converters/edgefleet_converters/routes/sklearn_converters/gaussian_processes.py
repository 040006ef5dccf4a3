"""Classification by Gaussian processes, in Laplace's approximation.

Reference: C. E. Rasmussen, C. K. I. Williams (2006), Gaussian Processes for Machine Learning,
algorithm 3.2; and C. K. I. Williams, D. Barber (1998), Bayesian Classification with Gaussian
Processes, appendix A, for the integral of the logistic function.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sklearn.gaussian_process import GaussianProcessClassifier, kernels

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import distances, squared_distances
from edgefleet_converters.routes.sklearn_converters.graph import Graph, Result, classifies

_Floats = NDArray[np.float64]
# A value of the graph, or a constant that broadcasts over `(n, m)`.
_Value = str | _Floats
# Above it erf is 1 to the last bit of float64; up to it so many nodes are right to 2e-15.
_ERF_END, _ERF_NODES = 6.0, 24


@classifies(GaussianProcessClassifier)
def gaussian_process_classifier(graph: Graph, model: Any, X: str) -> Result:
    """Probability of the second of two classes; of more, of each against the rest, in shares.

    Of two classes the label is that of the sign of the latent mean, as scikit-learn has it.
    """
    if len(model.classes_) == 2:
        positive, mean = _binary(graph, model.base_estimator_, X)
        negative = graph.op("Sub", np.array(1.0), positive)
        return graph.concat([negative, positive]), graph.concat([graph.op("Neg", mean), mean])
    if model.multi_class != "one_vs_rest":
        raise UnsupportedError(f"multi_class {model.multi_class!r}; expected 'one_vs_rest'")
    each = graph.concat([_binary(graph, one, X)[0] for one in model.base_estimator_.estimators_])
    return graph.op("Div", each, graph.reduce("ReduceSum", each)), each


def _binary(graph: Graph, model: Any, X: str) -> tuple[str, str]:
    """Return the probability of the positive class and the latent mean, `(n, 1)` both."""
    covariance = _covariance(graph, model.kernel_, X, np.asarray(model.X_train_, np.float64))
    if not isinstance(covariance, str):
        raise UnsupportedError("a kernel that is the same for all rows")
    mean = graph.op("MatMul", covariance, (model.y_train_ - model.pi_)[:, None])
    explained = solve_triangular(model.L_, np.diag(model.W_sr_), lower=True).T
    known = graph.reduce("ReduceSumSquare", graph.op("MatMul", covariance, explained))
    variance = graph.op("Sub", _variance(graph, model.kernel_, X), known)
    return _logistic_integral(graph, mean, variance), mean


def _logistic_integral(graph: Graph, mean: str, variance: str) -> str:
    """Return the mean of the logistic function over a normal distribution, `(n, 1)`.

    The function is a sum of five error functions, whose integrals are known: the sum over i of
    c_i / 2 * (1 + erf(l_i * mean / sqrt(1 + 2 * l_i² * variance))). The c_i are up to 3500 and
    cancel, so it is computed in float64.
    """
    # Not public: here, so that a release without them leaves the other estimators as they are.
    from sklearn.gaussian_process._gpc import COEFS, LAMBDAS

    wide = graph.wide()
    rates, shares = LAMBDAS.ravel(), COEFS.ravel() / 2
    growth = wide.op("Mul", wide.cast(variance), 2 * rates**2)
    spread = wide.op("Sqrt", wide.op("Add", growth, np.array(1.0)))
    argument = wide.op("Div", wide.op("Mul", wide.cast(mean), rates), spread)
    return graph.cast(wide.affine(_erf(wide, argument), shares[:, None], shares.sum()))


def _erf(graph: Graph, x: str) -> str:
    """Return the error function of values `(n, m)` of a wide graph; the runtime has it in float32.

    erf(x) = 2x / sqrt(pi) * the integral of exp(-(xt)²) over t in [0, 1], by Gauss and Legendre.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_ERF_NODES)
    nodes, weights = (nodes + 1) / 2, weights / np.sqrt(np.pi)
    within = graph.op("Clip", x, np.array(-_ERF_END), np.array(_ERF_END))
    square = graph.op("Unsqueeze", graph.op("Mul", within, within), np.array([2]))
    bells = graph.op("Exp", graph.op("Mul", square, -(nodes**2)))
    integral = graph.op("MatMul", bells, weights)
    return graph.op("Mul", within, integral)


def _covariance(graph: Graph, kernel: Any, X: str, points: _Floats) -> _Value:
    """Return a kernel between rows and `(m, width)` training rows, `(n, m)`.

    Raises:
        UnsupportedError: a kernel that has no form here.
    """
    if isinstance(kernel, kernels.KernelOperator):
        sides = [_covariance(graph, side, X, points) for side in (kernel.k1, kernel.k2)]
        return _joined(graph, kernel, *sides)
    if isinstance(kernel, kernels.Exponentiation):
        inner = _covariance(graph, kernel.kernel, X, points)
        return graph.op("Pow", inner, np.array(float(kernel.exponent)))
    if isinstance(kernel, kernels.ConstantKernel):
        return np.array(float(kernel.constant_value))
    if isinstance(kernel, kernels.WhiteKernel):
        return np.array(0.0)  # noise is shared with no other row
    if isinstance(kernel, kernels.DotProduct):
        return graph.affine(X, points.T, np.array(float(kernel.sigma_0) ** 2))
    return _stationary(graph, kernel, X, points)


def _stationary(graph: Graph, kernel: Any, X: str, points: _Floats) -> str:
    """Return a kernel that sees no more than distances."""
    if isinstance(kernel, kernels.ExpSineSquared):
        apart = distances(graph, X, points, "euclidean")
        wave = graph.op("Sin", graph.op("Mul", apart, np.array(np.pi / kernel.periodicity)))
        square = graph.op("Mul", wave, wave)
        return graph.op("Exp", graph.op("Mul", square, np.array(-2.0 / kernel.length_scale**2)))
    if not isinstance(kernel, kernels.RBF | kernels.RationalQuadratic):
        raise UnsupportedError(f"the kernel {type(kernel).__name__} has no ONNX form here")
    scale = np.asarray(kernel.length_scale, np.float64)
    square = squared_distances(graph, graph.op("Div", X, scale), points / scale)
    if isinstance(kernel, kernels.RationalQuadratic):
        grown = graph.op("Mul", square, np.array(0.5 / kernel.alpha))
        return graph.op("Pow", graph.op("Add", grown, np.array(1.0)), np.array(-kernel.alpha))
    nu = kernel.nu if isinstance(kernel, kernels.Matern) else np.inf
    if nu == np.inf:
        return graph.op("Exp", graph.op("Mul", square, np.array(-0.5)))
    return _matern(graph, nu, square)


def _matern(graph: Graph, nu: float, square: str) -> str:
    """Return a polynomial of x = sqrt(2 nu) * distance, times exp(-x); Rasmussen's formula 4.17."""
    polynomials = {0.5: (1.0,), 1.5: (1.0, 1.0), 2.5: (1.0, 1.0, 1 / 3)}
    if nu not in polynomials:
        raise UnsupportedError(f"Matern with nu {nu:g}; expected 0.5, 1.5, 2.5 or infinity")
    x = graph.op("Sqrt", graph.op("Mul", square, np.array(2 * nu)))
    value = graph.op("Exp", graph.op("Neg", x))
    *lower, highest = polynomials[nu]
    factor: _Value = np.array(highest)
    for coefficient in reversed(lower):
        factor = graph.op("Add", graph.op("Mul", x, factor), np.array(coefficient))
    return graph.op("Mul", value, factor)


def _variance(graph: Graph, kernel: Any, X: str) -> _Value:
    """Return a kernel of each row with itself, `(n, 1)`."""
    if isinstance(kernel, kernels.KernelOperator):
        sides = [_variance(graph, side, X) for side in (kernel.k1, kernel.k2)]
        return _joined(graph, kernel, *sides)
    if isinstance(kernel, kernels.Exponentiation):
        inner = _variance(graph, kernel.kernel, X)
        return graph.op("Pow", inner, np.array(float(kernel.exponent)))
    if isinstance(kernel, kernels.DotProduct):
        length = graph.reduce("ReduceSumSquare", X)
        return graph.op("Add", length, np.array(float(kernel.sigma_0) ** 2))
    at_zero = kernel.diag(np.zeros((1, 1)))  # the others are the same for all rows
    return np.asarray(at_zero, np.float64)


def _joined(graph: Graph, kernel: Any, left: _Value, right: _Value) -> _Value:
    adds = isinstance(kernel, kernels.Sum)
    if isinstance(left, str) or isinstance(right, str):
        return graph.op("Add" if adds else "Mul", left, right)
    return left + right if adds else left * right
