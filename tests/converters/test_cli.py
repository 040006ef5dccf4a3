import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from typer.testing import CliRunner

from edgefleet_converters.cli import app
from edgefleet_converters.conversion import VARIANTS
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.steps import registry

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
    fitted = make_pipeline(
        FunctionTransformer(np.roll, kw_args={"shift": 1}), LinearRegression()
    ).fit(X, y)
    model = save_model(fitted, "m.joblib")
    sample = save_table(pd.DataFrame(X), "s.csv")
    told = cli.invoke(app, ["convert", model, "--sample", sample, "--out", str(tmp_path)])
    assert told.exit_code == 1
    assert "FunctionTransformer" in told.stderr


def test_own_recipes_and_a_metric_are_taken_from_the_command_line(
    save_model: SaveModel, save_table: SaveTable, tmp_path: Path
) -> None:
    frame: pd.DataFrame = datasets.load_iris(as_frame=True).frame.query("target > 0")
    fitted = RandomForestClassifier(5, random_state=0)
    fitted.fit(frame.drop(columns="target"), frame["target"])
    model, sample = save_model(fitted, "iris.joblib"), save_table(frame, "iris.csv")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("name: own\nsummary: Tidy.\ngives: onnx\nsteps: [onnx-compact]\n")
    arguments = ["convert", model, "--sample", sample, "--label", "target", "--variants", ""]
    arguments += ["--recipe", str(recipe), "--out", str(tmp_path / "out")]
    told = cli.invoke(app, [*arguments, "--metric", "auc"])
    assert told.exit_code == 0, told.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (variant,) = report["variants"]
    assert (variant["name"], variant["state"]) == ("own", "verified")
    drop = variant["evidence"]["drop"]
    assert drop["low"] <= drop["point"] <= drop["high"]
    assert variant["latency"]["p50_us"] <= variant["latency"]["p99_us"]
    assert variant["peak_bytes"] >= variant["needs"]["memory_bytes"]
    assert "original on held-out rows: auc" in told.stdout
    told = cli.invoke(app, [*arguments, "--metric", "f1"])
    assert told.exit_code == 2
    assert "--metric f1: expected one of accuracy, r2, auc" in told.stderr
    recipe.write_text("name: own\nsteps: [onnx-fast]\n")
    told = cli.invoke(app, arguments)
    assert told.exit_code == 2
    assert "own.yaml: line 1: the recipe has no summary, gives" in told.stderr


def test_recipes_and_steps_are_shown_with_options_limits_and_references() -> None:
    told = cli.invoke(app, ["recipes"], env={"COLUMNS": "200"})
    assert told.exit_code == 0
    for name in (*VARIANTS, *registry.all_steps()):
        assert name in told.stdout
    told = cli.invoke(app, ["recipes", "--json"])
    described = json.loads(told.stdout)
    assert [recipe["name"] for recipe in described["recipes"]] == list(VARIANTS)
    (step,) = (step for step in described["steps"] if step["name"] == "prune-weights")
    assert (step["takes"], step["gives"], step["exact"]) == (["keras"], "keras", False)
    options = {option["name"]: option for option in step["options"]}
    assert options["sparsity"] == {"name": "sparsity", "default": 0.5, "limits": "number > 0 < 1"}


def test_one_recipe_is_shown_as_yaml_and_one_step_as_a_page() -> None:
    told = cli.invoke(app, ["recipes", "onnx-pruned"])
    assert recipes_of.parse(told.stdout, "told") == recipes_of.builtin()["onnx-pruned"]
    told = cli.invoke(app, ["recipes", "prune-weights"])
    assert told.stdout.startswith("prune-weights: keras → keras\n\n")
    assert "- sparsity: number > 0 < 1 (0.5)" in told.stdout
    assert "Described in https://" in told.stdout
    assert "Raises:" not in told.stdout
    told = cli.invoke(app, ["recipes", "tiny"])
    assert told.exit_code == 2
    assert "no recipe or step is called 'tiny'; recipes: onnx-fp32" in told.stderr


def test_the_help_says_that_a_pickle_runs_code() -> None:
    told = cli.invoke(app, ["convert", "--help"], env={"COLUMNS": "200"})
    assert "runs code when it is loaded" in told.stdout
