"""One small CNN on real handwriting, converted once into every variant."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from sklearn import datasets
from typer.testing import CliRunner

from edgefleet_converters import bundles, child
from edgefleet_converters.cli import app
from edgefleet_converters.conversion import Compiled, Limits
from edgefleet_converters.pipeline import ConversionRequest, ConversionResult, convert, write_bundle
from edgefleet_converters.steps.registry import Format, Model
from edgefleet_converters.verification import trial
from edgefleet_protocol import golden, sketch
from edgefleet_protocol.manifest import Lineage

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs edgefleet-converters[keras]", allow_module_level=True)

# Runs in a child process: TensorFlow would stay in this one, with its warnings.
TRAIN = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import keras, numpy as np, pandas as pd
from keras import layers
keras.utils.set_random_seed(1)
frame = pd.read_csv({sample!r})
X, y = frame.drop(columns="digit").to_numpy(np.float32), frame["digit"].to_numpy()
model = keras.Sequential([
    layers.Input((64,)), layers.Rescaling(1 / 16), layers.Reshape((8, 8, 1)),
    layers.Conv2D(16, 3, padding="same", activation="relu"),
    layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
    layers.Flatten(), layers.Dense(10),
])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
model.fit(X, y, epochs=12, batch_size=64, verbose=0)
model.save({folder!r} + "/digits.keras")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("keras")
    X, y = datasets.load_digits(return_X_y=True)
    frame = pd.DataFrame(X, columns=[f"p{i:02}" for i in range(64)]).assign(digit=y)
    frame.iloc[:1300].to_csv(made / "train.csv", index=False)
    frame.iloc[1300:].to_csv(made / "held.csv", index=False)
    code = TRAIN.format(sample=str(made / "train.csv"), folder=str(made))
    child.run("training", exec, code, {}, returns=type(None))
    return made


def request(folder: Path, **changes: object) -> ConversionRequest:
    settings: dict[str, object] = {
        "model_path": str(folder / "digits.keras"),
        "sample_path": str(folder / "train.csv"),
        "label": "digit",
        "holdout_path": str(folder / "held.csv"),
    }
    return ConversionRequest(**(settings | changes))  # type: ignore[arg-type]  # by name


@pytest.fixture(scope="module")
def result(folder: Path) -> ConversionResult:
    return convert(request(folder))


@pytest.fixture(scope="module")
def variants(result: ConversionResult) -> dict[str, Compiled]:
    return {compiled.name: compiled for compiled in result.compiled}


def test_every_variant_is_made_and_verified(
    result: ConversionResult, variants: dict[str, Compiled]
) -> None:
    assert list(variants) == [
        "onnx-fp32",
        "onnx-int8",
        "onnx-pruned",
        "tflite-fp32",
        "tflite-int8",
        "tflite-pruned",
    ]
    assert {v.name: v.reason for v in variants.values() if v.state != "verified"} == {}
    assert result.classes == [str(digit) for digit in range(10)]
    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["rows"] == 497


def test_float32_variants_equal_the_original_and_give_probabilities(
    variants: dict[str, Compiled],
) -> None:
    for name in ("onnx-fp32", "tflite-fp32"):
        measured = variants[name].measured
        assert measured is not None
        assert measured.parity_max < 1e-5
        assert measured.agreement == 1.0
        # The model ends in logits; what is shipped ends in probabilities.
        expected = golden.decode(variants[name].golden).expected()
        np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)


def test_lossy_variants_keep_their_score(
    result: ConversionResult, variants: dict[str, Compiled]
) -> None:
    for name in ("onnx-int8", "onnx-pruned", "tflite-int8", "tflite-pruned"):
        measured = variants[name].measured
        assert measured is not None
        assert measured.score is not None
        assert measured.score >= result.metrics["accuracy"] - 0.02
        assert measured.score_rows == 497


def test_int8_is_smaller_and_pruned_travels_smaller(
    result: ConversionResult, variants: dict[str, Compiled]
) -> None:
    sent = {
        name: write_bundle(
            compiled, result.reference, model="digits", version="1", lineage=Lineage()
        )
        .manifest.file("model")
        .transfer.size_bytes
        for name, compiled in variants.items()
    }
    for kind in ("onnx", "tflite"):
        float32, int8 = variants[f"{kind}-fp32"], variants[f"{kind}-int8"]
        assert len(int8.model) < 0.6 * len(float32.model)
        assert sent[f"{kind}-pruned"] < 0.75 * sent[f"{kind}-fp32"]


def test_half_of_the_pruned_weights_are_zero(variants: dict[str, Compiled]) -> None:
    graph = onnx.load_model_from_string(variants["onnx-pruned"].model).graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    kernels = [weight for weight in weights if weight.ndim >= 2 and weight.size >= 64]
    assert len(kernels) == 3
    for kernel in kernels:
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.01)


def test_the_file_takes_and_gives_float32_with_a_free_batch(variants: dict[str, Compiled]) -> None:
    for compiled in variants.values():
        assert compiled.signature is not None
        (given,) = compiled.signature.inputs
        assert (given.name, given.dtype, given.shape) == ("X", "float32", [None, 64])
        assert given.columns == [f"p{i:02}" for i in range(64)]
        (answer,) = compiled.signature.outputs
        assert (answer.dtype, answer.shape) == ("float32", [None, 10])


def test_needs_name_the_runtime_and_its_oldest_version(variants: dict[str, Compiled]) -> None:
    for name, compiled in variants.items():
        needs = compiled.needs
        assert needs is not None
        expected = "onnxruntime" if name.startswith("onnx") else "litert"
        assert needs.runtime == expected
        assert float(needs.runtime_min) >= 1.0
        assert needs.memory_bytes >= len(compiled.model)


def test_golden_vectors_pass_on_the_installed_runtimes_and_see_a_wrong_model(
    variants: dict[str, Compiled],
) -> None:
    other = {"onnx-fp32": "onnx-pruned", "tflite-fp32": "tflite-pruned"}
    for name, compiled in variants.items():
        assert compiled.signature is not None
        made: Format = "onnx" if compiled.runtime == "onnxruntime" else "tflite"
        whole = Model(made, compiled.model, compiled.signature)
        assert trial.golden_faults(compiled.runtime, whole, compiled.golden) == []
        if name in other:
            wrong = Model(made, variants[other[name]].model, compiled.signature)
            assert trial.golden_faults(compiled.runtime, wrong, compiled.golden) != []


def test_the_reference_profile_counts_the_training_rows(result: ConversionResult) -> None:
    profile = sketch.decode_profile(result.reference)
    assert profile.rows == sum(profile.predictions) == 1300
    assert len(profile.features) == 64


def test_equal_models_give_equal_onnx_bytes_and_limits_refuse(
    folder: Path, variants: dict[str, Compiled]
) -> None:
    limits = Limits(lossy_score_drop=-1.0)
    again = convert(request(folder, variants=["onnx-fp32", "onnx-pruned"], limits=limits))
    float32, pruned = again.compiled
    assert float32.model == variants["onnx-fp32"].model
    assert pruned.state == "refused"
    assert "and may lose -1" in pruned.reason
    assert pruned.golden == b""


def test_a_bundle_on_disk_verifies_and_a_wrong_one_fails(
    result: ConversionResult, tmp_path: Path
) -> None:
    compiled = next(v for v in result.verified if v.name == "tflite-int8")
    bundle = write_bundle(
        compiled, result.reference, model="digits", version="3", lineage=Lineage()
    )
    bundles.save(bundle, tmp_path / "good")
    told = CliRunner().invoke(app, ["verify", str(tmp_path / "good"), "--json"])
    assert told.exit_code == 0
    assert json.loads(told.stdout)["verified"] is True
    pruned = next(v for v in result.verified if v.name == "tflite-pruned")
    mixed = Compiled(
        compiled.name,
        compiled.runtime,
        "verified",
        "",
        pruned.model,
        next(v for v in result.verified if v.name == "tflite-fp32").golden,
        compiled.signature,
        compiled.needs,
        compiled.measured,
    )
    bad = write_bundle(mixed, result.reference, model="digits", version="3", lineage=Lineage())
    bundles.save(bad, tmp_path / "bad")
    told = CliRunner().invoke(app, ["verify", str(tmp_path / "bad")])
    assert told.exit_code == 1
    assert "does NOT reproduce its golden vectors" in told.stdout
    assert "scores are off by up to" in told.stdout
