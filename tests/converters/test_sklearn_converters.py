"""Converters of our own, family by family, beside the estimators that they stand for."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.base import clone
from sklearn.decomposition import (
    DictionaryLearning,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    SparseCoder,
)
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    ExpSineSquared,
    Matern,
    PairwiseKernel,
    RationalQuadratic,
    WhiteKernel,
)
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import LocallyLinearEmbedding
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes import sklearn_export

# skl2onnx 1.20 reads attributes that scikit-learn and numpy have since deprecated; in use it runs
# in a child process, where such warnings go to the log.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
_Floats = NDArray[np.float64]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small data: threads that wait for one another take longer than the work."""
    with threadpool_limits(1):
        yield


def converted(model: Any, width: int, dtype: Any = np.float32) -> onnx.ModelProto:
    columns = [sklearn_export.Column(f"x{i}", True) for i in range(width)]
    return sklearn_export.to_onnx(model, columns, dtype)


def answers(graph: onnx.ModelProto, X: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    kind = np.float64 if "double" in session.get_inputs()[0].type else np.float32
    return [np.asarray(one) for one in session.run(None, {"X": X.astype(kind)})]


def wine(columns: int = 13) -> tuple[_Floats, NDArray[np.int64]]:
    X, y = datasets.load_wine(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return X[:, :columns].astype(np.float32).astype(np.float64), y


def counts() -> tuple[_Floats, NDArray[np.int64]]:
    X, y = datasets.load_digits(return_X_y=True)
    return X[:120, 8:40], y[:120]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "distance"},
        {"p": 1},
        {"p": 3, "weights": "distance"},
        {"metric": "chebyshev"},
        {"metric": "cosine", "weights": "distance"},
        {"metric_params": {"w": np.arange(1.0, 14.0)}},
        {"p": 3, "metric_params": {"w": np.arange(1.0, 14.0)}},
        {"n_neighbors": 1},
        {"n_neighbors": 88},
        {"algorithm": "brute"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_neighbours_answer_as_before(options: dict[str, Any], dtype: Any) -> None:
    X, y = wine()
    model = clone(KNeighborsClassifier(**options)).fit(X[::2], y[::2])  # fit changes metric_params
    label, shares = answers(converted(model, 13, dtype), X)
    # Which of two equally far rows is the last of the nearest, a k-d tree leaves to its order.
    apart, _ = model.kneighbors(X, model.n_neighbors + 1)
    clear = apart[:, -1] - apart[:, -2] > 1e-5
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(label[clear], model.predict(X)[clear])
    np.testing.assert_allclose(shares[clear], model.predict_proba(X)[clear], atol=2e-5)


@pytest.mark.parametrize("rows", [12, 13, 14])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_are_right_with_fewer_and_with_more_rows_than_columns(
    rows: int, weights: str
) -> None:
    X, _ = wine()
    values = np.column_stack([X[:, 0], X[:, 1] ** 2])
    model = KNeighborsRegressor(3, weights=weights).fit(X[:rows], values[:rows])
    graph = converted(model, 13)
    (found,) = answers(graph, X)
    np.testing.assert_allclose(found, model.predict(X), atol=2e-5)
    (alone,) = answers(graph, X[20:21])
    np.testing.assert_array_equal(alone, found[20:21])


def test_of_equally_near_rows_the_first_is_nearest() -> None:
    X = np.repeat(np.eye(3), 4, axis=0)
    y = np.array([2, 0, 1, 1, 0, 1, 2, 2, 1, 2, 0, 0])
    model = KNeighborsClassifier(1, algorithm="brute").fit(X, y)
    label, _ = answers(converted(model, 3), np.eye(3))
    np.testing.assert_array_equal(label, model.predict(np.eye(3)))
    np.testing.assert_array_equal(label, [2, 0, 1])


def test_no_distance_but_those_that_are_asked_for_is_computed() -> None:
    X, y = wine()
    graphs = {
        weights: converted(KNeighborsClassifier(weights=weights).fit(X, y), 13).graph
        for weights in ("uniform", "distance")
    }
    roots = {name: [node.op_type for node in graph.node] for name, graph in graphs.items()}
    assert "Sqrt" not in roots["uniform"]
    # The root is taken of the five that TopK leaves.
    assert roots["distance"].index("TopK") < roots["distance"].index("Sqrt")


@pytest.mark.parametrize(
    "kernel",
    [
        None,
        2.0 * RBF([1.0, 2.0, 3.0, 1.0]),
        Matern(2.0, nu=0.5),
        Matern(2.0, nu=1.5) + WhiteKernel(0.1),
        3.0 * Matern(2.0, nu=2.5),
        Matern(2.0, nu=np.inf),
        RationalQuadratic(2.0, 0.7),
        ExpSineSquared(2.0, 30.0) + WhiteKernel(5.0),
        DotProduct(1.5) ** 2 + ConstantKernel(0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_gaussian_processes_answer_as_before(kernel: Any, classes: int) -> None:
    X, y = wine(4)
    y = np.minimum(y, classes - 1)
    model = GaussianProcessClassifier(kernel, optimizer=None).fit(X[::3], y[::3])
    rows = np.vstack([X, 30 * X[:5]])  # also far from all that was seen
    label, shares = answers(converted(model, 4), rows)
    wanted = model.predict_proba(rows)
    np.testing.assert_allclose(shares, wanted, atol=2e-5)
    certain = np.sort(wanted, axis=1)[:, -2:] @ [-1, 1] > 1e-4
    np.testing.assert_array_equal(label[certain], model.predict(rows)[certain])
    assert certain.mean() > 0.9


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (GaussianProcessClassifier(ConstantKernel(2.0)), "a kernel that is the same for all rows"),
        (GaussianProcessClassifier(Matern(nu=2.2)), "Matern with nu 2.2; expected 0.5, 1.5, 2.5"),
        (GaussianProcessClassifier(PairwiseKernel()), "the kernel PairwiseKernel has no ONNX form"),
        (GaussianProcessClassifier(multi_class="one_vs_one"), "expected 'one_vs_rest'"),
    ],
    ids=str,
)
def test_a_gaussian_process_without_a_form_is_named(model: Any, message: str) -> None:
    X, y = wine(4)
    model.set_params(optimizer=None).fit(X[::6], y[::6])
    with pytest.raises(UnsupportedError, match=rf"^GaussianProcessClassifier: .*{message}"):
        converted(model, 4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"doc_topic_prior": 1e-3, "topic_word_prior": 1e-3},
        {"mean_change_tol": 1e-6, "max_doc_update_iter": 500},
        {"max_doc_update_iter": 1},
        {"max_doc_update_iter": 0},
    ],
    ids=str,
)
def test_topics_are_shared_as_before(options: dict[str, Any]) -> None:
    X, _ = counts()
    X[3] = 0  # a text without words
    X[4] *= 1000
    model = LatentDirichletAllocation(4, max_iter=2, random_state=0, **options).fit(X)
    (shares,) = answers(converted(model, X.shape[1]), X)
    np.testing.assert_allclose(shares, model.transform(X), atol=1e-6)


def test_topics_of_a_row_do_not_depend_on_the_rows_beside_it() -> None:
    X, _ = counts()
    model = LatentDirichletAllocation(4, max_iter=2, random_state=0).fit(X)
    graph = converted(model, X.shape[1])
    (together,) = answers(graph, X)
    alone = np.vstack([answers(graph, row[None])[0] for row in X[:20]])
    np.testing.assert_allclose(alone, together[:20], atol=1e-7)


def test_a_loop_ends_after_its_rounds_and_the_file_is_the_same_every_time() -> None:
    X, _ = counts()
    model = LatentDirichletAllocation(3, max_iter=1, max_doc_update_iter=7, random_state=0).fit(X)
    first, second = (converted(model, X.shape[1]) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    onnx.checker.check_model(first, full_check=True)
    (loop,) = (node for node in first.graph.node if node.op_type == "Loop")
    constants = {tensor.name: tensor for tensor in first.graph.initializer}
    assert onnx.numpy_helper.to_array(constants[loop.input[0]]) == 7
    (body,) = (attribute.g for attribute in loop.attribute)
    made = {name for node in body.node for name in node.output}
    known = made | {one.name for one in (*body.input, *body.initializer)}
    assert {name for node in body.node for name in node.input} <= known


@pytest.mark.parametrize("order", [None, [2, 0, 1]], ids=str)
@pytest.mark.parametrize(
    ("estimator", "passes"),
    [
        (LogisticRegression(), "predict"),
        (LogisticRegression(), "predict_proba"),
        (RandomForestClassifier(5, random_state=0), "predict_proba"),
        (LinearSVC(random_state=0), "decision_function"),
    ],
    ids=str,
)
def test_a_chain_passes_on_what_its_classifiers_say(
    order: list[int] | None, estimator: Any, passes: str
) -> None:
    X, y = wine()
    flags = np.column_stack([y == 0, X[:, 1] > X[:, 0], y == 2]).astype(int)
    model = ClassifierChain(estimator, order=order, chain_method=passes).fit(X, flags)
    label, scores = answers(converted(model, 13), X)
    ask = model.predict_proba if hasattr(model, "predict_proba") else model.decision_function
    np.testing.assert_array_equal(label, model.predict(X))
    np.testing.assert_allclose(scores, ask(X), atol=2e-5)


@pytest.mark.parametrize(
    ("flags", "passes", "message"),
    [
        (2, "decision_function", "passes decision values on and answers probabilities"),
        (3, "predict", "labels with other than two classes"),
    ],
)
def test_a_chain_without_a_form_is_named(flags: int, passes: str, message: str) -> None:
    X, y = wine()
    model = ClassifierChain(LogisticRegression(), chain_method=passes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, np.column_stack([y % flags, X[:, 0] > 0]))
    with pytest.raises(UnsupportedError, match=rf"^ClassifierChain: .*{message}"):
        converted(model, 13)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_features": 0.5}, {"contamination": 0.2}, {"max_samples": 2}, {"bootstrap": True}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_isolation_forests_send_missing_values_where_they_went(
    options: dict[str, Any], dtype: Any
) -> None:
    X, _ = wine()
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X[:, 3] = np.nan_to_num(X[:, 3])  # a column that is whole in training, and not later
    model = IsolationForest(n_estimators=20, random_state=0, **options).fit(X)
    rows = X.copy()
    rows[::3, 3] = np.nan
    rows[1::7, :] = np.nan
    label, value = answers(converted(model, 13, dtype), rows)
    wanted = model.decision_function(rows)
    np.testing.assert_allclose(value[:, 0], wanted, atol=2e-6)
    clear = np.abs(wanted) > 1e-5
    np.testing.assert_array_equal(label[clear], model.predict(rows)[clear])


def test_an_isolation_forest_of_single_rows_is_refused() -> None:
    X, _ = wine()
    model = IsolationForest(n_estimators=3, max_samples=1, random_state=0).fit(X)
    with pytest.raises(UnsupportedError, match="trees of a single training row each"):
        converted(model, 13)


@pytest.mark.parametrize("options", [{}, {"n_neighbors": 12}, {"reg": 0.5}], ids=str)
def test_embedded_rows_lie_where_they_lay(options: dict[str, Any]) -> None:
    X, _ = wine()
    model = LocallyLinearEmbedding(**options).fit(X[::2])
    (places,) = answers(converted(model, 13), X)  # half of them are training rows
    np.testing.assert_allclose(places, model.transform(X), atol=1e-6)


def test_a_row_amid_equal_neighbours_is_embedded_amid_their_places() -> None:
    X = np.repeat(wine()[0][:20], 4, axis=0)
    model = LocallyLinearEmbedding(n_neighbors=4, eigen_solver="dense").fit(X)
    (places,) = answers(converted(model, 13), X)
    np.testing.assert_allclose(places, model.transform(X), atol=1e-6)


def atoms(count: int) -> _Floats:
    found = np.random.default_rng(0).normal(size=(count, 13))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transform_n_nonzero_coefs": 2},
        {"transform_n_nonzero_coefs": 8, "split_sign": True},
        {"transform_algorithm": "threshold"},
        {"transform_algorithm": "threshold", "transform_alpha": 0.1, "positive_code": True},
    ],
    ids=str,
)
def test_sparse_codes_are_as_before(options: dict[str, Any]) -> None:
    X, _ = wine()
    model = SparseCoder(atoms(8), **options).fit(X)
    (codes,) = answers(converted(model, 13), X)
    np.testing.assert_allclose(codes, model.transform(X), atol=1e-5)


