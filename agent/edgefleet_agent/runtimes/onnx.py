"""ONNX models on ONNX Runtime, on the CPU."""

from pathlib import Path

import onnxruntime as ort

from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import Scores, as_scores
from edgefleet_protocol.manifest import Signature
from edgefleet_protocol.rows import Tensors

# 0 verbose … 4 fatal. Errors come as exceptions; printing them too only doubles the log.
_FATAL_ONLY = 4


class OnnxSession:
    """One ONNX model. ONNX Runtime lets several threads call one session at a time."""

    def __init__(self, path: Path, signature: Signature, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            raise ModelError(f"ONNX Runtime does not load the model: {error}") from error
        inputs = {item.name for item in session.get_inputs()}
        wanted = {tensor.name for tensor in signature.inputs}
        outputs = {item.name for item in session.get_outputs()}
        if inputs != wanted:
            raise ModelError(
                f"the model's inputs are {sorted(inputs)}; the manifest names {sorted(wanted)}"
            )
        if signature.score_output not in outputs:
            raise ModelError(
                f"the model's outputs are {sorted(outputs)};"
                f" the manifest names {signature.score_output!r}"
            )
        self._run = session.run
        self._outputs = [signature.score_output]

    def run(self, tensors: Tensors) -> Scores:
        """Return the scores of the rows in `tensors`."""
        try:
            (output,) = self._run(self._outputs, tensors)
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            raise InferenceError(f"ONNX Runtime: {error}") from error
        return as_scores(output, len(next(iter(tensors.values()))))
