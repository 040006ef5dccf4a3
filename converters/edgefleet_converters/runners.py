"""Run a variant on its real runtime, one thread. Imports nothing but that runtime.

Inputs and outputs are found by name, never by position: LiteRT does not keep the order of inputs.
A TFLite model made here has no signature definition, because the converter's way to write one
breaks models (see `keras_tflite`); then the names are those of its tensors.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Runtime, Signature
from edgefleet_protocol.rows import Rows, Tensors, bind, row_count

BATCH_ROWS = 512


class Runner(Protocol):
    """A loaded model."""

    def run(self, tensors: Tensors) -> NDArray[np.float64]:
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

    def run(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return the score output for bound inputs, `(n, width)` float64."""
        return _flat(self._session.run(self._output, tensors)[0])


class LiteRtRunner:
    """A model in LiteRT."""

    def __init__(self, model: bytes, signature: Signature) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        self._inputs = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        outputs = {d["name"]: d["index"] for d in self._interpreter.get_output_details()}
        names = [tensor.name for tensor in signature.inputs]
        if set(names) != set(self._inputs) or signature.score_output not in outputs:
            raise MalformedError(
                f"the model has the inputs {sorted(self._inputs)} and outputs {sorted(outputs)};"
                f" the signature says {names} and {signature.score_output!r}"
            )
        self._output = outputs[signature.score_output]
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return the score output for bound inputs, `(n, width)` float64."""
        shapes = {name: values.shape for name, values in tensors.items()}
        if shapes != self._shapes:
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._inputs[name], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, values in tensors.items():
            self._interpreter.set_tensor(self._inputs[name], values)
        self._interpreter.invoke()
        return _flat(self._interpreter.get_tensor(self._output))


def load(runtime: Runtime, model: bytes, signature: Signature) -> Runner:
    """Load a model into its runtime; raises whatever the runtime raises."""
    if runtime == "onnxruntime":
        return OnnxRunner(model, signature)
    return LiteRtRunner(model, signature)


def scores(runner: Runner, signature: Signature, rows: Rows) -> NDArray[np.float64]:
    """Return the scores of all rows, `(n, width)` float64, run in batches."""
    tensors = bind(signature, rows)
    parts = [
        runner.run({name: values[start : start + BATCH_ROWS] for name, values in tensors.items()})
        for start in range(0, row_count(rows), BATCH_ROWS)
    ]
    return np.concatenate(parts)


def _flat(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(len(values), -1)
