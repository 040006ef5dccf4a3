from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from edgefleet_converters import runners, sources
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import boosters
from edgefleet_converters.routes import sklearn as sklearn_route
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.tables import Table

# skl2onnx reads attributes that scikit-learn and numpy have since deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # The estimators are fitted on arrays and warn when asked with them.
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
]
SaveModel = Callable[[object, str], str]
_LIGHT: dict[str, Any] = {"n_estimators": 8, "verbose": -1, "n_jobs": 1}
_EXTREME: dict[str, Any] = {"n_estimators": 8, "n_jobs": 1}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small data: threads that wait for one another take longer than the work."""
    with threadpool_limits(1):
        yield


def samples_of(X: NDArray[np.float64]) -> Samples:
    columns = {f"x{i}": np.asarray(X[:, i], np.float64) for i in range(X.shape[1])}
    return Samples("test", Table("test", columns), {})


def run(model: Model, X: NDArray[np.float64]) -> NDArray[np.float64]:
    runner = runners.OnnxRunner(model.data, model.signature)
    return runners.scores(runner, samples_of(X).bind(model.signature))


def open_file(path: Path, X: NDArray[np.float64], hints: Hints | None = None) -> Opened:
    return boosters.open(sources.recognise(path), samples_of(X), hints or Hints())


def close(got: NDArray[np.float64], wanted: NDArray[np.float64]) -> bool:
    """Whether no row took another branch."""
    return bool(np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def diabetes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    X, y = datasets.load_diabetes(return_X_y=True)
    return X.round(3), y


@pytest.fixture(scope="module")
def mixed() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two columns of categories, and missing values everywhere."""
    X, y = datasets.load_diabetes(return_X_y=True)
    X[:, 1], X[:, 3] = np.arange(len(X)) % 6, np.arange(len(X)) * 7 % 23
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    return X, y


