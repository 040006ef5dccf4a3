"""Times of fresh loads: what a model's speed is judged from. Decisions only.

Where a load puts its memory makes one and the same model faster or slower, however long that load
is timed, and so does what else the machine does meanwhile. Rules:

1. A figure is taken from several loads, each in a process of its own, spread over the whole run.
   The interval is that of the median over the loads, never over the calls of one.
2. Fewer than `LEAST` loads give no interval and are not compared: their extremes enclose the median
   in less than 95 of 100 cases.
3. Runs are compared in processor time, which leaves out what a busy machine lets a process wait. A
   model became slower only if its processor time says so as it is, and again at equal pace: in
   units of a fixed piece of work beside each block of calls, which is slowed down with the model
   by a lower clock rate or a neighbour on the same core. The pace alone proves nothing, because
   work of another kind may be slowed down by another factor.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from edgefleet_converters.searching.medians import of_median
from edgefleet_converters.verification.evidence import Interval

# Their extremes enclose the median with a probability of 1 - 2/2^6 = 97 %; of 5 it is 94 %.
LEAST = 6
# With these the interval leaves the two smallest and the two largest out.
USUAL = 12

Positive = Annotated[float, Meta(gt=0)]


class Load(Struct, frozen=True):
    """What one fresh load of a model took for a call.

    Attributes:
        median_us: on the clock, the median of single calls.
        cpu_us: of processor time, in all threads; the lower quartile of blocks of calls.
        pace_us: processor time of a fixed piece of work meanwhile (SHA-256 of 16 KiB), likewise.
    """

    median_us: Positive
    cpu_us: Positive
    pace_us: Positive


def clock_us(loads: Sequence[Load]) -> Interval | None:
    """Return the median time of a call in µs with its interval; None where too few loads tell.

    >>> clock_us([Load(time, 1.0, 1.0) for time in (101, 100, 103, 102, 99, 104)])
    Interval(point=101.5, low=99, high=104)
    """
    return _over([load.median_us for load in loads])


def cpu_us(loads: Sequence[Load]) -> Interval | None:
    """Return the processor time of a call in µs with its interval; None where too few tell."""
    return _over([load.cpu_us for load in loads])


def paced(loads: Sequence[Load]) -> Interval | None:
    """Return the processor time of a call in units of the pace; None where too few loads tell."""
    return _over([load.cpu_us / load.pace_us for load in loads])


def pace_us(loads: Sequence[Load]) -> Interval | None:
    """Return the pace in µs with its interval; None where too few loads tell."""
    return _over([load.pace_us for load in loads])


def is_slower(now: Sequence[Load], before: Sequence[Load], allowed: float) -> bool | None:
    """Tell whether a model became slower than before; None where too few loads tell.

    Args:
        now: loads of this run.
        before: of the earlier one.
        allowed: by how much, as a share: even the lower end of the new interval has to be above the
            upper end of the old one by more.
    """
    above = []
    for present, past in ((cpu_us(now), cpu_us(before)), (paced(now), paced(before))):
        if present is None or past is None:
            return None
        above.append(present.low > past.high * (1 + allowed))
    return all(above)


def _over(values: list[float]) -> Interval | None:
    return of_median(values) if len(values) >= LEAST else None
