"""Quantization to TFLite: by TensorFlow from Keras, and by ai-edge-quantizer from TFLite."""

import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from edgefleet_converters import child
from edgefleet_converters.compatibility import check
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps import registry, tflite_graph, tflite_quantizer
from edgefleet_converters.steps.registry import Context, Model
from edgefleet_protocol.manifest import Signature, Task, Tensor
from tests.converters import keras_steps
from tests.converters.keras_steps import Chains, Made

INT8, DENSE = tflite_graph.INT8, tflite_graph.DENSE
FROM_KERAS: Chains = {
    "float": [("keras-to-tflite", {})],
    "compact": [("keras-to-tflite", {}), ("tflite-compact", {})],
    "fp16": [("tflite-fp16", {})],
    "int8": [("tflite-int8", {})],
    "int8 again": [("tflite-int8", {})],
    "int8 by rows": [("tflite-int8", {"percentile": 99.9, "float_layers": ["scores"]})],
    "int16x8": [("tflite-int16x8", {"calibration_rows": 50})],
    "dynamic": [("tflite-dynamic", {})],
    "dynamic 4": [("tflite-dynamic", {"bits": 4, "block": 32})],
}
FROM_TFLITE: Chains = {
    "float": [("tflite-float", {})],
    "fp16": [("tflite-fp16", {})],
    "int8": [("tflite-int8", {})],
    "int8 again": [("tflite-int8", {})],
    "int8 per tensor": [("tflite-int8", {"per_channel": False})],
    "dynamic": [("tflite-dynamic", {})],
    "weights": [("tflite-weights", {})],
    "weights by channel": [("tflite-weights", {"granularity": "channel"})],
    "weights by tensor": [("tflite-weights", {"granularity": "tensor"})],
    "weights 4": [("tflite-weights", {"bits": 4})],
    "small": [("tflite-equalize", {}), ("tflite-weights", {"biases": "int8"})],
    "small again": [("tflite-equalize", {}), ("tflite-weights", {"biases": "int8"})],
    "twice": [("tflite-int8", {}), ("tflite-int8", {})],
}


