"""One row through ONNX Runtime beside scikit-learn's own `predict`, on real sensor data.

The ONNX file is what the route makes, run as the agent runs it: one thread, its label output only.
The name of each figure tells the share of rows with equal labels (values within 1e-4 of the spread,
for regressors) over all held-out rows.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edgefleet_converters import sources
from edgefleet_converters.routes import sklearn as route
from edgefleet_converters.routes.opened import Hints
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.tables import Table
from tests.bench.metric import Metric, microseconds

_TRAINING = 2000
_HELD_OUT = 1000
_Floats = NDArray[np.float64]


def run() -> list[Metric]:
    """Measure every estimator on each data set that is there."""
    return [
        _measure(f"{data}, {name}", build(), X, y)
        for data, X, y in _data()
        for name, build in _estimators().items()
    ]


def _data() -> Iterator[tuple[str, _Floats, NDArray[Any]]]:
    """Yield the sensor data, or a bundled set where there is none."""
    shared = Path(os.environ.get("EDGEFLEET_DATA", Path(__file__).parents[2].parent / "shared"))
    occupancy, weather = shared / "data" / "occupancy", shared / "data" / "noaa_weather"
    if occupancy.is_dir():
        frames = [pd.read_csv(occupancy / name) for name in ("datatraining.txt", "datatest2.txt")]
        rows = [
            frame.iloc[:: max(1, len(frame) // size)].iloc[:size]
            for frame, size in zip(frames, (_TRAINING, _HELD_OUT), strict=True)
        ]
        table = pd.concat(rows)
        yield "occupancy", table.iloc[:, 1:6].to_numpy(float), table["Occupancy"].to_numpy()
    if weather.is_dir():
        X = pd.read_csv(weather / "NEweather_data.csv", header=None).to_numpy(float)
        y = pd.read_csv(weather / "NEweather_class.csv", header=None).to_numpy().ravel()
        yield "weather", X[: _TRAINING + _HELD_OUT], y[: _TRAINING + _HELD_OUT]
    if not occupancy.is_dir() and not weather.is_dir():
        from sklearn.datasets import load_digits

        yield "digits", *load_digits(return_X_y=True)


def _estimators() -> dict[str, Callable[[], Any]]:
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
    )
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    def scaled(estimator: Any) -> Any:
        return make_pipeline(StandardScaler(), estimator)

    return {
        "RandomForest": lambda: RandomForestClassifier(100, random_state=0),
        "HistGradientBoosting": lambda: HistGradientBoostingClassifier(random_state=0),
        "GradientBoosting": lambda: GradientBoostingClassifier(random_state=0),
        "scaler + LogisticRegression": lambda: scaled(LogisticRegression(max_iter=1000)),
        "scaler + MLP": lambda: scaled(MLPClassifier((32, 16), max_iter=300, random_state=0)),
        "scaler + SVC": lambda: scaled(SVC()),
        "scaler + kNN": lambda: scaled(KNeighborsClassifier()),
    }


def _measure(name: str, estimator: Any, X: _Floats, y: NDArray[Any]) -> Metric:
    with warnings.catch_warnings():
        # skl2onnx reads attributes that scikit-learn has deprecated.
        warnings.simplefilter("ignore")
        estimator.fit(X[:_TRAINING], y[:_TRAINING])
        model = _converted(estimator, X)
    call, labels = _prepared(model)
    held = X[_TRAINING:]
    equal = float((labels(held) == estimator.predict(held)).mean())
    row = held[:1]
    ours = microseconds(lambda: call(row), calls=200)
    theirs = microseconds(lambda: estimator.predict(row), calls=5)
    return Metric(f"{name}, one row ({equal:.2%} equal)", ours, "µs", "scikit-learn", theirs)


def _converted(estimator: Any, X: _Floats) -> Model:
    columns = {f"x{index}": X[:, index] for index in range(X.shape[1])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.joblib"
        joblib.dump(estimator, path)
        samples = Samples("bench", Table("bench", columns), {})
        return route.open(sources.recognise(path), samples, Hints()).bases["onnx"]


def _prepared(model: Model) -> tuple[Callable[[_Floats], Any], Callable[[_Floats], NDArray[Any]]]:
    """Return a call for one row, and one that gives the labels of many."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
    (given,) = model.signature.inputs
    outputs = [model.signature.label_output]

    def call(rows: _Floats) -> Any:
        return session.run(outputs, {given.name: rows.astype(given.dtype)})[0]

    return call, lambda rows: np.asarray(call(rows))
