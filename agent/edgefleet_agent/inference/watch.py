"""Watching an unconfirmed release while it serves: when is it proven, and when is it too slow.

Rules:

1. A good row is one that was answered within the latency budget; so many of them prove the release.
2. Latency is judged over runs of 64 calls. A run is too slow if more than half of its calls were
   over the budget, that is, if its median was. Two such runs, one after the other, are a fault: one
   alone may be a moment in which the board did something else.
3. What raises or is not finite is seen by whoever called, and is a fault at once.
"""

import threading
from collections.abc import Callable

from edgefleet_protocol.messages import Slot

RUN_CALLS = 64
SLOW_RUNS = 2


class Watch:
    """Counts what one release does until it is confirmed. Safe to call from several threads."""

    def __init__(
        self, rows: int, on_proven: Callable[[Slot], None], *, max_latency_us: int = 0
    ) -> None:
        """Begin to watch.

        Args:
            rows: good ones that prove the release.
            on_proven: told once that there are enough.
            max_latency_us: budget of a row; 0 for none.
        """
        self._left = rows
        self._on_proven = on_proven
        self._budget_us = float(max_latency_us) or float("inf")
        self._calls = 0
        self._slow_calls = 0
        self._slow_runs = 0
        self._lock = threading.Lock()

    def forgive_latency(self) -> None:
        """Judge latency no more, as for a release that runs at low priority."""
        self._budget_us = float("inf")

    def count(self, slot: Slot, rows: int, latency_us: float) -> str | None:
        """Count one call that was answered with finite scores.

        Args:
            slot: the release.
            rows: in that call.
            latency_us: of one row.

        Returns:
            Why the release is to be taken out, None if it is not.
        """
        slow = latency_us > self._budget_us
        with self._lock:
            before = self._left
            self._left -= 0 if slow else rows
            proven = before > 0 >= self._left
            too_slow = self._judge(slow)
        if too_slow:
            return (
                f"the median of {SLOW_RUNS} runs of {RUN_CALLS} calls was over the budget of"
                f" {self._budget_us:.0f} µs a row; the last took {latency_us:.0f} µs"
            )
        if proven:
            self._on_proven(slot)
        return None

    def _judge(self, slow: bool) -> bool:
        self._calls += 1
        self._slow_calls += slow
        if self._calls < RUN_CALLS:
            return False
        self._slow_runs = self._slow_runs + 1 if 2 * self._slow_calls > self._calls else 0
        self._calls = self._slow_calls = 0
        return self._slow_runs >= SLOW_RUNS
