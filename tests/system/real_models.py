"""What the real models are: inputs and outputs, samples, and what a right answer looks like.

The models, their samples and the accuracies stated for them lie in the shared data folder, each
with its ORIGIN.md; nothing of them is in this repository.
"""

import csv
import functools
import math
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.inference.serving import Model
from edgefleet_agent.testing import Bundle, make_tensor_bundle
from edgefleet_protocol.manifest import Runtime, Signature, Task, Tensor
from edgefleet_protocol.rows import Tensors

GOLDEN_ROWS = 8
# Class 0 of the ImageNet list is the background: tabby, tiger, Persian, Siamese, Egyptian cat.
CATS = range(282, 287)
KEYPOINTS = [f"{axis}{point}" for point in range(21) for axis in "xy"]


@dataclass(frozen=True)
class Real:
    """A model that must run.

    Attributes:
        path: within the folder of models.
        samples: gives golden inputs.
        evaluate: asks the serving model, and asserts what is stated of it.
        atol: how near two runs of it come.
    """

    path: str
    signature: Signature
    samples: Callable[[Path], Tensors]
    evaluate: Callable[[Model, Path], None]
    atol: float = 1e-4
    version: str = "v1"

    @property
    def name(self) -> str:
        """Name of the model on the device."""
        stem = Path(self.path).stem.replace(".", "-")
        return f"{stem}-{self.path.rsplit('.', 1)[1]}-{self.version}"

    def bundle(self, folder: Path) -> Bundle:
        """Return its bundle, with golden vectors from the runtime itself."""
        path, tensors = folder / self.path, self.samples(folder)
        return make_tensor_bundle(
            path.read_bytes(),
            self.signature,
            tensors,
            reference_scores(path, self.signature, tensors),
            model=self.name,
            version=self.version,
            runtime=runtime_of(self.path),
            atol=self.atol,
        )


def runtime_of(path: str) -> Runtime:
    """Return the family that a file is for."""
    return "onnxruntime" if path.endswith(".onnx") else "litert"


def reference_scores(path: Path, signature: Signature, tensors: Tensors) -> NDArray[np.float32]:
    """Run a model row by row on its runtime, with nothing of the agent in between."""
    count = len(next(iter(tensors.values()))) if signature.takes_batches else 1
    ask = _ask_onnx(path, signature) if path.suffix == ".onnx" else _ask_litert(path, signature)
    rows = []
    for index in range(count):
        row = tensors
        if signature.takes_batches:
            row = {name: tensor[index : index + 1] for name, tensor in tensors.items()}
        rows.append(np.asarray(ask(row), np.float32).reshape(-1))
    return np.stack(rows)


