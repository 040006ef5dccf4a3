"""A part of the table of scikit-learn; the whole is `python -m tests.coverage sklearn`."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits

from tests.coverage import sklearn, sklearn_cases
from tests.coverage.sklearn_cases import Case

# One or two of each family of converters, and those that people use most.
_SUBSET = {
    "SVC",
    "KNeighborsClassifier",
    "NearestCentroid",
    "ClassifierChain",
    "GaussianProcessClassifier",
    "OutputCodeClassifier",
    "FixedThresholdClassifier",
    "LabelSpreading",
    "HistGradientBoostingClassifier",
    "IsotonicRegression",
    "KernelRidge",
    "TransformedTargetRegressor",
    "RegressorChain",
    "SplineTransformer",
    "KBinsDiscretizer",
    "TargetEncoder",
    "SimpleImputer",
    "FunctionTransformer",
    "Isomap",
    "LatentDirichletAllocation",
    "LocallyLinearEmbedding",
    "SparseCoder",
    "Nystroem",
    "FastICA",
    "RandomTreesEmbedding",
    "CountVectorizer",
    "EllipticEnvelope",
    "IsolationForest",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small data: threads that wait for one another take longer than the work."""
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize(
    "case",
    [case for case in sklearn_cases.cases() if case.name in _SUBSET],
    ids=lambda case: f"{case.name} {case.note}".strip(),
)
def test_the_converted_estimator_answers_as_before(case: Case) -> None:
    result = sklearn.check(case)
    assert (result.state, result.detail) == ("right", "")


def test_an_estimator_is_either_checked_or_named_with_its_reason() -> None:
    from sklearn.utils import all_estimators

    named = {case.name for case in sklearn_cases.cases()}
    assert not named & set(sklearn.CANNOT)
    for kind in ("classifier", "regressor", "transformer"):
        every = {name for name, _ in all_estimators(type_filter=kind)}
        assert every <= named | set(sklearn.CANNOT)
