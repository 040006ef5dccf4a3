"""TFLite models on LiteRT, or on tflite-runtime where only that exists (32-bit ARM).

1. Inputs and outputs go by name, never by position: `get_input_details()` does not keep the order
   of the model's inputs. Names are those of the first signature of the model that has all that the
   manifest names, else those of its tensors.
2. Quantized inputs and outputs are converted here, by the scale in the model: floats that go in
   become integers, integers go in as they are, and what comes out are the numbers meant.
3. Only the runtime's own kernels and XNNPACK, which it applies by itself; no other delegate.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import (
    Given,
    Outputs,
    RowCall,
    Scores,
    as_one_row,
    as_scores,
    in_pieces,
    refusals,
)
from edgefleet_agent.runtimes.execution import How, threads_for
from edgefleet_protocol import quantized
from edgefleet_protocol.manifest import Signature, Tensor

try:
    from ai_edge_litert.interpreter import Interpreter

    DISTRIBUTION = "ai-edge-litert"
except ImportError:  # no wheel for this processor
    from tflite_runtime.interpreter import Interpreter

    DISTRIBUTION = "tflite-runtime"


class _Port:
    """An input or output tensor: its place, and its scale if it holds quantized integers."""

    def __init__(self, detail: Any) -> None:
        self.index = int(detail["index"])
        self.dtype = np.dtype(detail["dtype"])
        # -1 stands for a size that a call may choose.
        sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
        self.shape = [int(size) for size in sizes]
        self.now = [int(size) for size in detail["shape"]]
        scale, self._zero = detail["quantization"]
        self.scale = float(scale) if self.dtype.kind in "iu" else 0.0

    def quantize(self, tensor: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return floats as the integers that the model takes; integers as they are."""
        return quantized.quantize(tensor, self.dtype, self.scale, self._zero)

    def dequantize(self, output: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the numbers that quantized integers stand for; anything else as it is."""
        return quantized.dequantize(output, self.scale, self._zero)

    def check(self, tensor: Tensor) -> None:
        """Refuse an input that is not what the manifest says.

        Raises:
            ModelError: if type or sizes differ.
        """
        said = np.dtype(object if tensor.dtype == "string" else tensor.dtype)
        fits = self.dtype.kind in "SO" if tensor.dtype == "string" else said == self.dtype
        if not fits and not (self.scale and said.kind == "f"):
            raise ModelError(
                f"input {tensor.name!r} of the model is {self.dtype}; the manifest says"
                f" {tensor.dtype}"
            )
        if len(self.shape) != len(tensor.shape) or any(
            -1 != size != wanted
            for size, wanted in zip(self.shape, tensor.shape, strict=True)
            if wanted is not None
        ):
            raise ModelError(
                f"input {tensor.name!r} of the model has the shape {self.shape}; the manifest"
                f" says {tensor.shape}"
            )


class LiteRtSession:
    """One TFLite model. An interpreter has one set of tensors, so calls take turns."""

    provider = DISTRIBUTION

    def __init__(self, path: Path, signature: Signature, how: How, model: str) -> None:
        """Open the file; arguments and errors as of `runtimes.load`."""
        del model  # nothing is built for it on disk
        self._lock = threading.Lock()
        self._path = path
        self._threads = threads_for(how.threads, path.stat().st_size)
        self._signature = signature
        self._score_output = signature.score_output
        self._takes_batches = signature.takes_batches
        self._interpreter: Any = None
        self._runner: Any = None
        self._open()

    def run(self, tensors: Given) -> Scores:
        """Return the scores of the rows in `tensors`."""
        output = self._call(tensors, [self._score_output])[self._score_output]
        if not self._takes_batches:
            return as_one_row(output)
        return as_scores(output, len(next(iter(tensors.values()))))

    def run_all(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        """Return the named outputs."""
        return self._call(tensors, outputs)

    def row_call(self) -> RowCall | None:
        """Return a call on one input buffer, where neither input nor scores are quantized."""
        if self._runner is not None or not self._takes_batches or len(self._inputs) != 1:
            return None
        (name, port), scores = self._inputs[0], self._outputs[self._score_output]
        is_plain = not port.scale and scores.dtype == np.float32
        if not is_plain or self._fixed_rows not in (None, 1):
            return None
        (tensor,) = self._signature.inputs
        source = np.zeros([1, *[size or 1 for size in tensor.shape[1:]]], np.dtype(tensor.dtype))
        flat, shape, lock = source.reshape(-1), source.shape, self._lock
        index, answer = port.index, scores.index

        def call(row: NDArray[np.float64]) -> list[float]:
            try:
                with lock:
                    interpreter = self._interpreter
                    if interpreter is None:
                        raise InferenceError("the session is closed")
                    if self._shapes[name] != shape:
                        self._resize({name: source})
                    flat[:] = row
                    interpreter.set_tensor(index, source)
                    interpreter.invoke()
                    values: list[float] = interpreter.get_tensor(answer).ravel().tolist()
                    return values
            except (RuntimeError, ValueError) as error:
                raise InferenceError(f"LiteRT: {error}") from error

        return call

    def reset(self) -> None:
        """Open the model anew: `reset_all_variables` leaves resource variables as they are."""
        with self._lock:
            self._interpreter = None
            self._runner = None
            self._open()

    def close(self) -> None:
        """Let go of the interpreter."""
        with self._lock:
            self._interpreter = None
            self._runner = None

    def _open(self) -> None:
        try:
            self._interpreter = Interpreter(model_path=str(self._path), num_threads=self._threads)
            self._interpreter.allocate_tensors()
            self._runner, inputs, outputs = _ports(self._interpreter, self._signature)
        except (RuntimeError, ValueError) as error:
            raise ModelError(refusals.litert(self._path, str(error))) from error
        for tensor in self._signature.inputs:
            inputs[tensor.name].check(tensor)
        self._inputs = list(inputs.items())
        self._outputs = outputs
        # Rows that one call takes: None for any number, else what the model was built for.
        batches = {port.shape[0] for port in inputs.values() if port.shape}
        self._fixed_rows = max(batches, default=1) if batches != {-1} else None
        self._shapes = {name: tuple(port.now) for name, port in self._inputs}

    def _call(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        rows = len(next(iter(tensors.values()))) if self._takes_batches else None
        try:
            with self._lock:
                if self._interpreter is None:
                    raise InferenceError("the session is closed")
                if rows is None or self._fixed_rows is None or self._fixed_rows == rows:
                    return self._invoke(tensors, outputs)
                size = max(self._fixed_rows, 1)
                return in_pieces(
                    tensors, rows, size, lambda piece: self._invoke(piece, outputs), fill=True
                )
        except KeyError as error:
            raise InferenceError(f"the model has no input or output {error}") from error
        except (RuntimeError, ValueError) as error:
            raise InferenceError(f"LiteRT: {error}") from error

    def _invoke(self, tensors: Given, outputs: Sequence[str]) -> Outputs:
        interpreter, ports = self._interpreter, self._outputs
        if self._runner is not None:
            given = {name: port.quantize(tensors[name]) for name, port in self._inputs}
            found = self._runner(**given)
            return {name: ports[name].dequantize(np.asarray(found[name])) for name in outputs}
        self._resize(tensors)
        for name, port in self._inputs:
            interpreter.set_tensor(port.index, port.quantize(tensors[name]))
        interpreter.invoke()
        return {
            name: ports[name].dequantize(interpreter.get_tensor(ports[name].index))
            for name in outputs
        }

    def _resize(self, tensors: Given) -> None:
        """Give the inputs the shapes of this call, if they have others."""
        shapes = self._shapes
        if all(tensors[name].shape == shapes[name] for name, _ in self._inputs):
            return
        self._shapes = dict.fromkeys(shapes, ())  # should the resizing fail, it is done again
        for name, port in self._inputs:
            shape = tensors[name].shape
            if shape:
                self._interpreter.resize_tensor_input(port.index, shape, strict=-1 in port.shape)
        self._interpreter.allocate_tensors()
        self._shapes = {name: tensors[name].shape for name, _ in self._inputs}


_Named = tuple[Any, dict[str, _Port], dict[str, _Port]]


def _ports(interpreter: Any, signature: Signature) -> _Named:
    """Return the runner to call and the ports by the manifest's names.

    The runner is None where the interpreter itself computes that signature, which is cheaper.

    Raises:
        ModelError: if no signature of the model has what the manifest names.
    """
    main_in = {detail["name"]: detail for detail in interpreter.get_input_details()}
    main_out = {detail["name"]: detail for detail in interpreter.get_output_details()}
    found = []
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # The interpreter computes the model's first graph; its tensors are known by their names.
        is_main = {d["name"] for d in inputs.values()} == set(main_in) and {
            d["name"] for d in outputs.values()
        } <= set(main_out)
        if is_main:
            inputs = {name: main_in[detail["name"]] for name, detail in inputs.items()}
            outputs = {name: main_out[detail["name"]] for name, detail in outputs.items()}
        found.append((None if is_main else runner, inputs, outputs))
    found.append((None, main_in, main_out))
    wanted_in = {tensor.name for tensor in signature.inputs}
    wanted_out = {tensor.name for tensor in signature.outputs} | {signature.score_output}
    for runner, inputs, outputs in found:
        if set(inputs) == wanted_in and wanted_out <= set(outputs):
            return (
                runner,
                {name: _Port(detail) for name, detail in inputs.items()},
                {name: _Port(detail) for name, detail in outputs.items()},
            )
    has = [(sorted(inputs), sorted(outputs)) for _, inputs, outputs in found]
    raise ModelError(
        f"the model has {has}; the manifest names {sorted(wanted_in)} and {sorted(wanted_out)}"
    )
