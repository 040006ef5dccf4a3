from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)
from threadpoolctl import threadpool_limits

from edgefleet_converters import runners, sources
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import sklearn as route
from edgefleet_converters.routes import sklearn_export
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.routes.sklearn_converters import forests
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.tables import Table, read_table

# skl2onnx 1.20 reads attributes that scikit-learn and numpy have since deprecated; in use it runs
# in a child process, where such warnings go to the log.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small data: threads that wait for one another take longer than the work."""
    with threadpool_limits(1):
        yield


def table_of(X: NDArray[np.floating]) -> Table:
    return Table("test", {f"x{i}": X[:, i].astype(np.float64) for i in range(X.shape[1])})


def samples_of(table: Table) -> Samples:
    return Samples(table.source, table, {})


def export(path: str, table: Table) -> tuple[Opened, NDArray[np.float64]]:
    """Return what the route hands on, and what ONNX Runtime makes of all rows."""
    made = route.open(sources.recognise(path), samples_of(table), Hints())
    return made, run(made.bases["onnx"], table)


def run(model: Model, table: Table) -> NDArray[np.float64]:
    runner = runners.OnnxRunner(model.data, model.signature)
    return runners.scores(runner, samples_of(table).bind(model.signature))


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(20, random_state=0),
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
        make_pipeline(StandardScaler(), SVC()),
        make_pipeline(StandardScaler(), LinearSVC()),
        make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=2000, random_state=0)),
        make_pipeline(StandardScaler(), KNeighborsClassifier(weights="distance")),
        make_pipeline(StandardScaler(), GaussianProcessClassifier()),
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
    signature = made.bases["onnx"].signature
    assert [(t.name, t.dtype, t.shape) for t in signature.inputs] == [
        # Rows that float32 does not hold exactly meet float64 thresholds.
        ("X", "float64" if route.compares_float64(estimator) else "float32", [None, X.shape[1]])
    ]
    score = next(t for t in signature.outputs if t.name == signature.score_output)
    assert score.shape == [None, len(made.classes)]


def test_topics_of_counts_become_classes(save_model: SaveModel) -> None:
    X, y = datasets.load_digits(n_class=3, return_X_y=True)
    topics = LatentDirichletAllocation(5, max_iter=3, random_state=0)
    model = make_pipeline(topics, LogisticRegression(C=100.0)).fit(X[:150], y[:150])
    made, scores = export(save_model(model, "m.joblib"), table_of(X[:300]))
    np.testing.assert_allclose(scores, model.predict_proba(X[:300]), atol=1e-5)
    assert made.bases["onnx"].signature.inputs[0].dtype == "float32"


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


def wrong_rows(got: NDArray[np.float64], wanted: NDArray[np.float64]) -> int:
    """Rows off by more than float32 costs; a wrong branch costs a thousand times that."""
    return int((np.abs(got - wanted).max(axis=1) > 2e-6 * np.abs(wanted).max()).sum())


