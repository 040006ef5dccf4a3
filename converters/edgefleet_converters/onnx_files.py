"""ONNX files: their inputs and outputs. No runtime is imported."""

from collections.abc import Iterator
from typing import Any

import onnx
from msgspec import Struct

from edgefleet_converters.errors import UnsupportedError
from edgefleet_protocol.manifest import DType, Signature, Task, Tensor

# Oldest format that reaches every device of the supported range: onnx's own defaults (IR 14,
# opset 28) load in no ONNX Runtime. These load in every release of which there are tables
# (`compatibility`).
OPSET, IR_VERSION, ML_OPSET = 18, 8, 3

_DTYPES: dict[int, DType] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.STRING: "string",
}


class Ports(Struct, frozen=True):
    """Inputs (columns not yet named) and outputs of a graph."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    label_output: str | None
    score_output: str


def unknown_operators(model: Any) -> list[str]:
    """Return the operators of the standard domains that ONNX does not define.

    An exporter that meets an operator it does not know leaves it in the graph under its own name.
    """
    found = {
        node.op_type
        for node in model.graph.node
        if node.domain in ("", "ai.onnx", "ai.onnx.ml")
        and not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)
    }
    return sorted(found)


def ports(model: Any, score_output: str | None = None) -> Ports:
    """Find inputs, and which output is the label and which the score.

    The label is an int64, int32 or string output with one value a row. The score is the float
    output with the rows first; if there are several, one named like `prob…` or `score…`, else the
    last. Sequences and maps (skl2onnx's ZipMap) are not read.

    Args:
        model: `onnx.ModelProto`. A first size that is fixed is a batch of that many rows.
        score_output: name of the score, where a person gave it.

    Raises:
        UnsupportedError: no such score, or an input without rows.
    """
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(info) for info in model.graph.input if info.name not in constant]
    outputs = list(_outputs(model))
    labels = [
        tensor.name
        for tensor in outputs
        if tensor.dtype in ("int64", "int32", "string") and tensor.shape[1:] in ([], [1])
    ]
    floats = [t.name for t in outputs if t.dtype in ("float16", "float32", "float64")]
    if score_output is not None:
        floats = [name for name in floats if name == score_output]
    if not floats:
        wanted = "no output" if score_output is None else f"no output {score_output!r}"
        raise UnsupportedError(
            f"{wanted} holds scores as a float tensor with the batch first"
            f" (outputs: {', '.join(info.name for info in model.graph.output)}); export class"
            " probabilities as a tensor (skl2onnx: zipmap=False)"
        )
    named = [name for name in floats if name.lower().startswith(("prob", "score"))]
    return Ports(inputs, outputs, labels[0] if labels else None, (named or floats[-1:])[0])


def signature(
    found: Ports, columns: list[list[str]], task: Task, classes: list[str], width: int
) -> Signature:
    """Return the signature of a graph.

    Args:
        found: by `ports`.
        columns: feature names of each input.
        task: of the model.
        classes: names of the classes, in the order of the scores.
        width: number of scores of a row, as run; exporters do not always declare it right.
    """
    inputs = [
        Tensor(tensor.name, tensor.dtype, tensor.shape, names)
        for tensor, names in zip(found.inputs, columns, strict=True)
    ]
    outputs = [
        Tensor(tensor.name, tensor.dtype, [None, width])
        if tensor.name == found.score_output and len(tensor.shape) <= 2
        else tensor
        for tensor in found.outputs
    ]
    return Signature(task, inputs, outputs, found.score_output, found.label_output, classes)


def _outputs(model: Any) -> Iterator[Tensor]:
    for info in model.graph.output:
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type in _DTYPES:
            sizes = [_size(dim) for dim in info.type.tensor_type.shape.dim]
            # A shape that the exporter did not infer says nothing beyond the batch.
            yield Tensor(info.name, _DTYPES[info.type.tensor_type.elem_type], [None, *sizes[1:]])


def _tensor(info: Any) -> Tensor:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or tensor.elem_type not in _DTYPES:
        raise UnsupportedError(f"input {info.name!r} is no tensor of numbers or text")
    sizes = [_size(dim) for dim in tensor.shape.dim]
    if not sizes:
        raise UnsupportedError(f"input {info.name!r} has no sizes; expected rows (the batch) first")
    return Tensor(info.name, _DTYPES[tensor.elem_type], [None, *sizes[1:]])


def _size(dim: Any) -> int | None:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None
