"""One measured figure beside its peer or floor, and how times are taken."""

import time
from collections.abc import Callable
from statistics import median

from msgspec import Struct


class Metric(Struct, frozen=True):
    """A figure and what it is held against, measured in the same run on the same machine.

    Attributes:
        peer: what was measured beside it (a bare call, another library, a floor).
    """

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float

    @property
    def ratio(self) -> float:
        """The figure as a multiple of its peer."""
        return self.value / self.peer_value if self.peer_value else float("inf")


def microseconds(call: Callable[[], object], *, calls: int, rounds: int = 15) -> float:
    """Return the median over `rounds` of the mean time of one call, in µs.

    Args:
        call: what is measured; it runs once beforehand to warm caches.
        calls: per round; enough that a round takes a millisecond or more.
        rounds: the median of them is robust against whatever else the machine does.
    """
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return median(times) * 1e6
