"""A look at a foreign ONNX or TFLite file before any runtime loads it. Runs in a child process.

A runtime that is given a hostile or damaged file may crash, hang, fill the memory, or answer. So a
file that holds a fault, or that no known release runs, is refused here with the reason: a loop that
never ends, a constant of terabytes, weights that lie outside the folder, an opset that does not
exist, an operator that no runtime has, offsets that lead out of the file.
"""

from pathlib import Path

from edgefleet_converters.compatibility import check, reading
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.errors import BadInputError, UnsupportedError
from edgefleet_converters.sources import ModelFile

_RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
# Protobuf and flatbuffers hold no more in one file.
MAX_FILE_BYTES = (2 << 30) - 1


def admit(file: ModelFile, data: bytes) -> Facts:
    """Return what is known of a file of kind `onnx` or `tflite` that a runtime may load.

    Args:
        file: external data of ONNX is looked for in its folder, and nowhere else.
        data: its content.

    Raises:
        BadInputError: damaged, hostile, or too large.
        UnsupportedError: whole, but no known release of the runtime runs it.
    """
    facts = reading.look(file.kind, data, str(Path(file.path).parent))
    if facts.unreadable:
        raise BadInputError(f"{file.path}: {facts.unreadable}")
    if facts.faults:
        raise BadInputError(f"{file.path}: {'; '.join(facts.faults)}")
    if facts.size_bytes > MAX_FILE_BYTES:
        raise BadInputError(
            f"{file.path}: {facts.size_bytes} bytes with its external data; one file holds up to"
            f" {MAX_FILE_BYTES}"
        )
    try:
        check.lowest_runtime(facts, _RUNTIMES[file.kind])  # type: ignore[arg-type]  # by kind
    except UnsupportedError as error:
        raise UnsupportedError(f"{file.path}: {error}") from error
    return facts
