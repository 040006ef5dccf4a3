"""Cases of a folder of real models, on real samples where the folder holds some.

Every `.onnx` and `.tflite` below it becomes a case. For those listed here the samples that lie
beside them are used, with the labels; the others get inputs from a seed.
"""

import csv
import dataclasses
import io
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet_hardware import cases
from edgefleet_hardware.cases import Arrays, Case, Limits
from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.references import Precision, Truth

_SUFFIXES = (".onnx", ".tflite")
_ROWS = 200
# Inputs of MLPerf Tiny's int8 models: scale and zero point, as they stand in the files.
_KWS_SCALE, _KWS_ZERO = np.float32(0.5847029), 83
_AD_SCALE, _AD_ZERO = np.float32(0.39101523), 89
_WW_SCALE, _WW_ZERO = 0.0037010426, -128
_SILERO_CHUNK, _SILERO_CHUNKS, _SILERO_RATE = 512, 16, 16_000


@dataclass(frozen=True)
class Samples:
    """Inputs of a model, with the right classes where they are known."""

    inputs: Arrays
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Known:
    samples: Callable[[Path], Samples]
    precision: Precision = "reduced"
    min_accuracy: float = 0.0


def gather(folder: Path, limits: Limits) -> tuple[list[Case], dict[str, Truth]]:
    """Return a case for each model below a folder, and what is known of them.

    Raises:
        BadUseError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not found:
        raise BadUseError(f"{folder}: no model ({', '.join(_SUFFIXES)}) below it")
    gathered, truths = [], {}
    for path in found:
        name = path.relative_to(folder).as_posix()
        case = dataclasses.replace(cases.read(path, limits), name=name)
        known = _KNOWN.get(name)
        if known is not None:
            samples = known.samples(folder)
            case = dataclasses.replace(case, inputs=samples.inputs)
            truths[name] = Truth(known.precision, samples.labels, known.min_accuracy)
        gathered.append(case)
    return gathered, truths


@cache
def _archive(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return samples, `(n, bytes)`, and labels of an archive of MLPerf Tiny's test runner."""
    with zipfile.ZipFile(path) as archive:
        listed = next(name for name in archive.namelist() if name.endswith("y_labels.csv"))
        rows = list(csv.reader(io.StringIO(archive.read(listed).decode())))[:_ROWS]
        folder = listed.removesuffix("y_labels.csv")
        data = [np.frombuffer(archive.read(folder + row[0]), np.uint8) for row in rows]
    return np.stack(data), np.array([int(row[2]) for row in rows])


def _kws(folder: Path, name: str, *, as_float: bool) -> Samples:
    data, labels = _archive(folder / "mlperf_eval" / "kws01.zip")
    values = data.view(np.int8).reshape(-1, 1, 49, 10, 1)
    if as_float:
        return Samples({name: (values.astype(np.float32) - _KWS_ZERO) * _KWS_SCALE}, labels)
    return Samples({name: values}, labels)


def _pictures(folder: Path, name: str, *, as_float: bool) -> Samples:
    data, labels = _archive(folder / "mlperf_eval" / "ic01.zip")
    values = data.reshape(-1, 1, 32, 32, 3).astype(np.float32)
    return Samples({name: values if as_float else (values - 128).astype(np.int8)}, labels)


