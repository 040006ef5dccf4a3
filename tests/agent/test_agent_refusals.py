"""What a person reads when a runtime refuses a file: what is wrong with it, and what to do."""

import pytest

from edgefleet_agent.runtimes import refusals

ONNX = b"\x08\x08\x12\x05tests"
TFLITE = b"\x1c\0\0\0TFL3"
INVALID = "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Protobuf parsing failed."
FLATBUFFER = "The model is not a valid Flatbuffer buffer"


@pytest.mark.parametrize("explain", [refusals.explain_onnx, refusals.explain_litert])
@pytest.mark.parametrize(
    ("head", "size", "why"),
    [
        (b"", 0, "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", 131, "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n\0\0", 9000, "a Keras HDF5 file"),
        (b"<!DOCTYPE html><html>", 900, "a web page"),
        (b"\n <html lang='en'>", 900, "a web page"),
    ],
)
def test_what_is_no_model_at_all_is_named(
    explain: object, head: bytes, size: int, why: str
) -> None:
    assert why in explain(head, size, "any words")  # type: ignore[operator]  # one of two functions


@pytest.mark.parametrize(
    ("head", "words", "why"),
    [
        (ONNX, INVALID, "damaged or cut short"),
        (ONNX, "No graph was found in the protobuf.", "damaged or cut short"),
        (TFLITE, INVALID, "it is a TFLite model; assign it to the runtime litert"),
        (
            ONNX,
            'External data path does not exist: "/store/weights.data"',
            "in another file (weights.data)",
        ),
        (ONNX, "Failed to read external data", "in another file, and a bundle has one"),
        (
            ONNX,
            "Fatal error: ai.onnx.contrib:BertTokenizer(-1) is not a registered function/op",
            "the operator ai.onnx.contrib:BertTokenizer, which",
        ),
        (
            ONNX,
            "Fatal error: :Nonsense(-1) is not a registered function/op",
            "the operator ai.onnx:Nonsense, which",
        ),
        (
            ONNX,
            "NOT_IMPLEMENTED : Could not find an implementation for QGemm(1) node with name ''",
            "the operator QGemm (opset 1) with types",
        ),
        (ONNX, "Unsupported model IR version: 14, max supported IR version: 13", "a newer ONNX"),
        (ONNX, "Opset 27 is under development", "a newer ONNX"),
        (ONNX, "something that nobody has seen yet", ""),
    ],
)
def test_an_onnx_file_is_explained(head: bytes, words: str, why: str) -> None:
    found = refusals.explain_onnx(head, 1000, words)
    assert why in found
    assert bool(found) is bool(why)


@pytest.mark.parametrize(
    ("head", "size", "words", "why"),
    [
        (b"\x01\x02", 15, FLATBUFFER, "it has only 15 bytes"),
        (b"\x08\x08\x12\x05onnx", 16, FLATBUFFER, "it lacks the mark TFL3"),
        (TFLITE, 16, FLATBUFFER, "damaged or cut short"),
        (
            TFLITE,
            500,
            "Encountered unresolved custom op: edgetpu-custom-op.\nSee instructions",
            "compiled for an Edge TPU",
        ),
        (
            TFLITE,
            500,
            "Encountered unresolved custom op: Sinh.\nSee instructions",
            "the custom operator Sinh, which",
        ),
        (
            TFLITE,
            500,
            "Encountered unresolved custom op: FlexErf.\nSee",
            "the TensorFlow operator FlexErf, which",
        ),
        (
            TFLITE,
            500,
            "Select TensorFlow op(s): link the Flex delegate. Node number 0 (FlexBincount) failed.",
            "the TensorFlow operator FlexBincount, which",
        ),
        (
            TFLITE,
            500,
            "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'.",
            "the operator FULLY_CONNECTED version 12, which",
        ),
        (TFLITE, 500, "quantized_dimension must be in range [0, 1). Was 3.", "convert it again"),
        (TFLITE, 500, "something that nobody has seen yet", ""),
    ],
)
def test_a_tflite_file_is_explained(head: bytes, size: int, words: str, why: str) -> None:
    found = refusals.explain_litert(head, size, words)
    assert why in found
    assert bool(found) is bool(why)


def test_the_runtimes_own_words_follow_and_are_bounded() -> None:
    text = refusals._sentence("LiteRT", "it is empty", "no\nmodel " + "x" * 1000)
    assert text.startswith("LiteRT does not load the model: it is empty [no model xxx")
    assert len(text) < 400
    assert refusals._sentence("LiteRT", "", "no idea") == "LiteRT does not load the model: no idea"
