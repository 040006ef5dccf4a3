"""Where the time of a route goes."""

import time


class Clock:
    """Wall time by what was done.

    Attributes:
        seconds: what was done → seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, done: str) -> None:
        """Note what was done since the last call."""
        now = time.perf_counter()
        self.seconds[done] = round(now - self._last, 3)
        self._last = now