def _gestures(folder: Path, name: str, *, batch: bool) -> Samples:
    table = np.loadtxt(folder / "gesture" / "keypoint.csv", delimiter=",", dtype=np.float32)
    table = table[:: len(table) // _ROWS][:_ROWS]
    rows = table[np.newaxis, :, 1:] if batch else table[:, np.newaxis, 1:]
    return Samples({name: rows}, table[:, 0].astype(np.int64))


def _machine_sounds(_folder: Path, *, as_float: bool) -> Samples:
    values = np.random.RandomState(0).randint(-128, 128, (8, 1, 640)).astype(np.int8)
    if as_float:
        return Samples({"input_1": (values.astype(np.float32) - _AD_ZERO) * _AD_SCALE})
    return Samples({"input_1": values})


def _wake_word(folder: Path) -> Samples:
    with np.load(folder / "mlperf_tiny" / "str_ww_calibration_samples.npz") as file:
        values, labels = file["specs"], file["labels"]
    steps = np.clip(np.round(values / _WW_SCALE) + _WW_ZERO, -128, 127).astype(np.int8)
    return Samples({"serving_default_input_1:0": steps[:, np.newaxis]}, labels.astype(np.int64))


def _speech(folder: Path) -> Samples:
    with wave.open(str(folder / "silero_vad" / "test.wav")) as file:
        raw = file.readframes(_SILERO_CHUNK * _SILERO_CHUNKS)
    chunks = np.frombuffer(raw, "<i2").reshape(_SILERO_CHUNKS, 1, _SILERO_CHUNK) / 32768
    state = np.zeros((_SILERO_CHUNKS, 2, 1, 128), np.float32)
    rates = np.full(_SILERO_CHUNKS, _SILERO_RATE, np.int64)
    return Samples({"input": chunks.astype(np.float32), "state": state, "sr": rates})


def _angles(name: str) -> Samples:
    return Samples({name: np.linspace(0, 6.28, 32, dtype=np.float32).reshape(-1, 1, 1)})


@cache
def _cat(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """Return a 24-bit BMP file as `(height, width, 3)` RGB, nearest pixels."""
    data = path.read_bytes()
    start, wide, high = (int.from_bytes(data[at : at + 4], "little") for at in (10, 18, 22))
    stride = (wide * 3 + 3) // 4 * 4
    lines = np.frombuffer(data, np.uint8, stride * high, start).reshape(high, stride)
    picture = lines[::-1, : wide * 3].reshape(high, wide, 3)[:, :, ::-1]
    down, across = np.arange(height) * high // height, np.arange(width) * wide // width
    return np.ascontiguousarray(picture[down][:, across])


def _faces(folder: Path, name: str, *, channels_first: bool) -> Samples:
    picture = (_cat(folder / "coral" / "cat.bmp", 320, 240).astype(np.float32) - 127) / 128
    picture = picture.transpose(2, 0, 1) if channels_first else picture
    return Samples({name: picture[np.newaxis, np.newaxis]})


def _objects(folder: Path) -> Samples:
    """Return the whole cat and 31 pieces of it, three quarters as high."""
    cat = folder / "coral" / "cat.bmp"
    piece = 128
    picture = _cat(cat, 256, 170)
    spots = np.linspace(0, [170 - piece, 256 - piece], 31).astype(int)
    pieces = [picture[y : y + piece, x : x + piece] for y, x in spots]
    return Samples({"input": np.stack([_cat(cat, piece, piece), *pieces])[:, np.newaxis]})


def _grey(folder: Path) -> Samples:
    picture = _cat(folder / "coral" / "cat.bmp", 224, 224).mean(axis=2) / 255
    return Samples({"input": picture.astype(np.float32)[np.newaxis, np.newaxis, np.newaxis]})


# The shares of right answers are those that the makers or earlier measurements state, less three
# points for taking the first 200 samples only.
_KNOWN = {
    "coral/mobilenet_v1_0.25_128_quant.tflite": _Known(_objects),
    "derived/ultraface_slim320_int8_qdq.onnx": _Known(
        lambda folder: _faces(folder, "input", channels_first=True)
    ),
    "gesture/keypoint_classifier.tflite": _Known(
        lambda folder: _gestures(folder, "input_1", batch=False), "float32", 0.935
    ),
    "gesture_onnx/keypoint_classifier.onnx": _Known(
        lambda folder: _gestures(folder, "input", batch=True), "float32", 0.935
    ),
    "mlperf_tiny/ad01_fp32.tflite": _Known(
        lambda folder: _machine_sounds(folder, as_float=True), "float32"
    ),
    "mlperf_tiny/ad01_int8.tflite": _Known(lambda folder: _machine_sounds(folder, as_float=False)),
    "mlperf_tiny/ic_resnet8_float.tflite": _Known(
        lambda folder: _pictures(folder, "input_1", as_float=True), "float32", 0.825
    ),
    "mlperf_tiny/ic_resnet8_int8.tflite": _Known(
        lambda folder: _pictures(folder, "input_1_int8", as_float=False), min_accuracy=0.82
    ),
    "mlperf_tiny/kws_ref_model.tflite": _Known(
        lambda folder: _kws(folder, "input_1", as_float=False), min_accuracy=0.87
    ),
    "mlperf_tiny/kws_ref_model_float32.tflite": _Known(
        lambda folder: _kws(folder, "input_1", as_float=True), min_accuracy=0.87
    ),
    "mlperf_tiny/str_ww_ref_model.tflite": _Known(_wake_word),
    "ort_extensions/pytorch_super_resolution.onnx": _Known(_grey, "float32"),
    "silero_vad/silero_vad_16k_op15.onnx": _Known(_speech, "float32"),
    "tflm/hello_world_float.tflite": _Known(
        lambda _folder: _angles("serving_default_dense_input:0"), "float32"
    ),
    "ultraface/version-slim-320.onnx": _Known(
        lambda folder: _faces(folder, "input", channels_first=True), "float32"
    ),
    "ultraface/version-slim-320_without_postprocessing.tflite": _Known(
        lambda folder: _faces(folder, "input_1", channels_first=False), "float32"
    ),
}
