"""Both runtimes answer alike, by name, for one row and many; what they cannot load is said."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent import runtimes
from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import Session
from edgefleet_agent.testing import Bundle
from edgefleet_protocol.manifest import Signature, Tensor

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


@pytest.mark.parametrize(("family", "name"), BOTH)
@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [("int32", [None, 4], "the manifest says int32"), ("float64", [None, 4], "says float64")],
)
def test_a_model_that_takes_another_type_is_refused(
    family: Any, name: str, dtype: Any, shape: list[int | None], text: str, models: Path
) -> None:
    signature = Signature(
        "score", [Tensor("x", dtype, shape)], [Tensor("probabilities", "float32", [None, 3])],
        "probabilities",
    )  # fmt: skip
    with pytest.raises(ModelError, match=text):
        runtimes.load(family, models / name, signature)


def test_a_model_that_takes_another_shape_is_refused(models: Path) -> None:
    outputs = [Tensor("probabilities", "float32", [None, 3])]
    for shape in ([None, 5], [None, 4, 1], [4]):
        signature = Signature("score", [Tensor("x", "float32", shape)], outputs, "probabilities")
        with pytest.raises(ModelError, match=r"has the shape \[-1, 4\]; the manifest says"):
            runtimes.load("litert", models / "classifier.tflite", signature)
        with pytest.raises(ModelError, match=r"has the shape \['n', 4\]; the manifest says"):
            runtimes.load("onnxruntime", models / "classifier.onnx", signature)


def test_outputs_are_given_by_name(session: Session, scores: Any) -> None:
    rows = np.random.default_rng(1).normal(size=(5, 4))
    found = session.run_all({"x": rows.astype(np.float32)}, ["probabilities"])
    assert list(found) == ["probabilities"]
    np.testing.assert_allclose(found["probabilities"], scores(rows), atol=1e-5)
    assert session.run_all({"x": rows.astype(np.float32)}, []) == {}
    with pytest.raises(InferenceError):
        session.run_all({"x": rows.astype(np.float32)}, ["labels"])


def test_a_missing_input_is_an_inference_error(session: Session) -> None:
    with pytest.raises(InferenceError):
        session.run({"y": np.zeros((1, 4), np.float32)})


def test_a_reset_session_answers_as_before(session: Session) -> None:
    rows = {"x": np.ones((3, 4), np.float32)}
    before = session.run(rows)
    session.reset()
    np.testing.assert_array_equal(session.run(rows), before)


def test_a_closed_session_answers_no_more(session: Session) -> None:
    session.close()
    for call in (session.run, lambda tensors: session.run_all(tensors, ["probabilities"])):
        with pytest.raises(InferenceError, match="the session is closed"):
            call({"x": np.zeros((1, 4), np.float32)})
    session.close()


def test_a_session_says_what_computes(models: Path, bundle: Make) -> None:
    providers = {
        family: runtimes.load(family, models / name, bundle(name).manifest.signature).provider
        for family, name in BOTH
    }
    assert providers == {"onnxruntime": "CPUExecutionProvider", "litert": "ai-edge-litert"}


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_a_model_of_a_fixed_batch_answers_any_number_of_rows(
    rows: int, models: Path, bundle: Make, scores: Any
) -> None:
    session = runtimes.load("onnxruntime", models / "pairs.onnx", bundle().manifest.signature)
    values = np.random.default_rng(rows).normal(size=(rows, 4))
    tensors = {"x": values.astype(np.float32)}
    np.testing.assert_allclose(session.run(tensors), scores(values), atol=1e-5)
    found = session.run_all(tensors, ["probabilities"])["probabilities"]
    np.testing.assert_allclose(found, scores(values), atol=1e-5)


def test_a_model_of_a_fixed_batch_is_never_asked_for_nothing(models: Path, bundle: Make) -> None:
    session = runtimes.load("onnxruntime", models / "pairs.onnx", bundle().manifest.signature)
    with pytest.raises(InferenceError, match="there are no rows"):
        session.run({"x": np.zeros((0, 4), np.float32)})


@pytest.mark.parametrize(("family", "name"), BOTH)
def test_a_model_without_batches_takes_its_tensors_as_they_are(
    family: Any, name: str, models: Path, scores: Any
) -> None:
    signature = Signature(
        "score", [Tensor("x", "float32", [2, 4])], [Tensor("probabilities", "float32", [2, 3])],
        "probabilities",
    )  # fmt: skip
    session = runtimes.load(family, models / name, signature)
    values = np.random.default_rng(2).normal(size=(2, 4))
    got = session.run({"x": values.astype(np.float32)})
    assert got.shape == (1, 6)
    np.testing.assert_allclose(got.reshape(2, 3), scores(values), atol=1e-5)
    whole = session.run_all({"x": values.astype(np.float32)}, ["probabilities"])
    assert whole["probabilities"].shape == (2, 3)


def test_pieces_are_joined_and_a_lost_row_is_seen() -> None:
    tensors = {"x": np.arange(5)}
    doubled = runtimes.in_pieces(tensors, 5, 2, lambda t: {"y": t["x"] * 2}, fill=True)
    assert doubled["y"].tolist() == [0, 2, 4, 6, 8]
    for lost in (lambda t: {"y": t["x"][:1]}, lambda t: {"y": np.array(1)}):
        with pytest.raises(InferenceError, match="for 2 rows"):
            runtimes.in_pieces(tensors, 5, 2, lost, fill=False)


def port(dtype: Any, scale: float, zero: int) -> Any:
    from edgefleet_agent.runtimes.litert import _Port

    shape = np.array([1], np.int32)
    detail = {"index": 0, "dtype": dtype, "shape": shape, "shape_signature": shape}
    return _Port({**detail, "quantization": (scale, zero)})


@given(
    st.sampled_from([np.int8, np.uint8, np.int16]),
    st.floats(1e-4, 10.0),
    st.integers(-100, 100),
    st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=8),
)
def test_quantizing_is_off_by_half_a_step_at_most_and_stays_in_range(
    dtype: Any, scale: float, zero: int, values: list[float]
) -> None:
    made, given_ = port(dtype, scale, zero), np.array(values, np.float32)
    held = made.quantize(given_)
    limits = np.iinfo(dtype)
    least, most = (limits.min - zero) * scale, (limits.max - zero) * scale
    assert held.dtype == dtype
    np.testing.assert_allclose(
        made.dequantize(held), np.clip(given_, least, most), atol=0.501 * scale, rtol=1e-5
    )


def test_integers_and_unquantized_tensors_pass_as_they_are() -> None:
    integers, floats = np.array([1, -2], np.int8), np.array([1.5], np.float32)
    assert port(np.int8, 0.5, 3).quantize(integers) is integers
    assert port(np.float32, 0.0, 0).quantize(floats) is floats
    assert port(np.int64, 0.0, 0).dequantize(integers) is integers
    assert port(np.bool_, 0.0, 0).quantize(np.array([True])).tolist() == [True]


FALLBACK = """
import importlib.util, sys, types
import ai_edge_litert.interpreter as same_interface
package = types.ModuleType("tflite_runtime")
package.__path__ = []
package.__spec__ = importlib.util.spec_from_loader("tflite_runtime", None)
sys.modules["tflite_runtime"] = package
sys.modules["tflite_runtime.interpreter"] = same_interface
sys.modules["ai_edge_litert"] = sys.modules["ai_edge_litert.interpreter"] = None

