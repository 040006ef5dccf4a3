"""A real training in a real job process, converted and registered; and trainers by themselves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefleet_cloud.database.models import Dataset, Run
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.datasets import bundled, content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training import service, sklearn_fit
from edgefleet_cloud.training.service import TrainRequest
from edgefleet_converters.sources import load_estimator, recognise
from edgefleet_converters.tables import Table
from edgefleet_protocol.profiles import DeviceProfile
from tests.cloud.conftest import JOB_DEADLINE_S, finish


def add_split(database: Database, store: Store, name: str) -> tuple[Dataset, Dataset]:
    whole = content.prepare(store, bundled.load(name), bundled.LABEL)
    parts = content.split(store, whole.digest, whole.label, 0.25, 0)
    with database.write() as session:
        row = datasets.add(session, whole, name=name, source=f"bundled:{name}", now=1.0)
        return datasets.add_split(session, row, *parts, 1.0)


def test_a_training_is_converted_registered_and_offered_to_devices(
    database: Database, store: Store, tmp_path: Path
) -> None:
    train, holdout = add_split(database, store, "iris")
    runner = JobRunner(database, store, tmp_path / "jobs", limit=1, clock=lambda: 5.0)
    request = TrainRequest(
        model="iris",
        trainer="sklearn",
        dataset=train.digest,
        holdout=holdout.digest,
        parameters={"estimator": "LogisticRegression"},
        seed=4,
        variants=["onnx-fp32"],
    )
    with database.write() as session:
        job_id = service.start_training(session, request, 2.0, compare=True).id
    job = finish(database, runner, job_id)
    runner.close()
    assert job.error is None
    assert (job.result["comparison"], job.result["guard"]) == (None, None)
    with database.write() as session:
        version = registry.approve(session, "iris", "1", {}, 5.0)
        registry.release(session, "iris", "1", "first", 3.0)
        profile = DeviceProfile("rpi4", {"onnxruntime": "1.20.0"}, 1 << 30)
        (variant,) = registry.variants_for(session, "iris", 1, profile)
        run = session.get_one(Run, 1)
    assert variant.name == "onnx-fp32"
    assert variant.measured["score_rows"] == 37
    assert version.metrics["accuracy"] > 0.85
    assert version.lineage["parameters"] == {"estimator": "LogisticRegression"}
    assert (version.lineage["dataset"], version.lineage["run"]) == (train.digest, "1")
    assert run.environment["scikit-learn"]
    assert run.code.startswith("edgefleet-cloud ")
    assert run.artifact is not None
    assert store.has(run.artifact)


# --- scikit-learn by itself ---------------------------------------------------------------------


def table(**columns: Any) -> Table:
    return Table("t", {name: np.asarray(cells) for name, cells in columns.items()})


def fit(data: Table, folder: Path, **parameters: Any) -> Any:
    fitted = sklearn_fit.fit(data, "y", parameters, 3, folder, lambda *_: None)
    return load_estimator(recognise(fitted.path))


def test_text_and_gaps_are_part_of_the_fitted_pipeline(tmp_path: Path) -> None:
    data = table(
        x=[0.0, np.nan, 2.0, 3.0] * 5,
        room=np.array(["a", "b", None, "b"] * 5, object),
        y=[0.0, 1.0, 0.0, 1.0] * 5,
    )
    pipeline = fit(data, tmp_path, estimator="LogisticRegression")
    assert list(pipeline.feature_names_in_) == ["x", "room"]
    assert pipeline.predict(data.without("y").frame()).tolist() == [0, 1, 0, 1] * 5


def test_trees_are_not_scaled_and_linear_models_are(tmp_path: Path) -> None:
    data = table(x=np.arange(20.0), y=np.arange(20.0) // 10)
    assert [name for name, _ in fit(data, tmp_path, estimator="RandomForestClassifier").steps] == [
        "randomforestclassifier"
    ]
    assert [name for name, _ in fit(data, tmp_path, estimator="SVC").steps] == [
        "standardscaler",
        "svc",
    ]


def test_the_seed_reaches_the_estimator_unless_it_is_given(tmp_path: Path) -> None:
    data = table(x=np.arange(20.0), y=np.arange(20.0))
    forest = fit(data, tmp_path, estimator="RandomForestRegressor", n_estimators=2)
    assert forest[-1].random_state == 3
    own = fit(data, tmp_path, estimator="RandomForestRegressor", n_estimators=2, random_state=9)
    assert own[-1].random_state == 9


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"estimator": "SVC", "depth": 3}, "SVC takes no parameter depth"),
        ({"estimator": "SVC", "C": -1.0}, "SVC cannot be fitted: "),
    ],
)
def test_parameters_that_the_estimator_refuses_are_named(
    tmp_path: Path, parameters: dict[str, Any], complaint: str
) -> None:
    data = table(x=np.arange(20.0), y=np.arange(20.0) // 10)
    with pytest.raises(InvalidError, match=complaint):
        fit(data, tmp_path, **parameters)


# --- Keras by itself, in a process of its own ---------------------------------------------------

KERAS = """
import json, sys, time
from pathlib import Path
import numpy as np
from edgefleet_cloud.datasets import bundled, content
from edgefleet_cloud.training import keras_fit
from edgefleet_converters.answers import class_indices
from edgefleet_converters.tables import Table

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    table = bundled.load("digits")
    train, held = content.split_rows(table.column("target"), len(table), 0.25, 0)
    steps = []
    fitted = keras_fit.fit_cnn(
        table.take(train), "target", {"epochs": 15, "image_shape": [8, 8, 1]}, 7, folder,
        lambda fraction, step: steps.append((fraction, step)),
    )
    import keras
    model = keras.saving.load_model(fitted.path)
    rows = table.take(held)
    scores = model.predict(rows.without("target").matrix(), verbose=0)
    truth = class_indices(rows.column("target"), fitted.classes)
    x = np.linspace(-3, 3, 200)
    line = Table("line", {"x": x, "y": 100 + 20 * x})
    value = keras_fit.fit_mlp(line, "y", {"units": [16], "epochs": 40}, 7, folder, lambda *_: None)
    guess = keras.saving.load_model(value.path).predict(x[:, None], verbose=0)[:, 0]
    print(json.dumps({
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
        "sum": float(scores[0].sum()),
        "classes": fitted.classes,
        "epochs": fitted.facts["epochs"],
        "last": steps[-1][0],
        "value_classes": value.classes,
        "r2": 1 - float(((guess - line.columns["y"]) ** 2).mean() / line.columns["y"].var()),
    }))
"""


def test_keras_trainers_learn_digits_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KERAS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=JOB_DEADLINE_S,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["accuracy"] >= 0.97
    assert found["classes"] == [str(digit) for digit in range(10)]
    assert found["sum"] == pytest.approx(1.0, abs=1e-5)
    assert (found["epochs"], found["last"]) == (15.0, 1.0)
    assert found["value_classes"] is None
    assert found["r2"] > 0.99
