"""An inference request of the Open Inference Protocol v2: bytes in, tensors of the model out.

Rules:

1. The JSON head is at most 8 MiB: decoded JSON takes many times its length in memory. What is
   larger goes as binary data, of which arrays are views.
2. Every length that the head states is held against what is there before anything is allocated.
3. Inputs must be the model's by name, shape and datatype. A datatype all of whose values the
   model's datatype holds too is widened (FP16 to FP32); any other is refused, never rounded.
4. What is asked for and not offered (sequences, shared memory, classification) is refused, never
   left out silently. Hints (priority, timeout) are only hints.
"""

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct, UnsetType, field

from edgefleet_agent.server import datatypes
from edgefleet_agent.server.datatypes import Array
from edgefleet_agent.server.refusal import RequestError, shown
from edgefleet_protocol.manifest import Signature, Tensor

MAX_JSON_BYTES = 8 * 1024 * 1024
# Of one request: a batch takes the model's memory for each of its rows.
MAX_ROWS = 65_536
_NOT_OFFERED = ("sequence_", "shared_memory_", "classification")

Text = Annotated[str, Meta(max_length=1024)]
Size = Annotated[int, Meta(ge=0, le=2**53)]
Parameters = dict[str, bool | int | float | str | None]


class _Input(Struct, frozen=True):
    name: Text
    shape: Annotated[list[Size], Meta(max_length=8)]
    datatype: Text
    data: Raw | UnsetType = msgspec.UNSET
    parameters: Parameters = field(default_factory=dict)


class _Output(Struct, frozen=True):
    name: Text
    parameters: Parameters = field(default_factory=dict)


class _Head(Struct, frozen=True):
    inputs: Annotated[list[_Input], Meta(max_length=1024)]
    outputs: Annotated[list[_Output], Meta(max_length=1024)] | None = None
    id: Text = ""
    parameters: Parameters = field(default_factory=dict)


class InferRequest(Struct, frozen=True):
    """What is asked, ready for the model.

    Attributes:
        id: of the caller, given back to it.
        tensors: by input name, in the model's data types.
        outputs: wanted output → whether as binary data, in the order of the reply.
    """

    id: str
    tensors: dict[str, Array]
    outputs: dict[str, bool]


_decoder = msgspec.json.Decoder(_Head)


def parse(body: bytes, head_bytes: int | None, signature: Signature) -> InferRequest:
    """Read an inference request.

    Args:
        body: without its Content-Encoding.
        head_bytes: the header Inference-Header-Content-Length; None if it was not sent, 0 if the
            body is the raw data of the model's one input.
        signature: of the model.

    Raises:
        RequestError: with what is wrong.
    """
    if head_bytes == 0:
        return _raw_request(memoryview(body), signature)
    if head_bytes is not None and head_bytes > len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {head_bytes}; the body has {len(body)} bytes"
        )
    view = memoryview(body)
    head = _head(view if head_bytes is None else view[:head_bytes])
    tensors = _tensors(head.inputs, b"" if head_bytes is None else view[head_bytes:], signature)
    return InferRequest(head.id, tensors, _outputs(head, signature))


def _head(data: memoryview) -> _Head:
    if len(data) > MAX_JSON_BYTES:
        raise RequestError(
            f"{len(data)} bytes of JSON; at most {MAX_JSON_BYTES} are read: send tensors of that"
            " size as binary data",
            413,
        )
    try:
        head = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is no inference request: {error}") from error
    for parameters in (
        head.parameters,
        *(part.parameters for part in head.inputs),
        *(part.parameters for part in head.outputs or ()),
    ):
        for name in parameters:
            if name.startswith(_NOT_OFFERED):
                raise RequestError(f"this server does not offer what {shown(name)} asks for")
    return head


def _tensors(
    inputs: list[_Input], binary: memoryview | bytes, signature: Signature
) -> dict[str, Array]:
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    given = [part.name for part in inputs]
    if len(given) != len(wanted) or set(given) != set(wanted):
        raise RequestError(
            f"the request has the inputs {_listed(given)}; the model takes {_listed(wanted)}"
        )
    tensors: dict[str, Array] = {}
    rest = memoryview(binary)
    for part in inputs:
        tensor = wanted[part.name]
        try:
            _require_fit(tensor, part.datatype, part.shape)
            array, used = _array(part, rest)
        except RequestError as error:
            raise RequestError(f"input {shown(part.name)}: {error}", error.status) from error
        rest = rest[used:]
        tensors[part.name] = _as_model(array, tensor)
    if len(rest):
        raise RequestError(f"{len(rest)} bytes of binary data belong to no input")
    _require_one_batch(tensors, signature)
    return tensors


