"""How much one device may say: so that no device keeps the hub from hearing the others.

Pure. Rules:

1. Each device has a bucket of messages and one of bytes, filled at a steady rate up to a limit. A
   message that finds too little in either is not taken. The device sends its reports again until
   they are acknowledged, and its state at every heartbeat, so an honest one loses nothing.
2. An honest device stays far below: it has 32 reports under way at most (`outbox`), asks for some
   tens of blocks a second, and speaks up every 30 s.
3. That a device is over its quota is told once a minute, not once a message.
"""

from dataclasses import dataclass

MESSAGES_PER_S, MESSAGES_AT_ONCE = 200.0, 2_000.0
BYTES_PER_S, BYTES_AT_ONCE = 2.0 * 1024 * 1024, 32.0 * 1024 * 1024
TELL_AGAIN_S = 60.0
# Buckets kept; beyond, those that are full again are forgotten.
MAX_BUCKETS = 100_000


@dataclass
class _Bucket:
    messages: float
    size_bytes: float
    at: float
    refused: int = 0
    told_at: float | None = None

    def fill(self, now: float) -> None:
        passed_s = max(now - self.at, 0.0)
        self.messages = min(self.messages + passed_s * MESSAGES_PER_S, MESSAGES_AT_ONCE)
        self.size_bytes = min(self.size_bytes + passed_s * BYTES_PER_S, BYTES_AT_ONCE)
        self.at = now

    @property
    def full(self) -> bool:
        return self.messages >= MESSAGES_AT_ONCE and self.size_bytes >= BYTES_AT_ONCE


class Quotas:
    """The buckets of all devices; for one thread. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, device: str, size_bytes: int, now: float) -> bool:
        """Tell whether a message of a device may be taken, and take it off its quota."""
        bucket = self._buckets.get(device)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._forget(now)
            bucket = self._buckets[device] = _Bucket(MESSAGES_AT_ONCE, BYTES_AT_ONCE, now)
        bucket.fill(now)
        if bucket.messages < 1 or bucket.size_bytes < size_bytes:
            bucket.refused += 1
            return False
        bucket.messages -= 1
        bucket.size_bytes -= size_bytes
        return True

    def to_tell(self, device: str, now: float) -> int:
        """Return how many messages were refused since this was last told; 0 for "not yet"."""
        bucket = self._buckets[device]
        if bucket.told_at is not None and now - bucket.told_at < TELL_AGAIN_S:
            return 0
        bucket.told_at = now
        refused, bucket.refused = bucket.refused, 0
        return refused

    def _forget(self, now: float) -> None:
        for device, bucket in list(self._buckets.items()):
            bucket.fill(now)
            if bucket.full:
                del self._buckets[device]
