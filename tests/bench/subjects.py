"""What the compression benchmark works on: real models with real rows, learned on and judged on.

| subject | model | learned on | judged on |
|---|---|---|---|
| digits-cnn | trained here on scikit-learn's digits | 1,257 | 540 |
| kws | MLPerf Tiny, TFLite, weights made float32 again | 200 recordings | the other 800 |
| resnet8 | MLPerf Tiny, Keras | 1,000 cuttings of scikit-learn's two photographs | 200 pictures |
| ad01 | MLPerf Tiny, float TFLite | 30 normal recordings | 218 others |
| occupancy-forest, occupancy-mlp | trained here | datatraining | datatest |
| noaa-trees, noaa-mlp | trained here | the first 12,000 days | the rest |

The recordings of ad01 (ToyADMOS) are for research only and come with no copy of this repository:
`EDGEFLEET_AD01` names a folder that holds them as MLPerf Tiny's runner does.
"""

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import child, opening
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe, StepCall
from edgefleet_converters.steps.registry import Model

if TYPE_CHECKING:
    import pandas as pd

DATA = Path(os.environ.get("EDGEFLEET_DATA", "../shared"))
AD01 = os.environ.get("EDGEFLEET_AD01")
_TINY = DATA / "models" / "mlperf_tiny"
_EVAL = DATA / "models" / "mlperf_eval"
_WINDOW, _WINDOWS, _BINS = 640, 196, 128


@dataclass(frozen=True)
class Subject:
    """One model with its rows.

    Attributes:
        model: file that goes into the conversion.
        sample: file of rows to learn from.
        holdout: file of rows to judge by.
        label: name of the label; None where the samples say it themselves.
        peer_int8: a ready int8 TFLite file of the model's authors; None where there is none.
        metric: what is judged; None for the default of the task.
    """

    name: str
    model: Path
    sample: Path
    holdout: Path
    label: str | None = "label"
    peer_int8: Path | None = None
    metric: str | None = None


def subjects(folder: Path, names: Sequence[str] = ()) -> list[Subject]:
    """Write what some subjects need into `folder` and return them; all without names.

    Subjects whose data are not there are left out; `missing` names them.
    """
    makers: dict[tuple[str, ...], Callable[[Path], list[Subject]]] = {
        ("digits-cnn",): _digits,
        ("kws",): _kws,
        ("resnet8",): _resnet8,
        ("ad01",): _ad01,
        ("occupancy-forest", "occupancy-mlp"): _occupancy,
        ("noaa-trees", "noaa-mlp"): _noaa,
    }
    known = {name for group in makers for name in group}
    if unknown := set(names) - known:
        raise SystemExit(f"no such subject: {', '.join(sorted(unknown))}; there are {known}")
    wanted = set(names) or known
    made = [make(folder) for group, make in makers.items() if wanted & set(group)]
    return [subject for some in made for subject in some if subject.name in wanted]


def missing() -> list[str]:
    """Return why subjects are left out."""
    if AD01:
        return []
    return ["ad01: its recordings are for research only; name their folder in EDGEFLEET_AD01"]


def _digits(folder: Path) -> list[Subject]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    rows = train_test_split(images, labels, test_size=540, random_state=0, stratify=labels)
    model = folder / "digits-cnn.keras"
    child.run("training digits-cnn", train_cnn, str(model), rows[0], rows[2], returns=bool)
    training = _save(folder / "digits-train.npz", rows[0], rows[2])
    test = _save(folder / "digits-test.npz", rows[1], rows[3])
    return [Subject("digits-cnn", model, training, test)]


def _kws(folder: Path) -> list[Subject]:
    from ai_edge_litert.interpreter import Interpreter

    int8 = _TINY / "kws_ref_model.tflite"
    scale, zero = Interpreter(str(int8)).get_input_details()[0]["quantization"]
    names, rows = _stimuli(_EVAL / "kws01.zip", np.dtype(np.int8))
    features = ((rows.astype(np.float32) - zero) * np.float32(scale)).reshape(-1, 49, 10, 1)
    labels = np.array([int(Path(name).stem.rsplit("_", 1)[1]) for name in names])
    order = np.random.default_rng(0).permutation(len(labels))
    learned, judged = order[:200], order[200:]
    sample = _save(folder / "kws-train.npz", features[learned], labels[learned])
    model = folder / "kws.tflite"
    model.write_bytes(_float32(_TINY / "kws_ref_model_float32.tflite", sample))
    test = _save(folder / "kws-test.npz", features[judged], labels[judged])
    return [Subject("kws", model, sample, test, peer_int8=int8)]


def _float32(model: Path, sample: Path) -> bytes:
    """Return a TFLite file with all of its weights in float32."""
    prepared = opening.prepare(ConversionRequest(str(model), str(sample), "label"))
    recipe = Recipe("float32", "weights in float32", "tflite", [StepCall("tflite-float")])
    made = workshop.make(prepared.opened.bases, [recipe], prepared.context)["float32"]
    assert isinstance(made, Model), made
    return made.data


