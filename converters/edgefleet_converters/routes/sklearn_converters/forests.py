"""Forests of decision trees in one form, and how they become one TreeEnsembleRegressor.

Every boosting library is read into `Forest` and written here, so that all obey the same rules:

1. A row goes left where `x <= threshold` (or `x < threshold`); a missing value goes where its node
   says.
2. Thresholds that were compared as float64 stay so in a float64 graph. In a float32 graph they are
   rounded *down*, so that `x <= t` keeps its meaning for every row that float32 holds.
3. A split by a set of categories is a look-up: for each such split a column is derived that is 0
   where the category goes left and 1 where it goes right, with a place for unknown categories.
4. The ensemble adds up the leaves of each target; links (sigmoid, softmax) follow as plain nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.graph import Graph

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """One tree, its nodes in arrays `(n_nodes,)`; node 0 is the root.

    Attributes:
        feature: that a node splits on; -1 for a leaf.
        threshold: value compared with; of a split by categories its index in `Forest.splits`.
        left, right: nodes below.
        missing_left: whether a missing value goes left.
        by_category: whether a node splits by categories.
        value: of the leaves; or `(n_nodes, n_targets)`, what a leaf adds to each output.
        target: index of the output that the leaves add to, or an index for each node; where a leaf
            adds to each output, not read.
    """

    feature: _Ints
    threshold: _Floats
    left: _Ints
    right: _Ints
    missing_left: NDArray[np.bool_]
    by_category: NDArray[np.bool_]
    value: _Floats
    target: int | _Ints = 0


@dataclass(frozen=True)
class Split:
    """A split by categories.

    Attributes:
        feature: column of the codes.
        left: codes that go left; of the others, `known` go right.
        known: codes with a side of their own.
        unknown_left: whether a code that is not known goes left.
        missing_left: whether a missing value goes left.
    """

    feature: int
    left: frozenset[int]
    known: frozenset[int]
    unknown_left: bool
    missing_left: bool


@dataclass(frozen=True)
class Forest:
    """Trees and what is added to their sum.

    Attributes:
        base: `(n_targets,)`.
        strictly: whether rows *below* a threshold go left, else those at or below it.
        float64: whether thresholds were compared as float64.
        splits: by categories; trees refer to them by index.
    """

    trees: Sequence[Tree]
    base: _Floats
    strictly: bool = False
    float64: bool = True
    splits: Sequence[Split] = field(default_factory=tuple)


def write(graph: Graph, forest: Forest, X: str, n_features: int) -> str:
    """Add a forest to a graph.

    Args:
        graph: to add to.
        forest: the trees.
        X: `(n, n_features)` numbers, categories as codes.
        n_features: columns of `X`.

    Returns:
        Name of the raw sums, `(n, n_targets)`, numbers of the graph.
    """
    if not forest.trees:
        zeros = graph.op("Mul", graph.columns(X, [0] * len(forest.base)), np.array(0.0))
        return graph.op("Add", zeros, forest.base)
    double = forest.float64 and graph.dtype == np.float64
    if not double and graph.dtype == np.float64:
        X = graph.cast(X, np.float32)
    X, place = _with_splits(graph, forest.splits, X, np.float64 if double else np.float32)
    attributes = _attributes(forest, n_features + place, double)
    sums = graph.ml("TreeEnsembleRegressor", X, **attributes)
    return graph.cast(sums) if graph.dtype == np.float64 else sums


def _with_splits(
    graph: Graph, splits: Sequence[Split], X: str, dtype: type[np.floating[Any]]
) -> tuple[str, _Ints]:
    """Return the columns with those derived for splits behind them, and each split's place."""
    columns, place = [X], np.zeros(len(splits), np.int64)
    start = 0
    for feature in sorted({split.feature for split in splits}):
        distinct: dict[Split, int] = {}
        for at, split in enumerate(splits):
            if split.feature == feature:
                place[at] = start + distinct.setdefault(split, len(distinct))
        columns.append(graph.cast(_derive(graph, list(distinct), X), dtype))
        start += len(distinct)
    return graph.concat(columns), place


