"""Inputs and outputs of TFLite files, as LiteRT tells them. Files may crash it: in a child only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from edgefleet_converters.errors import UnsupportedError
from edgefleet_converters.steps.registry import Model


class Port(Struct, frozen=True):
    """An input or output.

    Attributes:
        tensor: its tensor's name, whatever a signature calls it.
        dtype: as numpy calls it.
        sizes: None for free ones; the first is the batch.
        scale: of quantized integers q, which stand for (q - zero point) · scale; 0 for others.
        zero_point: of quantized integers.
    """

    tensor: str
    dtype: str
    sizes: list[int | None]
    scale: float
    zero_point: int


Ports = dict[str, Port]


def read(interpreter: Any) -> tuple[Ports, Ports]:
    """Return inputs and outputs by name: by that of the first signature, else of the tensor."""
    taken, given = _of_tensors(interpreter)
    for key in list(interpreter.get_signature_list())[:1]:
        runner = interpreter.get_signature_runner(key)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        if inputs and outputs:
            return _named(inputs, taken), _named(outputs, given)
    return taken, given


def of(model: Model) -> tuple[list[Port], list[Port]]:
    """Return inputs and outputs of a `tflite` model, in the order of its signature.

    Raises:
        UnsupportedError: the file has others.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model.data)
    found: list[list[Port]] = []
    wanted = (model.signature.inputs, model.signature.outputs)
    for tensors, named, plain in zip(
        wanted, read(interpreter), _of_tensors(interpreter), strict=True
    ):
        known = plain | named
        if any(tensor.name not in known for tensor in tensors):
            raise UnsupportedError(
                f"the TFLite file has {sorted(known)}; expected"
                f" {', '.join(tensor.name for tensor in tensors)}"
            )
        found.append([known[tensor.name] for tensor in tensors])
    return found[0], found[1]


def _of_tensors(interpreter: Any) -> tuple[Ports, Ports]:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return (
        {detail["name"]: _port(detail) for detail in inputs},
        {detail["name"]: _port(detail) for detail in outputs},
    )


def _named(details: Mapping[str, Any], known: Ports) -> Ports:
    # Only the interpreter's own details tell free sizes; a later graph's tensors are not in them.
    return {
        name: known[detail["name"]] if detail["name"] in known else _port(detail)
        for name, detail in details.items()
    }


def _port(detail: Any) -> Port:
    sizes = detail.get("shape_signature", ())
    sizes = [int(size) for size in (sizes if len(sizes) else detail["shape"])]
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    return Port(
        detail["name"],
        dtype.name,
        [None if size == -1 else size for size in sizes],
        float(scale) if dtype.kind in "iu" else 0.0,
        int(zero_point),
    )
