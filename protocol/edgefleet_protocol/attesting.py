"""The time as the hub attests it: what is signed, and when a device believes it.

A device whose clock is wrong by years must still tell expired metadata from fresh (docs/adr/0010).
So it asks, and the hub answers with a statement signed by the director's *timestamp* key. Rules:

1. What is signed begins with a domain of its own, so that no statement can be taken for metadata
   or metadata for a statement.
2. The statement names the device and repeats its nonce: an answer fits one question of one device.
3. The hub adds a challenge of its own; a device repeats the newest one in its signed reports, so
   that the hub can tell a fresh report from a recorded one.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.messages import Name

TIME_DOMAIN = b"edgefleet attested time, version 1\x00"
NONCE_BYTES = 16
CHALLENGE_BYTES = 16


class TimeStatement(Struct, frozen=True):
    """What the director's timestamp key signs.

    Attributes:
        device: that asked.
        nonce: of its question.
        at: Unix seconds by the hub's clock.
        challenge: to be repeated in the device's signed reports.
    """

    device: Name
    nonce: Annotated[bytes, Meta(min_length=16, max_length=32)]
    at: Annotated[float, Meta(ge=0, lt=1e11)]
    challenge: Annotated[bytes, Meta(min_length=16, max_length=16)]


def signed_time(statement: bytes) -> bytes:
    """Return the bytes that the signature of an attestation covers (rule 1)."""
    return TIME_DOMAIN + statement


def read_time(statement: bytes, device: str, nonce: bytes) -> TimeStatement:
    """Return a statement if it answers this question of this device (rule 2).

    Args:
        statement: whose signature has been verified.
        device: that asked.
        nonce: of the question.

    Raises:
        MalformedError: if the statement cannot be read.
        RefusedError: `wrong-device`, or `replay` if it answers another question.
    """
    try:
        read = msgspec.msgpack.decode(statement, type=TimeStatement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"attested time: the statement cannot be read: {error}") from error
    if read.device != device:
        raise RefusedError(
            "wrong-device", f"the attested time is for {read.device!r}; this is {device!r}"
        )
    if read.nonce != nonce:
        raise RefusedError("replay", "the attested time answers another question than the last")
    return read
