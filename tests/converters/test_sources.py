import io
import pickle
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from edgefleet_converters import sources
from edgefleet_converters.errors import BadInputError


def fitted() -> LogisticRegression:
    return LogisticRegression().fit([[0.0], [1.0]], [0, 1])


def load(path: Path) -> Any:
    return sources.load_estimator(sources.recognise(path))


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


# ModelProto: IR version 8, and a graph of two bytes.
ONNX = b"\x08\x08\x3a\x02\x0a\x00"
TFLITE = b"\x08\x00\x00\x00TFL3" + bytes(8)
HDF5 = b"\x89HDF\r\n\x1a\n rest"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.joblib", b"\x80\x04abc", "pickle"),
        ("m.PICKLE", b"\x80\x04abc", "pickle"),
        ("m.skops", zipped("schema.json"), "skops"),
        ("m.onnx", ONNX, "onnx"),
        ("model.bin", ONNX, "onnx"),
        ("m.tflite", TFLITE, "tflite"),
        ("m.h5", HDF5, "keras"),
        ("m.hdf5", HDF5, "keras"),
        ("m.keras", zipped("config.json", "metadata.json", "model.weights.h5"), "keras"),
        ("m.zip", zipped("export/saved_model.pb", "export/variables/x"), "savedmodel"),
        ("m.tar.gz", b"\x1f\x8b rest", "savedmodel"),
        ("m.pt2", zipped("m/archive_format", "m/models/model.json"), "torch"),
        ("m.pt", zipped("m/data.pkl", "m/constants.pkl", "m/code/net.py"), "torch"),
        ("m.json", b'{"learner": {}}', "xgboost"),
        ("m.ubj", b"{L\x00", "xgboost"),
        ("m.txt", b"tree\nversion=v4\n", "lightgbm"),
    ],
)
def test_a_kind_is_known_by_its_content(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert sources.recognise(tmp_path / name) == sources.ModelFile(
        str(tmp_path / name), kind, len(content)
    )


def test_a_savedmodel_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"abc")
    assert sources.recognise(tmp_path) == sources.ModelFile(str(tmp_path), "savedmodel", 3)


@pytest.mark.parametrize("cut", range(len(ONNX)))
def test_a_cut_onnx_file_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "m.onnx").write_bytes(ONNX[:cut])
    with pytest.raises(BadInputError, match=r"truncated, damaged|the file is empty"):
        sources.recognise(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", b"", "the file is empty"),
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
        ("m.onnx", TFLITE, "does not fit the suffix .onnx: it is tflite"),
        ("m.tflite", b"\x1c\x00\x00\x00TFL3", "truncated, damaged, or no .tflite file"),
        ("m.keras", HDF5[:6], "truncated, damaged, or no .keras file"),
        ("m.skops", b"PK\x03\x04 cut off", "not a whole zip archive"),
        ("m.pkl", zipped("schema.json"), "does not fit the suffix .pkl: it is skops"),
        ("m.zip", zipped("readme"), "a zip archive, but of no model"),
        ("m.pt", zipped("m/data.pkl", "m/data/0"), r"only torch.load reads .*torch.export.save"),
        ("m.pth", b"\x80\x02\x8a\x0a", "only torch.load reads"),
        ("m.txt", b"hello", "truncated, damaged, or no .txt file"),
        ("m.bin", b"hello", "expected a model file ending in .skops"),
    ],
)
def test_files_that_are_no_models_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=message):
        sources.recognise(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="No such file"):
        sources.recognise(tmp_path / "none.onnx")
    with pytest.raises(BadInputError, match="directory"):
        sources.recognise(tmp_path)


def test_pickle_and_skops_give_the_estimator(tmp_path: Path) -> None:
    joblib.dump(fitted(), tmp_path / "m.joblib")
    skops.io.dump(fitted(), tmp_path / "m.skops")
    for name in ("m.joblib", "m.skops"):
        assert load(tmp_path / name).predict([[1.0]]) == [1]


def test_skops_with_types_that_are_not_trusted_is_refused_with_their_names(tmp_path: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(textwrap.dedent), fitted())
    skops.io.dump(pipeline, tmp_path / "m.skops")
    with pytest.raises(BadInputError, match=r"not trusted: .*textwrap"):
        load(tmp_path / "m.skops")


def test_a_zip_that_is_no_skops_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(BadInputError, match="a zip archive, but of no model"):
        load(tmp_path / "m.skops")


@pytest.mark.parametrize("value", [{"not": "a model"}, np.zeros(3), LogisticRegression])
def test_something_else_in_a_pickle_is_refused(tmp_path: Path, value: object) -> None:
    joblib.dump(value, tmp_path / "m.joblib")
    with pytest.raises(BadInputError, match="expected a fitted scikit-learn estimator"):
        load(tmp_path / "m.joblib")


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()), tmp_path / "m.joblib")
    with pytest.raises(BadInputError, match="Pipeline is not fitted"):
        load(tmp_path / "m.joblib")


def test_a_truncated_pickle_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    joblib.dump(fitted(), buffer)
    (tmp_path / "m.joblib").write_bytes(buffer.getvalue()[:200])
    with pytest.raises(BadInputError, match=r"no pickle, or a truncated one|cannot be unpickled"):
        load(tmp_path / "m.joblib")


def test_text_in_a_pickle_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_text("this is no pickle at all")
    with pytest.raises(BadInputError, match=r"m.pkl: "):
        load(tmp_path / "m.pkl")


def test_a_pickle_that_needs_a_missing_module_says_which(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"cno_such_module_here\nThing\n.")
    with pytest.raises(BadInputError, match="needs the module 'no_such_module_here'"):
        load(tmp_path / "m.pkl")


def test_a_pickle_that_needs_a_missing_class_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"csklearn.linear_model\nNoSuchClass\n.")
    with pytest.raises(BadInputError, match="NoSuchClass"):
        load(tmp_path / "m.pkl")


def test_a_pickle_whose_code_raises_is_an_error_not_a_crash(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (int, ("not a number",))

    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInputError, match="invalid literal"):
        load(tmp_path / "m.pkl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lfs_pointer_maskrcnn.onnx", "git-LFS pointer"),
        ("made_zero_length.onnx", "the file is empty"),
        ("tf_issue_115308_8bytes.tflite", "truncated, damaged, or no .tflite file"),
        ("trunc50_keypoint.onnx", "truncated, damaged, or no .onnx file"),
    ],
)
def test_broken_files_of_other_projects_are_refused(
    shared_models: Path, name: str, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        sources.recognise(shared_models / "broken_inputs" / name)
