"""Bundles and files as cases, and the command's exit codes."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgefleet_hardware import cases, zoo
from edgefleet_hardware.cases import Limits
from edgefleet_hardware.cli import app
from edgefleet_hardware.errors import BadUseError
from edgefleet_protocol import golden, manifest
from edgefleet_protocol.golden import GoldenVectors
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.manifest import (
    File,
    Lineage,
    Manifest,
    Measured,
    Needs,
    Signature,
    Tensor,
)

ROWS = np.arange(6, dtype="<f8").reshape(3, 2)


def model(opset: int = 17) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = proto.SerializeToString()
    return data


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    vectors = GoldenVectors(
        ["a", "b"], 3, ROWS.tobytes(), (-ROWS).astype("<f4").tobytes(), 2, 1e-4, 0.9
    )
    contents = {"model": model(), "reference": b"edges", "golden": golden.encode(vectors)}
    files: list[File] = []
    for role, data in contents.items():
        file, blob = manifest.describe_file(role, data)  # type: ignore[arg-type]  # a known role
        files.append(file)
        (tmp_path / file.transfer.digest).write_bytes(blob)
    signature = Signature(
        "classification",
        [Tensor("x", "float32", [None, 2], ["a", "b"])],
        [Tensor("y", "float32", [None, 2])],
        "y",
        classes=["no", "yes"],
    )
    made = Manifest(
        "pump",
        "7",
        "onnx-fp32",
        files,
        signature,
        Needs("onnxruntime", "1.16"),
        Measured(0.0, 1.0, 10.0),
        Lineage(),
    )
    (tmp_path / cases.MANIFEST_NAME).write_bytes(manifest.encode(made))
    return tmp_path


def test_a_bundle_is_named_by_model_and_variant_and_expects_its_golden_vectors(
    bundle: Path,
) -> None:
    case = cases.read(bundle)
    assert (case.name, case.format, case.digest) == ("pump/onnx-fp32", "onnx", digest_of(model()))
    assert case.inputs["x"].shape == (1, 3, 2)
    assert case.expected is not None
    assert np.array_equal(case.expected.outputs["y"][0], -ROWS)
    assert (case.expected.atol, case.expected.rows) == ({"y": 1e-4}, 3)
    assert case.expected.min_agreement == 0.9
    assert case.meant


def test_a_damaged_model_keeps_the_digest_that_it_should_have(bundle: Path) -> None:
    entry = manifest.decode((bundle / cases.MANIFEST_NAME).read_bytes()).file("model")
    blob = bundle / entry.transfer.digest
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    case = cases.read(bundle)
    assert case.digest == entry.digest != cases.model_digest(case)


def test_a_bundle_without_golden_vectors_is_refused(bundle: Path) -> None:
    entry = manifest.decode((bundle / cases.MANIFEST_NAME).read_bytes()).file("golden")
    (bundle / entry.transfer.digest).unlink()
    with pytest.raises(BadUseError, match="cannot be read: No such file"):
        cases.read(bundle)


def test_what_is_neither_a_bundle_nor_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(BadUseError, match="expected a bundle's folder"):
            cases.read(path)


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUseError, match="no model"):
        zoo.gather(tmp_path, Limits())


def compat(*words: object) -> tuple[int, str]:
    told = CliRunner().invoke(app, [str(word) for word in words])
    return told.exit_code, told.output


def test_the_static_check_alone_answers_by_exit_code(bundle: Path, tmp_path: Path) -> None:
    asked = ("--runtime", "onnxruntime==1.18.1", "--cpu", "cortex-a53", "--check-only")
    document = tmp_path / "out" / "result.json"
    code, said = compat("run", bundle, *asked, "--result", document)
    assert (code, "fits" in said) == (0, True), said
    assert b'"pump/onnx-fp32"' in document.read_bytes()
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(model(opset=26))
    code, said = compat("run", newer, *asked)
    assert (code, "refused" in said) == (1, True), said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("missing.onnx", "--runtime", "onnxruntime==1.18.1"), "cannot be read"),
        (("model.pkl", "--runtime", "onnxruntime==1.18.1"), "expected a bundle's folder"),
        (("BUNDLE", "--runtime", "onnxruntime"), "expected NAME==VERSION"),
        (("BUNDLE", "--runtime", "onnxruntime==1.18.1", "--cpu", "max"), "expected one of"),
        (("BUNDLE", "BUNDLE", "--runtime", "onnxruntime==1.18.1"), "given twice"),
        (("BUNDLE", "--runtime", "tflite-runtime==2.14.0", "--check-only"), "no model is of the"),
    ],
)
def test_wrong_use_leaves_with_2(bundle: Path, words: tuple[str, ...], text: str) -> None:
    code, said = compat("run", *(bundle if word == "BUNDLE" else word for word in words))
    assert (code, text in said) == (2, True), said


def test_what_could_not_be_tried_leaves_with_3(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = compat("run", bundle, "--runtime", "onnxruntime==1.18.1", "--cpu", "cortex-a53")
    assert (code, "not tried" in said) == (3, True), said


def test_every_model_of_the_shared_folder_becomes_a_case_on_real_samples_where_there_are_any() -> (
    None
):
    data = Path(os.environ.get("EDGEFLEET_DATA", Path(__file__).parents[2].parent / "shared"))
    if not (data / "models").is_dir():
        pytest.skip(f"no shared models in {data}; point EDGEFLEET_DATA at the folder with them")
    gathered, truths = zoo.gather(data / "models", Limits())
    by_name = {case.name: case for case in gathered}
    assert set(truths) == set(zoo._KNOWN) <= set(by_name)
    labels = truths["mlperf_tiny/ic_resnet8_int8.tflite"].labels
    assert labels is not None
    assert len(by_name["mlperf_tiny/ic_resnet8_int8.tflite"].inputs["input_1_int8"]) == len(labels)
    assert by_name["tflm/person_detect.tflite"].inputs == {}
