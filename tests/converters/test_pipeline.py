from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import skops.io
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from sklearn import datasets
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from edgefleet_converters import bundles, compiling, onnx_files, pipeline
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.conversion import ConversionRequest, DeviceBudget, Limits
from edgefleet_converters.errors import (
    BadInputError,
    ChildCrashedError,
    NothingVerifiedError,
    UnsupportedError,
)
from edgefleet_converters.pipeline import ConversionResult, convert, write_bundle
from edgefleet_converters.recipes.recipe import Recipe, StepCall
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import trial
from edgefleet_protocol import manifest, sketch
from edgefleet_protocol.manifest import Lineage, Signature, Tensor

SaveModel = Callable[[object, str], str]
SaveTable = Callable[[pd.DataFrame, str], str]


def wine() -> pd.DataFrame:
    frame: pd.DataFrame = datasets.load_wine(as_frame=True).frame
    return frame


def states(result: ConversionResult) -> dict[str, str]:
    return {compiled.name: compiled.state for compiled in result.compiled}


def test_a_forest_is_verified_and_int8_does_not_apply(
    save_model: SaveModel, save_table: SaveTable
) -> None:
    frame = wine()
    features, y = frame.drop(columns="target"), frame["target"]
    model = save_model(RandomForestClassifier(20, random_state=0).fit(features, y), "wine.joblib")
    steps: list[tuple[float, str]] = []
    result = convert(
        ConversionRequest(model, save_table(frame, "wine.csv"), "target"),
        lambda fraction, text: steps.append((fraction, text)),
    )
    assert states(result) == {"onnx-fp32": "verified", "onnx-int8": "refused"}
    assert "int8 does not apply" in result.compiled[1].reason
    assert result.columns == list(features)
    assert result.classes == ["0", "1", "2"]
    # A quarter of 178 rows is held out.
    assert result.metrics["rows"] == 44
    measured = result.compiled[0].measured
    assert measured is not None
    assert (measured.score, measured.score_rows) == (result.metrics["accuracy"], 44)
    assert measured.parity_max < 1e-6
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions)
    assert (fractions[0], steps[-1]) == (0.0, (1.0, "done"))
    profile = sketch.decode_profile(result.reference)
    assert (profile.rows, sum(profile.predictions), sum(profile.confidences)) == (134, 134, 134)


def test_a_pipeline_with_text_goes_through_to_a_bundle_that_verifies(
    factory: pd.DataFrame, save_table: SaveTable, tmp_path: Path
) -> None:
    features = factory.drop(columns="service")
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["temperature", "rpm"]),
            ("names", OneHotEncoder(handle_unknown="ignore"), ["site", "maker"]),
        ]
    )
    fitted = make_pipeline(columns, LogisticRegression()).fit(features, factory["service"])
    skops.io.dump(fitted, tmp_path / "service.skops")
    sample = save_table(factory, "sample.csv")
    result = convert(ConversionRequest(str(tmp_path / "service.skops"), sample, "service"))
    assert states(result)["onnx-fp32"] == "verified"
    profile = sketch.decode_profile(result.reference)
    assert [feature.kind for feature in profile.features] == ["numeric"] * 2 + ["categorical"] * 2
    assert profile.features[3].vocabulary == ["ACME", "Borg"]
    bundle = write_bundle(
        result.verified[0], result.reference, model="service", version="4", lineage=Lineage(run="7")
    )
    assert manifest.decode(bundle.manifest_bytes) == bundle.manifest
    bundles.save(bundle, tmp_path / "bundle")
    read = bundles.load(tmp_path / "bundle")
    assert read == bundle
    model = Model("onnx", read.unpack("model"), read.manifest.signature)
    assert trial.golden_faults("onnxruntime", model, read.unpack("golden")) == []


