"""Both runtimes answer alike, by name, for one row and many; what they cannot load is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgefleet_agent import runtimes
from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import Session
from edgefleet_agent.testing import Bundle

Make = Callable[..., Bundle]
BOTH = [("onnxruntime", "classifier.onnx"), ("litert", "classifier.tflite")]


@pytest.fixture(params=BOTH, ids=[family for family, _ in BOTH])
def session(request: pytest.FixtureRequest, models: Path, bundle: Make) -> Session:
    family, name = request.param
    return runtimes.load(family, models / name, bundle(name).manifest.signature)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_scores_are_right_for_any_number_of_rows(session: Session, rows: int, scores: Any) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, 4))
    got = session.run({"x": values.astype(np.float32)})
    assert (got.dtype, got.shape) == (np.float32, (rows, 3))
    np.testing.assert_allclose(got, scores(values), atol=1e-5)


def test_an_earlier_answer_is_not_changed_by_a_later_call(session: Session) -> None:
    first = session.run({"x": np.zeros((1, 4), np.float32)})
    kept = first.copy()
    session.run({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_a_call_that_the_runtime_refuses_is_an_inference_error(session: Session) -> None:
    with pytest.raises(InferenceError):
        session.run({"x": np.zeros((1, 5), np.float32)})
    session.run({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize(("family", "name"), BOTH)
@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_file_that_is_no_model_is_refused(
    family: Any, name: str, damage: str, models: Path, tmp_path: Path, bundle: Make
) -> None:
    data = (models / name).read_bytes()
    path = tmp_path / "model"
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "text": b"hello"}[damage])
    with pytest.raises(ModelError, match="does not load the model"):
        runtimes.load(family, path, bundle(name).manifest.signature)


@pytest.mark.parametrize(("family", "name"), BOTH)
def test_a_model_without_the_named_tensors_is_refused(
    family: Any, name: str, models: Path, bundle: Make
) -> None:
    for change in ({"input_name": "y"}, {"output_name": "labels"}):
        with pytest.raises(ModelError, match="the manifest names"):
            runtimes.load(family, models / name, bundle(name, **change).manifest.signature)


def test_litert_takes_the_names_of_tensors_too(models: Path, bundle: Make) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = models / "classifier.tflite"
    interpreter = Interpreter(model_path=str(path))
    names = (
        interpreter.get_input_details()[0]["name"],
        interpreter.get_output_details()[0]["name"],
    )
    assert names != ("x", "probabilities")
    made = bundle("classifier.tflite", input_name=names[0], output_name=names[1])
    session = runtimes.load("litert", path, made.manifest.signature)
    assert session.run({names[0]: np.zeros((2, 4), np.float32)}).shape == (2, 3)


def test_available_runtimes_are_those_installed_and_allowed() -> None:
    assert set(runtimes.available()) == {"onnxruntime", "litert"}
    assert set(runtimes.available(["litert"])) == {"litert"}
    assert runtimes.available([]) == {}


def test_a_runtime_that_is_not_installed_is_a_model_error(
    models: Path, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edgefleet_agent.runtimes.onnx", raising=False)
    with pytest.raises(ModelError, match="runtime onnxruntime cannot be imported"):
        runtimes.load("onnxruntime", models / "x", bundle().manifest.signature)


def test_scores_of_a_wrong_form_are_refused() -> None:
    for output in ([1.0], np.zeros((2, 3)), np.array("text"), np.array(1.0)):
        with pytest.raises(InferenceError):
            runtimes.as_scores(output, 1)
    assert runtimes.as_scores(np.zeros(3, np.float64), 3).shape == (3, 1)
    assert msgspec.json.encode(runtimes.as_scores(np.ones(1), 1).tolist()) == b"[[1.0]]"
