"""Model files: which kind each is, and how estimators are opened.

| suffix | kind | known by | loading it |
|---|---|---|---|
| `.skops` | skops | a zip with `schema.json` | builds only types that skops trusts; preferred |
| `.joblib`, `.pkl`, `.pickle` | pickle | the suffix alone | **runs code from the file** |
| `.onnx` | onnx | the fields of an ONNX model, to the last byte | data only |
| `.keras` | keras | a zip with `config.json` and weights | data only (no Lambda layers) |
| `.h5`, `.hdf5` | keras | HDF5 | data only (no Lambda layers) |
| folder, `.zip`, `.tar`, `.tar.gz`, `.tgz` | savedmodel | `saved_model.pb` | a graph, no Python |
| `.tflite` | tflite | `TFL3` | data only |
| `.pt2`, `.pt`, `.pth` | torch | a zip that says program or TorchScript | a graph; needs PyTorch |
| `.json`, `.ubj` | xgboost | `{` | data only |
| `.txt` | lightgbm | `tree` | data only |

What the content says counts; the suffix decides only where content is silent (a pickle has no
mark), and a suffix that contradicts the content is refused. Nothing is loaded for this: at most the
directory of a zip archive is read, so a file of any size is answered at once.

`load_estimator` is called only in a child process (`child`). That contains crashes and hangs; it
does not contain malice: a pickle runs with the rights of whoever converts it. Load none that you
would not run as a program, and never one that came from a device.
"""

import pickle
import tarfile
import zipfile
from pathlib import Path, PurePath
from typing import IO, Any, Literal

from msgspec import Struct

from edgefleet_converters import protobuf_fields
from edgefleet_converters.errors import BadInputError

Kind = Literal[
    "pickle", "skops", "onnx", "keras", "savedmodel", "tflite", "torch", "xgboost", "lightgbm"
]

KINDS: dict[str, Kind] = {
    ".skops": "skops",
    ".joblib": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".onnx": "onnx",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".zip": "savedmodel",
    ".tar": "savedmodel",
    ".tar.gz": "savedmodel",
    ".tgz": "savedmodel",
    ".tflite": "tflite",
    ".pt2": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".json": "xgboost",
    ".ubj": "xgboost",
    ".txt": "lightgbm",
}
PICKLE_WARNING = (
    "a pickle (.joblib, .pkl) runs code when it is loaded; convert none that you would not run as"
    " a program, and prefer .skops"
)
# What scikit-learn's own estimators hold and skops does not trust by itself: data, no code.
_TRUSTED = [
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
]
_ZIP, _HDF5, _LFS = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs"
_GZIP, _PICKLE = b"\x1f\x8b", b"\x80"
_NO_GRAPH = (
    "this is a PyTorch file that only torch.load reads (weights, or a pickled module, which needs"
    " its own Python code); save the whole graph with"
    " `torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')` or"
    " `torch.jit.trace(model.eval(), example).save('model.pt')`"
)
# Of a zip archive's directory; the largest real one (a TorchScript of 400 layers) has 3,000.
_MAX_MEMBERS = 100_000


class ModelFile(Struct, frozen=True):
    """A model file (or the folder of a SavedModel) whose kind is known by what it holds."""

    path: str
    kind: Kind
    size_bytes: int


def recognise(path: str | Path) -> ModelFile:
    """Tell what kind of model a file or folder holds, without loading it.

    Raises:
        BadInputError: no such file, not a supported kind, empty, a git-LFS pointer, truncated, or
            content that does not fit the suffix.
    """
    file = Path(path)
    if file.is_dir():
        return _recognise_folder(file)
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            _refuse_placeholders(file, stream.read(64), size)
            found = _kind_of(file, stream, size)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return ModelFile(str(file), found, size)


def _recognise_folder(folder: Path) -> ModelFile:
    if not (folder / "saved_model.pb").is_file():
        raise BadInputError(
            f"{folder}: this is a directory; expected a model file, or a SavedModel: a directory"
            " with saved_model.pb in it"
        )
    size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    return ModelFile(str(folder), "savedmodel", size)


def _refuse_placeholders(file: Path, head: bytes, size: int) -> None:
    if size == 0:
        raise BadInputError(f"{file}: the file is empty (0 bytes)")
    if head.startswith(_LFS):
        raise BadInputError(
            f"{file}: this is a git-LFS pointer, not the model; fetch it with `git lfs pull`"
        )


def _kind_of(file: Path, stream: IO[bytes], size: int) -> Kind:
    said = KINDS.get(suffix(file))
    found = _by_content(file, stream, size, said)
    if found is None and said == "pickle":
        return said
    if found is None:
        raise BadInputError(_what_was_expected(file, said))
    if said is not None and found != said:
        raise BadInputError(
            f"{file}: the content does not fit the suffix {suffix(file)}: it is {found}"
        )
    return found