def _resnet8(folder: Path) -> list[Subject]:
    names, rows = _stimuli(_EVAL / "ic01.zip", np.dtype(np.uint8))
    listed = _labels(_EVAL / "ic01.zip")
    pictures = rows.astype(np.float32).reshape(-1, 32, 32, 3)
    labels = np.array([listed[name] for name in names])
    training = _save(folder / "resnet8-train.npz", _cuttings(1000), None)
    test = _save(folder / "resnet8-test.npz", pictures, labels)
    int8 = _TINY / "ic_resnet8_int8.tflite"
    return [Subject("resnet8", _TINY / "ic_resnet8.h5", training, test, peer_int8=int8)]


def _cuttings(count: int) -> NDArray[np.float32]:
    """Return `(count, 32, 32, 3)` pieces of photographs, 32 to 256 pixels wide, made smaller."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    pieces = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        step = int(random.integers(1, 9))
        top, left = (int(random.integers(0, size - 32 * step)) for size in photograph.shape[:2])
        piece = photograph[top : top + 32 * step, left : left + 32 * step].astype(np.float32)
        pieces.append(piece.reshape(32, step, 32, step, 3).mean(axis=(1, 3)))
    return np.stack(pieces)


def _ad01(folder: Path) -> list[Subject]:
    if not AD01:
        return []
    recordings = Path(AD01)
    listed = (recordings / "y_labels.csv").read_text(encoding="utf-8").split()
    names = [line.split(",")[0] for line in listed if (recordings / line.split(",")[0]).is_file()]
    labels = np.array([int(name.startswith("anomaly")) for name in names])
    learned = np.flatnonzero(labels == 0)[::4][:30]
    judged = np.setdiff1d(np.arange(len(names)), learned)
    paths = [
        _windows(folder / f"ad01-{part}.npz", [recordings / names[i] for i in index], labels[index])
        for part, index in (("train", learned), ("test", judged))
    ]
    float32, int8 = _TINY / "ad01_fp32.tflite", _TINY / "ad01_int8.tflite"
    return [Subject("ad01", float32, *paths, peer_int8=int8, metric="reconstruction-auc")]


def _windows(path: Path, files: list[Path], labels: NDArray[np.int64]) -> Path:
    """Write every eighth window of each recording; a recording is a group."""
    rows, groups = [], []
    for group, file in enumerate(files):
        spectrogram = np.fromfile(file, "<f4")
        starts = np.arange(0, _WINDOWS, 8) * _BINS
        rows.append(np.stack([spectrogram[start : start + _WINDOW] for start in starts]))
        groups.append(np.full(len(starts), group))
    group = np.concatenate(groups)
    np.savez(path, input=np.concatenate(rows), label=labels[group], group=group)
    return path


def _occupancy(folder: Path) -> list[Subject]:
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier

    frames = {}
    for part in ("datatraining", "datatest"):
        # The header names one column fewer than the rows have: the first is the row's number.
        frame = pd.read_csv(DATA / "data" / "occupancy" / f"{part}.txt", index_col=0)
        frames[part] = frame.drop(columns="date")
    forest = RandomForestClassifier(100, max_depth=12, random_state=0)
    return [
        _tabular(folder / f"occupancy-{kind}", estimator, *frames.values(), "Occupancy")
        for kind, estimator in (("forest", forest), ("mlp", _mlp()))
    ]


def _noaa(folder: Path) -> list[Subject]:
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier

    source = DATA / "data" / "noaa_weather"
    frame = pd.read_csv(source / "NEweather_data.csv", header=None)
    frame.columns = pd.Index([f"x{index}" for index in range(frame.shape[1])])
    labels = pd.read_csv(source / "NEweather_class.csv", header=None)[0]
    frame["rain"] = labels
    trees = HistGradientBoostingClassifier(random_state=0)
    return [
        _tabular(folder / f"noaa-{kind}", estimator, frame[:12_000], frame[12_000:], "rain")
        for kind, estimator in (("trees", trees), ("mlp", _mlp()))
    ]


def _tabular(
    stem: Path, estimator: Any, training: "pd.DataFrame", test: "pd.DataFrame", label: str
) -> Subject:
    model, sample, holdout = (stem.with_suffix(end) for end in (".joblib", ".train.csv", ".csv"))
    estimator.fit(training.drop(columns=label).to_numpy(), training[label].to_numpy())
    joblib.dump(estimator, model)
    training.to_csv(sample, index=False)
    test.to_csv(holdout, index=False)
    return Subject(stem.name, model, sample, holdout, label)


def _mlp() -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((64, 64), early_stopping=True, random_state=0)
    return make_pipeline(StandardScaler(), network)


def _save(path: Path, inputs: NDArray[np.float32], labels: NDArray[np.int64] | None) -> Path:
    np.savez(path, input=inputs, **({} if labels is None else {"label": labels}))
    return path


def _stimuli(archive: Path, dtype: np.dtype[Any]) -> tuple[list[str], NDArray[Any]]:
    """Return the names and contents `(n, bytes)` of the samples in an archive."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".bin"))
        return names, np.stack([np.frombuffer(files.read(name), dtype) for name in names])


def _labels(archive: Path) -> dict[str, int]:
    with zipfile.ZipFile(archive) as files:
        lines = files.read("y_labels.csv").decode().split()
    return {line.split(",")[0]: int(line.split(",")[2]) for line in lines}


def train_cnn(path: str, images: NDArray[np.float32], labels: NDArray[np.int64]) -> bool:
    """Train and save the small network of convolutions. Called in a child process."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=30, batch_size=32, verbose=0)
    model.save(path)
    return True
