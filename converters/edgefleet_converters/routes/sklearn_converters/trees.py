"""Trees of scikit-learn, read into the one form of forests.

Two kinds:

1. Trees and random forests see rows as float32 and send a missing value where each node says, which
   skl2onnx's own converters drop. Reference: scikit-learn's `_tree.pyx` (`Tree._apply_dense`).
2. Rows are float64 to HistGradientBoosting, whatever they came as. Its trees split numbers at
   float64 thresholds, and native categories by bit sets over codes that an encoder of its own
   gives; that encoder moves the categorical columns to the front. References: scikit-learn's
   `_predictor.pyx` (`_predict_one_from_raw_data`) and `HistGradientBoosting._preprocess_X`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    RandomTreesEmbedding,
)
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.forests import Forest, Split, Tree, write
from edgefleet_converters.routes.sklearn_converters.graph import (
    Graph,
    classifies,
    detects,
    regresses,
    transforms,
)


@regresses(DecisionTreeRegressor, ExtraTreeRegressor)
@classifies(DecisionTreeClassifier, ExtraTreeClassifier)
def tree(graph: Graph, model: Any, X: str) -> str:
    """The leaf that a row ends in: its value, or its share of each class."""
    return _sum(graph, [model], X)


@regresses(RandomForestRegressor, ExtraTreesRegressor)
@classifies(RandomForestClassifier, ExtraTreesClassifier)
def random_forest(graph: Graph, model: Any, X: str) -> str:
    """The mean over its trees. Divided at the end, so that equal votes stay equal in float32."""
    trees = model.estimators_
    return graph.op("Div", _sum(graph, trees, X), np.array(float(len(trees))))


@detects(IsolationForest)
def isolation_forest(graph: Graph, model: Any, X: str) -> str:
    """How much sooner than a random row this one is told apart: offset less 2^(-depth / expected).

    A leaf adds the depth at which it lies, and what it would take to tell its training rows apart.
    Reference: F. T. Liu, K. M. Ting, Z.-H. Zhou (2008), Isolation Forest, formulas 1 and 2; and
    scikit-learn's `IsolationForest._compute_score_samples`.
    """
    # Not public: here, so that a release without it leaves the other trees as they are.
    from sklearn.ensemble._iforest import _average_path_length

    expected = len(model.estimators_) * float(_average_path_length([model._max_samples])[0])
    if expected == 0:
        raise UnsupportedError("trees of a single training row each")
    trees = []
    for estimator, columns, depth, further in zip(
        model.estimators_,
        model.estimators_features_,
        model._decision_path_lengths,
        model._average_path_length_per_tree,
        strict=True,
    ):
        tree = _tree(estimator.tree_, depth + further - 1.0)
        if model._max_features < model.n_features_in_:
            tree = replace(tree, feature=np.where(tree.feature < 0, -1, columns[tree.feature]))
        trees.append(tree)
    total = write(graph, Forest(trees, np.zeros(1), float64=False), X, model.n_features_in_)
    score = graph.op("Exp", graph.op("Mul", total, np.array(-np.log(2.0) / expected)))
    return graph.op("Sub", np.array(-float(model.offset_)), score)


def _sum(graph: Graph, models: Sequence[Any], X: str) -> str:
    """Return the sum over trees of what `tree` returns, `(n, n_outputs)`."""
    first = models[0].tree_
    if first.n_outputs != 1:
        raise UnsupportedError(f"trees of {first.n_outputs} outputs; expected one")
    trees = [_tree(model.tree_, model.tree_.value[:, 0, :]) for model in models]
    forest = Forest(trees, np.zeros(first.value.shape[2]), float64=False)
    return write(graph, forest, X, first.n_features)


def _tree(tree: Any, value: NDArray[np.float64], target: int | NDArray[np.int64] = 0) -> Tree:
    """Return a `sklearn.tree._tree.Tree` in the one form."""
    return Tree(
        np.where(tree.children_left < 0, -1, tree.feature).astype(np.int64),
        tree.threshold.astype(np.float64),
        tree.children_left.astype(np.int64),
        tree.children_right.astype(np.int64),
        tree.missing_go_to_left.astype(bool),
        np.zeros(tree.node_count, bool),
        value,
        target,
    )


@regresses(HistGradientBoostingRegressor)
def regressor(graph: Graph, model: Any, X: str) -> str:
    """Sum of leaves, through the inverse link of the loss (exp for poisson and gamma)."""
    raw = _raw(graph, model, X)
    return graph.op("Exp", raw) if model.loss in ("poisson", "gamma") else raw


@classifies(HistGradientBoostingClassifier)
def classifier(graph: Graph, model: Any, X: str) -> str:
    """Sum of leaves for each class; sigmoid of the only one, or softmax."""
    raw = _raw(graph, model, X)
    if len(model.classes_) > 2:
        return graph.op("Softmax", raw, axis=1)
    return graph.concat([graph.op("Sigmoid", graph.op("Neg", raw)), graph.op("Sigmoid", raw)])


def _raw(graph: Graph, model: Any, X: str) -> str:
    forest = read(model)
    return write(graph, forest, _encoded(graph, model, X), model.n_features_in_)


def read(model: Any) -> Forest:
    """Return the trees of a fitted HistGradientBoosting model, with encoded categories."""
    known_bits, position = _known_categories(model)
    splits: list[Split] = []
    trees = []
    for group in model._predictors:
        for target, predictor in enumerate(group):
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            by_category = nodes["is_categorical"].astype(bool) & ~leaf
            threshold = nodes["num_threshold"].astype(np.float64).copy()
            for at in np.flatnonzero(by_category):
                node = nodes[at]
                feature = int(node["feature_idx"])
                missing_left = bool(node["missing_go_to_left"])
                threshold[at] = len(splits)
                splits.append(
                    Split(
                        feature,
                        _codes(predictor.raw_left_cat_bitsets[node["bitset_idx"]]),
                        _codes(known_bits[position[feature]]),
                        unknown_left=missing_left,
                        missing_left=missing_left,
                    )
                )
            trees.append(
                Tree(
                    np.where(leaf, -1, nodes["feature_idx"]).astype(np.int64),
                    threshold,
                    nodes["left"].astype(np.int64),
                    nodes["right"].astype(np.int64),
                    nodes["missing_go_to_left"].astype(bool),
                    by_category,
                    nodes["value"].astype(np.float64),
                    target,
                )
            )
    return Forest(trees, np.ravel(model._baseline_prediction).astype(np.float64), splits=splits)


def _known_categories(model: Any) -> tuple[Any, Any]:
    if model.is_categorical_ is None:
        return [], []
    bits, position = model._bin_mapper.make_known_categories_bitsets()
    return bits, position


def _codes(bits: NDArray[np.uint32]) -> frozenset[int]:
    """Return the members of a set of 256 bits in eight words."""
    return frozenset(
        32 * word + bit for word, value in enumerate(bits) for bit in range(32) if value >> bit & 1
    )


def _encoded(graph: Graph, model: Any, X: str) -> str:
    """Return the columns as the trees see them: categories first, as codes, then numbers."""
    encoder = getattr(model, "_preprocessor", None)
    if encoder is None:
        return X
    categorical = np.flatnonzero(model.is_categorical_)
    numbers = np.flatnonzero(~np.asarray(model.is_categorical_))
    columns = []
    for at, values in zip(
        categorical, encoder.named_transformers_["encoder"].categories_, strict=True
    ):
        columns.append(_code_column(graph, graph.columns(X, [at]), np.asarray(values)))
    if len(numbers):
        columns.append(graph.columns(X, numbers))
    return graph.concat(columns)


def _code_column(graph: Graph, column: str, values: NDArray[Any]) -> str:
    """Return the code of each category: its place in the encoder's list, NaN where it has none."""
    if values.dtype.kind not in "fiub":
        raise UnsupportedError(
            "its categories are text, which share no input with numbers; put an OrdinalEncoder"
            " before it, in a pipeline"
        )
    known = [float(value) for value in values if not np.isnan(value)]
    if [float(np.float32(value)) for value in known] != known:
        raise UnsupportedError(f"its categories are no float32 numbers: {known[:5]}")
    codes = graph.ml(
        "LabelEncoder",
        graph.cast(column, np.float32),
        keys_floats=known,
        values_floats=[float(code) for code in range(len(known))],
        default_float=float("nan"),
    )
    return graph.cast(codes)


@transforms(RandomTreesEmbedding)
def random_trees_embedding(graph: Graph, model: Any, X: str) -> str:
    """One column for each leaf, 1 for those in which a row ends."""
    start = 0
    trees = []
    for estimator, leaves in zip(
        model.estimators_, model.one_hot_encoder_.categories_, strict=True
    ):
        tree = estimator.tree_
        place = start + np.searchsorted(leaves, np.arange(tree.node_count))
        start += len(leaves)
        trees.append(_tree(tree, np.ones(tree.node_count), place.astype(np.int64)))
    return write(graph, Forest(trees, np.zeros(start), float64=False), X, model.n_features_in_)
