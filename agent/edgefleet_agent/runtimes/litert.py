"""TFLite models on LiteRT, or on tflite-runtime where only that exists (32-bit ARM).

Inputs and outputs go by name, never by position: `get_input_details()` does not keep the order of
the model's inputs. Names are those of the model's first signature, or those of its tensors.
Quantized inputs and outputs are converted here, by the scale in the model.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import Scores, as_scores
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.rows import Tensors

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # no wheel for this processor
    from tflite_runtime.interpreter import Interpreter


class _Port:
    """An input or output tensor: its place, and its scale if it holds quantized integers."""

    def __init__(self, detail: Any) -> None:
        self.index = int(detail["index"])
        self._dtype = np.dtype(detail["dtype"])
        scale, self._zero = detail["quantization"]
        self.scale = float(scale) if self._dtype.kind in "iu" else 0.0

    def quantize(self, tensor: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return floats as the integers that the model takes; integers as they are."""
        if tensor.dtype.kind != "f":
            return tensor
        limits = np.iinfo(self._dtype)
        steps = np.rint(tensor.astype(np.float32) / self.scale) + self._zero
        inside = np.clip(np.nan_to_num(steps), limits.min, limits.max)
        quantized: NDArray[np.generic] = inside.astype(self._dtype)
        return quantized

    def dequantize(self, output: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the numbers that the integers stand for."""
        return (output.astype(np.float32) - np.float32(self._zero)) * np.float32(self.scale)


class LiteRtSession:
    """One TFLite model. An interpreter has one set of tensors, so calls take turns."""

    def __init__(self, path: Path, signature: Signature, *, threads: int = 1) -> None:
        self._lock = threading.Lock()
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            named = _named_details(self._interpreter)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT does not load the model: {error}") from error
        wanted = {tensor.name for tensor in signature.inputs}
        for inputs, outputs in named:
            if set(inputs) == wanted and signature.score_output in outputs:
                break
        else:
            raise ModelError(
                f"the model has {[(sorted(i), sorted(o)) for i, o in named]}; the manifest names"
                f" {sorted(wanted)} and {signature.score_output!r}"
            )
        self._inputs = [(name, _Port(detail)) for name, detail in inputs.items()]
        self._output = _Port(outputs[signature.score_output])
        # Rows that one call takes: None for any number, else what the model was built for.
        if any(len(detail["shape"]) == 0 for detail in inputs.values()):
            raise ModelError("an input of the model has no batch dimension")
        batches = {int(detail["shape_signature"][0]) for detail in inputs.values()}
        self._fixed_rows = None if batches == {-1} else max(max(batches), 1)
        self._rows = int(next(iter(inputs.values()))["shape"][0])

    def run(self, tensors: Tensors) -> Scores:
        """Return the scores of the rows in `tensors`."""
        rows = len(next(iter(tensors.values())))
        try:
            with self._lock:
                if self._fixed_rows is None or self._fixed_rows == rows:
                    output = self._invoke(tensors, rows)
                else:
                    output = self._invoke_in_pieces(tensors, rows, self._fixed_rows)
        except (RuntimeError, ValueError) as error:
            raise InferenceError(f"LiteRT: {error}") from error
        return as_scores(output, rows)

    def _invoke(self, tensors: Tensors, rows: int) -> NDArray[np.generic]:
        interpreter = self._interpreter
        if rows != self._rows:
            self._rows = 0  # should the resizing fail, it is done again
            for name, port in self._inputs:
                interpreter.resize_tensor_input(port.index, tensors[name].shape)
            interpreter.allocate_tensors()
            self._rows = rows
        for name, port in self._inputs:
            tensor = tensors[name]
            interpreter.set_tensor(port.index, port.quantize(tensor) if port.scale else tensor)
        interpreter.invoke()
        output = interpreter.get_tensor(self._output.index)
        return self._output.dequantize(output) if self._output.scale else output

    def _invoke_in_pieces(self, tensors: Tensors, rows: int, size: int) -> NDArray[np.generic]:
        """Run a model of a fixed batch; the last piece is filled up with its own last row."""
        pieces = []
        for start in range(0, rows, size):
            index = np.minimum(np.arange(start, start + size), rows - 1)
            piece = {name: tensor[index] for name, tensor in tensors.items()}
            pieces.append(self._invoke(piece, size)[: rows - start])
        return np.concatenate(pieces)


def _named_details(interpreter: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return inputs and outputs by name: by those of the signature, and by those of the tensors."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    found = [({d["name"]: d for d in inputs}, {d["name"]: d for d in outputs})]
    signatures = interpreter.get_signature_list()
    if signatures:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        # The runner's tensors have other places than the interpreter's; names join them.
        names_in = {name: d["name"] for name, d in runner.get_input_details().items()}
        names_out = {name: d["name"] for name, d in runner.get_output_details().items()}
        if set(names_in.values()) == set(found[0][0]) and set(names_out.values()) == set(
            found[0][1]
        ):
            found.insert(
                0,
                (
                    {name: found[0][0][tensor] for name, tensor in names_in.items()},
                    {name: found[0][1][tensor] for name, tensor in names_out.items()},
                ),
            )
    return found
