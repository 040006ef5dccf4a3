import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from typer.testing import CliRunner

from edgefleet_converters.cli import app

SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]
cli = CliRunner()


def test_a_converted_model_verifies_on_the_installed_runtime(
    save_model: SaveModel, save_table: SaveTable, tmp_path: Path
) -> None:
    frame: pd.DataFrame = datasets.load_iris(as_frame=True).frame
    fitted = RandomForestClassifier(5, random_state=0)
    fitted.fit(frame.drop(columns="target"), frame["target"])
    model, sample = save_model(fitted, "Iris.joblib"), save_table(frame, "iris.csv")
    out = tmp_path / "out"
    told = cli.invoke(
        app,
        ["convert", model, "--sample", sample, "--label", "target", "--out", str(out), "--json"],
    )
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["model"], report["task"]) == ("iris", "classification")
    assert [(v["name"], v["state"]) for v in report["variants"]] == [
        ("onnx-fp32", "verified"),
        ("onnx-int8", "refused"),
    ]
    assert len(report["variants"][0]["sha256"]) == 64
    told = cli.invoke(app, ["verify", str(out / "onnx-fp32")])
    assert told.exit_code == 0
    assert "iris 1 onnx-fp32: onnxruntime" in told.stdout
    assert "reproduces its golden vectors" in told.stdout


def test_input_that_cannot_be_used_exits_with_2(
    save_model: SaveModel, save_table: SaveTable, tmp_path: Path
) -> None:
    sample = save_table(pd.DataFrame({"a": [1, 2]}), "s.csv")
    arguments = ["convert", str(tmp_path / "m.onnx"), "--sample", sample, "--out", str(tmp_path)]
    told = cli.invoke(app, arguments)
    assert told.exit_code == 2
    assert "error: " in told.stderr
    assert "cannot be read: No such file or directory" in told.stderr
    told = cli.invoke(app, [*arguments, "--json"])
    assert told.exit_code == 2
    assert "No such file" in json.loads(told.stdout)["error"]
    told = cli.invoke(app, [*arguments, "--name", "No Name"])
    assert told.exit_code == 2
    assert "give one with --name" in told.stderr
    assert cli.invoke(app, ["verify", str(tmp_path)]).exit_code == 2


def test_a_model_that_cannot_be_converted_exits_with_1(
    save_model: SaveModel, save_table: SaveTable, tmp_path: Path
) -> None:
    X, y = datasets.load_iris(return_X_y=True)
    model = save_model(TransformedTargetRegressor(LinearRegression()).fit(X, y), "m.joblib")
    sample = save_table(pd.DataFrame(X), "s.csv")
    told = cli.invoke(app, ["convert", model, "--sample", sample, "--out", str(tmp_path)])
    assert told.exit_code == 1
    assert "TransformedTargetRegressor has no ONNX form" in told.stderr


def test_the_help_says_that_a_pickle_runs_code() -> None:
    told = cli.invoke(app, ["convert", "--help"], env={"COLUMNS": "200"})
    assert "runs code when it is loaded" in told.stdout
