"""Why a runtime refused a model file, in words for who has to act on it.

A runtime says what it noticed ("not a valid Flatbuffer"); what a person needs is what is wrong
with the file and what to do. Pure decisions on the file's beginning and the runtime's own words,
which follow in brackets.
"""

import re
from pathlib import Path

_HEAD_BYTES = 512
_MAX_WORDS = 300
_LFS = b"version https://git-lfs"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TFLITE_MARK = b"TFL3"
_SMALLEST_TFLITE_BYTES = 16


def onnx(path: Path, words: str) -> str:
    """Return why ONNX Runtime does not load a file; `words` are its own."""
    head, size = _beginning(path)
    return _sentence("ONNX Runtime", explain_onnx(head, size, words), words)


def litert(path: Path, words: str) -> str:
    """Return why LiteRT does not load a file; `words` are its own."""
    head, size = _beginning(path)
    return _sentence("LiteRT", explain_litert(head, size, words), words)


def explain_onnx(head: bytes, size_bytes: int, words: str) -> str:
    """Say what is wrong with an ONNX file; empty if that is not known.

    Args:
        head: first bytes of the file.
        size_bytes: of the file.
        words: what ONNX Runtime said.
    """
    found = _not_a_model(head, size_bytes)
    if found:
        return found
    if head[4:8] == _TFLITE_MARK:
        return "it is a TFLite model; assign it to the runtime litert"
    external = re.search(r"[Ee]xternal data.*?\"([^\"]+)\"", words)
    if external or "xternal data" in words:
        name = f" ({Path(external[1]).name})" if external else ""
        return (
            f"it keeps its weights in another file{name}, and a bundle has one model file: save the"
            " model without external data"
        )
    operator = re.search(r"(\S*?):(\w+)\(-?\d+\) is not a registered function/op", words)
    if operator:
        return (
            f"it uses the operator {operator[1] or 'ai.onnx'}:{operator[2]}, which this ONNX"
            " Runtime does not have: convert the model without custom operators, or to a lower"
            " opset"
        )
    missing = re.search(r"Could not find an implementation for (\w+)\((\d+)\)", words)
    if missing:
        return (
            f"it uses the operator {missing[1]} (opset {missing[2]}) with types for which this"
            " ONNX Runtime has no kernel: convert it to a lower opset, or quantize it otherwise"
        )
    if re.search(r"Unsupported model IR version|[Oo]pset .* is under development", words):
        return "it is of a newer ONNX than this ONNX Runtime reads: convert it to a lower opset"
    if "INVALID_PROTOBUF" in words or "No graph was found" in words:
        return "it is no ONNX model, or it is damaged or cut short: register it again"
    return ""


def explain_litert(head: bytes, size_bytes: int, words: str) -> str:
    """Say what is wrong with a TFLite file; empty if that is not known.

    Args:
        head: first bytes of the file.
        size_bytes: of the file.
        words: what LiteRT said.
    """
    found = _not_a_model(head, size_bytes)
    if found:
        return found
    if size_bytes < _SMALLEST_TFLITE_BYTES:
        return f"it has only {size_bytes} bytes, too few for any model: it was cut short"
    if head[4:8] != _TFLITE_MARK:
        return "it is no TFLite model (it lacks the mark TFL3): convert it first"
    custom = re.search(r"unresolved custom op: (\S+?)\.?(?:\s|$)", words)
    if custom and custom[1].startswith("edgetpu"):
        return (
            "it is compiled for an Edge TPU, which this device does not use: assign the variant"
            " from before that compilation"
        )
    if custom and not custom[1].startswith("Flex"):
        return (
            f"it uses the custom operator {custom[1]}, which LiteRT does not have: convert it with"
            " built-in operators only"
        )
    if custom or "Select TensorFlow op" in words:
        flex = re.search(r"\b(Flex\w+)", words.replace("Flex delegate", ""))
        return (
            f"it uses the TensorFlow operator {flex[1] if flex else '(Flex)'}, which needs all of"
            " TensorFlow: convert it without SELECT_TF_OPS"
        )
    newer = re.search(r"builtin opcode '(\w+)' version '(\d+)'", words)
    if newer:
        return (
            f"it uses the operator {newer[1]} version {newer[2]}, which this LiteRT does not have:"
            " install a newer one, or convert it for this one"
        )
    if "quantized_dimension" in words:
        return (
            "its quantization is written in a way that this LiteRT refuses (quantized_dimension),"
            " as old converters did: convert it again"
        )
    if "not a valid Flatbuffer" in words:
        return "it is damaged or cut short: register it again"
    return ""


def _not_a_model(head: bytes, size_bytes: int) -> str:
    """Name files that are no model of any kind."""
    if size_bytes == 0:
        return "it is empty"
    if head.startswith(_LFS):
        return (
            "it is a Git LFS pointer, not the model: fetch the model itself (git lfs pull) and"
            " register that"
        )
    if head.startswith(_HDF5):
        return "it is a Keras HDF5 file, not a model to run: convert it first"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a model: the download it came from went wrong"
    return ""


def _beginning(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES), path.stat().st_size


def _sentence(runtime: str, why: str, words: str) -> str:
    said = " ".join(words.split())[:_MAX_WORDS]
    if not why:
        return f"{runtime} does not load the model: {said}"
    return f"{runtime} does not load the model: {why} [{said}]"
