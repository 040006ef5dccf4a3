"""Which of scikit-learn's estimators convert and answer as before, on ONNX Runtime.

Each is fitted on small real data, converted by the route, and run on all rows, among them rows that
lie on thresholds and knots. Rules:

1. Right means equal labels, and values within `TOLERANCE` of the original's (probabilities as they
   are, values divided by their spread). Equal scores of two classes are a tie: then either label.
2. The graph takes float32, or float64 where the route would take that: when float32 is off.
3. What no fixed graph can stand for is listed with its reason and not counted.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.routes import sklearn_export
from edgefleet_converters.routes.sklearn import TOLERANCE
from edgefleet_converters.routes.sklearn_export import Column
from tests.coverage import sklearn_cases
from tests.coverage.sklearn_cases import CANNOT, Case

_KINDS = {"float32": np.float32, "float64": np.float64}


class Result(Struct, frozen=True):
    """What became of one case.

    Attributes:
        state: `right`, `wrong` or `refused`.
        dtype: of the graph's input.
        gap: largest difference; None if it was refused.
        detail: why, if it is not right.
    """

    name: str
    kind: str
    note: str
    state: str
    dtype: str = ""
    gap: float | None = None
    detail: str = ""


def check(case: Case) -> Result:
    """Fit, convert, run and compare one estimator."""
    X, y = sklearn_cases.DATA[case.data]()
    with warnings.catch_warnings():
        # Not what is tested here: small data does not let everything converge, and skl2onnx reads
        # attributes that scikit-learn has deprecated.
        warnings.simplefilter("ignore")
        estimator = case.build().fit(X, y)
        wanted = _answers(case.kind, estimator, X)
        results = []
        for name, dtype in _KINDS.items():
            result = _check_as(case, estimator, X, wanted, name, dtype)
            if result.state == "right":
                return result
            results.append(result)
    return min(results, key=lambda result: np.inf if result.gap is None else result.gap)


def _check_as(
    case: Case, estimator: Any, X: Any, wanted: list[Any], name: str, dtype: Any
) -> Result:
    told = (case.name, case.kind, case.note)
    text = X.ndim == 1
    columns = [Column(f"x{i}", is_numeric=not text) for i in range(1 if text else X.shape[1])]
    try:
        model = sklearn_export.to_onnx(estimator, columns, dtype)
        got = _run(model, X if text else X.astype(dtype))
    except UnsupportedError as error:
        return Result(*told, "refused", name, None, str(error))
    except Exception as error:  # the runtime's own exceptions, which have no common base
        return Result(*told, "wrong", name, None, str(error).strip().splitlines()[0])
    gap, detail = _compare(case.kind, wanted, got)
    return Result(*told, "wrong" if detail else "right", name, gap, detail)


def _answers(kind: str, estimator: Any, X: Any) -> list[Any]:
    """Return what the original says: labels first where there are any, then scores."""
    if kind == "transformer":
        return [estimator.transform(X)]
    labels = estimator.predict(X)
    for ask in ("predict_proba", "decision_function"):
        if kind != "regressor" and hasattr(estimator, ask):
            return [labels, getattr(estimator, ask)(X)]
    return [labels]


def _run(model: Any, X: NDArray[Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    rows = X.astype(object).reshape(-1, 1) if X.ndim == 1 else X
    return list(session.run(None, {given.name: rows}))


def _compare(kind: str, wanted: list[Any], got: list[Any]) -> tuple[float, str]:
    """Return the largest difference, and what is wrong."""
    if kind in ("regressor", "transformer"):
        # A clusterer alone gives its label first, then the distances that it transforms to.
        return _gap(wanted[0], got[-1], scaled=True)
    scores = np.zeros(1)
    gap, detail = 0.0, ""
    if len(wanted) > 1:
        gap, detail = _gap(wanted[1], got[-1], scaled=kind == "outlier detector")
        scores = _dense(got[-1])
    labels = np.asarray(got[0]).reshape(np.shape(wanted[0]))
    differ = labels.astype(str) != np.asarray(wanted[0]).astype(labels.dtype).astype(str)
    if differ.ndim == 1 and scores.ndim == 2 and len(scores) == len(differ):
        differ &= ~_tied(scores)
    if differ.any() and not detail:
        detail = (
            f"{int(differ.any(axis=tuple(range(1, differ.ndim))).sum())} rows with other labels"
        )
    return gap, detail


def _tied(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    if scores.shape[1] == 1:
        return np.abs(scores[:, 0]) < TOLERANCE
    best = np.sort(scores, axis=1)
    return best[:, -1] - best[:, -2] < TOLERANCE


def _dense(values: Any) -> NDArray[np.float64]:
    if isinstance(values, list):  # one array for each of several labels
        return np.hstack([_dense(value) for value in values])
    if hasattr(values, "toarray"):
        values = values.toarray()
    return np.asarray(values, np.float64)


def _gap(wanted: Any, got: Any, *, scaled: bool) -> tuple[float, str]:
    expected, found = _dense(wanted), _dense(got)
    if expected.size * 2 == found.size and expected.ndim == 1:
        expected = np.column_stack([-expected, expected])
    if expected.size != found.size:
        return np.inf, f"expected the shape {expected.shape}, got {found.shape}"
    found = found.reshape(expected.shape)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    spread = (
        float(np.nanstd(expected)) or 1.0 if scaled else max(1.0, float(np.abs(expected).max()))
    )
    difference = np.where(same, 0.0, np.abs(expected - found)) / spread
    gap = float(np.nan_to_num(difference, nan=np.inf).max()) if difference.size else 0.0
    off = (difference > TOLERANCE).reshape(len(expected), -1).any(axis=1).sum()
    return gap, "" if gap <= TOLERANCE else f"{int(off)} rows off, by up to {gap:.1e}"


def run(names: Iterable[str] = ()) -> list[Result]:
    """Check all cases, or those of the estimators named."""
    wanted = set(names)
    return [check(case) for case in sklearn_cases.cases() if not wanted or case.name in wanted]


def share(results: list[Result]) -> tuple[int, int]:
    """Return how many estimators are right in all of their cases, and how many there are."""
    names = {result.name for result in results}
    failed = {result.name for result in results if result.state != "right"}
    return len(names - failed), len(names)


__all__ = ["CANNOT", "Result", "check", "run", "share"]
