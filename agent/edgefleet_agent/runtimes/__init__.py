"""Inference runtimes behind one small interface: ONNX Runtime and LiteRT.

A runtime is imported when a model needs it, not before: each costs memory and start-up time. How
many threads and which execution providers a session gets is decided in one place, `execution`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes.execution import How
from edgefleet_protocol.manifest import Manifest, Runtime, Signature
from edgefleet_protocol.profiles import TFLITE_RUNTIME

Scores = NDArray[np.float32]
Given = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.generic]]
# From a row `(n_columns,)` to its scores; raises InferenceError.
RowCall = Callable[[NDArray[np.float64]], list[float]]

# family → (name in reports, module, distribution), the preferred one first. tflite-runtime has the
# same interface and is what 32-bit ARM has; its versions are its own, so it is reported as itself.
_PACKAGES: dict[Runtime, list[tuple[str, str, str]]] = {
    "onnxruntime": [("onnxruntime", "onnxruntime", "onnxruntime")],
    "litert": [
        ("litert", "ai_edge_litert", "ai-edge-litert"),
        (TFLITE_RUNTIME, "tflite_runtime", "tflite-runtime"),
    ],
}


class Session(Protocol):
    """A loaded model. Safe to call from several threads."""

    @property
    def provider(self) -> str:
        """What computes: an ONNX Runtime execution provider, or the LiteRT distribution."""

    def run(self, tensors: Given) -> Scores:
        """Return the scores `(n, k)` float32 of input tensors with `n` rows.

        A model that takes no batches has one row a call, and its tensors are passed as they are.

        Raises:
            InferenceError: if the runtime raises.
        """

    def run_all(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        """Return named outputs of the manifest, quantized ones as the numbers they stand for.

        Raises:
            InferenceError: if the runtime raises, or there is no such output.
        """

    def reset(self) -> None:
        """Forget what earlier calls left in the model, for models that keep a state inside.

        Raises:
            ModelError: if the model cannot be opened again for that.
        """

    def close(self) -> None:
        """Let go of the model; later calls raise InferenceError, running ones end well."""


@runtime_checkable
class CallsRows(Protocol):
    """A session with a quicker way for one row than `run`."""

    def row_call(self) -> RowCall | None:
        """Return that way for the model's one numeric input, None if it has none."""


def available(allowed: Collection[str] | None = None) -> dict[str, str]:
    """Return name in reports → version of the runtimes that are installed.

    Args:
        allowed: families; None for all.
    """
    found: dict[str, str] = {}
    for family, packages in _PACKAGES.items():
        if allowed is not None and family not in allowed:
            continue
        for name, module, distribution in packages:
            if util.find_spec(module) is not None:
                found[name] = _version(module, distribution)
                break
    return found


def warm(family: Runtime) -> None:
    """Import a runtime, so that what it needs empty is not counted as a model's.

    Raises:
        ModelError: if it is not installed.
    """
    _session_class(family)


def load(
    family: Runtime, path: Path, signature: Signature, how: How | None = None, *, model: str = ""
) -> Session:
    """Load a model file.

    Args:
        family: the runtime.
        path: of the file, verified by the caller.
        signature: what goes in and what comes out.
        how: threads and execution providers; None for one thread on the processor.
        model: digest of the file, under which built engines are kept; empty for none.

    Raises:
        ModelError: if the runtime is not installed, or refuses the file.
    """
    session: Session = _session_class(family)(path, signature, how or How(threads=1), model)
    return session


def load_bundle(bundle: Manifest, path: Path, how: How | None = None) -> Session:
    """Load the model file of a bundle with the runtime that it needs.

    Args:
        bundle: its manifest.
        path: of the model file, verified by the caller.
        how: threads and execution providers; None for one thread on the processor.

    Raises:
        ModelError: if the runtime is not installed, or refuses the file.
    """
    digest = bundle.file("model").digest
    return load(bundle.needs.runtime, path, bundle.signature, how, model=digest)


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


def as_one_row(output: object) -> Scores:
    """Return the score output of a model that takes no batches as `(1, k)` float32.

    Raises:
        InferenceError: if it is no array of numbers.
    """
    return as_scores(np.asarray(output)[None], 1)


def in_pieces(
    tensors: Given, rows: int, size: int, run: Callable[[Given], Outputs], *, fill: bool
) -> Outputs:
    """Run `rows` rows through a model that takes `size` at a time, and join what comes out.

    Args:
        tensors: inputs with the rows in front.
        rows: how many there are.
        size: of a piece.
        run: one call.
        fill: whether the last piece must be of that size too; it is filled with its own last row.

    Raises:
        InferenceError: if there are no rows, or an output has none for some that went in.
    """
    if rows == 0:
        raise InferenceError("there are no rows to answer")
    pieces: list[Outputs] = []
    for start in range(0, rows, size):
        kept = min(size, rows - start)
        index = np.minimum(np.arange(start, start + (size if fill else kept)), rows - 1)
        given = {name: tensor[index] for name, tensor in tensors.items()}
        outputs = run(given)
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != len(index):
                raise InferenceError(
                    f"output {name!r} has the shape {output.shape} for {len(index)} rows"
                )
        pieces.append({name: output[:kept] for name, output in outputs.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _session_class(family: Runtime) -> Any:
    try:
        if family == "onnxruntime":
            from edgefleet_agent.runtimes.onnx import OnnxSession

            return OnnxSession
        from edgefleet_agent.runtimes.litert import LiteRtSession
    except ImportError as error:
        raise ModelError(f"runtime {family} cannot be imported: {error}") from error
    return LiteRtSession


def _version(module: str, distribution: str) -> str:
    """Return a runtime's version, whichever distribution the module came in.

    The builds for GPUs and Jetsons have names of their own (`onnxruntime-gpu`).
    """
    # Not needed by a trial, whose start this would lengthen by a tenth.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        others = metadata.packages_distributions().get(module, [])
        return metadata.version(others[0]) if others else "unknown"
