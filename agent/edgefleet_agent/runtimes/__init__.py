"""Inference runtimes behind one small interface: ONNX Runtime and LiteRT.

A runtime is imported when a model needs it, not before: each costs memory and start-up time. One
thread a session: more worsen the tails of small models (docs/adr/0002 has the figures).
"""

from collections.abc import Collection
from importlib import metadata, util
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_protocol.manifest import Manifest, Runtime, Signature
from edgefleet_protocol.rows import Tensors

Scores = NDArray[np.float32]

# family → (module, distribution), the preferred one first.
_PACKAGES: dict[Runtime, list[tuple[str, str]]] = {
    "onnxruntime": [("onnxruntime", "onnxruntime")],
    "litert": [("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")],
}


class Session(Protocol):
    """A loaded model. Safe to call from several threads."""

    def run(self, tensors: Tensors) -> Scores:
        """Return the scores `(n, k)` float32 of input tensors with `n` rows.

        Raises:
            InferenceError: if the runtime raises.
        """


def available(allowed: Collection[str] | None = None) -> dict[str, str]:
    """Return family → version of the runtimes that are installed and allowed."""
    found: dict[str, str] = {}
    for family, packages in _PACKAGES.items():
        if allowed is not None and family not in allowed:
            continue
        for module, distribution in packages:
            if util.find_spec(module) is not None:
                found[family] = metadata.version(distribution)
                break
    return found


def load(family: Runtime, path: Path, signature: Signature, *, threads: int = 1) -> Session:
    """Load a model file.

    Args:
        family: the runtime.
        path: of the file, verified by the caller.
        signature: what goes in and what comes out.
        threads: that one call may use.

    Raises:
        ModelError: if the runtime is not installed, or refuses the file.
    """
    try:
        if family == "onnxruntime":
            from edgefleet_agent.runtimes.onnx import OnnxSession

            return OnnxSession(path, signature, threads=threads)
        from edgefleet_agent.runtimes.litert import LiteRtSession

        return LiteRtSession(path, signature, threads=threads)
    except ImportError as error:
        raise ModelError(f"runtime {family} cannot be imported: {error}") from error


def load_bundle(bundle: Manifest, path: Path) -> Session:
    """Load the model file of a bundle with the runtime that it needs."""
    return load(bundle.needs.runtime, path, bundle.signature)


def as_scores(output: object, rows: int) -> Scores:
    """Return a runtime's score output as `(rows, k)` float32.

    Raises:
        InferenceError: if it is no array of that many rows.
    """
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
        raise InferenceError(f"the score output is {type(output).__name__}; expected numbers")
    if output.ndim == 0 or len(output) != rows:
        raise InferenceError(f"the score output has the shape {output.shape}; expected {rows} rows")
    if output.ndim == 2 and output.dtype == np.float32:
        return output  # as almost always; the general case costs a microsecond
    return output.reshape(rows, -1).astype(np.float32, copy=False)
