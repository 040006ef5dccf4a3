"""What every converter to ONNX ends with: one floor of versions, names that stay, equal bytes.

1. A graph with an operator that ONNX does not define is refused with the operator's name.
2. IR version and opset are the floor that reaches old devices, whatever the converter wrote.
3. Inputs and outputs get the names of the model that was converted, in its order; inner values get
   names by place (`onnx_names`) in the order of the structure (`onnx_order`), so that equal models
   give equal bytes.
4. What the converter noted of its own doing goes: PyTorch's writes whole stack traces, with paths.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from edgefleet_converters import onnx_files, onnx_names, onnx_order
from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Signature, Tensor


def finish(
    proto: Any,
    model: Model,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch: int | None = None,
) -> Model:
    """Return the ONNX model that a converter wrote.

    Args:
        proto: `onnx.ModelProto`; is changed.
        model: that was converted.
        inputs: names that the converter gave to the inputs of the model's signature, in its order.
        outputs: likewise, to the outputs.
        batch: number of rows that the graph was made for; None for any.

    Raises:
        UnsupportedError: operators without an ONNX form, or other inputs and outputs than wanted.
    """
    unknown = onnx_files.unknown_operators(proto)
    if unknown:
        raise UnsupportedError(f"the operators {', '.join(unknown)} have no ONNX form in tf2onnx")
    signature = model.signature
    names = dict(zip(inputs, (tensor.name for tensor in signature.inputs), strict=True))
    names |= dict(zip(outputs, _output_names(signature), strict=True))
    have = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    if have != set(names):
        raise UnsupportedError(
            f"the converter wrote the inputs and outputs {sorted(have)}; expected {sorted(names)}"
        )
    onnx_order.order_by_structure(proto.graph)
    onnx_names.rename_by_place(proto, names)
    _forget_origin(proto)
    proto.ir_version = onnx_files.IR_VERSION
    for info in (*proto.graph.input, *proto.graph.output):
        if batch is None and info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_param = "batch"
    _in_order(proto.graph.input, [tensor.name for tensor in signature.inputs])
    _in_order(proto.graph.output, _output_names(signature))
    return Model(
        "onnx", proto.SerializeToString(deterministic=True), _named(signature), model.notes
    )


def _forget_origin(proto: Any) -> None:
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    proto.graph.name = "graph"
    for node in proto.graph.node:
        if not node.domain:
            node.ClearField("domain")  # an empty one takes bytes
    for info in (*proto.graph.input, *proto.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")  # numbered over the whole process
    for part in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _output_names(signature: Signature) -> list[str]:
    """Return the names of the outputs; one that an input has too gets `_out` behind it."""
    taken = {tensor.name for tensor in signature.inputs}
    return [f"{t.name}_out" if t.name in taken else t.name for t in signature.outputs]


def _named(signature: Signature) -> Signature:
    names = _output_names(signature)
    score = [tensor.name for tensor in signature.outputs].index(signature.score_output)
    outputs = [
        Tensor(name, tensor.dtype, tensor.shape)
        for tensor, name in zip(signature.outputs, names, strict=True)
    ]
    return msgspec.structs.replace(signature, outputs=outputs, score_output=names[score])


def _in_order(infos: Any, names: Sequence[str]) -> None:
    by_name = {info.name: type(info).FromString(info.SerializeToString()) for info in infos}
    del infos[:]
    infos.extend(by_name[name] for name in names)
