from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from edgefleet_converters import runners, sklearn_onnx, sources
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.exports import Export
from edgefleet_converters.tables import Table, read_table

# skl2onnx 1.20 reads attributes that scikit-learn and numpy have since deprecated; in use it runs
# in a child process, where such warnings go to the log.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]


def table_of(X: NDArray[np.floating]) -> Table:
    return Table("test", {f"x{i}": X[:, i].astype(np.float64) for i in range(X.shape[1])})


def export(path: str, table: Table) -> tuple[Export, NDArray[np.float64]]:
    """Return the export, and what ONNX Runtime makes of all rows."""
    made = sklearn_onnx.export(sources.recognise(path), table)
    file = made.made["onnx-fp32"]
    runner = runners.OnnxRunner(file.model, file.signature)
    return made, runners.scores(runner, file.signature, table.select(made.columns).rows())


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(20, random_state=0),
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
        make_pipeline(StandardScaler(), SVC()),
        make_pipeline(StandardScaler(), LinearSVC()),
        make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=2000, random_state=0)),
        GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"memory": [None]}),
    ],
    ids=lambda estimator: (
        type(estimator[-1] if hasattr(estimator, "steps") else estimator).__name__
    ),
)
@pytest.mark.parametrize("load", [datasets.load_wine, datasets.load_breast_cancer])
def test_classifiers_keep_their_classes_and_scores(
    estimator: Any, load: Callable[..., Any], save_model: SaveModel
) -> None:
    X, y = load(return_X_y=True)
    made, scores = export(save_model(estimator.fit(X, y), "m.joblib"), table_of(X))
    assert made.task == "classification"
    assert made.classes == [str(label) for label in sorted(set(y))]
    assert scores.shape == (len(X), len(made.classes))
    np.testing.assert_allclose(scores, made.scores, atol=1e-4)
    signature = made.made["onnx-fp32"].signature
    assert [(t.name, t.dtype, t.shape) for t in signature.inputs] == [
        ("X", "float32", [None, X.shape[1]])
    ]
    score = next(t for t in signature.outputs if t.name == signature.score_output)
    assert score.shape == [None, len(made.classes)]


def test_text_labels_name_the_classes(save_model: SaveModel) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    model = RandomForestClassifier(5, random_state=0).fit(X, names[y])
    made, _ = export(save_model(model, "m.joblib"), table_of(X))
    assert made.classes == list(names)