def on_thresholds(model: Any, X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of which one cell lies exactly on a threshold of the model."""
    rows = []
    for (predictor,) in model._predictors:
        for node in predictor.nodes[predictor.nodes["is_leaf"] == 0][:3]:
            row = X[len(rows) % len(X)].copy()
            row[node["feature_idx"]] = node["num_threshold"]
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hist_gradient_boosting_is_right_on_every_row(dtype: type, save_model: SaveModel) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    rows = X.astype(dtype).astype(np.float64)
    model = HistGradientBoostingRegressor(max_iter=40, random_state=0).fit(rows, y)
    made, scores = export(save_model(model, "m.joblib"), table_of(rows))
    np.testing.assert_array_equal(made.scores[:, 0], model.predict(rows))
    assert wrong_rows(scores, made.scores) == 0
    (given,) = made.bases["onnx"].signature.inputs
    assert given.dtype == np.dtype(dtype).name


def test_rows_on_a_threshold_go_the_way_they_went(save_model: SaveModel) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    X = X.round(3)  # decimals, which no float holds exactly
    model = HistGradientBoostingRegressor(max_iter=40, random_state=0).fit(X, y)
    edges = on_thresholds(model, X)
    made, _ = export(save_model(model, "m.joblib"), table_of(X))
    for rows in (
        edges,
        np.nextafter(edges, np.inf),
        np.nextafter(edges, -np.inf),
    ):
        wanted = model.predict(rows)[:, None]
        assert wrong_rows(run(made.bases["onnx"], table_of(rows)), wanted) == 0


def test_missing_values_and_categories_keep_their_way(save_model: SaveModel) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    X = X.astype(np.float32).astype(np.float64)
    X[:, 1] = np.arange(len(X)) % 7
    X[:, 2] = np.arange(len(X)) % 11 * 3
    X[::9, 1] = X[::5, 2] = X[::4, 3] = np.nan
    model = HistGradientBoostingRegressor(
        max_iter=30, categorical_features=[1, 2], min_samples_leaf=5
    ).fit(X, y)
    made, scores = export(save_model(model, "m.joblib"), table_of(X))
    assert wrong_rows(scores, made.scores) == 0
    unseen = X.copy()
    unseen[:, 1], unseen[::2, 2] = 40.0, -3.0
    wanted = model.predict(unseen)[:, None]
    assert wrong_rows(run(made.bases["onnx"], table_of(unseen)), wanted) == 0


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(max_depth=6, random_state=0),
        ExtraTreeClassifier(max_depth=6, random_state=0),
        RandomForestClassifier(12, max_depth=6, random_state=0),
        ExtraTreesClassifier(12, max_depth=6, random_state=0),
        DecisionTreeRegressor(max_depth=6, random_state=0),
        ExtraTreeRegressor(max_depth=6, random_state=0),
        RandomForestRegressor(12, max_depth=6, random_state=0),
        ExtraTreesRegressor(12, max_depth=6, random_state=0),
        BaggingClassifier(RandomForestClassifier(4, random_state=0), 4, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_trees_send_missing_values_where_they_went(model: Any, save_model: SaveModel) -> None:
    X, y = datasets.load_wine(return_X_y=True)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X[:, 3] = np.nan_to_num(X[:, 3])  # a column that is whole in training, and not later
    model.fit(X, y)
    rows = X.copy()
    rows[::3, 3] = np.nan
    rows[1::7, :] = np.nan
    made, scores = export(save_model(model, "m.joblib"), table_of(rows))
    assert made.scores.std(axis=0).min() > 0.1
    assert wrong_rows(scores, made.scores) == 0
    if made.task == "classification":  # equal votes too
        np.testing.assert_array_equal(scores.argmax(axis=1), made.scores.argmax(axis=1))


def test_a_detector_sends_missing_values_where_they_went(save_model: SaveModel) -> None:
    X, _ = datasets.load_diabetes(return_X_y=True)
    X[::4, 2] = np.nan
    path = save_model(IsolationForest(n_estimators=10, random_state=0).fit(X), "m.joblib")
    made, scores = export(path, table_of(X))
    assert made.task == "score"
    assert wrong_rows(scores, made.scores) == 0


def test_a_threshold_that_a_device_would_not_keep_is_refused(save_model: SaveModel) -> None:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    model = TunedThresholdClassifierCV(scaled, cv=3).fit(X, y)
    with pytest.raises(UnsupportedError, match=rf"its threshold of {model.best_threshold_}; conv"):
        export(save_model(model, "m.joblib"), table_of(X))


@pytest.mark.parametrize("voting", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voters_are_weighted(voting: str, dtype: Any) -> None:
    X, y = datasets.load_wine(return_X_y=True)
    members = [
        ("trees", RandomForestClassifier(8, max_depth=3, random_state=0)),
        ("line", make_pipeline(StandardScaler(), LogisticRegression())),
        ("dropped", "drop"),
        ("near", make_pipeline(StandardScaler(), SVC(probability=voting == "soft"))),
    ]
    model = VotingClassifier(members, voting=voting, weights=[1, 2.5, 9, 2]).fit(X[::2, :4], y[::2])
    columns = [sklearn_export.Column(f"x{i}", True) for i in range(4)]
    graph = sklearn_export.to_onnx(model, columns, dtype).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    label, scores = session.run(None, {"X": X[:, :4].astype(dtype)})
    np.testing.assert_array_equal(label, model.predict(X[:, :4]))
    if voting == "soft":
        np.testing.assert_allclose(scores, model.predict_proba(X[:, :4]), atol=1e-5)


def test_a_pipeline_before_the_trees_is_right_on_every_row(save_model: SaveModel) -> None:
    X, y = datasets.load_diabetes(return_X_y=True)
    model = make_pipeline(StandardScaler(), HistGradientBoostingRegressor(max_iter=40)).fit(X, y)
    made, scores = export(save_model(model, "m.joblib"), table_of(X))
    assert wrong_rows(scores, made.scores) == 0


@given(st.lists(st.floats(-1e38, 1e38), min_size=1, max_size=20))
def test_thresholds_round_down_and_no_further(values: list[float]) -> None:
    exact = np.array(values)
    rounded = forests.round_down(exact)
    assert (rounded.astype(np.float64) <= exact).all()
    above = np.nextafter(rounded, np.float32(np.inf)).astype(np.float64)
    assert (above > exact).all()


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
    signature = made.bases["onnx"].signature
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
    (given,) = made.bases["onnx"].signature.inputs
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
    first, second = (export(path, table_of(X))[0].bases["onnx"] for _ in range(2))
    assert first.data == second.data
    model = onnx.load_model_from_string(first.data)
    assert model.ir_version == 8
    assert {e.domain: e.version for e in model.opset_import}["ai.onnx.ml"] <= 3
    outputs = onnxruntime.InferenceSession(first.data).get_outputs()
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
            make_pipeline(FunctionTransformer(abs), LinearRegression()),
            "Pipeline ending in LinearRegression: FunctionTransformer with <built-in function abs>",
        ),
        (
            MultiOutputClassifier(LogisticRegression(max_iter=1000)),
            "predicts several labels at once; expected one",
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
    if isinstance(estimator, MultiOutputClassifier):
        y = np.column_stack([y, y % 2])
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
