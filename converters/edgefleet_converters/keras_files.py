"""Keras models as bytes: the form in which they travel between steps.

1. Only files that Keras can build without foreign code are read (`safe_mode`, no Lambda).
2. Equal models give equal bytes: the archive is packed again without times, and layers that steps
   add have names of their own, because Keras counts unnamed ones over the whole process.
3. Everything random is seeded, and TensorFlow's operators are the deterministic ones.

Importing TensorFlow takes seconds, so `import_keras` is called inside functions that need it.
"""

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from edgefleet_converters import keras_hdf5
from edgefleet_converters.errors import BadInputError, UnsupportedError

# The oldest time that a zip archive can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_HDF5 = b"\x89HDF\r\n\x1a\n"


def import_keras(seed: int = 0) -> Any:
    """Return the module `keras` on TensorFlow, on the CPU, seeded.

    Args:
        seed: of Python, NumPy and TensorFlow from here on.

    Raises:
        UnsupportedError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU would only change the last bits
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise UnsupportedError(
            "this needs TensorFlow: install edgefleet-converters[keras]"
        ) from error
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    return keras


def read(data: bytes, source: str = "the model") -> Any:
    """Return the Keras model of a `.keras` file, or of an HDF5 file of a whole model.

    Args:
        data: the file.
        source: its name, for error texts.

    Raises:
        BadInputError: the file is damaged.
        UnsupportedError: the model needs code that is not in the file.
    """
    keras = import_keras()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5" if data.startswith(_HDF5) else "model.keras")
        path.write_bytes(data)
        if data.startswith(_HDF5):
            keras_hdf5.modernise(path, source)
        try:
            return keras.models.load_model(path, compile=False, safe_mode=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            text = " ".join(str(error).split())[:400]
            raise UnsupportedError(
                f"{source}: Keras cannot build it without code of yours (a Lambda or custom"
                f" layer?), or the file is damaged: {text}"
            ) from error
        except (OSError, KeyError) as error:
            raise BadInputError(f"{source}: damaged, or no Keras model: {error}") from error


def write(model: Any) -> bytes:
    """Return a Keras model as a `.keras` file; equal models give equal bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        with zipfile.ZipFile(path) as saved:
            parts = {name: saved.read(name) for name in sorted(saved.namelist())}
    metadata = json.loads(parts["metadata.json"])
    metadata.pop("date_saved", None)
    parts["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
    parts["config.json"] = json.dumps(
        _without_addresses(json.loads(parts["config.json"]), {})
    ).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return packed.getvalue()


def _without_addresses(config: Any, known: dict[int, int]) -> Any:
    """Return a configuration whose shared objects are numbered by place, not by memory address.

    Data type policies lose their number: Keras shares equal ones anyway, and not when it reads.
    """
    if isinstance(config, list):
        return [_without_addresses(entry, known) for entry in config]
    if not isinstance(config, dict):
        return config
    kept = {key: _without_addresses(entry, known) for key, entry in config.items()}
    address = kept.pop("shared_object_id", None)
    if address is not None and config.get("class_name") != "DTypePolicy":
        kept["shared_object_id"] = known.setdefault(address, len(known) + 1)
    return kept
