"""One fleet and one fitted model for all system tests."""

from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.system.processes import Fleet


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    yield running
    running.stop()


@pytest.fixture(scope="package")
def iris(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fitted pipeline and its rows, as files."""
    folder = tmp_path_factory.mktemp("iris")
    rows = load_iris(as_frame=True).frame
    features, labels = rows.drop(columns="target"), rows["target"]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features.to_numpy(), labels)
    joblib.dump(model, folder / "iris.joblib")
    rows.to_csv(folder / "iris.csv", index=False)
    return folder / "iris.joblib", folder / "iris.csv"
