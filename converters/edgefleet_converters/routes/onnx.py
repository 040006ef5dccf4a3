"""Models that are ONNX already: looked at, run in ONNX Runtime, passed on as they are.

Weights in other files are taken into the one file that a bundle has. A graph may be built for a
fixed number of rows; sizes that it leaves free are those of the samples.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper

from edgefleet_converters import onnx_files, runners
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import admission, ports
from edgefleet_converters.routes.clock import Clock
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Signature


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Open an ONNX model and predict all samples with it. Call this in a child process.

    Args:
        file: the model; external data lies in its folder.
        samples: rows, or tensors in the order of its inputs or named like them.
        hints: of the person.

    Raises:
        BadInputError: no ONNX model, or one that does not run or does not fit the samples.
        UnsupportedError: a form of model that cannot be shipped.
    """
    clock = Clock()
    data = Path(file.path).read_bytes()
    facts = admission.admit(file, data)
    model = onnx.load_model_from_string(data)
    if facts.size_bytes > len(data):
        external_data_helper.load_external_data_for_model(model, str(Path(file.path).parent))
        data = model.SerializeToString(deterministic=True)
    clock.lap("look")
    return of_graph(file, data, model, samples, hints, clock)


def of_graph(
    file: ModelFile, data: bytes, model: Any, samples: Samples, hints: Hints, clock: Clock
) -> Opened:
    """Return what a route hands on, of an ONNX graph.

    Args:
        file: that the graph was made from, for error texts.
        data: the graph as a file.
        model: the graph as `onnx.ModelProto`.
        samples: rows or tensors.
        hints: of the person.
        clock: of the route.

    Raises:
        BadInputError: it does not run, or does not fit the samples.
        UnsupportedError: a form of model that cannot be shipped.
    """
    try:
        found = onnx_files.ports(model, hints.score_output)
    except UnsupportedError as error:
        raise UnsupportedError(f"{file.path}: {error}") from error
    inputs = ports.fill(file.path, found.inputs, samples)
    signature = Signature("score", inputs, found.outputs, found.score_output, found.label_output)
    tensors = samples.bind(signature)
    try:
        scores = runners.scores(runners.OnnxRunner(data, signature), tensors)
    except Exception as error:  # the runtime raises plain Exceptions of many kinds
        raise BadInputError(f"{file.path}: ONNX Runtime cannot run it: {error}") from error
    clock.lap("predict")
    base = Model("onnx", data, _with_width(signature, scores))
    return ports.opened(base, scores, hints, clock.seconds)


def _with_width(signature: Signature, scores: NDArray[np.float64]) -> Signature:
    """Return the signature with the width of the scores as run: exporters may declare another."""
    outputs = [
        msgspec.structs.replace(tensor, shape=[None, scores.shape[1]])
        if tensor.name == signature.score_output and len(tensor.shape) <= 2
        else tensor
        for tensor in signature.outputs
    ]
    return msgspec.structs.replace(signature, outputs=outputs)
