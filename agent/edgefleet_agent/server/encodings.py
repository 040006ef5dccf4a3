"""Content-Encoding of bodies: gzip and deflate, with a bound on what unpacking may give.

`deflate` is the zlib format of RFC 1950, as RFC 9110 (8.4.1.2) says and the protocol's clients do.
"""

import zlib

from edgefleet_agent.server.refusal import RequestError, shown

# wbits of zlib: 31 is a gzip frame, 15 a zlib frame.
_WBITS = {"gzip": 31, "deflate": 15}
OFFERED = ", ".join(_WBITS)
# Smaller replies gain nothing; on loopback time counts more than bytes, hence the fastest level.
MIN_PACKED_BYTES = 1024
_FASTEST = 1


def unpack(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return a request's body without its Content-Encoding.

    Args:
        body: as it came.
        encoding: value of the header; empty for none.
        limit_bytes: of the unpacked body.

    Raises:
        RequestError: 415 for another encoding, 413 beyond the limit, 400 if it is damaged.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WBITS:
        raise RequestError(f"Content-Encoding {shown(name)} is not known; use {OFFERED}", 415)
    unpacker = zlib.decompressobj(_WBITS[name])
    try:
        unpacked = unpacker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body is no {name} data: {error}") from error
    if len(unpacked) > limit_bytes:
        raise RequestError(f"the unpacked body is larger than {limit_bytes} bytes", 413)
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(f"the body is no whole {name} data")
    return unpacked


def pack(body: bytes, encoding: str) -> bytes:
    """Return a reply's body in one of the offered encodings."""
    packer = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WBITS[encoding])
    return packer.compress(body) + packer.flush()


def choose(accepted: str) -> str | None:
    """Return the offered encoding that an Accept-Encoding header likes best, None for none."""
    best, best_weight = None, 0.0
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        weight = _weight(parameter)
        if name.strip() in _WBITS and weight > best_weight:
            best, best_weight = name.strip(), weight
    return best


def _weight(parameter: str) -> float:
    text = parameter.strip().removeprefix("q=")
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0  # what cannot be read is not accepted