@pytest.fixture(scope="module")
def from_keras() -> dict[str, Model]:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs edgefleet-converters[keras]")
    made = child.run("quantizing", keras_steps.make, FROM_KERAS, returns=Made)
    assert made.refused == {}
    return made.models


Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def spoken(shared_models: Path) -> tuple[Rows, NDArray[np.int64]]:
    """Return 1,000 recorded words `(n, 49, 10, 1)` and which of twelve each is."""
    int8 = Interpreter(str(shared_models / "mlperf_tiny" / "kws_ref_model.tflite"))
    scale, zero = int8.get_input_details()[0]["quantization"]
    with zipfile.ZipFile(shared_models / "mlperf_eval" / "kws01.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".bin"))
        data = np.stack([np.frombuffer(archive.read(name), np.int8) for name in names])
    rows = ((data.astype(np.float32) - zero) * np.float32(scale)).reshape(-1, 49, 10, 1)
    return rows, np.array([int(Path(name).stem.rsplit("_", 1)[1]) for name in names])


def tflite(path: Path, task: Task) -> Model:
    data = path.read_bytes()
    interpreter = Interpreter(model_content=data)
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    inputs = [Tensor(taken["name"], "float32", [None, *map(int, taken["shape"][1:])])]
    outputs = [Tensor(given["name"], "float32", [None, *map(int, given["shape"][1:])])]
    return Model("tflite", data, Signature(task, inputs, outputs, given["name"]))


def quantize(model: Model, rows: Rows, chains: Chains) -> Made:
    samples = Samples("recordings", None, {"input": rows})
    context = Context(model.signature.task, samples, np.zeros((len(rows), 1)), None, 0)
    return child.run("quantizing", keras_steps.carry_out, model, context, chains, returns=Made)


@pytest.fixture(scope="module")
def words(shared_models: Path, spoken: tuple[Rows, NDArray[np.int64]]) -> Made:
    path = shared_models / "mlperf_tiny" / "kws_ref_model_float32.tflite"
    return quantize(tflite(path, "classification"), spoken[0][:200], FROM_TFLITE)


def predict(model: Model, rows: Rows) -> Rows:
    """Return the outputs of a TFLite file, one row a call."""
    interpreter = Interpreter(model_content=model.data, num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (taken["dtype"], given["dtype"]) == (np.float32, np.float32)
    assert (taken["name"], given["name"]) == (
        model.signature.inputs[0].name,
        model.signature.score_output,
    )
    answers = []
    for row in rows:
        interpreter.set_tensor(taken["index"], row[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(answers)


def digits_accuracy(model: Model) -> float:
    images, labels = keras_steps.digits()
    held = slice(keras_steps.TRAINING_ROWS, None)
    return float((predict(model, images[held]).argmax(axis=1) == labels[held]).mean())


def dense_scales(model: Model) -> list[int]:
    """Return the number of scales of each quantized weight of a dense layer."""
    graph = tflite_graph.read(model.data)
    return [
        len(part.tensors[operator.inputs[1]].quantization.scale)
        for part in graph.subgraphs
        for operator in part.operators
        if graph.operatorCodes[operator.opcodeIndex].builtinCode == DENSE
        and part.tensors[operator.inputs[1]].type == INT8
    ]


def weight_scales(model: Model) -> list[int]:
    """Return the number of scales of each stored int8 weight."""
    graph = tflite_graph.read(model.data)
    return [
        len(tensor.quantization.scale)
        for tensor in tflite_graph.tensors(graph)
        if tensor.type == INT8 and graph.buffers[tensor.buffer].data is not None
    ]


def versions(model: Model) -> dict[int, int]:
    codes = tflite_graph.read(model.data).operatorCodes
    return {code.builtinCode: code.version for code in codes}


@pytest.mark.parametrize(
    ("name", "share", "lost"),
    [
        ("compact", 1.0, 0.0),
        ("fp16", 0.55, 0.005),
        ("int8", 0.35, 0.02),
        ("int8 by rows", 0.4, 0.02),
        ("int16x8", 0.35, 0.02),
        ("dynamic", 0.35, 0.02),
        ("dynamic 4", 0.3, 0.05),
    ],
)
def test_a_keras_model_becomes_smaller_and_stays_right(
    from_keras: dict[str, Model], name: str, share: float, lost: float
) -> None:
    assert len(from_keras[name].data) < share * len(from_keras["float"].data)
    assert digits_accuracy(from_keras[name]) >= digits_accuracy(from_keras["float"]) - lost


def test_equal_models_give_equal_bytes(from_keras: dict[str, Model], words: Made) -> None:
    assert from_keras["int8"].data == from_keras["int8 again"].data
    for name in ("int8", "small"):
        assert words.models[name].data == words.models[f"{name} again"].data


def test_compaction_changes_no_answer(from_keras: dict[str, Model]) -> None:
    images, _ = keras_steps.digits()
    expected = predict(from_keras["float"], images[:50])
    np.testing.assert_array_equal(predict(from_keras["compact"], images[:50]), expected)


@pytest.mark.parametrize(
    ("name", "bytes_", "accuracy"),
    [
        ("float", 93_500, 0.9),
        ("fp16", 50_000, 0.9),
        ("int8", 33_700, 0.9),
        ("int8 per tensor", 28_400, 0.895),
        ("dynamic", 30_500, 0.9),
        ("weights", 29_500, 0.9),
        ("small", 26_500, 0.9),
        ("weights 4", 26_600, 0.83),
    ],
)
def test_keyword_spotting_keeps_its_accuracy(
    words: Made,
    spoken: tuple[Rows, NDArray[np.int64]],
    name: str,
    bytes_: int,
    accuracy: float,
) -> None:
    rows, labels = spoken
    model = words.models[name]
    assert len(model.data) < bytes_
    assert (predict(model, rows).argmax(axis=1) == labels).mean() >= accuracy


def test_what_is_quantized_is_not_quantized_again(words: Made) -> None:
    quantized = "the TFLite file computes in integers: it is quantized already"
    assert words.refused == {"twice": f"UnsupportedError: {quantized}"}


def test_a_file_that_old_runtimes_answer_nonsense_from_is_refused_by_them(words: Made) -> None:
    # Loaded as float32's versions said, it scored 91.6 % on LiteRT 2.3 and 8.6 % on 2.14.
    assert versions(words.models["dynamic"])[DENSE] == 12
    old = check.check(words.models["dynamic"].data, "tflite-runtime", "2.14.0")
    assert not old.fits
    assert "FULLY_CONNECTED" in " ".join(old.reasons)
    assert check.check(words.models["int8"].data, "tflite-runtime", "2.14.0").fits


def test_float_weights_are_those_that_were_stored(words: Made, shared_models: Path) -> None:
    stored = tflite_graph.read(words.models["base"].data)
    exact = tflite_graph.read(words.models["float"].data)
    assert {tensor.type for tensor in tflite_graph.tensors(exact)} == {0, 2}
    assert INT8 in {tensor.type for tensor in tflite_graph.tensors(stored)}


def test_a_file_of_integers_has_no_float_weights(shared_models: Path) -> None:
    data = (shared_models / "mlperf_tiny" / "ad01_int8.tflite").read_bytes()
    made = quantize(
        tflite(shared_models / "mlperf_tiny" / "ad01_int8.tflite", "score"),
        np.zeros((1, 640), np.float32),
        {"again": [("tflite-int8", {})]},
    )
    assert made.models["base"].data == data
    assert made.refused == {
        "again": "UnsupportedError: the TFLite file computes in integers: it is quantized already"
    }


def test_dense_layers_get_a_scale_for_each_channel(shared_models: Path) -> None:
    rows = np.random.default_rng(0).normal(-20, 8, (20, 640)).astype(np.float32)
    model = tflite(shared_models / "mlperf_tiny" / "ad01_fp32.tflite", "score")
    made = quantize(
        model,
        rows,
        {"int8": [("tflite-int8", {})], "one": [("tflite-int8", {"per_channel": False})]},
    )
    assert dense_scales(made.models["int8"]) == [128] * 4 + [8] + [128] * 4 + [640]
    assert dense_scales(made.models["one"]) == [1] * 10


def test_int8_of_the_anomaly_detector_loses_less_than_its_authors(shared_models: Path) -> None:
    folder = os.environ.get("EDGEFLEET_AD01")
    if folder is None:
        pytest.skip("EDGEFLEET_AD01 names no folder with the recordings (research only)")
    listed = [line.split(",") for line in (Path(folder) / "y_labels.csv").read_text().split()]
    recordings = np.stack([np.fromfile(Path(folder) / entry[0], "<f4") for entry in listed])
    windows = np.lib.stride_tricks.sliding_window_view(recordings, 640, axis=1)[:, ::128][:, :196]
    bad = np.array([int(entry[2]) for entry in listed])
    model = tflite(shared_models / "mlperf_tiny" / "ad01_fp32.tflite", "score")
    normal = windows[np.flatnonzero(bad == 0)[::8]].reshape(-1, 640)
    sample = np.random.default_rng(0).choice(normal, 300, replace=False).astype(np.float32)
    made = quantize(model, sample, {"int8": [("tflite-int8", {})]})

    def auc(one: Model) -> float:
        errors = [((predict(one, part) - part) ** 2).mean() for part in windows[:, ::7]]
        return float(roc_auc_score(bad, errors))

    assert auc(made.models["int8"]) > auc(model) - 0.01


@pytest.mark.parametrize(
    ("step", "options", "text"),
    [
        ("tflite-dynamic", {"bits": 8, "block": 32}, "a block size needs 4 bits"),
        ("tflite-dynamic", {"bits": 4, "block": 31}, "Invalid enum value 31"),
        ("tflite-weights", {"bits": 5}, "Invalid enum value 5"),
        ("tflite-int8", {"percentile": 50}, "Expected `float` > 50"),
        ("tflite-int8", {"rows": 3}, "its options are: per_channel, calibration_rows"),
    ],
)
def test_options_out_of_their_limits_are_refused(
    step: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(BadInputError, match=text):
        registry.find(step).configure(options)


def test_a_percentile_leaves_out_both_tails() -> None:
    seen = [np.arange(1001, dtype=np.float32)]
    calibration = tflite_quantizer.Calibration(rows=1, percentile=90)
    found = tflite_quantizer._range(seen, calibration, (1, 1))
    assert (float(found["min"][0, 0]), float(found["max"][0, 0])) == (50.0, 950.0)


def test_layers_share_one_scale_where_8_bits_allow_it(
    words: Made, spoken: tuple[Rows, NDArray[np.int64]]
) -> None:
    """Ten layers: a convolution, four depthwise ones, four of 1x1, and a dense one."""
    by = {name: words.models[f"weights{name}"] for name in ("", " by channel", " by tensor", " 4")}
    channels = weight_scales(by[" by channel"])
    assert sorted(channels) == [12, *[64] * 9]
    assert weight_scales(by[" by tensor"]) == [1] * 10
    mixed = weight_scales(by[""])
    assert set(mixed) == {1, 64} or set(mixed) == {1, 12, 64}
    assert len(by[" by tensor"].data) < len(by[""].data) < len(by[" by channel"].data)
    rows, labels = spoken[0][200:600], spoken[1][200:600]
    right = (predict(by[""], rows).argmax(axis=1) == labels).mean()
    exact = (predict(words.models["float"], rows).argmax(axis=1) == labels).mean()
    assert right >= exact - 0.005
