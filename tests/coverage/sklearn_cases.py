"""What the table of scikit-learn covers: every estimator, on small real data.

An estimator whose defaults fit one of the data sets needs no entry; the others are listed here with
how they are built and on what. An estimator with several cases counts once, and only if all of its
cases are right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import (
    calibration,
    compose,
    covariance,
    cross_decomposition,
    datasets,
    decomposition,
    ensemble,
    feature_extraction,
    feature_selection,
    gaussian_process,
    impute,
    isotonic,
    kernel_approximation,
    linear_model,
    manifold,
    model_selection,
    multiclass,
    multioutput,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    random_projection,
    semi_supervised,
    svm,
    tree,
)
from sklearn.utils import all_estimators

KINDS = ("classifier", "regressor", "transformer", "outlier detector")


@dataclass(frozen=True)
class Case:
    """An estimator to fit and convert.

    Attributes:
        name: of its class.
        note: what the case varies; empty for the plain one.
        build: makes it, not yet fitted.
        data: name of a function of `DATA`.
    """

    name: str
    kind: str
    note: str
    build: Callable[[], Any]
    data: str


# Estimators that no fixed graph over one row of numbers or text can stand for, with the reason.
CANNOT = {
    "DictVectorizer": "takes Python dictionaries, of which a row of columns is none",
    "FeatureHasher": "hashes feature names (MurmurHash3) into a sparse matrix; there is no such"
    " operator in standard ONNX",
    "HashingVectorizer": "hashes words (MurmurHash3); there is no such operator in standard ONNX",
    "LabelBinarizer": "transforms labels, not rows",
    "LabelEncoder": "transforms labels, not rows",
    "MultiLabelBinarizer": "transforms sets of labels, not rows",
    "PatchExtractor": "cuts a picture into patches: more rows come out than go in",
    "TSNE": "transductive: has no transform for new rows",
    "NMF": "iterates until the whole batch has converged: the answer for a row depends on the rows"
    " beside it",
    "MiniBatchNMF": "iterates until the whole batch has converged, as NMF",
}


def _float32(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows that float32 holds exactly, as a device gives them."""
    return X.astype(np.float32).astype(np.float64)


def _wine() -> tuple[Any, Any]:
    X, y = datasets.load_wine(return_X_y=True)
    return _float32(preprocessing.StandardScaler().fit_transform(X)), y


def _binary() -> tuple[Any, Any]:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return _float32(preprocessing.StandardScaler().fit_transform(X[:300, :8])), y[:300]


def _counts() -> tuple[Any, Any]:
    X, y = datasets.load_digits(return_X_y=True)
    return X[:250, 8:40], y[:250]


def _diabetes() -> tuple[Any, Any]:
    X, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return _float32(preprocessing.StandardScaler().fit_transform(X)), y


def _positive() -> tuple[Any, Any]:
    X, y = datasets.load_iris(return_X_y=True)
    return _float32(X), y


def _missing() -> tuple[Any, Any]:
    X, y = _diabetes()
    X = X.copy()
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    return X, y


def _missing_classes() -> tuple[Any, Any]:
    X, y = _missing()
    return X, np.digitize(y, [100, 200])


def _two_targets() -> tuple[Any, Any]:
    X, y = _diabetes()
    return X[:, 2:], np.column_stack([y, X[:, 0]])


def _two_labels() -> tuple[Any, Any]:
    X, y = _wine()
    return X, np.column_stack([y, (X[:, 0] > 0).astype(int)])


def _two_flags() -> tuple[Any, Any]:
    X, y = _wine()
    return X, np.column_stack([y == 0, X[:, 0] > 0]).astype(int)


def _one_column() -> tuple[Any, Any]:
    X, y = _diabetes()
    return X[:, 2:3], y


def _codes() -> tuple[Any, Any]:
    X, y = _diabetes()
    codes = np.column_stack([np.digitize(X[:, i], [-1, 0, 1]) for i in range(4)])
    return codes.astype(np.float64), np.digitize(y, [100, 200])


def _codes_values() -> tuple[Any, Any]:
    return np.hstack([_codes()[0], _diabetes()[0][:, 4:7]]), _diabetes()[1]


def _codes_missing() -> tuple[Any, Any]:
    X, y = _codes_values()
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    return X, y