@pytest.mark.parametrize(
    "estimator",
    [LinearRegression(), GradientBoostingRegressor(n_estimators=20, random_state=0)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_regressors_keep_their_values(estimator: Any, save_model: SaveModel) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    made, scores = export(save_model(estimator.fit(X, y), "m.joblib"), table_of(X))
    assert (made.task, made.classes) == ("regression", [])
    np.testing.assert_allclose(scores, made.scores, rtol=1e-5)


@pytest.mark.parametrize("trained", [np.float64, np.float32])
@pytest.mark.parametrize("asked", [np.float64, np.float32])
def test_hist_gradient_boosting_is_right_on_every_row(
    trained: type, asked: type, save_model: SaveModel
) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    model = HistGradientBoostingRegressor(random_state=0).fit(X.astype(trained), y)
    if (trained, asked) == (np.float32, np.float64):
        # The device rounds its rows to what the model was trained on; so does the original here.
        X = X.astype(np.float32)
    rows = X.astype(asked)
    made, scores = export(save_model(model, "m.joblib"), table_of(rows))
    np.testing.assert_array_equal(made.scores[:, 0], model.predict(rows))
    assert np.abs(scores - made.scores).max() < 2e-4


def test_thresholds_move_down_or_to_the_nearest() -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    model = HistGradientBoostingRegressor(max_iter=5, random_state=0).fit(X, y)
    before = [p.nodes["num_threshold"].copy() for (p,) in model._predictors]
    assert sklearn_onnx.round_thresholds(model, "down")
    for (predictor,), was in zip(model._predictors, before, strict=True):
        now = predictor.nodes["num_threshold"]
        assert (now <= was).all()
        assert (np.nextafter(now.astype(np.float32), np.float32(np.inf)) > was).all()
    assert not sklearn_onnx.round_thresholds(model, "nearest")


def test_text_columns_become_inputs_of_their_own(
    factory: pd.DataFrame, save_model: SaveModel, save_table: SaveTable
) -> None:
    features = factory.drop(columns="service").ffill()
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["temperature", "rpm"]),
            ("names", OneHotEncoder(handle_unknown="ignore"), ["site", "maker"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression()).fit(features, factory["service"])
    table = read_table(save_table(features, "sample.csv"))
    made, scores = export(save_model(model, "m.joblib"), table)
    np.testing.assert_allclose(scores, model.predict_proba(features), atol=1e-5)
    signature = made.made["onnx-fp32"].signature
    assert [(t.name, t.dtype, t.shape, t.columns) for t in signature.inputs] == [
        ("temperature", "float32", [None, 1], ["temperature"]),
        ("rpm", "float32", [None, 1], ["rpm"]),
        ("site", "string", [None, 1], ["site"]),
        ("maker", "string", [None, 1], ["maker"]),
    ]


def test_a_category_of_missing_values_is_kept(
    factory: pd.DataFrame, save_model: SaveModel, save_table: SaveTable
) -> None:
    features = factory[["site", "maker"]]
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(features, factory["service"])
    table = read_table(save_table(features, "sample.csv"))
    made, scores = export(save_model(model, "m.joblib"), table)
    np.testing.assert_allclose(scores, made.scores, atol=1e-5)


def test_columns_chosen_by_name_still_make_one_input_of_numbers(
    factory: pd.DataFrame, save_model: SaveModel, save_table: SaveTable
) -> None:
    features = factory[["rpm", "temperature"]].ffill()
    columns = ColumnTransformer([("t", StandardScaler(), ["temperature"])], remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression(max_iter=5000))
    model.fit(features, factory["service"])
    # The sample gives the columns in another order, and one too many.
    table = read_table(save_table(factory[["temperature", "maker", "rpm"]].ffill(), "sample.csv"))
    made, scores = export(save_model(model, "m.joblib"), table)
    (given,) = made.made["onnx-fp32"].signature.inputs
    assert (given.name, given.columns) == ("X", ["rpm", "temperature"])
    np.testing.assert_allclose(scores, model.predict_proba(features), atol=1e-5)


def test_an_outlier_detector_gives_its_decision_value(save_model: SaveModel) -> None:
    X, _ = datasets.load_diabetes(return_X_y=True)
    model = IsolationForest(n_estimators=10, random_state=0).fit(X)
    made, scores = export(save_model(model, "m.joblib"), table_of(X))
    assert made.task == "score"
    np.testing.assert_allclose(scores[:, 0], model.decision_function(X), atol=1e-5)


def test_the_file_reaches_old_runtimes_and_is_the_same_every_time(save_model: SaveModel) -> None:
    X, y = datasets.load_wine(return_X_y=True)
    path = save_model(RandomForestClassifier(5, random_state=0).fit(X, y), "m.joblib")
    first, second = (export(path, table_of(X))[0].made["onnx-fp32"] for _ in range(2))
    assert first.model == second.model
    assert first.runtime_min == "1.15"
    model = onnx.load_model_from_string(first.model)
    assert model.ir_version == 8
    assert {e.domain: e.version for e in model.opset_import}["ai.onnx.ml"] <= 3
    outputs = onnxruntime.InferenceSession(first.model).get_outputs()
    assert {output.type for output in outputs} == {"tensor(int64)", "tensor(float)"}


class Oracle(ClassifierMixin, BaseEstimator):
    """Classifier that no exporter knows; a subclass here, so that it pickles in this process."""

    def fit(self, X: Any, y: Any) -> "Oracle":
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            TransformedTargetRegressor(LinearRegression()),
            "operator TransformedTargetRegressor has no ONNX form in skl2onnx",
        ),
        (
            make_pipeline(FunctionTransformer(np.log1p), LinearRegression()),
            "Pipeline ending in LinearRegression: .*FunctionTransformer is not supported",
        ),
        (KMeans(2, n_init=1), "KMeans is no classifier, regressor or outlier detector"),
        (Oracle(), "Oracle: operator Oracle has no ONNX form"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_onnx_form_is_named(
    estimator: Any, message: str, save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    path = save_model(0, "m.joblib")
    # The test's own class cannot be imported by name, so the fitted estimator is handed over.
    monkeypatch.setattr(joblib, "load", lambda _: estimator.fit(X, y))
    with pytest.raises(UnsupportedError, match=message):
        export(path, table_of(X))


def test_a_table_of_another_width_is_refused(save_model: SaveModel) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    path = save_model(RandomForestClassifier(2).fit(X, y), "m.joblib")
    with pytest.raises(BadInputError, match=r"fitted on 4 columns; test has 3 .*x0, x1, x2"):
        export(path, table_of(X[:, :3]))


def test_rows_that_the_estimator_cannot_take_are_refused(save_model: SaveModel) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    path = save_model(LogisticRegression(max_iter=1000).fit(X, y), "m.joblib")
    X[3, 2] = np.nan
    with pytest.raises(BadInputError, match=r"cannot predict the rows of test: .*NaN"):
        export(path, table_of(X))
