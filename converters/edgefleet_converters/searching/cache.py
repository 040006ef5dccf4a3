"""What a search has found out, in a folder, so that a second one costs nothing.

1. Entries lie under the digest of everything that decides them: the model file, the samples, the
   seed and the versions of the libraries; what was timed, also under this machine's CPU.
2. An entry is written whole or not at all, so a search may be killed and go on later.
3. An entry that cannot be read is made anew: the folder is no input, only a memory.
"""

import hashlib
import logging
import platform
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from edgefleet_converters import child
from edgefleet_converters.errors import BadInputError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Libraries that decide what a step makes of a model, or what a runtime answers.
_LIBRARIES = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "edgefleet-converters",
    "keras",
    "onnx",
    "onnxruntime",
    "scikit-learn",
    "skl2onnx",
    "tensorflow",
    "tensorflow-cpu",
    "tf2onnx",
)


def versions() -> dict[str, str]:
    """Return library → version of what is installed of those that decide results."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return what this machine's CPU calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    names = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(names, platform.machine())


def file_digest(path: Path) -> str:
    """Return one digest for a file, or for all files of a folder and their names.

    Raises:
        BadInputError: it cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
            digest.update(f"{file.relative_to(path)} {content.hexdigest()}\n".encode())
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def key(*parts: object) -> str:
    """Return one digest for bytes, arrays, and anything that JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


class Cache:
    """Results in a folder, by key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"{folder}: cannot be made: {error.strerror or error}") from error

    def folder(self, name: str) -> Path:
        """Return a folder inside, which is made."""
        inside = self._folder / name
        inside.mkdir(exist_ok=True)
        return inside

    def find(self, name: str, kind: type[T]) -> T | None:
        """Return an entry; None if there is none that can be read.

        Args:
            name: its key.
            kind: its type: a struct of what msgpack can hold, and arrays.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=kind, dec_hook=child.decode_array)
        except (OSError, ValueError, TypeError, msgspec.DecodeError) as error:
            logger.warning("%s: made anew, because it cannot be read: %s", path, error)
            return None

    def keep(self, name: str, value: object) -> None:
        """Keep an entry: whole, or not at all.

        Raises:
            BadInputError: the folder cannot be written.
        """
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(msgspec.msgpack.encode(value, enc_hook=child.encode_array))
            Path(file.name).replace(self._path(name))
        except OSError as error:
            raise BadInputError(
                f"{self._folder}: cannot be written: {error.strerror or error}"
            ) from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.msgpack"


def _pieces(part: object) -> Iterable[bytes]:
    if isinstance(part, bytes):
        return [part]
    if isinstance(part, np.ndarray):
        head = f"{part.dtype} {part.shape}".encode()
        if part.dtype == object:
            return [head, msgspec.json.encode(part.tolist())]
        return [head, np.ascontiguousarray(part).tobytes()]
    return [msgspec.json.encode(part, order="deterministic")]
