"""Topics of texts: the answer for a row is the end of an iteration of its own."""

from typing import Any

import numpy as np
from sklearn.decomposition import LatentDirichletAllocation

from edgefleet_converters.routes.sklearn_converters.graph import Graph, transforms
from edgefleet_converters.routes.sklearn_converters.loops import repeat

_SHIFT = 6


@transforms(LatentDirichletAllocation)
def latent_dirichlet_allocation(graph: Graph, model: Any, X: str) -> str:
    """Share of each topic: the E step of variational Bayes, until a row moves no more.

    Reference: M. D. Hoffman, D. M. Blei, F. Bach (2010), Online Learning for Latent Dirichlet
    Allocation, algorithm 1; and scikit-learn's `_lda._update_doc_distribution`. In float64, since
    a row that stops a round sooner or later than there ends elsewhere.
    """
    wide = graph.wide()
    words = np.asarray(model.exp_dirichlet_component_, np.float64)
    topics = len(words)
    prior = 1.0 / topics if model.doc_topic_prior is None else float(model.doc_topic_prior)
    no_words = np.zeros((words.shape[1], topics))
    counts = wide.cast(X)
    start = wide.affine(counts, no_words, np.ones(topics))
    # Every row moves at first: a column of ones.
    state = [counts, start, _likely(wide, start, topics), wide.columns(start, [0])]

    def step(body: Graph, state: list[str]) -> tuple[str, list[str]]:
        counts, weights, likely, moving = state
        expected = body.affine(likely, words, np.array(np.finfo(np.float64).eps))
        share = body.op("MatMul", body.op("Div", counts, expected), words.T)
        fresh = body.op("Add", body.op("Mul", likely, share), np.array(prior))
        way = body.op("Abs", body.op("Sub", weights, fresh))
        far = body.op(
            "GreaterOrEqual", body.reduce("ReduceMean", way), np.array(float(model.mean_change_tol))
        )
        # A row that has ended keeps its answer, so that it does not depend on the rows beside it.
        still = body.op("Greater", moving, np.array(0.0))
        following = [
            body.op("Where", still, fresh, weights),
            body.op("Where", still, _likely(body, fresh, topics), likely),
            body.cast(body.op("And", still, far)),
        ]
        any_moves = body.op("ReduceMax", following[-1], keepdims=0)
        return body.op("Greater", any_moves, np.array(0.0)), [counts, *following]

    _, weights, _, _ = repeat(wide, model.max_doc_update_iter, state, step)
    return graph.cast(wide.op("Div", weights, wide.reduce("ReduceSum", weights)))


def _likely(graph: Graph, weights: str, topics: int) -> str:
    """Return exp(E[log theta]) for theta ~ Dirichlet(weights): exp(psi(w) - psi(sum of w))."""
    both = graph.concat([weights, graph.reduce("ReduceSum", weights)])
    values = digamma(graph, both)
    total = graph.columns(values, [topics])
    return graph.op("Exp", graph.op("Sub", graph.columns(values, range(topics)), total))


def digamma(graph: Graph, x: str) -> str:
    """Return psi of positive values `(n, width)`, right to 3e-9 before rounding.

    psi(x) = psi(x + 6) - the sum of 1 / (x + i) for i < 6, and far out the asymptotic series
    ln x - 1/(2x) - 1/(12x²) + 1/(120x⁴) - 1/(252x⁶). Reference: J. Bernardo (1976), Algorithm AS
    103: Psi (Digamma) Function, Applied Statistics 25.
    """
    steps = graph.op("Add", graph.op("Unsqueeze", x, np.array([2])), np.arange(float(_SHIFT)))
    before = graph.reduce("ReduceSum", graph.op("Reciprocal", steps), axis=2, keepdims=0)
    shifted = graph.op("Add", x, np.array(float(_SHIFT)))
    inverse = graph.op("Reciprocal", shifted)
    square = graph.op("Mul", inverse, inverse)
    series = graph.op("Mul", square, np.array(1 / 252))
    for coefficient in (-1 / 120, 1 / 12):
        series = graph.op("Mul", graph.op("Add", series, np.array(coefficient)), square)
    near = graph.op("Sub", graph.op("Log", shifted), graph.op("Mul", inverse, np.array(0.5)))
    return graph.op("Sub", graph.op("Sub", near, series), before)