def _kernel() -> tuple[Any, Any]:
    X, y = _diabetes()
    return _float32(X @ X.T)[:60, :60], y[:60]


def _atoms() -> NDArray[np.float64]:
    """Return eight directions in the space of wine, of length 1."""
    return preprocessing.normalize(np.random.default_rng(0).normal(size=(8, 13)))


def _part_labelled() -> tuple[Any, Any]:
    X, y = _wine()
    y = y.copy()
    y[::3] = -1
    return X, y


_WORDS = np.array(["pump", "valve", "motor hot", "the pump is hot", "valve stuck, motor stopped"])


def _text() -> tuple[Any, Any]:
    y = np.arange(60) % 5
    return _WORDS[y], y


DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wine": _wine,
    "binary": _binary,
    "counts": _counts,
    "diabetes": _diabetes,
    "iris": _positive,
    "missing": _missing,
    "missing classes": _missing_classes,
    "two targets": _two_targets,
    "two labels": _two_labels,
    "two flags": _two_flags,
    "one column": _one_column,
    "codes": _codes,
    "codes and numbers": _codes_values,
    "codes with missing": _codes_missing,
    "kernel": _kernel,
    "part labelled": _part_labelled,
    "text": _text,
}
_DEFAULT_DATA = {
    "classifier": "wine",
    "regressor": "diabetes",
    "transformer": "wine",
    "outlier detector": "diabetes",
}
_LR = linear_model.LogisticRegression
_RIDGE = linear_model.Ridge
_SCALE = preprocessing.StandardScaler

