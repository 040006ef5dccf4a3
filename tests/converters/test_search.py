"""A whole search, with real runtimes: a network of scikit-learn, a convolutional one in ONNX."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits, load_iris
from sklearn.neural_network import MLPClassifier
from typer.testing import CliRunner

from edgefleet_converters import bundles
from edgefleet_converters.cli import app
from edgefleet_protocol.manifest import Manifest

SaveModel = Callable[[object, str], str]


def _run(*options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["search", *options])
    assert result.exit_code == code, result.output
    return result.output


def _manifest(folder: Path) -> Manifest:
    return bundles.load(folder).manifest


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a search over a network that scikit-learn trained."""
    import joblib
    import pandas as pd

    folder = tmp_path_factory.mktemp("perceptron")
    rows, labels = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = np.repeat(rows, 6, axis=0) + rng.normal(0, 0.02, (900, 4))
    labels = np.repeat(labels, 6)
    model = MLPClassifier((64, 64), max_iter=60, random_state=0, tol=1e-2).fit(rows, labels)
    joblib.dump(model, folder / "iris.joblib")
    frame = pd.DataFrame(rows, columns=["a", "b", "c", "d"]).assign(species=labels)
    frame.to_csv(folder / "rows.csv", index=False)
    return [
        str(folder / "iris.joblib"),
        *("--sample", str(folder / "rows.csv"), "--label", "species"),
        *("--cache", str(folder / "cache"), "--variants", "onnx-fp32,onnx-int8-weights"),
        *("--runtime", "onnxruntime==1.23"),
    ]


def test_each_board_gets_the_smallest_variant_with_a_bundle_and_reports(
    perceptron: list[str], tmp_path: Path
) -> None:
    printed = _run(
        *perceptron,
        *("--board", "rpi4", "--board", "generic-x86_64"),
        *("--max-drop", "0.05", "--trials", "0", "--out", str(tmp_path), "--max-memory-mib", "300"),
    )
    assert "onnx-int8-weights" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert [choice["chosen"] for choice in report["choices"]] == ["onnx-int8-weights"] * 2
    assert "onnx-fp32" in report["choices"][0]["losers"]
    assert (tmp_path / "report.md").exists()
    assert "<svg" in (tmp_path / "report.html").read_text()
    manifest = _manifest(tmp_path / "bundles" / "onnx-int8-weights")
    assert manifest.needs.boards == []
    assert manifest.needs.max_memory_bytes == 300 * 2**20
    assert not (tmp_path / "tried").exists()


def test_a_second_search_with_other_budgets_runs_nothing_and_binds_bundles_to_boards(
    perceptron: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["--board", "rpi4", "--trials", "0", "--max-drop", "0.05"]
    _run(*perceptron, *wanted, "--out", str(tmp_path / "first"))
    budgets = tmp_path / "budgets.yaml"
    budgets.write_text("boards: {rpi3: {max_bytes: 10}}")

    def refuse(*args: object, **others: object) -> None:
        raise AssertionError(f"a child process was started for {args[0]}")

    monkeypatch.setattr("edgefleet_converters.child.run", refuse)
    printed = _run(
        *perceptron,
        *(*wanted, "--board", "rpi3", "--budgets", str(budgets), "--out", str(tmp_path / "2")),
        "--all-bundles",
        code=1,
    )
    assert "rpi3: no variant qualifies for Raspberry Pi 3" in printed
    assert _manifest(tmp_path / "2" / "bundles" / "onnx-int8-weights").needs.boards == ["rpi4"]
    assert _manifest(tmp_path / "2" / "tried" / "onnx-fp32").variant == "onnx-fp32"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--board", "rpi9"], "no board is called 'rpi9'"),
        (["--board", "rpi4", "--runtime", "onnxruntime"], "is no runtime version"),
        (["--board", "rpi4", "--max-drop", "2"], "max_drop"),
        (["--board", "rpi4", "--variants", "onnx-int9"], "unknown variants onnx-int9"),
        (["--board", "rpi4", "--space", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(
    perceptron: list[str], tmp_path: Path, options: list[str], said: str
) -> None:
    result = CliRunner().invoke(app, ["search", *perceptron, *options, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert said in result.stderr


def _digits_network(path: Path) -> float:
    """Write a convolution with fixed random filters and a trained dense layer; return accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    rng = np.random.default_rng(0)
    filters = rng.normal(0, 0.5, (16, 1, 3, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(images[:, 0], (3, 3), axis=(1, 2))
    hidden = np.maximum(np.einsum("nijkl,fkl->nfij", windows, filters[:, 0]), 0).reshape(1797, -1)
    features = np.hstack([hidden, np.ones((1797, 1), np.float32)])[:1300]
    ridge = features.T @ features + 3.0 * np.eye(features.shape[1])
    weights = np.linalg.solve(ridge, features.T @ (np.eye(10)[labels[:1300]] * 8))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "filters"], ["maps"]),
            helper.make_node("Relu", ["maps"], ["positive"]),
            helper.make_node("Flatten", ["positive"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(filters, "filters"),
            numpy_helper.from_array(weights[:-1].astype(np.float32), "weights"),
            numpy_helper.from_array(weights[-1].astype(np.float32), "bias"),
        ],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, ir_version=8, opset_imports=[opset])
    onnx.save(model, path)
    np.savez(path.with_suffix(".train.npz"), image=images[:1300], label=labels[:1300])
    np.savez(path.with_suffix(".test.npz"), image=images[1300:], label=labels[1300:])
    scores = np.hstack([hidden, np.ones((1797, 1))])[1300:] @ weights
    return float((scores.argmax(axis=1) == labels[1300:]).mean())


def test_spaces_are_searched_and_their_points_compete_with_the_recipes(tmp_path: Path) -> None:
    accuracy = _digits_network(tmp_path / "digits.onnx")
    (tmp_path / "space.yaml").write_text(
        "name: tiny-space\nsummary: Two granularities.\ngives: onnx\n"
        "steps: [{onnx-int8-static: {granularity: {one_of: [channel, tensor]}}}]\n"
    )
    _run(
        str(tmp_path / "digits.onnx"),
        *("--sample", str(tmp_path / "digits.train.npz"), "--label", "label"),
        *("--holdout", str(tmp_path / "digits.test.npz"), "--cache", str(tmp_path / "cache")),
        *("--variants", "onnx-fp32,onnx-int8-weights", "--space", str(tmp_path / "space.yaml")),
        *("--board", "rpi5", "--max-drop", "0.03", "--trials", "4", "--out", str(tmp_path / "out")),
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["original_score"] == pytest.approx(accuracy, abs=0.005)
    assert report["rows"] == 497
    names = [candidate["name"] for candidate in report["candidates"]]
    assert names[:2] == ["onnx-fp32", "onnx-int8-weights"]
    assert set(names[2:]) <= {"tiny-space-000", "tiny-space-001"}
    assert names[2:]
    assert "2 of all 2 points of the spaces were tried" in report["notes"]
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    chosen = by_name[report["choices"][0]["chosen"]]
    assert chosen["size_bytes"] * 3 < by_name["onnx-fp32"]["size_bytes"]
    assert chosen["against"]["onnx-fp32"]["low"] <= 1
    assert chosen["evidence"]["drop"]["high"] <= 0.03