def test_a_small_network_gets_an_int8_variant(save_model: SaveModel, save_table: SaveTable) -> None:
    X, y = datasets.load_digits(return_X_y=True)
    network = MLPClassifier((64,), max_iter=60, random_state=0, early_stopping=True)
    frame = pd.DataFrame(X, columns=[f"p{i}" for i in range(64)]).assign(digit=y)
    held = frame.iloc[1300:]
    model = save_model(make_pipeline(StandardScaler(), network).fit(X[:1300], y[:1300]), "m.joblib")
    request = ConversionRequest(
        model,
        save_table(frame.iloc[:1300], "train.csv"),
        "digit",
        save_table(held, "held.csv"),
        ["onnx-fp32", "onnx-int8", "tflite-fp32"],
    )
    result = convert(request)
    assert states(result) == {
        "onnx-fp32": "verified",
        "onnx-int8": "verified",
        "tflite-fp32": "refused",
    }
    float32, int8, tflite = result.compiled
    assert result.metrics["rows"] == len(held)
    assert len(int8.model) < len(float32.model)
    wanted = "is made from keras or savedmodel or tflite; this model comes as onnx"
    assert tflite.reason == wanted
    assert sketch.decode_profile(result.reference).rows == 1300


def test_without_labels_there_are_no_scores_but_parity(
    save_model: SaveModel, save_table: SaveTable
) -> None:
    frame: pd.DataFrame = datasets.load_diabetes(as_frame=True).frame
    features = frame.drop(columns="target")
    fitted = RandomForestRegressor(10, random_state=0).fit(features, frame["target"])
    model = save_model(fitted, "m.joblib")
    result = convert(ConversionRequest(model, save_table(features, "s.csv")))
    assert (result.task, result.metrics) == ("regression", {})
    measured = result.verified[0].measured
    assert measured is not None
    assert (measured.score, measured.agreement) == (None, 1.0)
    assert sketch.decode_profile(result.reference).rows == len(frame)


def test_an_onnx_model_passes_through_as_it_is(
    save_model: SaveModel, save_table: SaveTable, tmp_path: Path
) -> None:
    frame = wine()
    features, y = frame.drop(columns="target"), frame["target"]
    model = save_model(LogisticRegression(max_iter=9000).fit(features, y), "m.joblib")
    sample = save_table(frame, "wine.csv")
    first = convert(ConversionRequest(model, sample, "target")).verified[0]
    path = tmp_path / "again.onnx"
    path.write_bytes(first.model)
    budget = DeviceBudget(max_latency_us=500, max_memory_bytes=2**20)
    again = convert(ConversionRequest(str(path), sample, "target", budget=budget))
    assert again.task == "classification"
    (compiled,) = again.verified
    assert compiled.model == first.model
    assert compiled.signature == first.signature
    needs = compiled.needs
    assert needs is not None
    assert (needs.max_latency_us, needs.max_memory_bytes) == (500, 2**20)


def test_a_variant_over_its_limit_is_refused_and_so_is_the_model(
    save_model: SaveModel, save_table: SaveTable
) -> None:
    frame = wine()
    fitted = LogisticRegression(max_iter=9000).fit(frame.drop(columns="target"), frame["target"])
    request = ConversionRequest(
        save_model(fitted, "m.joblib"),
        save_table(frame, "wine.csv"),
        "target",
        limits=Limits(parity=1e-12),
    )
    with pytest.raises(
        NothingVerifiedError, match=r"onnx-fp32: a score is .* at most 1e-12"
    ) as caught:
        convert(request)
    assert set(caught.value.refusals) == {"onnx-fp32", "onnx-int8"}