from pathlib import Path
import numpy as np
from edgefleet_agent import runtimes
from edgefleet_protocol.manifest import Signature, Tensor

signature = Signature(
    "score", [Tensor("x", "float32", [None, 4])], [Tensor("probabilities", "float32", [None, 3])],
    "probabilities",
)
session = runtimes.load("litert", Path(sys.argv[1]), signature)
assert session.run({"x": np.zeros((2, 4), np.float32)}).shape == (2, 3)
print(session.provider, runtimes.available())
"""


def test_where_only_tflite_runtime_is_installed_it_runs_the_model(
    models: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "tflite_runtime-2.14.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 2.14.0\n", "utf-8"
    )
    said = subprocess.run(
        [sys.executable, "-c", FALLBACK, str(models / "classifier.tflite")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("tflite-runtime ")
    # Under its own name: as a version of LiteRT, 2.14 would be newer than 2.3.
    assert "'tflite-runtime': '2.14.0'" in said.stdout
    assert "'litert'" not in said.stdout


def test_threads_share_a_session(session: Session, scores: Any) -> None:
    values = np.random.default_rng(3).normal(size=(200, 4))

    def ask(index: int) -> np.ndarray:
        return session.run({"x": values[index : index + 1 + index % 3].astype(np.float32)})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(200)))
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer, scores(values[index : index + 1 + index % 3]), atol=1e-5)


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