_Entry = tuple[str, Callable[[], Any], str]
# Name → (what varies, how it is built, data); data "" for the default of its kind.
_ENTRIES: dict[str, list[_Entry]] = {
    "BaggingClassifier": [
        ("", lambda: ensemble.BaggingClassifier(n_estimators=5, random_state=0), ""),
        ("linear", lambda: ensemble.BaggingClassifier(_LR(), n_estimators=3, random_state=0), ""),
    ],
    "CalibratedClassifierCV": [
        ("sigmoid", lambda: calibration.CalibratedClassifierCV(_LR()), ""),
        (
            "isotonic",
            lambda: calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), method="isotonic"),
            "",
        ),
        ("svm", lambda: calibration.CalibratedClassifierCV(svm.LinearSVC()), "binary"),
        (
            "forest",
            lambda: calibration.CalibratedClassifierCV(
                ensemble.RandomForestClassifier(10, random_state=0), method="isotonic", cv=2
            ),
            "binary",
        ),
    ],
    "CategoricalNB": [("", naive_bayes.CategoricalNB, "codes")],
    "BernoulliNB": [("", naive_bayes.BernoulliNB, "")],
    "ComplementNB": [("", naive_bayes.ComplementNB, "iris")],
    "MultinomialNB": [("", naive_bayes.MultinomialNB, "iris")],
    "ClassifierChain": [
        ("", lambda: multioutput.ClassifierChain(_LR(), random_state=0), "two flags"),
        (
            "other order, probabilities",
            lambda: multioutput.ClassifierChain(
                _LR(), order=[1, 0], chain_method="predict_proba", random_state=0
            ),
            "two flags",
        ),
    ],
    "MultiOutputClassifier": [("", lambda: multioutput.MultiOutputClassifier(_LR()), "two labels")],
    "DummyClassifier": [
        ("prior", lambda: __import__("sklearn.dummy").dummy.DummyClassifier(), ""),
    ],
    "FixedThresholdClassifier": [
        (
            "",
            lambda: model_selection.FixedThresholdClassifier(
                _LR(), threshold=0.3, response_method="predict_proba"
            ),
            "binary",
        )
    ],
    "TunedThresholdClassifierCV": [
        ("", lambda: model_selection.TunedThresholdClassifierCV(_LR()), "binary")
    ],
    "GaussianProcessClassifier": [
        ("binary", lambda: gaussian_process.GaussianProcessClassifier(random_state=0), "binary"),
        ("", lambda: gaussian_process.GaussianProcessClassifier(random_state=0), ""),
        (
            "matern",
            lambda: gaussian_process.GaussianProcessClassifier(
                gaussian_process.kernels.Matern(2.0, nu=1.5), optimizer=None, random_state=0
            ),
            "",
        ),
    ],
    "HistGradientBoostingClassifier": [
        ("", lambda: ensemble.HistGradientBoostingClassifier(max_iter=10), ""),
        ("binary", lambda: ensemble.HistGradientBoostingClassifier(max_iter=10), "binary"),
        ("missing", lambda: ensemble.HistGradientBoostingClassifier(max_iter=5), "missing classes"),
        (
            "categories",
            lambda: ensemble.HistGradientBoostingClassifier(
                max_iter=10, categorical_features=[0, 2], min_samples_leaf=5
            ),
            "codes",
        ),
    ],
    "HistGradientBoostingRegressor": [
        ("", lambda: ensemble.HistGradientBoostingRegressor(), ""),
        ("missing", lambda: ensemble.HistGradientBoostingRegressor(), "missing"),
        ("poisson", lambda: ensemble.HistGradientBoostingRegressor(loss="poisson"), ""),
        (
            "categories",
            lambda: ensemble.HistGradientBoostingRegressor(categorical_features=[1, 3]),
            "codes and numbers",
        ),
        (
            "categories, missing",
            lambda: ensemble.HistGradientBoostingRegressor(categorical_features=[1, 3]),
            "codes with missing",
        ),
    ],
    "RandomForestClassifier": [
        ("", lambda: ensemble.RandomForestClassifier(20, random_state=0), ""),
        ("missing", lambda: ensemble.RandomForestClassifier(5, random_state=0), "missing classes"),
    ],
    "RandomForestRegressor": [
        ("", lambda: ensemble.RandomForestRegressor(20, random_state=0), ""),
        ("missing", lambda: ensemble.RandomForestRegressor(5, random_state=0), "missing"),
    ],
    "KNeighborsClassifier": [
        ("", neighbors.KNeighborsClassifier, ""),
        ("distance", lambda: neighbors.KNeighborsClassifier(weights="distance"), ""),
        ("manhattan", lambda: neighbors.KNeighborsClassifier(metric="manhattan"), ""),
        ("binary", lambda: neighbors.KNeighborsClassifier(4), "binary"),
    ],
    "KNeighborsRegressor": [
        ("", neighbors.KNeighborsRegressor, ""),
        ("distance", lambda: neighbors.KNeighborsRegressor(weights="distance"), ""),
    ],
    "RadiusNeighborsClassifier": [("", lambda: neighbors.RadiusNeighborsClassifier(4.5), "")],
    "RadiusNeighborsRegressor": [("", lambda: neighbors.RadiusNeighborsRegressor(4.5), "")],
    "OneVsOneClassifier": [("", lambda: multiclass.OneVsOneClassifier(_LR()), "")],
    "OneVsRestClassifier": [("", lambda: multiclass.OneVsRestClassifier(_LR()), "")],
    "OutputCodeClassifier": [
        ("", lambda: multiclass.OutputCodeClassifier(_LR(), random_state=0), ""),
        (
            "svm",
            lambda: multiclass.OutputCodeClassifier(svm.LinearSVC(), code_size=3, random_state=0),
            "",
        ),
    ],
    "SelfTrainingClassifier": [
        ("", lambda: semi_supervised.SelfTrainingClassifier(_LR()), "part labelled")
    ],
    "LabelPropagation": [
        ("", semi_supervised.LabelPropagation, "part labelled"),
        ("knn", lambda: semi_supervised.LabelPropagation(kernel="knn"), "part labelled"),
    ],
    "LabelSpreading": [("", semi_supervised.LabelSpreading, "part labelled")],
    "NearestCentroid": [
        ("", neighbors.NearestCentroid, ""),
        ("manhattan", lambda: neighbors.NearestCentroid(metric="manhattan"), ""),
    ],
    "NuSVC": [("", lambda: svm.NuSVC(nu=0.2), "")],
    "SVC": [
        ("", svm.SVC, ""),
        ("binary", svm.SVC, "binary"),
        ("linear", lambda: svm.SVC(kernel="linear"), ""),
        ("poly", lambda: svm.SVC(kernel="poly"), ""),
    ],
    "StackingClassifier": [
        (
            "",
            lambda: ensemble.StackingClassifier(
                [("lr", _LR()), ("tree", tree.DecisionTreeClassifier(max_depth=3, random_state=0))]
            ),
            "",
        )
    ],
    "VotingClassifier": [
        (
            "soft",
            lambda: ensemble.VotingClassifier(
                [("lr", _LR()), ("nb", naive_bayes.GaussianNB())], voting="soft"
            ),
            "",
        ),
    ],
    "StackingRegressor": [
        (
            "",
            lambda: ensemble.StackingRegressor(
                [("r", _RIDGE()), ("tree", tree.DecisionTreeRegressor(max_depth=3, random_state=0))]
            ),
            "",
        )
    ],
    "VotingRegressor": [
        (
            "",
            lambda: ensemble.VotingRegressor([("r", _RIDGE()), ("l", linear_model.Lasso())]),
            "",
        )
    ],
    "CCA": [("", lambda: cross_decomposition.CCA(1), "two targets")],
    "PLSCanonical": [("", lambda: cross_decomposition.PLSCanonical(1), "two targets")],
    "PLSSVD": [("", lambda: cross_decomposition.PLSSVD(1), "two targets")],
    "IsotonicRegression": [
        ("", lambda: isotonic.IsotonicRegression(out_of_bounds="clip"), "one column")
    ],
    "KernelRidge": [
        (
            "rbf",
            lambda: __import__("sklearn.kernel_ridge").kernel_ridge.KernelRidge(kernel="rbf"),
            "",
        ),
        ("linear", lambda: __import__("sklearn.kernel_ridge").kernel_ridge.KernelRidge(), ""),
    ],
    "GaussianProcessRegressor": [
        (
            "",
            lambda: gaussian_process.GaussianProcessRegressor(
                gaussian_process.kernels.RBF(3.0), alpha=1.0, normalize_y=True
            ),
            "",
        )
    ],
    "MultiOutputRegressor": [
        ("", lambda: multioutput.MultiOutputRegressor(_RIDGE()), "two targets")
    ],
    "RegressorChain": [("", lambda: multioutput.RegressorChain(_RIDGE()), "two targets")],
    "MultiTaskElasticNet": [("", linear_model.MultiTaskElasticNet, "two targets")],
    "MultiTaskElasticNetCV": [("", linear_model.MultiTaskElasticNetCV, "two targets")],
    "MultiTaskLasso": [("", linear_model.MultiTaskLasso, "two targets")],
    "MultiTaskLassoCV": [("", linear_model.MultiTaskLassoCV, "two targets")],
    "TransformedTargetRegressor": [
        (
            "log",
            lambda: compose.TransformedTargetRegressor(
                _RIDGE(), func=np.log1p, inverse_func=np.expm1
            ),
            "",
        ),
        (
            "scaler",
            lambda: compose.TransformedTargetRegressor(_RIDGE(), transformer=_SCALE()),
            "",
        ),
    ],
    "QuantileRegressor": [("", lambda: linear_model.QuantileRegressor(alpha=0.01), "")],
    "AdditiveChi2Sampler": [("", kernel_approximation.AdditiveChi2Sampler, "iris")],
    "ColumnTransformer": [
        (
            "",
            lambda: compose.ColumnTransformer(
                [("s", _SCALE(), [0, 2]), ("b", preprocessing.KBinsDiscretizer(3), [1])],
                remainder="passthrough",
                sparse_threshold=0,
            ),
            "",
        )
    ],
    "FeatureUnion": [
        (
            "",
            lambda: pipeline.FeatureUnion(
                [("pca", decomposition.PCA(2)), ("s", preprocessing.MinMaxScaler())]
            ),
            "",
        )
    ],
    "FunctionTransformer": [
        ("", preprocessing.FunctionTransformer, ""),
        ("log1p", lambda: preprocessing.FunctionTransformer(np.log1p), "iris"),
        ("sqrt", lambda: preprocessing.FunctionTransformer(np.sqrt), "iris"),
    ],
    "KBinsDiscretizer": [
        ("onehot", lambda: preprocessing.KBinsDiscretizer(4), ""),
        ("ordinal", lambda: preprocessing.KBinsDiscretizer(4, encode="ordinal"), ""),
        (
            "uniform",
            lambda: preprocessing.KBinsDiscretizer(4, encode="onehot-dense", strategy="uniform"),
            "",
        ),
        (
            "kmeans",
            lambda: preprocessing.KBinsDiscretizer(4, strategy="kmeans", encode="ordinal"),
            "",
        ),
    ],
    "KernelCenterer": [("", preprocessing.KernelCenterer, "kernel")],
    "KernelPCA": [
        ("rbf", lambda: decomposition.KernelPCA(3, kernel="rbf"), ""),
        ("linear", lambda: decomposition.KernelPCA(3), ""),
    ],
    "KNNImputer": [("", impute.KNNImputer, "missing")],
    "SimpleImputer": [
        ("mean", impute.SimpleImputer, "missing"),
        (
            "indicator",
            lambda: impute.SimpleImputer(strategy="median", add_indicator=True),
            "missing",
        ),
    ],
    "IterativeImputer": [
        ("", lambda: impute.IterativeImputer(max_iter=3, random_state=0), "missing"),
    ],
    "MissingIndicator": [("", impute.MissingIndicator, "missing")],
    "LocallyLinearEmbedding": [
        ("", manifold.LocallyLinearEmbedding, ""),
        ("12 neighbours", lambda: manifold.LocallyLinearEmbedding(n_neighbors=12), ""),
    ],
    "SparseCoder": [
        ("", lambda: decomposition.SparseCoder(_atoms()), ""),
        (
            "four atoms",
            lambda: decomposition.SparseCoder(_atoms(), transform_n_nonzero_coefs=4),
            "",
        ),
        (
            "threshold",
            lambda: decomposition.SparseCoder(
                _atoms(), transform_algorithm="threshold", split_sign=True
            ),
            "",
        ),
    ],
    "DictionaryLearning": [
        (
            "",
            lambda: decomposition.DictionaryLearning(
                5, max_iter=20, transform_n_nonzero_coefs=3, random_state=0
            ),
            "",
        )
    ],
    "LatentDirichletAllocation": [
        ("", lambda: decomposition.LatentDirichletAllocation(3, random_state=0), "counts")
    ],
    "NMF": [("", lambda: decomposition.NMF(3, random_state=0, max_iter=2000), "iris")],
    "MiniBatchNMF": [("", lambda: decomposition.MiniBatchNMF(3, random_state=0), "iris")],
    "OneHotEncoder": [
        ("", preprocessing.OneHotEncoder, "codes"),
        (
            "infrequent",
            lambda: preprocessing.OneHotEncoder(min_frequency=60, handle_unknown="ignore"),
            "codes",
        ),
        ("drop first", lambda: preprocessing.OneHotEncoder(drop="first"), "codes"),
    ],
    "OrdinalEncoder": [("", preprocessing.OrdinalEncoder, "codes")],
    "TargetEncoder": [
        ("", lambda: preprocessing.TargetEncoder(random_state=0), "codes"),
        ("values", lambda: preprocessing.TargetEncoder(random_state=0), "codes and numbers"),
    ],
    "PowerTransformer": [
        ("yeo-johnson", preprocessing.PowerTransformer, ""),
        ("box-cox", lambda: preprocessing.PowerTransformer(method="box-cox"), "iris"),
    ],
    "QuantileTransformer": [
        ("uniform", lambda: preprocessing.QuantileTransformer(n_quantiles=50), ""),
        (
            "normal",
            lambda: preprocessing.QuantileTransformer(n_quantiles=50, output_distribution="normal"),
            "",
        ),
    ],
    "SplineTransformer": [
        ("", preprocessing.SplineTransformer, ""),
        (
            "linear",
            lambda: preprocessing.SplineTransformer(
                extrapolation="linear", knots="quantile", include_bias=False
            ),
            "",
        ),
        ("periodic", lambda: preprocessing.SplineTransformer(extrapolation="periodic"), ""),
    ],
    "PolynomialFeatures": [
        ("", preprocessing.PolynomialFeatures, "iris"),
        ("3", lambda: preprocessing.PolynomialFeatures(3, include_bias=False), "iris"),
        ("interactions", lambda: preprocessing.PolynomialFeatures(interaction_only=True), "iris"),
    ],
    "RFE": [("", lambda: feature_selection.RFE(_LR()), "")],
    "RFECV": [("", lambda: feature_selection.RFECV(_LR()), "")],
    "SelectFromModel": [("", lambda: feature_selection.SelectFromModel(_LR()), "")],
    "SequentialFeatureSelector": [
        ("", lambda: feature_selection.SequentialFeatureSelector(_LR(), n_features_to_select=3), "")
    ],
    "SkewedChi2Sampler": [
        ("", lambda: kernel_approximation.SkewedChi2Sampler(random_state=0), "iris")
    ],
    "SparseRandomProjection": [
        ("", lambda: random_projection.SparseRandomProjection(4, random_state=0), "")
    ],
    "GaussianRandomProjection": [
        ("", lambda: random_projection.GaussianRandomProjection(4, random_state=0), "")
    ],
    "TfidfTransformer": [("", feature_extraction.text.TfidfTransformer, "counts")],
    "TfidfVectorizer": [("", feature_extraction.text.TfidfVectorizer, "text")],
    "CountVectorizer": [
        ("", feature_extraction.text.CountVectorizer, "text"),
        ("pairs", lambda: feature_extraction.text.CountVectorizer(ngram_range=(1, 2)), "text"),
    ],
    "RadiusNeighborsTransformer": [
        ("", lambda: neighbors.RadiusNeighborsTransformer(radius=3.0), "")
    ],
    "KNeighborsTransformer": [("", neighbors.KNeighborsTransformer, "")],
    "Isomap": [("", lambda: manifold.Isomap(n_components=2), "")],
    "LocalOutlierFactor": [("", lambda: neighbors.LocalOutlierFactor(novelty=True), "")],
    "IsolationForest": [
        ("", lambda: ensemble.IsolationForest(n_estimators=10, random_state=0), ""),
        (
            "missing",
            lambda: ensemble.IsolationForest(n_estimators=10, max_features=0.5, random_state=0),
            "missing",
        ),
    ],
    "EllipticEnvelope": [("", lambda: covariance.EllipticEnvelope(random_state=0), "")],
    "MLPClassifier": [
        (
            "",
            lambda: neural_network.MLPClassifier(
                hidden_layer_sizes=(16,), max_iter=1000, random_state=0
            ),
            "",
        ),
        (
            "binary",
            lambda: neural_network.MLPClassifier(
                hidden_layer_sizes=(8,), max_iter=1000, random_state=0
            ),
            "binary",
        ),
    ],
    "MLPRegressor": [
        (
            "",
            lambda: neural_network.MLPRegressor(
                hidden_layer_sizes=(16,), max_iter=3000, random_state=0
            ),
            "",
        )
    ],
    "SGDClassifier": [
        ("", lambda: linear_model.SGDClassifier(random_state=0), ""),
        ("log", lambda: linear_model.SGDClassifier(loss="log_loss", random_state=0), ""),
        ("huber", lambda: linear_model.SGDClassifier(loss="modified_huber", random_state=0), ""),
    ],
    "LogisticRegression": [("", _LR, ""), ("binary", _LR, "binary")],
    "GradientBoostingClassifier": [
        ("", lambda: ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0), ""),
        (
            "binary",
            lambda: ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0),
            "binary",
        ),
    ],
}