@pytest.mark.filterwarnings("ignore: Orthogonal matching pursuit ended prematurely:RuntimeWarning")
def test_a_pursuit_ends_where_no_atom_is_left_that_matches() -> None:
    pair = np.vstack([atoms(3), atoms(3)[:2] * -1.0])  # the last two depend on the first two
    X = np.vstack([np.zeros(13), pair[0], pair[0] + 2 * pair[1], wine()[0][:40]])
    X = X.astype(np.float32).astype(np.float64)
    model = SparseCoder(pair, transform_n_nonzero_coefs=5).fit(X)
    (codes,) = answers(converted(model, 13), X)
    wanted = model.transform(X)
    # Which of an atom and its opposite is taken, is a tie that the last bit decides.
    np.testing.assert_allclose(codes @ pair, wanted @ pair, atol=1e-5)
    np.testing.assert_array_equal(codes[0], 0)
    assert np.count_nonzero(codes, axis=1).max() <= 3


def test_dictionaries_that_were_learned_code_rows_as_before() -> None:
    X, _ = wine()
    for kind in (DictionaryLearning, MiniBatchDictionaryLearning):
        model = kind(6, max_iter=5, transform_n_nonzero_coefs=3, random_state=0).fit(X)
        (codes,) = answers(converted(model, 13), X)
        np.testing.assert_allclose(codes, model.transform(X), atol=1e-5)


def test_sparse_codes_by_other_ways_are_refused() -> None:
    X, _ = wine()
    model = SparseCoder(atoms(8), transform_algorithm="lasso_cd").fit(X)
    with pytest.raises(UnsupportedError, match="sparse codes by 'lasso_cd'; expected 'omp' or 't"):
        converted(model, 13)
