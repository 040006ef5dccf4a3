"""Converters of our own for skl2onnx, one module a family of estimators.

They stand in for those that skl2onnx lacks, and for those of its own that give other answers than
scikit-learn. `python -m tests.coverage sklearn` checks every one on real data.
"""

import functools
import importlib
import importlib.util

_MODULES = (
    "bare_boosters",
    "gaussian_processes",
    "kernels",
    "linear",
    "meta",
    "neighbors",
    "preprocessing",
    "systems",
    "topics",
    "trees",
)
# Families whose library may not be installed.
_OPTIONAL = {"xgboost": "xgboost_trees", "lightgbm": "lightgbm_trees"}


@functools.cache
def register() -> None:
    """Register all converters with skl2onnx."""
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
    for library, module in _OPTIONAL.items():
        if importlib.util.find_spec(library) is not None:
            importlib.import_module(f"{__name__}.{module}")