def cases() -> Iterator[Case]:
    """Yield all cases, by kind and name; those of `CANNOT` are not among them."""
    for kind, found in _by_kind().items():
        for name, cls in sorted(found.items()):
            if name in CANNOT:
                continue
            for note, build, data in _ENTRIES.get(name, [("", lambda cls=cls: _plain(cls), "")]):
                yield Case(name, kind, note, build, data or _DEFAULT_DATA[kind])


def _by_kind() -> dict[str, dict[str, type]]:
    """Return the estimators of each kind; one that is of two counts for the first of `KINDS`."""
    from sklearn.base import OutlierMixin
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # brings its class

    everything = dict(all_estimators())
    detectors = {n: c for n, c in everything.items() if issubclass(c, OutlierMixin)}
    found: dict[str, dict[str, type]] = {}
    seen = set(detectors)
    for kind in KINDS[:3]:
        named = {n: c for n, c in all_estimators(type_filter=kind) if n not in seen}
        found[kind] = named
        seen |= set(named)
    found["outlier detector"] = detectors
    # scikit-learn calls these neither, because they take text.
    for cls in (feature_extraction.text.CountVectorizer, feature_extraction.text.TfidfVectorizer):
        found["transformer"][cls.__name__] = cls
    return found


def _plain(cls: type) -> Any:
    estimator = cls()
    known = estimator.get_params()
    wanted = {"random_state": 0, "n_estimators": 10}
    chosen = {name: value for name, value in wanted.items() if name in known}
    if "n_components" in known and known["n_components"] is None:
        chosen["n_components"] = 2
    return estimator.set_params(**chosen)
