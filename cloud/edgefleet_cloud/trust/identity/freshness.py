"""Challenges: 16 bytes by which the hub knows that something was signed after it asked.

A challenge is a time and a keyed digest over it (HMAC-SHA256, cut to 12 bytes), so nothing has to
be stored for a device that asks, and nobody can fill the database by asking. Rules:

1. A challenge is good for one device and one purpose.
2. Only the hub can make one: 96 bits have to be guessed, online.
3. What is older than the caller allows, or from the future, is not fresh.
"""

import hmac
import secrets
import struct
from hashlib import sha256
from pathlib import Path
from typing import Literal

from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable

CHALLENGE_BYTES = 16
_KEY_BYTES = 32
_TIME = struct.Struct(">I")
# Two hubs behind one name may differ by so much.
_AHEAD_S = 60.0

Purpose = Literal["renewal", "statement"]


class Freshness:
    """Makes and judges challenges.

    Args:
        key: secret of the hub, `_KEY_BYTES` long.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> "Freshness":
        """Read the key in `folder`, or make it at first start.

        Raises:
            DamagedError: if the file does not hold a key.
        """
        path = folder / "challenge.key"
        if not path.exists():
            durable.write(path, secrets.token_bytes(_KEY_BYTES), mode=durable.PRIVATE)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise DamagedError(
                f"{path} has {len(key)} bytes; expected {_KEY_BYTES}. Remove it: a new one is made,"
                " and devices ask for new challenges"
            )
        return cls(key)

    def issue(self, purpose: Purpose, device: str, now: float) -> bytes:
        """Return a challenge for a device."""
        stamp = _TIME.pack(int(now) & 0xFFFF_FFFF)
        return stamp + self._seal(purpose, device, stamp)

    def age_s(self, purpose: Purpose, device: str, challenge: bytes, now: float) -> float | None:
        """Return how old a challenge is, None if it is not one of ours for that device."""
        stamp, seal = challenge[: _TIME.size], challenge[_TIME.size :]
        if len(challenge) != CHALLENGE_BYTES or not hmac.compare_digest(
            seal, self._seal(purpose, device, stamp)
        ):
            return None
        (issued_at,) = _TIME.unpack(stamp)
        age_s = int(now) - int(issued_at)
        return None if age_s < -_AHEAD_S else float(max(age_s, 0))

    def _seal(self, purpose: Purpose, device: str, stamp: bytes) -> bytes:
        said = b"\0".join((b"edgefleet challenge v1", purpose.encode(), device.encode(), stamp))
        digest = hmac.new(self._key, said, sha256).digest()
        return digest[: CHALLENGE_BYTES - _TIME.size]
