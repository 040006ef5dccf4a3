"""PyTorch graphs, exported to ONNX where PyTorch is installed.

The batch is free where the graph says so. TorchScript says nothing: a free batch is tried on three
rows, and where the answers are not right the ONNX graph takes one row a call.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import onnx_exports, runners, torch_graphs
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.routes import ports
from edgefleet_converters.routes.clock import Clock
from edgefleet_converters.routes.opened import Hints, Opened
from edgefleet_converters.samples import Samples
from edgefleet_converters.sources import ModelFile
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.torch_graphs import TorchGraph
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.rows import Tensors

# PyTorch traces a free batch with two rows, and may take one row for another graph.
_LEAST_ROWS, _TRIED_ROWS = 2, 3
# Float32 arithmetic in another order, relative to the score and around zero.
_CLOSE = 1e-3


def open(file: ModelFile, samples: Samples, hints: Hints) -> Opened:
    """Export a PyTorch graph to ONNX and predict all samples with it. Call this in a child process.

    Args:
        file: an exported program or TorchScript.
        samples: rows, or tensors in the order of its inputs or named like them.
        hints: of the person.

    Raises:
        BadInputError: the file or the samples cannot be used.
        UnsupportedError: PyTorch is not installed, or cannot export the graph.
    """
    clock = Clock()
    torch = torch_graphs.import_torch(hints.seed)
    clock.lap("import PyTorch")
    graph = torch_graphs.load(torch, file.path, samples)
    clock.lap("load")
    inputs = ports.fill(file.path, graph.inputs, samples)
    tensors = samples.bind(Signature("score", inputs, [Tensor("unknown", "float32", [])], ""))
    # In the order of the graph, which that of the arrays may differ from.
    tensors = {tensor.name: tensors[tensor.name] for tensor in graph.inputs}
    try:
        outputs = _outputs(torch, file, graph, tensors)
        score = ports.choose_score(file.path, outputs, hints.score_output)
        position = [tensor.name for tensor in outputs].index(score)
        scores = _predict(torch, graph, position, tensors)
    except (RuntimeError, TypeError, AssertionError) as error:  # guards of a program are asserts
        raise BadInputError(f"{file.path}: PyTorch cannot run it: {error}") from error
    clock.lap("predict")
    base = _exported(graph, Signature("score", inputs, outputs, score), tensors, scores)
    clock.lap("export")
    return ports.opened(base, scores, hints, clock.seconds)


def _run(torch: Any, graph: TorchGraph, tensors: Tensors) -> list[Any]:
    with torch.no_grad():
        given = graph.call(*(torch.from_numpy(array) for array in tensors.values()))
    leaves: list[Any] = torch.utils._pytree.tree_leaves(given)
    return leaves


def _outputs(torch: Any, file: ModelFile, graph: TorchGraph, tensors: Tensors) -> list[Tensor]:
    """Run a few rows to learn what the graph gives."""
    rows = len(next(iter(tensors.values())))
    index = np.arange(graph.batch or _LEAST_ROWS) % rows
    given = _run(torch, graph, {name: array[index] for name, array in tensors.items()})
    names = graph.output_names or [f"output_{place}" for place in range(len(given))]
    return [
        ports.tensor(file.path, name, torch_graphs.dtype(tensor), list(tensor.shape))
        for name, tensor in zip(names, given, strict=True)
    ]


def _predict(torch: Any, graph: TorchGraph, position: int, tensors: Tensors) -> NDArray[np.float64]:
    rows = len(next(iter(tensors.values())))

    def call(piece: Tensors) -> NDArray[np.generic]:
        answer: NDArray[np.generic] = _run(torch, graph, piece)[position].numpy()
        return answer

    size = graph.batch or max(_LEAST_ROWS, min(rows, graph.most_rows))
    return runners.in_pieces(tensors, size, call)


def _exported(
    graph: TorchGraph, signature: Signature, tensors: Tensors, scores: NDArray[np.float64]
) -> Model:
    """Return the ONNX model, with a free batch if that gives the right answers."""
    model = _export(graph, signature, tensors, graph.batch)
    if graph.batch is not None or _answers(model, tensors, scores):
        return model
    return _export(graph, signature, tensors, 1)


def _export(graph: TorchGraph, signature: Signature, tensors: Tensors, batch: int | None) -> Model:
    names = [tensor.name for tensor in signature.outputs]
    try:
        proto = graph.export(list(tensors.values()), names, batch)
    except Exception as error:  # PyTorch's exporters let errors of many kinds through
        text = " ".join(str(error).split())[:400]
        raise UnsupportedError(
            f"PyTorch cannot export it to ONNX: {type(error).__name__}: {text}"
        ) from error
    ordered = msgspec.structs.replace(
        signature, inputs=[next(t for t in signature.inputs if t.name == name) for name in tensors]
    )
    made = onnx_exports.finish(
        proto,
        Model("onnx", b"", ordered),
        inputs=[info.name for info in proto.graph.input],
        outputs=[info.name for info in proto.graph.output],
        batch=batch,
    )
    return msgspec.structs.replace(
        made, signature=msgspec.structs.replace(made.signature, inputs=signature.inputs)
    )


def _answers(model: Model, tensors: Tensors, scores: NDArray[np.float64]) -> bool:
    few = {name: array[:_TRIED_ROWS] for name, array in tensors.items()}
    try:
        got = runners.scores(runners.OnnxRunner(model.data, model.signature), few)
    except Exception:  # ONNX Runtime raises plain Exceptions: the graph cannot take three rows
        return False
    return np.allclose(got, scores[:_TRIED_ROWS], rtol=_CLOSE, atol=_CLOSE)
