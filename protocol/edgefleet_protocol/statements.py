"""What a device signs with its key: that it asks for a certificate, and what it runs.

Signatures are ECDSA on P-256 with SHA-256 (DER), or Ed25519; which of them, the key says. Rules:

1. What is signed begins with a domain of its own for each purpose, so that no signature can be
   used for another purpose, nor one of TLS or TUF for these.
2. A statement carries a counter that only ever grows, so that neither an old one nor one of a copy
   of the device passes for new, and the newest challenge of the hub, so that it can be dated
   without the device's clock.
3. It says which published state it belongs to (`boot`, `sequence`), so that a state that was
   altered on the way does not agree with it.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Count, Digest, Name, Slot, Text

# Name in the signing request of a device that does not know its id yet.
UNNAMED = "serial"
_STATEMENT = b"edgefleet device statement, version 1\x00"
_RENEWAL = b"edgefleet renewal, version 1\x00"
_ENROLMENT = b"edgefleet enrolment, version 1\x00"


class DeviceStatement(Struct, frozen=True, omit_defaults=True):
    """What a device swears to.

    Attributes:
        counter: of this device's statements.
        challenge: newest one of the hub's time answers; empty before the first.
        assignment: director sequence of the newest accepted assignment.
        serving: models that answer now.
        previous: models kept to go back to.
        boot: of the published state that this belongs to, as `sequence`; 0 for none.
        time_attested: whether the device's time comes from the hub.
        attack: what it has refused since the statement before, as reason words; empty for nothing.
        authorities: fingerprints of the hub CAs that it trusts.
        certificate: serial of the certificate that it uses, lower-case hexadecimal.
    """

    device: Name
    counter: Annotated[int, Meta(ge=1, le=2**53)]
    at: float
    challenge: Annotated[bytes, Meta(max_length=16)]
    assignment: Count
    serving: Annotated[list[Slot], Meta(max_length=64)]
    previous: Annotated[list[Slot], Meta(max_length=64)]
    boot: Count
    sequence: Count
    time_attested: bool
    attack: Text
    agent_version: Name
    authorities: Annotated[list[Digest], Meta(max_length=8)]
    certificate: Name


def signed_statement(statement: bytes) -> bytes:
    """Return the bytes that the signature of a statement covers."""
    return _STATEMENT + statement


def signed_renewal(nonce: bytes, csr: bytes) -> bytes:
    """Return the bytes that prove that a device asks for a renewal.

    Args:
        nonce: the hub's challenge, 16 bytes.
        csr: certificate signing request as sent (PEM).
    """
    return _RENEWAL + nonce + bytes.fromhex(digest_of(csr))


def signed_enrolment(csr: bytes) -> bytes:
    """Return the bytes by which a TPM's or token's key proves that it takes part in an enrolment.

    Args:
        csr: certificate signing request as sent (PEM).
    """
    return _ENROLMENT + bytes.fromhex(digest_of(csr))


def read_statement(statement: bytes) -> DeviceStatement:
    """Return what was stated.

    Raises:
        MalformedError: if it cannot be read.
    """
    try:
        return msgspec.msgpack.decode(statement, type=DeviceStatement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"device statement cannot be read: {error}") from error
