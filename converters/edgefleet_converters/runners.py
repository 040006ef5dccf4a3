"""Run a variant on its real runtime, one thread. Imports nothing but that runtime.

1. Inputs and outputs are found by name, never by position: LiteRT does not keep the order of
   inputs. Names of a TFLite model are those of the first of its signatures that has them all, else
   those of its tensors: a model made here has no signature, because the converter's way to write
   one breaks models (see `tflite_files`).
2. Quantized inputs take floats too, and quantized outputs give the numbers meant, as on a device.
3. A model that was built for a fixed number of rows gets them in pieces of that size.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Runtime, Signature
from edgefleet_protocol.quantized import dequantize, quantize
from edgefleet_protocol.rows import Tensors

BATCH_ROWS = 512
_Scores = NDArray[np.float64]


class Runner(Protocol):
    """A loaded model."""

    def run(self, tensors: Tensors) -> _Scores:
        """Return the score output for bound inputs, `(n, width)` float64."""


class OnnxRunner:
    """A model in ONNX Runtime."""

    def __init__(self, model: bytes, signature: Signature) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._output = [signature.score_output]
        sizes = [port.shape[0] for port in self._session.get_inputs() if port.shape]
        self._fixed_rows = max((size for size in sizes if isinstance(size, int)), default=None)

    def run(self, tensors: Tensors) -> _Scores:
        """Return the score output for bound inputs, `(n, width)` float64."""
        return in_pieces(tensors, self._fixed_rows, self._call)

    def _call(self, tensors: Tensors) -> NDArray[np.generic]:
        answer: NDArray[np.generic] = self._session.run(self._output, tensors)[0]
        return answer


class _Port:
    """An input or output tensor of a TFLite model."""

    def __init__(self, detail: Any) -> None:
        self.index = int(detail["index"])
        self.dtype = np.dtype(detail["dtype"])
        sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
        self.rows = int(sizes[0]) if len(sizes) else 1  # -1 for any number
        scale, self.zero_point = detail["quantization"]
        self.scale = float(scale) if self.dtype.kind in "iu" else 0.0


class LiteRtRunner:
    """A model in LiteRT."""

    def __init__(self, model: bytes, signature: Signature) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        self._call, self._inputs, outputs = _find(self._interpreter, signature)
        self._output_name = signature.score_output
        self._output = outputs[signature.score_output]
        rows = {port.rows for port in self._inputs.values()}
        self._fixed_rows = None if -1 in rows else max(rows, default=1)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, tensors: Tensors) -> _Scores:
        """Return the score output for bound inputs, `(n, width)` float64."""
        return in_pieces(tensors, self._fixed_rows, self._invoke)

    def _invoke(self, tensors: Tensors) -> NDArray[np.generic]:
        given = {
            name: quantize(tensors[name], port.dtype, port.scale, port.zero_point)
            for name, port in self._inputs.items()
        }
        if self._call is not None:
            answer = np.asarray(self._call(**given)[self._output_name])
        else:
            answer = self._invoke_main(given)
        return dequantize(answer, self._output.scale, self._output.zero_point)

    def _invoke_main(self, given: Tensors) -> NDArray[np.generic]:
        shapes = {name: values.shape for name, values in given.items()}
        if shapes != self._shapes:
            for name, shape in shapes.items():
                if shape:
                    self._interpreter.resize_tensor_input(self._inputs[name].index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, values in given.items():
            self._interpreter.set_tensor(self._inputs[name].index, values)
        self._interpreter.invoke()
        answer: NDArray[np.generic] = self._interpreter.get_tensor(self._output.index)
        return answer


_Found = tuple[Callable[..., Any] | None, dict[str, _Port], dict[str, _Port]]


def _find(interpreter: Any, signature: Signature) -> _Found:
    """Return what to call (None for the main graph itself), and the ports by name."""
    main_in = {detail["name"]: detail for detail in interpreter.get_input_details()}
    main_out = {detail["name"]: detail for detail in interpreter.get_output_details()}
    found: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # The interpreter computes the model's first graph, whose details also know free sizes.
        is_main = {detail["name"] for detail in inputs.values()} == set(main_in) and {
            detail["name"] for detail in outputs.values()
        } <= set(main_out)
        if is_main:
            inputs = {name: main_in[detail["name"]] for name, detail in inputs.items()}
            outputs = {name: main_out[detail["name"]] for name, detail in outputs.items()}
        found.append((None if is_main else runner, inputs, outputs))
    found.append((None, main_in, main_out))
    names = {tensor.name for tensor in signature.inputs}
    for call, inputs, outputs in found:
        if set(inputs) == names and signature.score_output in outputs:
            ports_in, ports_out = (
                {name: _Port(detail) for name, detail in details.items()}
                for details in (inputs, outputs)
            )
            return call, ports_in, ports_out
    has = [(sorted(inputs), sorted(outputs)) for _, inputs, outputs in found]
    raise MalformedError(
        f"the model has the inputs and outputs {has}; the signature says {sorted(names)} and"
        f" {signature.score_output!r}"
    )


def load(runtime: Runtime, model: bytes, signature: Signature) -> Runner:
    """Load a model into its runtime; raises whatever the runtime raises."""
    if runtime == "onnxruntime":
        return OnnxRunner(model, signature)
    return LiteRtRunner(model, signature)


def scores(runner: Runner, tensors: Tensors) -> _Scores:
    """Return the scores of bound inputs with the rows first, `(n, width)` float64."""
    rows = len(next(iter(tensors.values())))
    parts = [
        runner.run({name: values[start : start + BATCH_ROWS] for name, values in tensors.items()})
        for start in range(0, rows, BATCH_ROWS)
    ]
    return np.concatenate(parts)


def in_pieces(
    tensors: Tensors, size: int | None, call: Callable[[Tensors], NDArray[np.generic]]
) -> _Scores:
    """Run any number of rows through a model that takes `size`; the last piece is filled up.

    Args:
        tensors: inputs with the rows first.
        size: rows of a call; None for any.
        call: returns the score output for a piece.

    Returns:
        Scores, `(n, width)` float64.
    """
    rows = len(next(iter(tensors.values())))
    if size is None or size == rows:
        return _flat(call(tensors), rows)
    parts = []
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        piece = _flat(call({name: values[index] for name, values in tensors.items()}), size)
        parts.append(piece[: rows - start])
    return np.concatenate(parts)


def _flat(values: NDArray[np.generic], rows: int) -> _Scores:
    answer = np.asarray(values, np.float64)
    if answer.ndim == 0 or len(answer) != rows:
        raise MalformedError(f"the score output has the shape {answer.shape} for {rows} rows")
    return answer.reshape(rows, -1)
