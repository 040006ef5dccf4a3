"""ONNX models on ONNX Runtime, on the first execution provider that works.

1. Of the providers that are wanted, those that this build of ONNX Runtime has are tried in order,
   each with those after it for operators that it lacks. One that cannot be made is logged, and
   the next is taken. `provider` tells which it was.
2. With TensorRT, engines for one row and for `MAX_ENGINE_ROWS` are built when a session is opened,
   and kept on disk (see `engines`), so the trial builds and serving reads them. No call takes more
   rows: a larger batch than any before would have TensorRT build anew, for minutes, in the middle
   of a call.
3. The memory arena stays on, also on small boards: without it each call allocates anew, and the
   resident memory of a model with large activations doubled (60 → 116 MiB) for no gain elsewhere.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import (
    Given,
    Outputs,
    RowCall,
    Scores,
    as_one_row,
    as_scores,
    engines,
    in_pieces,
    refusals,
)
from edgefleet_agent.runtimes.execution import CPU, TENSORRT, How, threads_for
from edgefleet_protocol.manifest import DType, Signature, Tensor

log = logging.getLogger(__name__)

# 0 verbose … 4 fatal. Errors come as exceptions; printing them too only doubles the log.
_FATAL_ONLY = 4
# Rows of a call with TensorRT; what is more goes in several calls.
MAX_ENGINE_ROWS = 64
_TYPES: dict[DType, str] = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int8": "tensor(int8)",
    "int16": "tensor(int16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
    "string": "tensor(string)",
}
_Call = Callable[[Sequence[str], Given], list[Any]]
# An IO binding, and flat views of its input and of its scores.
_Bound = tuple[Any, NDArray[Any], NDArray[np.float32]]


class OnnxSession:
    """One ONNX model. ONNX Runtime lets several threads call one session at a time."""

    def __init__(self, path: Path, signature: Signature, how: How, model: str) -> None:
        """Open the file; arguments and errors as of `runtimes.load`."""
        session = _open(path, how, model)
        self.provider: str = session.get_providers()[0]
        _check_ports(session, signature)
        self._session = session
        self._run: _Call = session.run
        self._inputs = signature.inputs
        self._outputs = [signature.score_output]
        self._takes_batches = signature.takes_batches
        batches = [item.shape[0] for item in session.get_inputs() if item.shape]
        # Rows that one call takes: None for any number, else what the model was built for.
        fixed = next((size for size in batches if isinstance(size, int)), None)
        self._fill = fixed is not None
        self._rows = fixed or (MAX_ENGINE_ROWS if self.provider == TENSORRT else None)
        if self.provider == TENSORRT:
            self._build_engines(signature)

    def run(self, tensors: Given) -> Scores:
        """Return the scores of the rows in `tensors`."""
        if not self._takes_batches:
            return as_one_row(self._call(self._outputs, tensors)[0])
        rows = len(next(iter(tensors.values())))
        if self._in_one(rows):
            return as_scores(self._call(self._outputs, tensors)[0], rows)
        joined = self._call_in_pieces(tensors, rows, self._outputs)
        return as_scores(joined[self._outputs[0]], rows)

    def run_all(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        """Return the named outputs."""
        if self._takes_batches:
            rows = len(next(iter(tensors.values())))
            if not self._in_one(rows):
                return self._call_in_pieces(tensors, rows, outputs)
        return self._call_named(outputs, tensors)

    def row_call(self) -> RowCall | None:
        """Return a call on buffers that are bound once: half the time of `run` for a small model.

        A binding serves one thread at a time, so each call takes a free one, or makes one.
        """
        width = self._row_width()
        if width is None:
            return None
        bind = functools.partial(_bind_row, self._session, self._inputs[0], self._outputs[0], width)
        run, free = self._session.run_with_iobinding, [bind()]

        def call(row: NDArray[np.float64]) -> list[float]:
            try:
                bound = free.pop()
            except IndexError:
                bound = bind()
            binding, source, scores = bound
            source[:] = row
            try:
                run(binding)
            except Exception as error:
                # ONNX Runtime's exceptions have no common base below Exception.
                raise InferenceError(f"ONNX Runtime: {error}") from error
            values: list[float] = scores.tolist()
            free.append(bound)
            return values

        return call

    def reset(self) -> None:
        """Do nothing: an ONNX graph keeps no state between calls."""

    def close(self) -> None:
        """Let go of the session."""
        self._run = _closed
        self._session = None

    def _build_engines(self, signature: Signature) -> None:
        """Have TensorRT build, or read from disk, what it needs for one row and for the most.

        Raises:
            ModelError: if it cannot.
        """
        for rows in (self._rows, 1) if signature.takes_batches and not self._fill else (1,):
            given: dict[str, NDArray[Any]] = {}
            for tensor in signature.inputs:
                shape = [size or 1 for size in tensor.shape]
                if signature.takes_batches and rows:
                    shape[0] = rows
                kind = object if tensor.dtype == "string" else np.dtype(tensor.dtype)
                given[tensor.name] = np.full(shape, "" if kind is object else 0, kind)
            try:
                self.run(given)
            except InferenceError as error:
                raise ModelError(f"TensorRT cannot build its engine: {error}") from error

    def _row_width(self) -> int | None:
        """Return the number of scores of a row, None where rows cannot be bound in advance."""
        session = self._session
        if session is None or self.provider != CPU or not self._takes_batches:
            return None
        if len(self._inputs) != 1 or self._inputs[0].dtype == "string" or not self._in_one(1):
            return None
        output = next(o for o in session.get_outputs() if o.name == self._outputs[0])
        width = output.shape[-1] if len(output.shape) == 2 else None
        return width if isinstance(width, int) and output.type == "tensor(float)" else None

    def _in_one(self, rows: int) -> bool:
        return self._rows is None or rows == self._rows or (not self._fill and rows < self._rows)

    def _call(self, outputs: Sequence[str], tensors: Given) -> list[Any]:
        try:
            return self._run(outputs, tensors)
        except InferenceError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            raise InferenceError(f"ONNX Runtime: {error}") from error

    def _call_named(self, outputs: Sequence[str], tensors: Given) -> Outputs:
        if not outputs:
            return {}  # ONNX Runtime takes no names for all of them
        return dict(zip(outputs, self._call(outputs, tensors), strict=True))

    def _call_in_pieces(self, tensors: Given, rows: int, outputs: Sequence[str]) -> Outputs:
        run = functools.partial(self._call_named, outputs)
        return in_pieces(tensors, rows, self._rows or rows, run, fill=self._fill)


def _bind_row(session: Any, tensor: Tensor, output: str, width: int) -> _Bound:
    """Return a binding with the buffers, as flat views, that its input and its scores are in."""
    source = np.zeros([1, *[size or 1 for size in tensor.shape[1:]]], np.dtype(tensor.dtype))
    scores = np.zeros((1, width), np.float32)
    binding = session.io_binding()
    binding.bind_input(tensor.name, "cpu", 0, source.dtype, source.shape, source.ctypes.data)
    binding.bind_output(output, "cpu", 0, scores.dtype, scores.shape, scores.ctypes.data)
    return binding, source.reshape(-1), scores.reshape(-1)


def _closed(*_: object) -> list[Any]:
    raise InferenceError("the session is closed")


def _open(path: Path, how: How, model: str) -> Any:
    """Return a session on the first provider that can be made."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_for(how.threads, path.stat().st_size)
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # Threads that wait by spinning take a core from everybody else on a small board.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for providers in _candidates(how.providers):
        try:
            session = ort.InferenceSession(
                str(path),
                options,
                providers=[_with_options(name, how, model) for name in providers],
                # ONNX Runtime's own fallback prints to standard output, and skips providers.
                enable_fallback=0,
            )
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            if providers[0] == CPU:
                raise ModelError(refusals.onnx(path, str(error))) from error
            log.warning("%s cannot run the model, so the next is taken: %s", providers[0], error)
            continue
        if session.get_providers()[0] != providers[0]:
            log.warning(
                "%s is not usable here; the model runs on %s",
                providers[0],
                session.get_providers()[0],
            )
        used = session.get_providers()[0]
        log.info("model %s on %s, %d threads", path.name, used, options.intra_op_num_threads)
        return session
    raise ModelError("this build of ONNX Runtime has no CPU execution provider")


