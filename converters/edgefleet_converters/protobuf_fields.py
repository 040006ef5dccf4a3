"""The outermost fields of a protobuf message, read without loading what they hold.

ONNX files carry no mark at their beginning. But the fields of a model must follow each other
exactly to the last byte of the file, so walking over them tells a model from anything else, and
from one that was cut off, in a few reads however large it is.

Rules (protobuf's encoding): a field is a varint key (number << 3 | wire type) and a value: a varint
(wire type 0), 8 bytes (1), a varint length and as many bytes (2), or 4 bytes (5).
"""

from collections.abc import Iterator
from typing import IO

from edgefleet_converters.errors import BadInputError

# ONNX's ModelProto: field number → wire type (onnx.proto, IR versions 3 to 14).
_MODEL_FIELDS = {
    1: 0,  # ir_version
    2: 2,  # producer_name
    3: 2,  # producer_version
    4: 2,  # domain
    5: 0,  # model_version
    6: 2,  # doc_string
    7: 2,  # graph
    8: 2,  # opset_import
    14: 2,  # metadata_props
    20: 2,  # training_info
    25: 2,  # functions
    26: 2,  # configuration
}
_GRAPH = 7
_WIDTHS = {1: 8, 5: 4}
_VARINT_BYTES = 10
# A model's outermost fields are a few dozen; a local function or metadata entry is one each.
_MAX_FIELDS = 100_000


def is_onnx_model(stream: IO[bytes], size: int) -> bool:
    """Return whether a file consists of the fields of an ONNX model, a graph among them.

    Args:
        stream: the file; read from its beginning.
        size: of the file in bytes.
    """
    found = set()
    stream.seek(0)
    try:
        for count, (number, wire) in enumerate(_fields(stream, size)):
            if _MODEL_FIELDS.get(number) != wire or count > _MAX_FIELDS:
                return False
            found.add(number)
    except BadInputError:
        return False
    return _GRAPH in found


def _fields(stream: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    while stream.tell() < size:
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _varint(stream)
        else:
            length = _varint(stream) if wire == 2 else _WIDTHS.get(wire, -1)
            if length < 0 or length > size - stream.tell():
                raise BadInputError(f"field {number} reaches beyond the end of the file")
            stream.seek(length, 1)
        yield number, wire


def _varint(stream: IO[bytes]) -> int:
    value = 0
    for position in range(_VARINT_BYTES):
        byte = stream.read(1)
        if not byte:
            raise BadInputError("the file ends within a number")
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    raise BadInputError(f"a number has more than {_VARINT_BYTES} bytes")