def _ask_onnx(path: Path, signature: Signature) -> Callable[[Tensors], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # some of these models are warned about, line after line
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda row: session.run([signature.score_output], row)[0]


def _ask_litert(path: Path, signature: Signature) -> Callable[[Tensors], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    wanted = {tensor.name for tensor in signature.inputs}
    for key, ports in interpreter.get_signature_list().items():
        if set(ports["inputs"]) == wanted:
            runner = interpreter.get_signature_runner(key)
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
            return lambda row: _meant(
                runner(**{name: _held(value, inputs[name]) for name, value in row.items()})[
                    signature.score_output
                ],
                outputs[signature.score_output],
            )
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    output = next(
        d for d in interpreter.get_output_details() if d["name"] == signature.score_output
    )

    def ask(row: Tensors) -> Any:
        for name, value in row.items():
            interpreter.resize_tensor_input(inputs[name]["index"], value.shape)
        interpreter.allocate_tensors()
        for name, value in row.items():
            interpreter.set_tensor(inputs[name]["index"], _held(value, inputs[name]))
        interpreter.invoke()
        return _meant(interpreter.get_tensor(output["index"]), output)

    return ask


def _held(value: NDArray[Any], detail: Any) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale or value.dtype.kind != "f":
        return value
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _meant(value: Any, detail: Any) -> NDArray[np.float32]:
    scale, zero = detail["quantization"]
    found = np.asarray(value, np.float32)
    return (found - zero) * scale if scale else found


# -- samples -------------------------------------------------------------------------------------


@functools.cache
def spectrograms(folder: Path) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return 1,000 MFCC of spoken words `(1000, 49, 10, 1)` int8 and their labels."""
    data, labels = _labelled(folder / "mlperf_eval" / "kws01.zip")
    return np.frombuffer(data, np.int8).reshape(-1, 49, 10, 1), labels


@functools.cache
def pictures(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return 200 pictures `(200, 32, 32, 3)` float32 from 0 to 255 and their labels."""
    data, labels = _labelled(folder / "mlperf_eval" / "ic01.zip")
    return np.frombuffer(data, np.uint8).reshape(-1, 32, 32, 3).astype(np.float32), labels


def _labelled(path: Path) -> tuple[bytes, NDArray[np.int64]]:
    with zipfile.ZipFile(path) as archive:
        table = csv.reader(archive.read("y_labels.csv").decode("ascii").splitlines())
        lines = [(name, int(label)) for name, _, label in table]
        data = b"".join(archive.read(name) for name, _ in lines)
    return data, np.array([label for _, label in lines])


@functools.cache
def keypoints(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return 21 points of a hand for each row, `(4450, 42)`, and the gesture."""
    table = np.loadtxt(folder / "gesture" / "keypoint.csv", delimiter=",")
    return table[:, 1:], table[:, 0].astype(np.int64)


@functools.cache
def cat(folder: Path) -> NDArray[np.uint8]:
    """Return the picture of a cat, `(341, 512, 3)` RGB: a BMP of 24 bits, from the bottom up."""
    data = (folder / "coral" / "cat.bmp").read_bytes()
    start, width, height = (int.from_bytes(data[at : at + 4], "little") for at in (10, 18, 22))
    stride = (3 * width + 3) // 4 * 4
    rows = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)
    return rows[::-1, : 3 * width].reshape(height, width, 3)[..., ::-1]


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the picture in another size, each pixel the mean of those that it stands for."""
    down = np.linspace(0, len(picture), height + 1).astype(int)
    along = np.linspace(0, picture.shape[1], width + 1).astype(int)
    sums = np.add.reduceat(
        np.add.reduceat(picture.astype(np.float64), down[:-1], axis=0), along[:-1], axis=1
    )
    areas = np.diff(down)[:, None, None] * np.diff(along)[None, :, None]
    found: NDArray[np.uint8] = (sums / areas).astype(np.uint8)
    return found


@functools.cache
def wake_words(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return 45 spectrograms `(45, 30, 1, 40)` float32 from 0 to 0.944, and their labels."""
    with np.load(folder / "mlperf_tiny" / "str_ww_calibration_samples.npz") as held:
        return held["specs"].astype(np.float32), held["labels"].astype(np.int64)


@functools.cache
def speech(folder: Path) -> NDArray[np.float32]:
    """Return a minute of speech with pauses, 16 kHz, from -1 to 1, in frames `(1875, 512)`."""
    with wave.open(str(folder / "silero_vad" / "test.wav")) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    count = len(samples) // 512
    return (samples[: count * 512] / 32768).astype(np.float32).reshape(count, 512)


def machine_sounds() -> NDArray[np.float32]:
    """Return made log-mel frames `(8, 640)`: the recordings themselves may not be passed on."""
    return np.random.default_rng(3).normal(-10.0, 8.0, (GOLDEN_ROWS, 640)).astype(np.float32)


# -- what is stated ------------------------------------------------------------------------------


def accuracy(
    data: Callable[[Path], tuple[NDArray[Any], NDArray[np.int64]]],
    stated: float,
    *,
    prepare: Callable[[NDArray[Any]], NDArray[Any]] = lambda values: values,
    batch: int = 100,
) -> Callable[[Model, Path], None]:
    """Return a check that the share of right classes is the stated one, to half a point."""

    def evaluate(model: Model, folder: Path) -> None:
        values, labels = data(folder)
        name, output = model.signature.inputs[0].name, model.signature.score_output
        tops = [
            model.infer({name: prepare(values[start : start + batch])})
            .outputs[output]
            .argmax(axis=1)
            for start in range(0, len(values), batch)
        ]
        assert abs(float((np.concatenate(tops) == labels).mean()) - stated) <= 0.005

    return evaluate


def _keypoint_labels(model: Model, folder: Path) -> None:
    rows, labels = keypoints(folder)
    answers = model.predict_batch(rows)
    assert {answer.label for answer in answers} == {"open", "close", "pointer"}
    names = np.array(model.signature.classes)[labels]
    right = np.mean([answer.label == name for answer, name in zip(answers, names, strict=True)])
    assert abs(right - 0.965) <= 0.005


def _keypoint_ids(model: Model, folder: Path) -> None:
    rows, labels = keypoints(folder)
    ids = [answer.score for answer in model.predict_batch(rows)]
    assert abs(float((np.array(ids) == labels).mean()) - 0.965) <= 0.005


def _is_a_cat(model: Model, folder: Path) -> None:
    (scores,) = model.infer({"input": _cat_128(folder)}).outputs.values()
    assert int(scores.argmax()) in CATS


def _rebuilds(model: Model, _folder: Path) -> None:
    sounds = machine_sounds()
    (rebuilt,) = model.infer({"input_1": sounds}).outputs.values()
    assert rebuilt.shape == sounds.shape
    assert np.isfinite(rebuilt).all()
    # An autoencoder gives back what it was shown, roughly: nearer than the mean of all frames is.
    assert np.abs(rebuilt - sounds).mean() < np.abs(sounds).mean()


def _sine(allowed: float) -> Callable[[Model, Path], None]:
    def evaluate(model: Model, _folder: Path) -> None:
        angles = np.linspace(0, 2 * math.pi, 100)
        answers = np.array([answer.score for answer in model.predict_batch(angles[:, None])])
        assert np.abs(answers - np.sin(angles)).mean() < allowed

    return evaluate


def _finds_speech(model: Model, folder: Path) -> None:
    """The share of frames with speech, the state and the last samples carried from call to call."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    spoken = 0
    frames = speech(folder)
    for frame in frames:
        row = np.concatenate([context, frame])[None]
        found = model.infer({"input": row, "state": state, "sr": np.array(16000)}).outputs
        state, context = found["stateN"], frame[-64:]
        spoken += bool(found["output"].item() >= 0.5)
    assert abs(spoken / len(frames) - 0.7744) <= 0.002


def noise() -> list[NDArray[np.int8]]:
    """Return six frames of made features, as the streaming wake word takes them."""
    frames = np.random.default_rng(5).integers(-128, 128, (6, 1, 3, 40)).astype(np.int8)
    return list(frames)


def streamed(path: Path, frames: list[NDArray[np.int8]]) -> list[float]:
    """Return the answers of a streaming TFLite model that has just been opened."""
    signature = next(model for model in RUNNING if path.match(model.path)).signature
    ask = _ask_litert(path, signature)
    (tensor,) = signature.inputs
    return [float(ask({tensor.name: frame}).item()) for frame in frames]


def _hears_nothing(model: Model, _folder: Path) -> None:
    answers = [model.infer({"input_audio": frame}).outputs["dense"].item() for frame in noise()]
    assert all(0.0 <= answer < 0.97 for answer in answers)  # the model's own cutoff


def _finds_no_face(model: Model, folder: Path) -> None:
    """A cat has no human face; what counts is that boxes and scores are what they should be."""
    found = model.infer({model.signature.inputs[0].name: _face_input(model, folder)}).outputs
    scores = found[model.signature.score_output].reshape(4420, 2)
    (boxes,) = (found[name] for name in found if name != model.signature.score_output)
    assert boxes.size == 4420 * 4
    assert np.isfinite(boxes).all()
    assert np.allclose(scores.sum(axis=1), 1.0, atol=0.02)


def _enlarges(model: Model, folder: Path) -> None:
    (large,) = model.infer({"input": _luminance(folder)}).outputs.values()
    assert large.shape == (1, 1, 672, 672)
    small = large.reshape(224, 3, 224, 3).mean(axis=(1, 3))
    assert np.abs(small - _luminance(folder)[0, 0]).mean() < 0.05


def _adds_to_itself(model: Model, _folder: Path) -> None:
    values = np.arange(1 * 5 * 3 * 3, dtype=np.float32).reshape(1, 5, 3, 3)
    (found,) = model.infer({"Placeholder": values}).outputs.values()
    np.testing.assert_allclose(found, values * 2)


def _computes(output: str, names: str, expected: float) -> Callable[[Model, Path], None]:
    def evaluate(model: Model, _folder: Path) -> None:
        given = {
            name: np.array(value, np.float32) for name, value in zip(names, (5, 3), strict=True)
        }
        assert model.infer(given).outputs[output].item() == expected

    return evaluate


def _cat_128(folder: Path) -> NDArray[np.uint8]:
    return resized(cat(folder), 128, 128)[None]


def _faces(folder: Path) -> NDArray[np.float32]:
    """Return the cat as a face detector wants it: `(1, 240, 320, 3)`, about -1 to 1."""
    return ((resized(cat(folder), 240, 320).astype(np.float32) - 127.0) / 128.0)[None]


def _face_input(model: Model, folder: Path) -> NDArray[np.float32]:
    faces = _faces(folder)
    channels_first = model.signature.inputs[0].shape[1] == 3
    return np.ascontiguousarray(faces.transpose(0, 3, 1, 2)) if channels_first else faces


def _luminance(folder: Path) -> NDArray[np.float32]:
    grey = resized(cat(folder), 224, 224).astype(np.float32) @ [0.299, 0.587, 0.114]
    return (grey / 255).astype(np.float32)[None, None]


# -- the list ------------------------------------------------------------------------------------


def _signature(
    task: Task,
    inputs: list[Tensor],
    outputs: dict[str, list[int | None]],
    *,
    classes: list[str] | None = None,
) -> Signature:
    """Return a signature whose first output holds the scores."""
    made = [Tensor(name, "float32", shape) for name, shape in outputs.items()]
    return Signature(task, inputs, made, made[0].name, classes=classes or [])


def _numbered(count: int) -> list[str]:
    return [f"class-{index}" for index in range(count)]


_FACES_FIRST = _signature(
    "score",
    [Tensor("input", "float32", [1, 3, 240, 320])],
    {"scores": [1, 4420, 2], "boxes": [1, 4420, 4]},
)


def _classifier(name: str, dtype: Any, shape: list[int], output: str, classes: int) -> Signature:
    return _signature(
        "classification",
        [Tensor(name, dtype, [None, *shape])],
        {output: [None, classes]},
        classes=_numbered(classes),
    )


def _kws_float(values: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return what the int8 features stand for, by the scale of the int8 model's input."""
    return ((values.astype(np.float32) - 83) * 0.5847029).astype(np.float32)


RUNNING = [
    Real(
        "mlperf_tiny/kws_ref_model.tflite",
        _classifier("input_1", "int8", [49, 10, 1], "Identity", 12),
        lambda folder: {"input_1": spectrograms(folder)[0][:GOLDEN_ROWS]},
        accuracy(spectrograms, 0.902),
        atol=0.02,
    ),
    Real(
        "mlperf_tiny/kws_ref_model_float32.tflite",
        _classifier("input_1", "float32", [49, 10, 1], "Identity", 12),
        lambda folder: {"input_1": _kws_float(spectrograms(folder)[0][:GOLDEN_ROWS])},
        accuracy(spectrograms, 0.900, prepare=_kws_float),
    ),
    Real(
        "mlperf_tiny/ic_resnet8_int8.tflite",
        _classifier("input_1_int8", "float32", [32, 32, 3], "Identity_int8", 10),
        lambda folder: {"input_1_int8": pictures(folder)[0][:GOLDEN_ROWS]},
        accuracy(pictures, 0.850),
        atol=0.02,
    ),
    Real(
        "mlperf_tiny/ic_resnet8_float.tflite",
        _classifier("input_1", "float32", [32, 32, 3], "Identity", 10),
        lambda folder: {"input_1": pictures(folder)[0][:GOLDEN_ROWS]},
        accuracy(pictures, 0.855),
    ),
    Real(
        "mlperf_tiny/ad01_fp32.tflite",
        _signature("score", [Tensor("input_1", "float32", [None, 640])], {"Identity": [None, 640]}),
        lambda _: {"input_1": machine_sounds()},
        _rebuilds,
    ),
    Real(
        "mlperf_tiny/ad01_int8.tflite",
        _signature("score", [Tensor("input_1", "float32", [None, 640])], {"Identity": [None, 640]}),
        lambda _: {"input_1": machine_sounds()},
        _rebuilds,
        atol=1.0,
    ),
    Real(
        "mlperf_tiny/str_ww_ref_model.tflite",
        _classifier("input_1", "float32", [30, 1, 40], "dense", 3),
        lambda folder: {"input_1": wake_words(folder)[0][:GOLDEN_ROWS]},
        accuracy(wake_words, 0.911),  # 41 of 45, measured; none is stated
        atol=0.02,
    ),
    Real(
        "gesture/keypoint_classifier.tflite",
        _signature(
            "classification",
            [Tensor("input_1", "float32", [None, 42], KEYPOINTS)],
            {"Identity": [None, 3]},
            classes=["open", "close", "pointer"],
        ),
        lambda folder: {"input_1": keypoints(folder)[0][::500].astype(np.float32)},
        _keypoint_labels,
    ),
    Real(
        "gesture_onnx/keypoint_classifier.onnx",
        Signature(
            "score",
            [Tensor("input", "float32", [None, 42], KEYPOINTS)],
            [Tensor("class_ids", "int64", [None])],
            "class_ids",
        ),
        lambda folder: {"input": keypoints(folder)[0][::500].astype(np.float32)},
        _keypoint_ids,
    ),
    Real(
        "coral/mobilenet_v1_0.25_128_quant.tflite",
        _classifier("input", "uint8", [128, 128, 3], "MobilenetV1/Predictions/Reshape_1", 1001),
        lambda folder: {"input": _cat_128(folder)},
        _is_a_cat,
        atol=0.02,
    ),
    Real(
        "tflm/hello_world_float.tflite",
        _signature(
            "regression",
            [Tensor("dense_input", "float32", [None, 1], ["angle"])],
            {"dense_2": [None, 1]},
        ),
        lambda _: {"dense_input": np.linspace(0, 6, GOLDEN_ROWS, dtype=np.float32)[:, None]},
        _sine(0.07),
    ),
    Real(
        "tflm/hello_world_int8.tflite",
        _signature(
            "regression",
            [Tensor("dense_input", "float32", [None, 1], ["angle"])],
            {"dense_2": [None, 1]},
        ),
        lambda _: {"dense_input": np.linspace(0, 6, GOLDEN_ROWS, dtype=np.float32)[:, None]},
        _sine(0.08),
        atol=0.02,
    ),
    Real(
        "microwakeword/okay_nabu.tflite",
        _signature("score", [Tensor("input_audio", "int8", [1, 3, 40])], {"dense": [1, 1]}),
        lambda _: {
            "input_audio": np.random.default_rng(4).integers(-128, 128, (1, 3, 40)).astype(np.int8)
        },
        _hears_nothing,
        atol=0.005,
    ),
    Real(
        "silero_vad/silero_vad_16k_op15.onnx",
        _signature(
            "score",
            [
                Tensor("input", "float32", [1, 576]),
                Tensor("state", "float32", [2, 1, 128]),
                Tensor("sr", "int64", []),
            ],
            {"output": [1, 1], "stateN": [2, 1, 128]},
        ),
        lambda folder: {
            "input": np.concatenate([np.zeros(64, np.float32), speech(folder)[40]])[None],
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000, np.int64),
        },
        _finds_speech,
    ),
    Real(
        "ultraface/version-slim-320.onnx",
        _FACES_FIRST,
        lambda folder: {"input": np.ascontiguousarray(_faces(folder).transpose(0, 3, 1, 2))},
        _finds_no_face,
    ),
    Real(
        "derived/ultraface_slim320_int8_qdq.onnx",
        _FACES_FIRST,
        lambda folder: {"input": np.ascontiguousarray(_faces(folder).transpose(0, 3, 1, 2))},
        _finds_no_face,
        atol=0.02,
    ),
    Real(
        "ultraface/version-slim-320_without_postprocessing.tflite",
        _signature(
            "score",
            [Tensor("input_1", "float32", [1, 240, 320, 3])],
            {"Identity_1": [1, 4420, 2], "Identity": [1, 4420, 4]},
        ),
        lambda folder: {"input_1": _faces(folder)},
        _finds_no_face,
    ),
    Real(
        "ort_extensions/pytorch_super_resolution.onnx",
        _signature(
            "score",
            [Tensor("input", "float32", [None, 1, 224, 224])],
            {"output": [None, 1, 672, 672]},
        ),
        lambda folder: {"input": _luminance(folder)},
        _enlarges,
    ),
    Real(
        "litert/add_unknown_dimensions.tflite",
        _signature(
            "score", [Tensor("Placeholder", "float32", [1, 5, 3, 3])], {"add": [1, 5, 3, 3]}
        ),
        lambda _: {"Placeholder": np.ones((1, 5, 3, 3), np.float32)},
        _adds_to_itself,
    ),
    *(
        Real(
            "litert/multi_signature_def.tflite",
            _signature("score", [Tensor(name, "float32", []) for name in names], {output: []}),
            lambda _, names=names: {name: np.array(2.0, np.float32) for name in names},
            _computes(output, names, expected),
            version=version,
        )
        for version, names, output, expected in (
            ("add", "ab", "add_result", 8.0),
            ("sub", "xy", "sub_result", 2.0),
        )
    ),
]

# The model that serves while others are refused, under a name of its own.
SERVING = replace(
    next(model for model in RUNNING if model.path == "gesture_onnx/keypoint_classifier.onnx"),
    version="serves",
)

# path → words that the reason of the refusal must hold.
REFUSED = {
    "broken_inputs/coral_model_invoking_error.tflite": "custom operator fake-op-double",
    "broken_inputs/flip8_0_kws.tflite": "damaged or cut short",
    "broken_inputs/lfs_pointer_har_int8.tflite": "a Git LFS pointer, not the model",
    "broken_inputs/lfs_pointer_maskrcnn.onnx": "a Git LFS pointer, not the model",
    "broken_inputs/made_zero_length.onnx": "it is empty",
    "broken_inputs/ov_external_file_not_found.onnx": "weights in another file"
    " (not_existed_file.data)",
    "broken_inputs/tf_issue_115308_8bytes.tflite": "only 8 bytes",
    "broken_inputs/trunc50_keypoint.onnx": "damaged or cut short",
    "coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite": "compiled for an Edge TPU",
    "derived/flex_bincount.tflite": "TensorFlow operator FlexBincount",
    "litert/custom_sinh.tflite": "custom operator Sinh",
    "ort_extensions/test_hf_bert_tokenizer_optional_output.onnx": "operator"
    " ai.onnx.contrib:HfBertTokenizer",
    "tflm/person_detect.tflite": "quantized_dimension",
    "gesture/keypoint_classifier.hdf5": "a Keras HDF5 file",
    "mlperf_tiny/ic_resnet8.h5": "a Keras HDF5 file",
    "mlperf_tiny/str_ww_ref_model.h5": "a Keras HDF5 file",
}


def refused_bundle(folder: Path, path: str, version: str) -> Bundle:
    """Return a bundle of a file that cannot run, in the place of the model that serves."""
    return make_tensor_bundle(
        (folder / path).read_bytes(),
        SERVING.signature,
        SERVING.samples(folder),
        np.zeros((GOLDEN_ROWS + 1, 1), np.float32),
        model=SERVING.name,
        version=version,
        runtime=runtime_of(path),
    )
