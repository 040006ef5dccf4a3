"""A few layers and topologies of Keras, and a few real files, in one TensorFlow process each.

The whole tables are commands: `python -m tests.coverage keras` and `… files`.
"""

import importlib.util
from pathlib import Path

import pytest

from tests.coverage import keras as coverage
from tests.coverage import keras_cases, model_files

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs edgefleet-converters[keras]", allow_module_level=True)

FEW = (
    "gelu",
    "Conv2D grouped",
    "Normalization",
    "LSTM",
    "residual",
    "multi-input",
    "multi-output",
    "subclass",
)


def test_layers_and_topologies_answer_alike_on_both_runtimes() -> None:
    results = coverage.run([case for case in keras_cases.CASES if case.name in FEW])
    assert len(results) == 2 * len(FEW)
    assert {(r.name, r.format): r.detail for r in results if r.state != "right"} == {}


def test_real_files_answer_alike_and_equal_input_gives_equal_bytes(shared_models: Path) -> None:
    few = ("gesture/keypoint_classifier.hdf5", "mlperf_tiny/str_ww_ref_model.h5")
    few += ("mlperf_tiny/kws_ref_model.tflite", "tflm/hello_world_float.tflite")
    results = model_files.run(shared_models, few)
    assert [(r.path, r.format) for r in results if not r.is_right] == []
    assert [(r.path, r.format) for r in results if not r.is_same] == []
    assert len(results) == 6
