"""Bytes ↔ typed messages.

A payload is one encoding byte and a msgpack body: `0` plain, `1` zstd-compressed. Rules:

1. The payload's own length is checked first, before anything is parsed.
2. A compressed body must declare its size, and that size is checked before it is unpacked.
3. Unknown fields are ignored, so either side may be newer; a missing or wrong field refuses.
"""

from typing import TypeVar

import msgspec
import zstandard

from edgefleet_protocol.errors import MalformedError, TooLargeError

PLAIN, ZSTD = 0, 1
# A block of 128 KiB with its header, and a report with samples, both stay well below this.
MAX_MESSAGE_BYTES = 512 * 1024
# Below this, zstd's frame header eats what it saves (measured on window reports).
COMPRESS_FROM_BYTES = 512

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def encode(message: msgspec.Struct, *, compress: bool = True) -> bytes:
    """Return the payload of `message`.

    Args:
        message: any struct of `edgefleet_protocol.messages`.
        compress: try zstd (level 3); pass False for data that is compressed already.
    """
    body = _encoder.encode(message)
    if compress and len(body) >= COMPRESS_FROM_BYTES:
        packed = zstandard.ZstdCompressor(level=3).compress(body)
        if len(packed) < len(body):
            return b"\x01" + packed
    return b"\x00" + body


def decode(payload: bytes, kind: type[T], *, limit: int = MAX_MESSAGE_BYTES) -> T:
    """Return the message of type `kind` held in `payload`.

    Args:
        payload: what arrived, untrusted.
        kind: a struct type, or a union of tagged structs.
        limit: the most bytes that the payload, and its unpacked body, may have.

    Raises:
        TooLargeError: if the payload or its declared size is over `limit`.
        MalformedError: if it cannot be read as `kind`.
    """
    if len(payload) > limit:
        raise TooLargeError("message", len(payload), limit)
    if not payload:
        raise MalformedError("empty message: expected an encoding byte and a msgpack body")
    body: bytes | memoryview = memoryview(payload)[1:]
    if payload[0] == ZSTD:
        body = decompress(bytes(body), limit=limit, what="message")
    elif payload[0] != PLAIN:
        raise MalformedError(
            f"unknown message encoding {payload[0]}: expected 0 (plain) or 1 (zstd)"
        )
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(body)  # type: ignore[return-value]  # the cache is keyed by the type
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise MalformedError(f"message cannot be read as {name}: {error}") from error


def compress(data: bytes) -> bytes:
    """Return `data` as one zstd frame (level 19: paid once, saved on every device)."""
    return zstandard.ZstdCompressor(level=19).compress(data)


def decompress(data: bytes, *, limit: int, what: str) -> bytes:
    """Unpack one zstd frame whose declared size is at most `limit` bytes.

    Raises:
        TooLargeError: if it declares more than `limit`.
        MalformedError: if it is no zstd frame, declares no size, or is damaged.
    """
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise MalformedError(f"{what} is no zstd frame: {error}") from error
    if size < 0:
        raise MalformedError(f"{what}: the zstd frame does not declare its size")
    if size > limit:
        raise TooLargeError(what, size, limit)
    try:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise MalformedError(f"{what}: damaged zstd frame: {error}") from error
