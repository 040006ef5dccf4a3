"""Boosters out of files of their own: the same trees as in their estimators."""

from typing import Any

from edgefleet_converters.routes.boosters import (
    LightGbmClassifier,
    LightGbmRegressor,
    XgboostClassifier,
    XgboostRegressor,
)
from edgefleet_converters.routes.sklearn_converters.graph import Graph, classifies, regresses


@classifies(XgboostClassifier)
@regresses(XgboostRegressor)
def xgboost_booster(graph: Graph, model: Any, X: str) -> str:
    """Answer of an XGBoost booster."""
    from edgefleet_converters.routes.sklearn_converters import xgboost_trees

    return xgboost_trees.answer(graph, xgboost_trees.document(model.booster), X)


@classifies(LightGbmClassifier)
@regresses(LightGbmRegressor)
def lightgbm_booster(graph: Graph, model: Any, X: str) -> str:
    """Answer of a LightGBM booster."""
    from edgefleet_converters.routes.sklearn_converters import lightgbm_trees

    return lightgbm_trees.answer(graph, model.booster, X)
