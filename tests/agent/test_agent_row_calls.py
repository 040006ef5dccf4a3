"""The quick way for one row: the same scores as `run`, from many threads, until the close."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgefleet_agent import runtimes
from edgefleet_agent.errors import InferenceError
from edgefleet_agent.runtimes import CallsRows, RowCall, Session
from edgefleet_agent.testing import Bundle
from edgefleet_protocol.manifest import Tensor

Make = Callable[..., Bundle]
BOTH = [("onnxruntime", "classifier.onnx"), ("litert", "classifier.tflite")]
ROWS = np.random.default_rng(3).normal(size=(200, 4))


@pytest.fixture(params=BOTH, ids=[family for family, _ in BOTH])
def session(request: pytest.FixtureRequest, models: Path, bundle: Make) -> Session:
    family, name = request.param
    return runtimes.load(family, models / name, bundle(name).manifest.signature)


def row_call(session: Session) -> RowCall:
    assert isinstance(session, CallsRows)
    call = session.row_call()
    assert call is not None
    return call


def test_a_row_gives_the_scores_that_a_batch_gives(session: Session) -> None:
    call = row_call(session)
    expected = session.run({"x": ROWS.astype(np.float32)})
    np.testing.assert_allclose([call(row) for row in ROWS], expected, atol=1e-6)


def test_rows_and_batches_may_take_turns(session: Session) -> None:
    call = row_call(session)
    for size in (3, 1, 5):
        expected = session.run({"x": ROWS[:size].astype(np.float32)})
        np.testing.assert_allclose(call(ROWS[0]), expected[0], atol=1e-6)


def test_rows_of_many_threads_are_not_mixed_up(session: Session) -> None:
    call = row_call(session)
    expected = session.run({"x": ROWS.astype(np.float32)})
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(call, [*ROWS, *ROWS]))
    np.testing.assert_allclose(got, np.concatenate([expected, expected]), atol=1e-6)


def test_values_that_are_not_finite_reach_the_model(session: Session) -> None:
    assert not np.isfinite(row_call(session)(np.full(4, np.nan))).any()


def test_a_model_without_a_single_numeric_input_has_no_quick_way(
    models: Path, bundle: Make
) -> None:
    signature = bundle("classifier.onnx").manifest.signature
    text = msgspec.structs.replace(signature, inputs=[Tensor("x", "string", [None, 4])])
    session: Any = runtimes.load("onnxruntime", models / "classifier.onnx", signature)
    session._inputs = text.inputs
    assert session.row_call() is None


def test_a_closed_litert_session_refuses_rows(models: Path, bundle: Make) -> None:
    name = "classifier.tflite"
    session = runtimes.load("litert", models / name, bundle(name).manifest.signature)
    call = row_call(session)
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        call(ROWS[0])