def two_inputs(path: Path) -> str:
    """Write a model that adds up a picture and a state, with the picture as its second input."""
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Flatten", ["in:1"], ["flat"]),
                helper.make_node("MatMul", ["flat", "w"], ["seen"]),
                helper.make_node("MatMul", ["in:0", "v"], ["known"]),
                helper.make_node("Add", ["seen", "known"], ["sum"]),
                helper.make_node("Softmax", ["sum"], ["p"]),
            ],
            "g",
            [
                helper.make_tensor_value_info("in:0", TensorProto.FLOAT, ["n", 2]),
                helper.make_tensor_value_info("in:1", TensorProto.FLOAT, ["n", 4, 4, 1]),
            ],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 2])],
            [
                numpy_helper.from_array(
                    np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2), "w"
                ),
                numpy_helper.from_array(np.array([[2, -2], [1, 0]], np.float32), "v"),
            ],
        ),
        ir_version=onnx_files.IR_VERSION,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    onnx.save(made, path)
    return str(path)


def test_tensors_with_groups_go_through_to_bundles_that_share_one_profile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state, picture = rng.normal(size=(400, 2)), rng.random((400, 4, 4, 1))
    label = (state[:, 0] < rng.normal(0.2, 0.5, 400)).astype(int)
    np.savez(
        tmp_path / "s.npz",
        state=state,
        picture=picture,
        label=label,
        group=np.repeat(np.arange(80), 5),
    )
    own = Recipe("small", "Tidy.", "onnx", [StepCall("onnx-optimize")])
    request = ConversionRequest(
        two_inputs(tmp_path / "two.onnx"),
        str(tmp_path / "s.npz"),
        variants=["onnx-fp32"],
        recipes=[own],
        metric="auc",
    )
    result = convert(request)
    assert states(result) == {"onnx-fp32": "verified", "small": "verified"}
    assert result.columns == []
    assert set(result.metrics) == {"auc", "rows"}
    profile = sketch.decode_profile(result.reference)
    names = [feature.name for feature in profile.features]
    words = ("mean", "std", "min", "max")
    assert names == [f"{name}.{word}" for name in ("state", "picture") for word in words]
    assert profile.rows == 300
    for compiled in result.verified:
        assert compiled.signature is not None
        assert compiled.signature.features == names
        assert compiled.evidence is not None
        assert (compiled.evidence.metric, compiled.evidence.units) == ("auc", 20)
        bundle = write_bundle(
            compiled, result.reference, model="two", version="1", lineage=Lineage()
        )
        model = Model("onnx", bundle.unpack("model"), bundle.manifest.signature)
        assert trial.golden_faults("onnxruntime", model, bundle.unpack("golden")) == []


def test_recipes_of_one_name_are_refused(save_model: SaveModel, save_table: SaveTable) -> None:
    own = Recipe("onnx-int8", "Another.", "onnx", [])
    model, sample = save_model({}, "m.joblib"), save_table(wine(), "wine.csv")
    with pytest.raises(BadInputError, match="two recipes are called onnx-int8; give another name"):
        convert(ConversionRequest(model, sample, recipes=[own]))


def test_a_given_sparsity_goes_to_the_steps_that_ask_for_one() -> None:
    request = ConversionRequest("m.keras", "s.csv", variants=["onnx-fp32", "onnx-pruned"])
    usual = pipeline._recipes(request)
    more = pipeline._recipes(structs.replace(request, sparsity=0.8))
    assert [recipe.name for recipe in more] == ["onnx-fp32", "onnx-pruned"]
    assert usual[1].steps[0].options == {"sparsity": 0.5}
    assert more[1].steps[0].options == {"sparsity": 0.8}
    assert more[0] == usual[0]


