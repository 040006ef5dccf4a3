"""Estimators around other estimators. What they hold is converted by its own converter."""

from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, RegressorChain
from sklearn.semi_supervised import LabelPropagation, LabelSpreading, SelfTrainingClassifier

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes.sklearn_converters.arithmetic import (
    affine_of,
    distances,
    interpolate,
    kernel,
    nearest,
)
from edgefleet_converters.routes.sklearn_converters.graph import (
    Graph,
    Result,
    classifies,
    classifies_several,
    regresses,
)
from edgefleet_converters.routes.sklearn_converters.preprocessing import function, steps


@classifies(CalibratedClassifierCV)
def calibrated(graph: Graph, model: Any, X: str) -> str:
    """Mean over the folds of calibrated and normalised scores."""
    folds = [
        _calibrated_fold(graph, fold, X, model.n_features_in_)
        for fold in model.calibrated_classifiers_
    ]
    if len(folds) == 1:
        return folds[0]
    # Not Mean, which ONNX Runtime does not have for float64.
    return graph.op("Div", graph.op("Sum", *folds), np.array(float(len(folds))))


def _calibrated_fold(graph: Graph, fold: Any, X: str, width: int) -> str:
    if fold.method not in ("sigmoid", "isotonic"):
        raise UnsupportedError(f"calibration by {fold.method!r}; expected sigmoid or isotonic")
    raw = graph.scores(fold.estimator, X, width)
    classes = len(fold.classes)
    places = [1] if classes == 2 else range(classes)
    found = []
    for place, calibrator in zip(places, fold.calibrators, strict=True):
        score = graph.columns(raw, [place])
        if fold.method == "isotonic":
            found.append(interpolate(graph, score, *steps(calibrator)))
            continue
        slope, offset = np.array(-float(calibrator.a_)), np.array(-float(calibrator.b_))
        found.append(graph.op("Sigmoid", graph.op("Add", graph.op("Mul", score, slope), offset)))
    if classes == 2:
        return graph.concat([graph.op("Sub", np.array(1.0), found[0]), found[0]])
    each = graph.concat(found)
    total = graph.reduce("ReduceSum", each)
    none = graph.op("Equal", total, np.array(0.0))
    shares = graph.op("Div", each, graph.op("Where", none, np.array(1.0), total))
    return graph.op("Where", none, np.full((1, classes), 1 / classes), shares)


@classifies(SelfTrainingClassifier)
def self_training(graph: Graph, model: Any, X: str) -> str:
    """What the estimator says that was trained last."""
    return graph.scores(model.estimator_, X, model.n_features_in_, raw=False)


@classifies(VotingClassifier)
def voting(graph: Graph, model: Any, X: str) -> str:
    """Weighted mean of the probabilities, or share of the votes."""
    weights = model._weights_not_none or [1.0] * len(model.estimators_)
    total = float(sum(weights))
    parts = []
    for weight, estimator in zip(weights, model.estimators_, strict=True):
        if model.voting == "soft":
            given = graph.scores(estimator, X, model.n_features_in_, raw=False)
        else:
            label = graph.label(estimator, X, model.n_features_in_)
            # Not OneHot, which ONNX Runtime does not have for float64.
            given = graph.op("Gather", np.eye(len(model.classes_)), label, axis=0)
        parts.append(graph.op("Mul", given, np.array(float(weight))))
    return graph.op("Div", graph.op("Sum", *parts), np.array(total))


@classifies(FixedThresholdClassifier)
def fixed_threshold(graph: Graph, model: Any, X: str) -> Result:
    """What its classifier says, with the label by the threshold."""
    threshold = 0.5 if model.threshold == "auto" else float(model.threshold)
    return _over(graph, model, X, threshold, model.pos_label)


@classifies(TunedThresholdClassifierCV)
def tuned_threshold(graph: Graph, model: Any, X: str) -> Result:
    """What its classifier says, with the label by the threshold that was found best."""
    positive = model._curve_scorer._get_pos_label()
    return _over(graph, model, X, float(model.best_threshold_), positive)


def _over(graph: Graph, model: Any, X: str, threshold: float, positive: Any) -> Result:
    kind = type(model).__name__
    if len(model.classes_) != 2:
        raise UnsupportedError(f"{kind} over more than two classes")
    asked = model.response_method
    if asked == "decision_function" or not hasattr(model.estimator_, "predict_proba"):
        raise UnsupportedError(
            f"{kind} over decision values; expected response_method predict_proba"
        )
    scores = graph.scores(model.estimator_, X, model.n_features_in_, raw=False)
    place = 1 if positive is None else int(list(model.classes_).index(positive))
    over = graph.op("GreaterOrEqual", graph.columns(scores, [place]), np.array(threshold))
    sides = [graph.cast(graph.op("Not", over)), graph.cast(over)]
    return scores, graph.concat(sides if place == 1 else sides[::-1])


