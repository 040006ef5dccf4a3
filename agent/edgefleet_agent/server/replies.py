"""Replies of the Open Inference Protocol v2: what a model gave, what it is, and errors."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_agent import __version__
from edgefleet_agent.inference.prediction import Inference
from edgefleet_agent.server import datatypes
from edgefleet_agent.server.datatypes import Array
from edgefleet_agent.server.refusal import RequestError
from edgefleet_agent.server.requests import InferRequest
from edgefleet_protocol.manifest import Signature, Tensor
from edgefleet_protocol.messages import Slot

HEAD_BYTES_HEADER = "inference-header-content-length"
_encoder = msgspec.json.Encoder()


class Reply(Struct, frozen=True):
    """A reply before it is packed for its way.

    Attributes:
        headers: beside Content-Length and Content-Encoding.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]


def json_reply(content: Any, status: int = 200) -> Reply:
    """Return a reply of JSON."""
    return Reply(status, _encoder.encode(content), {"content-type": "application/json"})


def error_reply(text: str, status: int) -> Reply:
    """Return the protocol's form of an error."""
    return json_reply({"error": text}, status)


def server_metadata() -> Reply:
    """Say what this server is."""
    return json_reply(
        {"name": "edgefleet", "version": __version__, "extensions": ["binary_tensor_data"]}
    )


def model_metadata(slot: Slot, signature: Signature) -> Reply:
    """Describe the release that serves; its release number is the protocol's version."""
    return json_reply(
        {
            "name": slot.model,
            "versions": [str(slot.release)],
            "platform": _platform(slot.variant),
            "inputs": [_described(tensor) for tensor in signature.inputs],
            "outputs": [_described(tensor) for tensor in signature.outputs],
        }
    )


def infer_reply(request: InferRequest, inference: Inference) -> Reply:
    """Return a model's answer in the form that was asked for.

    Raises:
        RequestError: if an output has no such form.
    """
    outputs, parts = [], []
    for name, as_binary in request.outputs.items():
        array = inference.outputs[name]
        described: dict[str, Any] = {
            "name": name,
            "datatype": datatypes.datatype_of_array(array),
            "shape": array.shape,
        }
        if as_binary:
            parts.append(datatypes.to_raw(array))
            described["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            described["data"] = _json(name, array)
        outputs.append(described)
    head: dict[str, Any] = {
        "model_name": inference.model,
        "model_version": str(inference.release),
        "parameters": {
            "version": inference.version,
            "release": inference.release,
            "prediction_ids": inference.ids,
        },
        "outputs": outputs,
    }
    if request.id:
        head["id"] = request.id
    if inference.labels is not None:
        head["parameters"]["labels"] = inference.labels
    encoded = _encoder.encode(head)
    if not parts:
        return Reply(200, encoded, {"content-type": "application/json"})
    headers = {"content-type": "application/octet-stream", HEAD_BYTES_HEADER: str(len(encoded))}
    return Reply(200, b"".join([encoded, *parts]), headers)


def _json(name: str, array: Array) -> list[Any]:
    try:
        return datatypes.to_json(array)
    except RequestError as error:
        raise RequestError(f"output {name!r}: {error}", error.status) from error


def _described(tensor: Tensor) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in tensor.shape]
    return {"name": tensor.name, "datatype": datatypes.datatype_of(tensor.dtype), "shape": shape}


def _platform(variant: str) -> str:
    """Return `<project>_<format>` as the protocol wants it, by the variant's format."""
    lite = variant.startswith(("tflite", "litert"))
    return "tensorflowlite_tflite" if lite else "onnxruntime_onnx"