@pytest.mark.parametrize(
    "estimator",
    [
        lightgbm.LGBMRegressor(**_LIGHT),
        lightgbm.LGBMRegressor(objective="poisson", **_LIGHT),
        lightgbm.LGBMRegressor(reg_sqrt=True, **_LIGHT),
        lightgbm.LGBMRegressor(boosting_type="dart", **_LIGHT),
        lightgbm.LGBMRegressor(boosting_type="rf", subsample=0.5, subsample_freq=1, **_LIGHT),
        xgboost.XGBRegressor(**_EXTREME),
        xgboost.XGBRegressor(objective="reg:tweedie", **_EXTREME),
        xgboost.XGBRegressor(booster="dart", rate_drop=0.3, **_EXTREME),
        xgboost.XGBRegressor(booster="gblinear", **_EXTREME),
        xgboost.XGBRFRegressor(**_EXTREME),
        make_pipeline(StandardScaler(), xgboost.XGBRegressor(**_EXTREME)),
        make_pipeline(StandardScaler(), lightgbm.LGBMRegressor(**_LIGHT)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_regressors_are_right_on_every_row(
    estimator: Any, diabetes: Any, save_model: SaveModel
) -> None:
    X, y = diabetes
    path = save_model(estimator.fit(X, y), "m.joblib")
    made = sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
    assert made.task == "regression"
    assert close(run(made.bases["onnx"], X), made.scores)


@pytest.mark.parametrize("kind", [lightgbm.LGBMClassifier, xgboost.XGBClassifier])
@pytest.mark.parametrize("load", [datasets.load_iris, datasets.load_breast_cancer])
def test_classifiers_keep_their_probabilities(
    kind: Any, load: Callable[..., Any], save_model: SaveModel
) -> None:
    X, y = load(return_X_y=True)
    model = kind(**(_LIGHT if kind is lightgbm.LGBMClassifier else _EXTREME)).fit(X, y)
    path = save_model(model, "m.joblib")
    made = sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
    assert made.classes == [str(label) for label in sorted(set(y))]
    np.testing.assert_allclose(run(made.bases["onnx"], X), model.predict_proba(X), atol=1e-5)


def unseen(X: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = X.copy()
    rows[::2, 1], rows[1::3, 3] = 77.0, -2.0
    return rows


def test_categories_of_lightgbm_keep_their_side(mixed: Any, save_model: SaveModel) -> None:
    X, y = mixed
    model = lightgbm.LGBMRegressor(min_data_per_group=5, cat_smooth=1.0, **_LIGHT)
    model.fit(X, y, categorical_feature=[1, 3])
    assert "'=='" in str(model.booster_.dump_model())
    path = save_model(model, "m.joblib")
    made = sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
    assert close(run(made.bases["onnx"], X), made.scores)
    assert close(run(made.bases["onnx"], unseen(X)), model.predict(unseen(X))[:, None])


def test_categories_of_xgboost_keep_their_side(mixed: Any, save_model: SaveModel) -> None:
    X, y = mixed
    types = ["c" if at in (1, 3) else "q" for at in range(X.shape[1])]
    model = xgboost.XGBRegressor(
        enable_categorical=True, feature_types=types, max_cat_to_onehot=1, **_EXTREME
    ).fit(X, y)
    path = save_model(model, "m.joblib")
    made = sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
    assert close(run(made.bases["onnx"], X), made.scores)
    strange = X.copy()
    strange[::2, 3] = 30.0
    assert close(run(made.bases["onnx"], strange), model.predict(strange)[:, None])


@pytest.mark.parametrize("missing", [{"zero_as_missing": True}, {"use_missing": False}])
def test_zeros_and_missing_values_of_lightgbm_keep_their_way(
    missing: dict[str, bool], mixed: Any, save_model: SaveModel
) -> None:
    X, y = mixed
    model = lightgbm.LGBMRegressor(**missing, **_LIGHT).fit(X, y)
    path = save_model(model, "m.joblib")
    made = sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
    assert close(run(made.bases["onnx"], X), made.scores)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_an_xgboost_file_converts_without_its_estimator(
    suffix: str, diabetes: Any, tmp_path: Path
) -> None:
    X, y = diabetes
    model = xgboost.XGBRegressor(**_EXTREME).fit(X, y)
    path = tmp_path / f"m.{suffix}"
    model.save_model(path)
    made = open_file(path, X)
    assert (made.task, made.classes, len(made.columns)) == ("regression", [], X.shape[1])
    assert close(run(made.bases["onnx"], X), model.predict(X)[:, None])


def test_a_classifying_file_gets_its_classes_from_the_labels(tmp_path: Path) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    labels = np.array(["setosa", "versicolor", "virginica"], object)[y]
    for path, model in [
        (tmp_path / "m.json", xgboost.XGBClassifier(objective="multi:softmax", **_EXTREME)),
        (tmp_path / "m.txt", lightgbm.LGBMClassifier(**_LIGHT)),
    ]:
        model.fit(X, y)
        if path.suffix == ".txt":
            model.booster_.save_model(path)
        else:
            model.save_model(path)
        made = open_file(path, X, Hints(labels=labels))
        assert made.classes == ["setosa", "versicolor", "virginica"]
        np.testing.assert_allclose(run(made.bases["onnx"], X), model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", b'{"learner": {}}', "no whole xgboost model"),
        ("m.ubj", b"{L\x00\x00", "no whole xgboost model"),
        ("m.txt", b"tree\nversion=v4\n", "no whole lightgbm model"),
    ],
)
def test_a_file_that_is_no_booster_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path, diabetes: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=message):
        open_file(path, diabetes[0])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (lightgbm.LGBMRegressor(linear_tree=True, **_LIGHT), "linear models in their leaves"),
        (
            lightgbm.LGBMClassifier(objective="cross_entropy_lambda", **_LIGHT),
            "the objective cross_entropy_lambda has no ONNX form here; expected one of",
        ),
        (
            xgboost.XGBClassifier(objective="binary:hinge", **_EXTREME),
            "the objective binary:hinge has no ONNX form here; expected one of",
        ),
    ],
)
def test_what_has_no_onnx_form_is_named(
    estimator: Any, message: str, save_model: SaveModel
) -> None:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    path = save_model(estimator.fit(X, y), "m.joblib")
    with pytest.raises(UnsupportedError, match=message):
        sklearn_route.open(sources.recognise(path), samples_of(X), Hints())
