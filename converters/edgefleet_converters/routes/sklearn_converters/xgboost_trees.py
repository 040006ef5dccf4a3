"""XGBoost, read from its own JSON into the one form of forests.

Rows are float32 to it, and go left where `x < threshold`. A split by categories lists those that go
right. References: XGBoost's model schema (`doc/model.schema`), `common/categorical.h`, and
`objective/*` for the links.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xgboost import (
    XGBClassifier,
    XGBRanker,
    XGBRegressor,
    XGBRFClassifier,
    XGBRFRegressor,
)

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.forests import Forest, Split, Tree, write
from edgefleet_converters.routes.sklearn_converters.graph import Graph, classifies, regresses

# How the sum of leaves becomes the answer, and the answer of no tree becomes the first sum.
IDENTITY = (
    "reg:squarederror",
    "reg:squaredlogerror",
    "reg:pseudohubererror",
    "reg:absoluteerror",
    "reg:quantileerror",
    "binary:logitraw",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
)
SIGMOID = ("binary:logistic", "reg:logistic")
EXP = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")
SOFTMAX = ("multi:softprob", "multi:softmax")
CLASSIFIES = ("binary:logistic", *SOFTMAX)


@regresses(XGBRegressor, XGBRFRegressor, XGBRanker)
def regressor(graph: Graph, model: Any, X: str) -> str:
    """Sum of leaves through the link of the objective."""
    return answer(graph, document(model.get_booster(), _rounds(model)), X)


@classifies(XGBClassifier, XGBRFClassifier)
def classifier(graph: Graph, model: Any, X: str) -> str:
    """Probability of each class."""
    return answer(graph, document(model.get_booster(), _rounds(model)), X)


def document(booster: Any, rounds: int | None = None) -> dict[str, Any]:
    """Return a booster as the document that XGBoost saves.

    Args:
        booster: `xgboost.Booster`.
        rounds: of boosting that count; None for all.
    """
    kept = booster if rounds is None else booster[:rounds]
    found: dict[str, Any] = json.loads(kept.save_raw("json").decode())
    return found


def answer(graph: Graph, model: dict[str, Any], X: str) -> str:
    """Add a booster to a graph.

    Args:
        graph: to add to.
        model: of `document`.
        X: `(n, n_features)`.

    Returns:
        `(n, n_classes)` probabilities of a classifying objective, else `(n, 1)` values.

    Raises:
        UnsupportedError: an objective or booster that has no ONNX form.
    """
    objective = objective_of(model)
    raw = _raw(graph, model, objective, X)
    if objective in SOFTMAX:
        return graph.op("Softmax", raw, axis=1)
    if objective in SIGMOID:
        right = graph.op("Sigmoid", raw)
        if objective not in CLASSIFIES:
            return right
        return graph.concat([graph.op("Sub", np.array(1.0), right), right])
    return graph.op("Exp", raw) if objective in EXP else raw


def objective_of(model: dict[str, Any]) -> str:
    """Return the name of the objective.

    Raises:
        UnsupportedError: if its link is not known.
    """
    name = str(model["learner"]["objective"]["name"])
    if name not in (*IDENTITY, *SIGMOID, *EXP, *SOFTMAX):
        raise UnsupportedError(
            f"the objective {name} has no ONNX form here; expected one of"
            f" {', '.join((*IDENTITY, *SIGMOID, *EXP, *SOFTMAX))}"
        )
    return name


def _rounds(model: Any) -> int | None:
    """Return how many rounds a model stopped early uses."""
    best = getattr(model, "best_iteration", None) if model.early_stopping_rounds else None
    return None if best is None else int(best) + 1


def _raw(graph: Graph, model: dict[str, Any], objective: str, X: str) -> str:
    learner = model["learner"]
    parameters = learner["learner_model_param"]
    if int(parameters.get("num_target", "1")) > 1:
        raise UnsupportedError("a booster of several targets; expected one")
    base = _base_margin(parameters["base_score"], objective)
    booster = learner["gradient_booster"]
    if booster["name"] == "gblinear":
        return _linear(graph, booster["model"], base, int(parameters["num_feature"]), X)
    outputs = max(1, int(parameters["num_class"]))
    forest = read(booster, np.resize(base, outputs))
    # Other text than `nan` cannot come: columns of a pandas category are codes already.
    return write(graph, forest, X, int(parameters["num_feature"]))


def _base_margin(text: str, objective: str) -> NDArray[np.float64]:
    base = np.atleast_1d(np.array(json.loads(text), np.float32)).astype(np.float64)
    if objective in SIGMOID:
        return -np.log(1 / base - 1)
    return np.log(base) if objective in EXP else base


def _linear(
    graph: Graph, model: dict[str, Any], base: NDArray[np.float64], width: int, X: str
) -> str:
    weights = np.array(model["weights"], np.float64).reshape(width + 1, -1)
    return graph.affine(X, weights[:-1], weights[-1] + base)


def read(booster: dict[str, Any], base: NDArray[np.float64]) -> Forest:
    """Return the trees of a booster document.

    Args:
        booster: `learner.gradient_booster` of the document.
        base: `(n_outputs,)` that the sums begin with.

    Raises:
        UnsupportedError: trees whose leaves are vectors.
    """
    weights = booster.get("weight_drop")
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    if model.get("cats", {}).get("enc"):
        raise UnsupportedError(
            "it was trained on pandas categories; put an OrdinalEncoder before it, in a pipeline"
        )
    splits: list[Split] = []
    trees = []
    for at, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise UnsupportedError("trees with several values in a leaf (multi_output_tree)")
        trees.append(_tree(tree, int(target), 1.0 if weights is None else weights[at], splits))
    return Forest(trees, base, strictly=True, float64=False, splits=splits)


def _tree(tree: dict[str, Any], target: int, weight: float, splits: list[Split]) -> Tree:
    left = np.array(tree["left_children"], np.int64)
    leaf = left < 0
    threshold = np.array(tree["split_conditions"], np.float32).astype(np.float64)
    value = threshold * weight
    missing_left = np.array(tree["default_left"], bool)
    by_category = np.array(tree["split_type"], np.int64) == 1
    members = dict(
        zip(
            tree["categories_nodes"],
            zip(tree["categories_segments"], tree["categories_sizes"], strict=True),
            strict=True,
        )
    )
    for node in np.flatnonzero(by_category & ~leaf):
        begin, size = members[int(node)]
        right = frozenset(int(code) for code in tree["categories"][begin : begin + size])
        threshold[node] = len(splits)
        splits.append(
            Split(
                int(tree["split_indices"][node]),
                left=frozenset(),
                known=right,
                unknown_left=True,
                missing_left=bool(missing_left[node]),
            )
        )
    return Tree(
        np.where(leaf, -1, np.array(tree["split_indices"], np.int64)),
        threshold,
        left,
        np.array(tree["right_children"], np.int64),
        missing_left,
        by_category & ~leaf,
        value,
        target,
    )