def round_down(values: _Floats) -> NDArray[np.float32]:
    """Return the greatest float32 that is not above each value, `(n,)`."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        above = rounded.astype(np.float64) > values
        rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def _attributes(forest: Forest, derived: _Ints, double: bool) -> dict[str, object]:
    """Return the attributes of TreeEnsembleRegressor (ai.onnx.ml 3).

    Args:
        forest: the trees.
        derived: column in which each split by categories finds its side.
        double: whether thresholds and sums are float64.
    """
    sizes = [len(tree.feature) for tree in forest.trees]
    leaf = np.concatenate([tree.feature < 0 for tree in forest.trees])
    by_category = np.concatenate([tree.by_category for tree in forest.trees])
    threshold = np.concatenate([tree.threshold for tree in forest.trees])
    feature = np.concatenate([tree.feature for tree in forest.trees])
    index = np.where(by_category, threshold, 0).astype(np.int64)
    if len(derived):
        feature = np.where(by_category, derived[index], feature)
    feature = np.where(leaf, 0, feature)
    threshold = np.where(leaf, 0.0, np.where(by_category, 0.5, threshold))
    tree_ids = np.repeat(np.arange(len(sizes)), sizes)
    node_ids = np.concatenate([np.arange(size) for size in sizes])
    branch = "BRANCH_LT" if forest.strictly else "BRANCH_LEQ"
    nodes, targets, values = _leaves(forest)
    floats = {
        "nodes_values": np.where(by_category, 0.5, threshold if double else round_down(threshold)),
        "target_weights": values,
        "base_values": forest.base,
    }
    return {
        "n_targets": len(forest.base),
        "nodes_treeids": tree_ids.tolist(),
        "nodes_nodeids": node_ids.tolist(),
        "nodes_featureids": feature.tolist(),
        "nodes_modes": ["LEAF" if end else branch for end in leaf],
        "nodes_truenodeids": _joined(forest, "left", leaf),
        "nodes_falsenodeids": _joined(forest, "right", leaf),
        "nodes_missing_value_tracks_true": np.concatenate(
            [tree.missing_left & ~tree.by_category for tree in forest.trees]
        )
        .astype(np.int64)
        .tolist(),
        "target_treeids": tree_ids[nodes].tolist(),
        "target_nodeids": node_ids[nodes].tolist(),
        "target_ids": targets.tolist(),
        **_numbers(floats, double),
    }


def _leaves(forest: Forest) -> tuple[_Ints, _Ints, _Floats]:
    """Return of all that leaves add: the node, counted over all trees, the output, the value."""
    start, found = 0, []
    for tree in forest.trees:
        leaf = np.flatnonzero(tree.feature < 0)
        if tree.value.ndim == 1:
            targets = np.broadcast_to(tree.target, len(tree.feature))[leaf]
            found.append((start + leaf, targets, tree.value[leaf]))
        else:
            adds = tree.value[leaf] != 0
            adds[:, 0] |= ~adds.any(axis=1)  # a leaf is one by having a value
            rows, targets = np.nonzero(adds)
            found.append((start + leaf[rows], targets, tree.value[leaf[rows], targets]))
        start += len(tree.feature)
    nodes, targets, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return nodes, targets, values


def _numbers(floats: dict[str, _Floats], double: bool) -> dict[str, object]:
    if not double:
        return {name: values.astype(np.float32).tolist() for name, values in floats.items()}
    return {
        f"{name}_as_tensor": onnx.numpy_helper.from_array(values.astype(np.float64), name)
        for name, values in floats.items()
    }


def _joined(forest: Forest, side: str, leaf: NDArray[np.bool_]) -> list[int]:
    nodes = np.concatenate([getattr(tree, side) for tree in forest.trees])
    return [int(node) for node in np.where(leaf, 0, nodes)]


def _derive(graph: Graph, splits: Sequence[Split], X: str) -> str:
    """Return `(n, n_splits)`: for each split of one column 0 where a row goes left, else 1."""
    codes = sorted(frozenset().union(*(split.known for split in splits)))
    feature = splits[0].feature
    if any(code != np.float32(code) for code in codes):
        raise UnsupportedError(f"a category code over 2^24 in column {feature}")
    table = np.empty((len(codes) + 2, len(splits)), np.float32)
    for at, split in enumerate(splits):
        for row, code in enumerate(codes):
            left = code in split.left or (code not in split.known and split.unknown_left)
            table[row, at] = 0.0 if left else 1.0
        table[-2, at] = 0.0 if split.unknown_left else 1.0
        table[-1, at] = 0.0 if split.missing_left else 1.0
    column = graph.columns(X, [feature])
    row_of = graph.ml(
        "LabelEncoder",
        graph.cast(graph.op("Floor", column), np.float32),
        keys_floats=[float(code) for code in codes],
        values_int64s=list(range(len(codes))),
        default_int64=len(codes),
    )
    chosen = graph.op("Where", graph.op("IsNaN", column), np.array(len(codes) + 1), row_of)
    flat = graph.op("Reshape", chosen, np.array([-1]))
    return graph.op("Gather", graph.single(table), flat, axis=0)