@classifies(DummyClassifier)
def dummy(graph: Graph, model: Any, X: str) -> str:
    """The same for every row."""
    if model.strategy not in ("prior", "most_frequent", "constant"):
        raise UnsupportedError(f"DummyClassifier(strategy={model.strategy!r}) answers at random")
    width = model.n_features_in_
    nothing = graph.op("Mul", graph.cast(graph.op("IsNaN", X)), np.array(0.0))
    offset = affine_of(model.predict_proba, width)[1]
    return graph.affine(nothing, np.zeros((width, len(model.classes_))), offset)


@classifies(OutputCodeClassifier)
def output_code(graph: Graph, model: Any, X: str) -> str:
    """Negative distance of the binary scores to the code of each class."""
    columns = []
    for estimator in model.estimators_:
        if not hasattr(estimator, "classes_"):  # the bit is the same for every class
            constant = affine_of(estimator.decision_function, model.n_features_in_)
            columns.append(graph.affine(X, *constant))
            continue
        raw = graph.scores(estimator, X, model.n_features_in_)
        columns.append(graph.columns(raw, [1]))
    code = np.asarray(model.code_book_, np.float64)
    return graph.op("Neg", distances(graph, graph.concat(columns), code, "euclidean"))


@classifies(LabelPropagation, LabelSpreading)
def label_propagation(graph: Graph, model: Any, X: str) -> str:
    """Labels of the training rows, weighted by the kernel (or of the nearest)."""
    points = np.asarray(model.X_, np.float64)
    labels = np.asarray(model.label_distributions_, np.float64)
    if model.kernel == "rbf":
        weights = kernel(graph, X, points, "rbf", {"gamma": model.gamma})
        votes = graph.op("MatMul", weights, labels)
    elif model.kernel == "knn":
        _, index = nearest(graph, X, points, model.n_neighbors, "euclidean")
        votes = graph.reduce("ReduceSum", graph.op("Gather", labels, index, axis=0), keepdims=0)
    else:
        raise UnsupportedError("a kernel given as a Python function")
    return graph.op("Div", votes, graph.reduce("ReduceSum", votes))


@regresses(TransformedTargetRegressor)
def transformed_target(graph: Graph, model: Any, X: str) -> str:
    """The regressor, then the inverse of what was done to the target."""
    (value,) = graph.apply(model.regressor_, X, model.n_features_in_)
    value = graph.op("Reshape", value, np.array([-1, 1]))
    if model.transformer is None:
        return function(graph, model.inverse_func, value)
    back = model.transformer_.inverse_transform
    weights, offset = affine_of(back, 1)
    probe = np.array([[-3.0], [7.0], [100.0]])
    if not np.allclose(back(probe), probe @ weights + offset):
        raise UnsupportedError(
            "TransformedTargetRegressor with a transformer whose inverse is not a scaling; give"
            " func and inverse_func of numpy"
        )
    return graph.affine(value, weights, offset)


@regresses(RegressorChain)
def regressor_chain(graph: Graph, model: Any, X: str) -> str:
    """Each regressor on the row and the answers of those before it."""
    answers: list[str] = []
    for at, estimator in enumerate(model.estimators_):
        given = graph.concat([X, *answers])
        (answer,) = graph.apply(estimator, given, model.n_features_in_ + at)
        answers.append(graph.op("Reshape", answer, np.array([-1, 1])))
    return graph.columns(graph.concat(answers), np.argsort(model.order_))


@classifies_several(ClassifierChain)
def classifier_chain(graph: Graph, model: Any, X: str) -> tuple[str, str]:
    """Each binary classifier on the row and what those before it say."""
    if any(len(classes) != 2 for classes in model.classes_):
        raise UnsupportedError("ClassifierChain of labels with other than two classes")
    passes = getattr(model, "chain_method_", "predict")  # only a prefitted chain lacks it
    raw = not hasattr(model, "predict_proba")
    if passes == "decision_function" and not raw:
        raise UnsupportedError(
            "ClassifierChain that passes decision values on and answers probabilities; give"
            " chain_method 'predict_proba' or 'predict'"
        )
    labels: list[str] = []
    scores: list[str] = []
    passed: list[str] = []
    for at, estimator in enumerate(model.estimators_):
        given = graph.concat([X, *passed])
        label, each = graph.answer(estimator, given, model.n_features_in_ + at, raw=raw)
        labels.append(graph.op("Reshape", label, np.array([-1, 1])))
        scores.append(graph.columns(each, [1]))
        said = graph.cast(labels[-1]) if passes == "predict" else scores[-1]
        passed.append(graph.op("Log", said) if passes == "predict_log_proba" else said)
    order = np.argsort(model.order_)
    return graph.columns(graph.concat(labels), order), graph.columns(graph.concat(scores), order)