def test_a_variant_that_no_table_knows_needs_the_release_that_ran_it() -> None:
    unknown = Facts("onnx", 0, unreadable="nobody knows")
    assert compiling._oldest_runtime("onnx", unknown) == metadata.version("onnxruntime")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["onnx-fp8"]}, "unknown variants onnx-fp8; expected some of onnx-fp32"),
        ({"variants": []}, r"unknown variants \(none given\)"),
        ({"sparsity": 1.0}, "sparsity 1.0: expected a share between 0 and 1"),
        ({"label": "missing"}, "no column 'missing'"),
        ({"model_path": "none.joblib"}, "none.joblib: cannot be read"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_at_once(
    save_model: SaveModel, save_table: SaveTable, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {
        "model_path": save_model({}, "m.joblib"),
        "sample_path": save_table(wine(), "wine.csv"),
        "label": "target",
    }
    with pytest.raises(BadInputError, match=message):
        convert(ConversionRequest(**(settings | changes)))


def test_too_few_rows_to_hold_out_are_refused(save_model: SaveModel, save_table: SaveTable) -> None:
    sample = save_table(wine().iloc[:3], "wine.csv")
    with pytest.raises(BadInputError, match="3 rows are too few to hold a quarter out"):
        convert(ConversionRequest(save_model({}, "m.joblib"), sample, "target"))


def test_a_regression_label_that_is_text_is_named(
    save_model: SaveModel, save_table: SaveTable
) -> None:
    frame: pd.DataFrame = datasets.load_diabetes(as_frame=True).frame
    fitted = RandomForestRegressor(2).fit(frame.drop(columns="target"), frame["target"])
    frame["target"] = "high"
    model, sample = save_model(fitted, "m.joblib"), save_table(frame, "s.csv")
    with pytest.raises(BadInputError, match="column 'target', data row 1: expected a number"):
        convert(ConversionRequest(model, sample, "target"))


class Killer:
    """Unpickling this kills the process that does it."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.abort, ())


def test_a_pickle_that_kills_its_process_is_an_error_here(
    save_model: SaveModel, save_table: SaveTable
) -> None:
    model, sample = save_model(Killer(), "m.joblib"), save_table(wine(), "wine.csv")
    with pytest.raises(ChildCrashedError, match=r"m.joblib: the process was killed by SIGABRT"):
        convert(ConversionRequest(model, sample, "target"))


def test_a_refused_variant_makes_no_bundle() -> None:
    refused = pipeline.Compiled("onnx-int8", "onnxruntime", "refused", "too far off")
    with pytest.raises(ValueError, match="onnx-int8 is not verified: too far off"):
        write_bundle(refused, b"", model="m", version="1", lineage=Lineage())


def test_bundles_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"manifest.json: cannot be read"):
        bundles.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BadInputError, match="no whole bundle: not a bundle manifest"):
        bundles.load(tmp_path)


def test_a_flipped_byte_in_a_blob_is_seen(tmp_path: Path) -> None:
    signature = Signature(
        "regression",
        [Tensor("X", "float32", [None, 1], ["a"])],
        [Tensor("y", "float32", [None, 1])],
        "y",
    )
    compiled = pipeline.Compiled(
        "onnx-fp32",
        "onnxruntime",
        "verified",
        "",
        b"model " * 50,
        b"golden",
        signature,
        manifest.Needs("onnxruntime", "1.15"),
        manifest.Measured(0.0, 1.0, 1.0),
    )
    bundle = write_bundle(compiled, b"reference", model="m", version="1", lineage=Lineage())
    bundles.save(bundle, tmp_path)
    blob = tmp_path / bundle.manifest.file("model").transfer.digest
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BadInputError, match="model blob differs from its digest"):
        bundles.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("broken_inputs/trunc50_keypoint.onnx", BadInputError, "truncated, damaged, or no .onnx"),
        ("broken_inputs/ov_external_file_not_found.onnx", BadInputError, "lies in another file"),
        ("broken_inputs/lfs_pointer_maskrcnn.onnx", BadInputError, "git-LFS pointer"),
        ("gesture_onnx/keypoint_classifier.onnx", UnsupportedError, "no output holds scores"),
    ],
)
def test_real_files_that_cannot_be_shipped_are_refused(
    shared_models: Path,
    save_table: SaveTable,
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    sample = save_table(wine(), "wine.csv")
    with pytest.raises(error, match=message):
        convert(ConversionRequest(str(shared_models / name), sample, "target"))
