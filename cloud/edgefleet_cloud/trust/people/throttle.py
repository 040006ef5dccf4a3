"""How often one address may fail, in memory; what has to outlast a restart is in `lockout`.

Only failures count: a factory that enrols a thousand devices, or a script with a good token, is not
slowed down. An IPv6 caller owns at least a /64, so all of it counts as one address.
"""

import time
from enum import Enum
from ipaddress import IPv6Address, ip_address, ip_network

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter


class Subject(Enum):
    """What fails, with how many failures one address has in a minute and in an hour.

    TERMINAL: command lines that ask to be signed in; each counts, for each keeps a row.
    TOKEN: bearer tokens and cookies that are not known. PASSWORD: sign-ins, each of which costs
    the hub a slow hash. ENROLMENT: devices that want to be let in, or a new certificate.
    """

    TOKEN = (60, 600)
    PASSWORD = (10, 60)
    ENROLMENT = (30, 300)
    TERMINAL = (10, 100)

    @property
    def limits(self) -> tuple[RateLimitItem, RateLimitItem]:
        """Return the limits, the short one first."""
        per_minute, per_hour = self.value
        return RateLimitItemPerMinute(per_minute), RateLimitItemPerHour(per_hour)


class Throttle:
    """Counts failures by subject and address."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def wait_s(self, subject: Subject, address: str) -> int:
        """Return how many seconds this address has to wait, 0 if it may try now."""
        key = _key(address)
        waits = [
            self._limiter.get_window_stats(limit, subject.name, key).reset_time - time.time()
            for limit in subject.limits
            if not self._limiter.test(limit, subject.name, key)
        ]
        return max((max(1, round(wait)) for wait in waits), default=0)

    def failed(self, subject: Subject, address: str) -> None:
        """Count one failure."""
        for limit in subject.limits:
            self._limiter.hit(limit, subject.name, _key(address))


def _key(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket, or a server that does not tell
        return address
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