def _candidates(wanted: Sequence[str]) -> Iterator[list[str]]:
    """Yield the provider lists to try: each usable one with those that come after it."""
    held = ort.get_available_providers()
    usable = [name for name in wanted if name in held]
    for name in wanted:
        if name not in held:
            log.warning("this build of ONNX Runtime has no %s; it has %s", name, ", ".join(held))
    for start in range(len(usable)):
        yield usable[start:]


def _with_options(provider: str, how: How, model: str) -> str | tuple[str, dict[str, str]]:
    """Return a provider with its options; values are text, as the interface wants them."""
    if provider != TENSORRT or not how.engines or not model:
        return provider
    build = f"onnxruntime {ort.__version__} {ort.get_build_info()}"
    folder = engines.folder_for(Path(how.engines), model, build, engines.machine_facts())
    return provider, {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }


def _check_ports(session: Any, signature: Signature) -> None:
    """Refuse a model whose inputs and outputs are not those of the manifest.

    Raises:
        ModelError: if they are not.
    """
    inputs = {item.name: item for item in session.get_inputs()}
    wanted = {tensor.name for tensor in signature.inputs}
    if set(inputs) != wanted:
        raise ModelError(
            f"the model's inputs are {sorted(inputs)}; the manifest names {sorted(wanted)}"
        )
    outputs = {item.name for item in session.get_outputs()}
    missing = {tensor.name for tensor in signature.outputs} | {signature.score_output}
    if not missing <= outputs:
        raise ModelError(
            f"the model's outputs are {sorted(outputs)}; the manifest names {sorted(missing)}"
        )
    for tensor in signature.inputs:
        item = inputs[tensor.name]
        if item.type != _TYPES[tensor.dtype]:
            raise ModelError(
                f"input {tensor.name!r} of the model is {item.type}; the manifest says"
                f" {tensor.dtype}"
            )
        # No shape stands for a scalar, and for a shape that the file does not tell.
        if item.shape and not _fits(item.shape, tensor.shape):
            raise ModelError(
                f"input {tensor.name!r} of the model has the shape {item.shape}; the manifest says"
                f" {tensor.shape}"
            )


def _fits(held: list[Any], said: list[int | None]) -> bool:
    """Tell whether each size that both sides fix is the same."""
    return len(held) == len(said) and all(
        size == wanted
        for size, wanted in zip(held, said, strict=True)
        if isinstance(size, int) and wanted is not None
    )