def _array(part: _Input, rest: memoryview) -> tuple[Array, int]:
    """Return an input's array, and how many bytes of the binary data it took."""
    size = part.parameters.get("binary_data_size")
    if size is None:
        if part.data is msgspec.UNSET:
            raise RequestError("there is neither data nor binary_data_size")
        return datatypes.from_json(part.datatype, part.shape, part.data), 0
    if part.data is not msgspec.UNSET:
        raise RequestError("there is both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise RequestError(f"binary_data_size is {size}; {len(rest)} bytes of binary data are left")
    return datatypes.from_raw(part.datatype, part.shape, rest[:size]), size


def _require_fit(tensor: Tensor, datatype: str, shape: list[int]) -> None:
    if not datatypes.fits(datatype, tensor.dtype):
        raise RequestError(
            f"the datatype is {datatype}; the model takes {datatypes.datatype_of(tensor.dtype)}"
        )
    sizes = [-1 if size is None else size for size in tensor.shape]
    if len(shape) != len(sizes) or any(
        got != size and size != -1 for got, size in zip(shape, sizes, strict=True)
    ):
        raise RequestError(f"the shape is {shape}; the model takes {sizes} (-1 is any size)")
    if 0 in shape:
        raise RequestError(f"the shape is {shape}: there is nothing to answer")
    if sizes and sizes[0] == -1 and shape[0] > MAX_ROWS:
        raise RequestError(f"{shape[0]} rows; at most {MAX_ROWS} are answered at once", 413)


def _as_model(array: Array, tensor: Tensor) -> Array:
    if tensor.dtype == "string":
        return array
    return array.astype(np.dtype(tensor.dtype), copy=False)


def _require_one_batch(tensors: dict[str, Array], signature: Signature) -> None:
    rows = {
        tensor.name: len(tensors[tensor.name])
        for tensor in signature.inputs
        if tensor.shape and tensor.shape[0] is None
    }
    if len(set(rows.values())) > 1:
        raise RequestError(f"the inputs do not have the same number of rows: {rows}")


def _outputs(head: _Head, signature: Signature) -> dict[str, bool]:
    known = [tensor.name for tensor in signature.outputs]
    usual = _flag(head.parameters, "binary_data_output", usual=False)
    if not head.outputs:
        return dict.fromkeys(known, usual)
    outputs: dict[str, bool] = {}
    for part in head.outputs:
        if part.name not in known:
            raise RequestError(
                f"the model has no output {shown(part.name)}; it gives {_listed(known)}"
            )
        if part.name in outputs:
            raise RequestError(f"output {shown(part.name)} is asked for twice")
        outputs[part.name] = _flag(part.parameters, "binary_data", usual=usual)
    return outputs


def _flag(parameters: Parameters, name: str, *, usual: bool) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {shown(str(value))}; expected true or false")
    return value


def _raw_request(data: memoryview, signature: Signature) -> InferRequest:
    """Read a body without a head: the raw data of the one input, answered in binary."""
    if len(signature.inputs) != 1:
        raise RequestError(
            f"a body without a JSON head is for models of one input; this one takes"
            f" {_listed([tensor.name for tensor in signature.inputs])}"
        )
    (tensor,) = signature.inputs
    if tensor.dtype == "string":
        if math.prod(size or 1 for size in tensor.shape) != 1:
            raise RequestError("a body without a JSON head holds one text; the model takes more")
        text = datatypes.text_of(data)
        array: Array = np.full([1] * len(tensor.shape), text, object)
    else:
        datatype = datatypes.datatype_of(tensor.dtype)
        shape = _shape_of(len(data), tensor, datatypes.size_bytes(datatype))
        _require_fit(tensor, datatype, shape)
        array = datatypes.from_raw(datatype, shape, data)
    return InferRequest("", {tensor.name: array}, {t.name: True for t in signature.outputs})


def _shape_of(size_bytes: int, tensor: Tensor, element_bytes: int) -> list[int]:
    """Return the shape of raw data, by its length; at most one size may be variable."""
    if tensor.shape.count(None) > 1:
        raise RequestError(
            "a body without a JSON head is for inputs with one variable size at most"
        )
    fixed_bytes = element_bytes * math.prod(size for size in tensor.shape if size is not None)
    count, left = divmod(size_bytes, fixed_bytes)
    if left or not count or (count != 1 and None not in tensor.shape):
        raise RequestError(
            f"the body has {size_bytes} bytes; input {shown(tensor.name)} takes"
            f" {fixed_bytes}{' for each row' if None in tensor.shape else ''}"
        )
    return [count if size is None else size for size in tensor.shape]


def _listed(names: Any) -> str:
    found = list(names)
    text = ", ".join(shown(name) for name in found[:8])
    return f"{text} and {len(found) - 8} more" if len(found) > 8 else text or "none"
