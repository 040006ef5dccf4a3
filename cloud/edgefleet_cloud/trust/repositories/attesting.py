"""The time, attested to one device by the director's timestamp key (docs/adr/0010)."""

import msgspec
from tuf.api.metadata import Timestamp

from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_protocol.attesting import TimeStatement, signed_time
from edgefleet_protocol.messages import TimeAttestation


def attest(
    director: Director, device: str, nonce: bytes, challenge: bytes, at: float
) -> TimeAttestation:
    """Sign what time it is, in answer to a question.

    Args:
        director: whose timestamp key signs.
        device: that asked; the broker has bound its topic to its certificate.
        nonce: of the question.
        challenge: that the device is to repeat in its signed reports.
        at: the time, Unix seconds.
    """
    statement = msgspec.msgpack.encode(TimeStatement(device, nonce, at, challenge))
    signature = director.sign_bytes(Timestamp.type, signed_time(statement))
    return TimeAttestation(statement, signature.keyid, bytes.fromhex(signature.signature))
