"""HDF5 files of whole models, as Keras 2 wrote them, put into words that Keras 3 reads.

Keras 2 wrote settings that Keras 3 no longer knows, because it can only do what they say when they
have one certain value. Where they have it they are left out; else Keras 3 refuses the model.
"""

import json
from pathlib import Path
from typing import Any

from edgefleet_converters.errors import BadInputError

_TRANSPOSED_OR_DEPTHWISE = (
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
)
# Layer → setting → the value that says what Keras 3 does anyway.
_OBSOLETE: dict[str, dict[str, object]] = {
    **{name: {"groups": 1} for name in _TRANSPOSED_OR_DEPTHWISE},
    **{name: {"time_major": False} for name in ("LSTM", "GRU", "SimpleRNN", "RNN")},
}
_CONFIG = "model_config"


def modernise(path: Path, source: str) -> None:
    """Rewrite the configuration of a model in place, where Keras 3 needs it.

    Args:
        path: a copy of the file.
        source: name of the model, for error texts.

    Raises:
        BadInputError: damaged, or no whole model.
    """
    import h5py

    try:
        with h5py.File(path, "r+") as file:
            if _CONFIG not in file.attrs:
                raise BadInputError(
                    f"{source}: holds weights but no model; save it whole, with"
                    " `model.save('model.keras')`"
                )
            config = json.loads(file.attrs[_CONFIG])
            file.attrs[_CONFIG] = json.dumps(_without_obsolete(config))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise BadInputError(f"{source}: damaged, or no Keras model: {error}") from error


def _without_obsolete(config: Any) -> Any:
    if isinstance(config, list):
        return [_without_obsolete(part) for part in config]
    if not isinstance(config, dict):
        return config
    kept = {key: _without_obsolete(value) for key, value in config.items()}
    settings = kept.get("config")
    if isinstance(settings, dict):
        for name, value in _OBSOLETE.get(str(kept.get("class_name")), {}).items():
            if settings.get(name) == value:
                del settings[name]
    return kept
