"""When to try again what keeps failing: starting a broker, connecting to one."""

# The pause doubles from the first to the second.
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
# What has gone well for so long is taken to be well, and the pause starts anew.
SETTLED_S = 60.0


class Backoff:
    """When a broker that died may be started again. Times are monotonic seconds.

    The first time at once; then after pauses that double, until one has run for a minute.
    """

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._started_at = -SETTLED_S

    def started(self, now: float) -> None:
        """Note a start."""
        settled = now - self._started_at >= SETTLED_S
        grown = min(max(2 * self._pause_s, BACKOFF_S), BACKOFF_MAX_S)
        self._pause_s = 0.0 if settled else grown
        self._started_at = now

    def may_start(self, now: float) -> bool:
        """Tell whether the next start may be now."""
        return now - self._started_at >= self._pause_s
