"""LightGBM, read from its own dump into the one form of forests.

Rows are float64 to it, and go left where `x <= threshold`. What a missing value does depends on the
column: it is followed by default (`NaN`), taken for zero (`None`), or zeros are missing too
(`Zero`). A split by categories lists those that go left; all else goes right. References:
LightGBM's `include/LightGBM/tree.h` (`NumericalDecision`, `CategoricalDecision`) and
`src/objective/*` for the links.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRanker, LGBMRegressor

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.forests import Forest, Split, Tree, write
from edgefleet_converters.routes.sklearn_converters.graph import Graph, classifies, regresses

IDENTITY = (
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "quantile",
    "mape",
    "lambdarank",
    "rank_xendcg",
)
EXP = ("poisson", "gamma", "tweedie")
SIGMOID = ("binary", "multiclassova", "cross_entropy")
SOFTMAX = ("multiclass",)
CLASSIFIES = ("binary", "multiclassova", *SOFTMAX)
# What LightGBM takes for zero.
_ZERO = 1e-35


@regresses(LGBMRegressor, LGBMRanker)
def regressor(graph: Graph, model: Any, X: str) -> str:
    """Sum of leaves through the link of the objective."""
    return answer(graph, model.booster_, X)


@classifies(LGBMClassifier)
def classifier(graph: Graph, model: Any, X: str) -> str:
    """Probability of each class."""
    return answer(graph, model.booster_, X)


def answer(graph: Graph, booster: Any, X: str) -> str:
    """Add a booster to a graph.

    Args:
        graph: to add to.
        booster: `lightgbm.Booster`.
        X: `(n, n_features)`.

    Returns:
        `(n, n_classes)` probabilities of a classifying objective, else `(n, 1)` values.

    Raises:
        UnsupportedError: an objective or tree that has no ONNX form.
    """
    dump = booster.dump_model(num_iteration=booster.best_iteration or -1)
    name, *options = objective_of(dump)
    if dump.get("pandas_categorical"):
        raise UnsupportedError(
            "it was trained on pandas categories; put an OrdinalEncoder before it, in a pipeline"
        )
    forest, zero_is_missing = read(dump)
    width = int(dump["max_feature_idx"]) + 1
    if zero_is_missing:
        X = _without_zeros(graph, X, zero_is_missing, width)
    raw = write(graph, forest, X, width)
    if dump.get("average_output"):
        rounds = len(forest.trees) / len(forest.base)
        raw = graph.op("Div", raw, np.array(rounds))
    return _linked(graph, raw, name, options)


def objective_of(dump: dict[str, Any]) -> list[str]:
    """Return the name of the objective and its options.

    Raises:
        UnsupportedError: if its link is not known.
    """
    words = str(dump.get("objective", "")).split()
    known = (*IDENTITY, *EXP, *SIGMOID, *SOFTMAX)
    if not words or words[0] not in known:
        raise UnsupportedError(
            f"the objective {words[0] if words else '(none)'} has no ONNX form here; expected one"
            f" of {', '.join(known)}"
        )
    return words


def _linked(graph: Graph, raw: str, name: str, options: list[str]) -> str:
    if name in SOFTMAX:
        return graph.op("Softmax", raw, axis=1)
    if name in SIGMOID:
        steep = next((float(o.split(":")[1]) for o in options if o.startswith("sigmoid:")), 1.0)
        right = graph.op("Sigmoid", graph.op("Mul", raw, np.array(steep)))
        if name != "binary":
            return right
        return graph.concat([graph.op("Sub", np.array(1.0), right), right])
    if name in EXP:
        return graph.op("Exp", raw)
    if "sqrt" in options:
        return graph.op("Mul", graph.op("Sign", raw), graph.op("Mul", raw, raw))
    return raw


def read(dump: dict[str, Any]) -> tuple[Forest, set[int]]:
    """Return the trees of a dump, and the columns in which zero counts as missing.

    Raises:
        UnsupportedError: trees with linear models in their leaves.
    """
    outputs = int(dump["num_tree_per_iteration"])
    splits: list[Split] = []
    zero_is_missing: set[int] = set()
    trees = [
        _tree(info, at % outputs, splits, zero_is_missing)
        for at, info in enumerate(dump["tree_info"])
    ]
    return Forest(trees, np.zeros(outputs), splits=splits), zero_is_missing


def _tree(
    info: dict[str, Any], target: int, splits: list[Split], zero_is_missing: set[int]
) -> Tree:
    nodes = list(_walk(info["tree_structure"]))
    place = {id(node): at for at, node in enumerate(nodes)}
    count = len(nodes)
    feature = np.full(count, -1, np.int64)
    threshold, value = np.zeros(count), np.zeros(count)
    left, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    missing_left, by_category = np.zeros(count, bool), np.zeros(count, bool)
    for at, node in enumerate(nodes):
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                raise UnsupportedError("trees with linear models in their leaves (linear_tree)")
            value[at] = node["leaf_value"]
            continue
        feature[at] = node["split_feature"]
        left[at] = place[id(node["left_child"])]
        right[at] = place[id(node["right_child"])]
        if node["decision_type"] == "==":
            by_category[at] = True
            threshold[at] = len(splits)
            codes = frozenset(int(code) for code in str(node["threshold"]).split("||"))
            splits.append(Split(int(feature[at]), codes, codes, False, False))
            continue
        threshold[at] = node["threshold"]
        missing_left[at] = (
            node["threshold"] >= 0.0 if node["missing_type"] == "None" else node["default_left"]
        )
        if node["missing_type"] == "Zero":
            zero_is_missing.add(int(feature[at]))
    return Tree(feature, threshold, left, right, missing_left, by_category, value, target)


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a node and all below it, the node first."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        if "split_feature" in node:
            pending += [node["right_child"], node["left_child"]]


def _without_zeros(graph: Graph, X: str, columns: set[int], width: int) -> str:
    """Return the rows with zeros of some columns made missing."""
    chosen = np.array([[at in columns for at in range(width)]])
    zero = graph.op("LessOrEqual", graph.op("Abs", X), np.array(_ZERO))
    return graph.op("Where", graph.op("And", zero, chosen), np.array(np.nan), X)
