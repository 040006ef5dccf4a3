"""A better version beside a worse one on a real device: seen as better, then taken up."""

import json
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier

from demo.fleet import wait_for
from tests.system.processes import DEVICE, MODEL, Fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "iris.csv"
    load_iris(as_frame=True).frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Iterator[Fleet]:
    """A fleet whose one device replays labelled rows, and serves a stump that knows two classes."""
    folder = tmp_path_factory.mktemp("challenged")
    running = Fleet(folder)
    running.device.stop()
    (running.device.store / "agent.toml").write_text(
        f'[source]\npath = "{rows}"\nmodel = "{MODEL}"\nrows_per_s = 400\nlabel_column = "target"\n'
    )
    running.device.start()
    frame = load_iris(as_frame=True).frame
    stump = DecisionTreeClassifier(max_depth=1)
    joblib.dump(
        stump.fit(frame.drop(columns="target").to_numpy(), frame["target"]), folder / "iris.joblib"
    )
    shipped = running.ship(folder / "iris.joblib", rows)
    assert shipped.returncode == 0, shipped.stderr
    yield running
    running.stop()


def test_a_shadow_is_compared_and_answers_nobody(labelled: Fleet) -> None:
    for command in (
        (
            "train",
            "--model",
            MODEL,
            "--trainer",
            "sklearn",
            "--dataset",
            f"{MODEL}-sample",
            "-p",
            "estimator=LogisticRegression",
        ),
        ("models", "approve", MODEL, "2"),
        ("challenges", "start", MODEL, "2", "--to", "all", "--window-rows", "200"),
    ):
        done = labelled.cli(*command)
        assert done.returncode == 0, done.stderr

    def decided() -> dict | None:
        seen = json.loads(labelled.cli("challenges", "show", "1", "--json").stdout)
        return seen if seen["verdict"].startswith("better (99 %)") else None

    seen = wait_for("a verdict", decided, timeout_s=90, every_s=1.0)
    assert seen["devices"] == [
        {"device": DEVICE, "variant": "onnx-fp32", "step": "confirmed", "reason": ""}
    ]
    assert (seen["version"], seen["champion"]) == ("2", "1")
    assert labelled.serving() == "1"


def test_rolling_the_challenger_out_makes_it_the_champion(labelled: Fleet) -> None:
    done = labelled.cli(
        "rollouts", "create", MODEL, "2", "--to", "all", "--strategy", "direct", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release"] == 2
    labelled.wait_serving("2")
    attempts = labelled.hub.client.get(f"/v1/devices/{DEVICE}")["attempts"]
    (attempt,) = (item for item in attempts if item.get("lane", "primary") == "primary")
    assert attempt["step"] == "confirmed"
    stopped = labelled.cli("challenges", "stop", "1")
    assert stopped.returncode == 0, stopped.stderr
