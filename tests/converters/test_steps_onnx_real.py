"""MLPerf Tiny's models on their own samples: what each technique keeps, and how small it gets."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.stats import rankdata

from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import fidelity, graph
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_protocol.manifest import Signature, Task, Tensor
from tests.converters.onnx_models import Array, Subject, run

# Input scale and zero point of MLPerf Tiny's int8 model, in whose form its samples are.
_KWS_SCALE, _KWS_ZERO = 0.5847029089927673, 83
_FILES = {
    "kws": "kws_ref_model_float32.tflite",
    "resnet8": "ic_resnet8_float.tflite",
    "ad01": "ad01_fp32.tflite",
}
_CONVERT = """
import sys, tf2onnx
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    tf2onnx.convert.from_tflite(source, opset=17, output_path=target)
"""
_AD01 = "EDGEFLEET_AD01"


@pytest.fixture(scope="module")
def exported(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the models as tf2onnx writes them."""
    folder = tmp_path_factory.mktemp("exported")
    pairs = [
        (str(shared_models / "mlperf_tiny" / file), str(folder / f"{name}.onnx"))
        for name, file in _FILES.items()
    ]
    command = [sys.executable, "-c", _CONVERT, *(path for pair in pairs for path in pair)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONHASHSEED": "0"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return folder


def subject(path: Path, task: Task, learned: Array, judged: Array, labels: Array) -> Subject:
    """Return a model, the rows to learn from and those that judge."""
    proto = onnx.load(path)
    width = proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    signature = Signature(
        task,
        [Tensor(proto.graph.input[0].name, "float32", [None, *learned.shape[1:]])],
        [Tensor(proto.graph.output[0].name, "float32", [None, width])],
        proto.graph.output[0].name,
    )
    graph.dequantize_weights(proto.graph)  # five layers of kws are stored as int8
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [t for t in proto.graph.initializer if t.name not in used]:
        proto.graph.initializer.remove(tensor)
    model = Model("onnx", proto.SerializeToString(), signature)
    name = signature.inputs[0].name
    scores = run(model, learned).astype(np.float64)
    context = Context(task, Samples(path.name, None, {name: learned}), scores, None, 0)
    return Subject(model, context, judged, labels)


def stimuli(path: Path, dtype: Any) -> tuple[Array, Array]:
    with zipfile.ZipFile(path) as archive:
        lines = [line.split(",") for line in archive.read("y_labels.csv").decode().split()]
        rows = [np.frombuffer(archive.read(name), dtype) for name, *_ in lines]
    return np.stack(rows).astype(np.float32), np.array([int(label) for *_, label in lines])


@pytest.fixture(scope="module")
def kws(exported: Path, shared_models: Path) -> Subject:
    rows, labels = stimuli(shared_models / "mlperf_eval" / "kws01.zip", np.int8)
    words = ((rows - _KWS_ZERO) * np.float32(_KWS_SCALE)).reshape(-1, 49, 10, 1)
    return subject(exported / "kws.onnx", "classification", words[:200], words[200:], labels[200:])


@pytest.fixture(scope="module")
def resnet8(exported: Path, shared_models: Path) -> Subject:
    rows, labels = stimuli(shared_models / "mlperf_eval" / "ic01.zip", np.uint8)
    pictures = rows.reshape(-1, 32, 32, 3)
    # Only ranges are learned from these pictures; there are too few to hold some back.
    return subject(exported / "resnet8.onnx", "classification", pictures, pictures, labels)


@pytest.fixture(scope="module")
def ad01(exported: Path) -> Subject:
    if _AD01 not in os.environ:
        pytest.skip(f"point {_AD01} at the folder of MLPerf Tiny's ad01 recordings and their list")
    folder = Path(os.environ[_AD01])
    lines = [line.split(",") for line in (folder / "y_labels.csv").read_text().split()]
    spectra = np.stack([np.fromfile(folder / name, "<f4") for name, *_ in lines])
    windows = np.stack([spectra[:, 128 * i : 128 * i + 640] for i in range(196)], axis=1)
    broken = np.array([int(label) for _, _, label, *_ in lines])
    learned = windows[broken == 0][:30, ::8].reshape(-1, 640)
    return subject(exported / "ad01.onnx", "score", learned, windows, broken)


def area_under_curve(held: Subject, model: Model) -> float:
    """Return how well the error of rebuilding tells broken machines from whole ones."""
    flat = held.x.reshape(-1, 640)
    errors = ((run(model, flat) - flat) ** 2).mean(axis=1).reshape(len(held.x), -1).mean(axis=1)
    ranks, broken = rankdata(errors), held.y == 1
    pairs = broken.sum() * (~broken).sum()
    return float((ranks[broken].sum() - broken.sum() * (broken.sum() + 1) / 2) / pairs)


@pytest.mark.parametrize(
    ("step", "ratio", "drop"),
    [
        ("onnx-optimize", 1.0, 0.0),
        ("onnx-fp16-weights", 1.9, 0.0),
        ("onnx-int8-weights", 3.5, 0.005),
        ("onnx-int8-measured", 3.4, 0.005),
        ("onnx-mixed-precision", 3.4, 0.005),
    ],
)
def test_spoken_words_are_told_apart_as_before(
    kws: Subject, step: str, ratio: float, drop: float
) -> None:
    made = kws.make(step)
    assert kws.accuracy() == pytest.approx(0.90, abs=0.01)
    assert kws.accuracy(made) >= kws.accuracy() - drop
    assert len(kws.model.data) / len(made.data) >= ratio


@pytest.mark.parametrize(
    ("step", "ratio", "drop"),
    [
        ("onnx-fp16-weights", 1.9, 0.0),
        ("onnx-int8-weights", 3.5, 0.005),
        ("onnx-int8-static", 3.5, 0.005),
    ],
)
def test_pictures_are_told_apart_as_before(
    resnet8: Subject, step: str, ratio: float, drop: float
) -> None:
    made = resnet8.make(step)
    assert resnet8.accuracy() == 0.855
    assert resnet8.accuracy(made) >= resnet8.accuracy() - drop
    assert len(resnet8.model.data) / len(made.data) >= ratio


def test_int8_pictures_are_not_told_apart_slower(resnet8: Subject) -> None:
    made = resnet8.make("onnx-int8-measured")
    samples = resnet8.context.samples
    # Interleaved, because other processes come and go; the best of each is what the CPU can do.
    times = [
        [
            fidelity.median_us(model.data, model.signature, samples)
            for model in (resnet8.model, made)
        ]
        for _ in range(5)
    ]
    before, after = np.min(times, axis=0)
    assert after < 1.1 * before


def test_broken_machines_are_found_as_before_in_int8(ad01: Subject) -> None:
    before = area_under_curve(ad01, ad01.model)
    made = ad01.make("onnx-int8-static")
    assert area_under_curve(ad01, made) > before - 0.005  # MLPerf's own int8 model loses 0.034
    assert len(ad01.model.data) / len(made.data) > 3.7
    one_scale = ad01.make("onnx-int8-static", granularity="tensor")
    assert area_under_curve(ad01, one_scale) < before - 0.03


def test_gestures_stay_the_same_with_their_argmax_inside(shared_models: Path) -> None:
    table = np.loadtxt(shared_models / "gesture" / "keypoint.csv", delimiter=",")
    rows, labels = table[:, 1:].astype(np.float32), table[:, 0].astype(np.int64)
    data = (shared_models / "gesture_onnx" / "keypoint_classifier.onnx").read_bytes()
    signature = Signature(
        "score",
        [Tensor("input", "float32", [None, 42])],
        [Tensor("class_ids", "int64", [None])],
        "class_ids",
    )
    model = Model("onnx", data, signature)
    ids = run(model, rows)
    samples = Samples("keypoints", None, {"input": rows[::4]})
    context = Context("score", samples, ids[::4, None].astype(np.float64), None, 0)
    held = Subject(model, context, rows, labels)
    for step in ("onnx-int8-static", "onnx-int8-weights", "onnx-fp16-weights", "onnx-optimize"):
        made = held.make(step)
        assert (run(made, rows) == ids).mean() >= 0.995
        assert len(made.data) < len(data)
