"""Model files: which kind each is, and how estimators are opened.

| suffix | kind | loading it |
|---|---|---|
| `.skops` | skops | builds only types that skops trusts; preferred |
| `.joblib`, `.pkl`, `.pickle` | pickle | **runs code from the file** |
| `.onnx` | onnx | data only |
| `.keras` | keras | data only (Keras's safe mode: no Lambda layers) |

`load_estimator` is called only in a child process (`child`). That contains crashes and hangs; it
does not contain malice: a pickle runs with the rights of whoever converts it. Load none that you
would not run as a program, and never one that came from a device.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from edgefleet_converters.errors import BadInputError

Kind = Literal["pickle", "skops", "onnx", "keras"]

KINDS: dict[str, Kind] = {
    ".skops": "skops",
    ".joblib": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".onnx": "onnx",
    ".keras": "keras",
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


class ModelFile(Struct, frozen=True):
    """A model file whose kind is known and whose first bytes fit it."""

    path: str
    kind: Kind
    size_bytes: int


def recognise(path: str | Path) -> ModelFile:
    """Tell what kind of model a file holds, without loading it.

    Raises:
        BadInputError: no such file, not a supported kind, empty, a git-LFS pointer, or content
            that does not fit the suffix.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
        size = file.stat().st_size
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise BadInputError(f"{path}: the file is empty (0 bytes)")
    if head.startswith(_LFS):
        raise BadInputError(
            f"{path}: this is a git-LFS pointer, not the model; fetch it with `git lfs pull`"
        )
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        expected = ", ".join(KINDS)
        hint = "; save it with `model.save('model.keras')`" if head.startswith(_HDF5) else ""
        raise BadInputError(f"{path}: expected a model file ending in {expected}{hint}")
    if (kind in ("skops", "keras")) and not zipfile.is_zipfile(file):
        raise BadInputError(f"{path}: damaged, or no {file.suffix} file: not a whole zip archive")
    if kind in ("pickle", "onnx") and head.startswith((_ZIP, _HDF5)):
        raise BadInputError(f"{path}: the content does not fit the suffix {file.suffix}")
    return ModelFile(str(file), kind, size)


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