def suffix(file: PurePath) -> str:
    """Return the end of a file's name that says its kind, in lower case: `.onnx`, `.tar.gz`."""
    name = file.name.lower()
    return ".tar.gz" if name.endswith(".tar.gz") else file.suffix.lower()


def _by_content(file: Path, stream: IO[bytes], size: int, said: Kind | None) -> Kind | None:
    """Return what the bytes say; None where they say nothing."""
    stream.seek(0)
    head = stream.read(512)
    if head.startswith(_HDF5):
        return "keras"
    if head[4:8] == b"TFL3" and int.from_bytes(head[:4], "little") + 4 <= size:
        return "tflite"
    if head.startswith(_ZIP):
        return _by_members(file)
    if said == "savedmodel" and (head.startswith(_GZIP) or tarfile.is_tarfile(file)):
        return "savedmodel"  # what it holds is seen when it is unpacked, in the child
    if said == "lightgbm" and head.startswith(b"tree\n"):
        return "lightgbm"
    if said == "xgboost" and head.lstrip().startswith(b"{"):
        return "xgboost"
    if said == "torch" and head.startswith(_PICKLE):
        raise BadInputError(f"{file}: {_NO_GRAPH}")
    if said != "pickle" and protobuf_fields.is_onnx_model(stream, size):
        return "onnx"
    return None


def _by_members(file: Path) -> Kind:
    """Tell a zip archive by the names of its members."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist()[:_MAX_MEMBERS])
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadInputError(f"{file}: damaged, or cut off: not a whole zip archive") from error
    base = {name.rpartition("/")[2] for name in names}
    if "saved_model.pb" in base:
        return "savedmodel"
    if {"config.json", "metadata.json"} <= names:
        return "keras"
    if "schema.json" in names:
        return "skops"
    if (
        "constants.pkl" in base
        or "archive_format" in base
        or "serialized_exported_program.json" in base
    ):
        return "torch"
    if "data.pkl" in base:
        raise BadInputError(f"{file}: {_NO_GRAPH}")
    raise BadInputError(
        f"{file}: a zip archive, but of no model: expected a .keras or .skops file, a SavedModel"
        " (saved_model.pb), or a PyTorch program"
    )


def _what_was_expected(file: Path, said: Kind | None) -> str:
    if said is None:
        return f"{file}: expected a model file ending in {', '.join(KINDS)}"
    return f"{file}: truncated, damaged, or no {suffix(file)} file"


def load_estimator(file: ModelFile) -> Any:
    """Return the fitted scikit-learn estimator in a file. Call this in a child process only.

    Raises:
        BadInputError: the file cannot be loaded, holds types that are not trusted, holds no
            scikit-learn estimator, or one that is not fitted.
    """
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    loaded = _load_skops(file) if file.kind == "skops" else _load_pickle(file)
    if not isinstance(loaded, BaseEstimator):
        raise BadInputError(
            f"{file.path}: holds a {type(loaded).__module__}.{type(loaded).__qualname__}; expected"
            " a fitted scikit-learn estimator or pipeline"
        )
    try:
        check_is_fitted(loaded)
    except NotFittedError as error:
        raise BadInputError(f"{file.path}: {type(loaded).__name__} is not fitted") from error
    except TypeError as error:
        raise BadInputError(
            f"{file.path}: {type(loaded).__name__} has no fit method; expected a fitted estimator"
        ) from error
    return loaded


def _load_pickle(file: ModelFile) -> object:
    import joblib

    try:
        return joblib.load(file.path)
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"{file.path}: the pickle needs the module {error.name!r}, which is not installed here"
        ) from error
    except AttributeError as error:
        raise BadInputError(
            f"{file.path}: the pickle names something that does not exist here ({error}); classes"
            " must live in an importable module, and library versions must be close"
        ) from error
    except (EOFError, pickle.UnpicklingError, ValueError, KeyError, IndexError) as error:
        raise BadInputError(
            f"{file.path}: no pickle, or a truncated one: {type(error).__name__}: {error}"
        ) from error
    except Exception as error:  # unpickling runs foreign code, which may raise anything
        raise BadInputError(
            f"{file.path}: cannot be unpickled: {type(error).__name__}: {error}"
        ) from error


def _load_skops(file: ModelFile) -> object:
    from skops import io

    try:
        untrusted = set(io.get_untrusted_types(file=file.path)) - set(_TRUSTED)
        if not untrusted:
            return io.load(file.path, trusted=_TRUSTED)
    except Exception as error:  # skops lets errors of zip, json and numpy through
        raise BadInputError(
            f"{file.path}: cannot be read as skops: {type(error).__name__}: {error}"
        ) from error
    raise BadInputError(
        f"{file.path}: holds types that are not trusted: {', '.join(sorted(untrusted))}; only"
        " types of scikit-learn, scipy and numpy are loaded"
    )
