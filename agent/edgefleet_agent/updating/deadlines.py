"""How long each attempt may still stay at its step. No clock of its own.

The limits are those of `update.DEADLINES`. Their time stands still while the attempt waits for
something that is not its own doing, and, for a download, while there is no connection.
"""

from edgefleet_agent.config import Budgets
from edgefleet_agent.updating import update
from edgefleet_agent.updating.journal import Try
from edgefleet_agent.updating.update import Limit


class Stopwatch:
    """Counts seconds of a monotonic clock, with pauses. Runs when it is made."""

    def __init__(self, now: float) -> None:
        self._passed_s = 0.0
        self._since: float | None = now

    def restart(self, now: float) -> None:
        """Count from nothing; a pause goes on."""
        self._passed_s = 0.0
        if self._since is not None:
            self._since = now

    def set_running(self, running: bool, now: float) -> None:
        """Pause, or go on; nothing happens if it does so already."""
        if running and self._since is None:
            self._since = now
        elif not running and self._since is not None:
            self._passed_s += now - self._since
            self._since = None

    def until(self, limit_s: float) -> float | None:
        """Return when the limit is reached, None while paused."""
        return None if self._since is None else self._since + limit_s - self._passed_s


class Deadlines:
    """The deadlines of all lanes, by key."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._clocks: dict[str, dict[Limit, Stopwatch]] = {}
        self._entered: dict[str, float] = {}

    def enter(self, key: str, attempt: Try | None, now: float) -> None:
        """Start the clocks of the step that an attempt has come to."""
        limits = update.DEADLINES.get(attempt.step, ()) if attempt else ()
        self._clocks[key] = {limit: Stopwatch(now) for limit in limits}
        self._entered[key] = now

    def seconds(self, key: str, now: float) -> float:
        """Return how long this process has been at the step; never negative."""
        return max(now - self._entered.get(key, now), 0.0)

    def restart(self, key: str, limit: Limit, now: float) -> None:
        """Let a limit count from now on, if the step has it."""
        clock = self._clocks.get(key, {}).get(limit)
        if clock:
            clock.restart(now)

    def reached(self, key: str, limit: Limit) -> None:
        """Forget a limit: what it bounded has happened."""
        self._clocks.get(key, {}).pop(limit, None)

    def set_running(self, key: str, running: bool, now: float) -> None:
        """Let all clocks of a lane run or stand."""
        for clock in self._clocks.get(key, {}).values():
            clock.set_running(running, now)

    def next(self, key: str, attempt: Try | None) -> tuple[float, str] | None:
        """Return when the first limit is reached, and what was not there by then."""
        if attempt is None:
            return None
        found = []
        for limit, clock in self._clocks.get(key, {}).items():
            limit_s = update.limit_s(
                limit,
                attempt.target.order,
                fetch_stall_s=self._budgets.fetch_stall_s,
                trial_timeout_s=self._budgets.trial_timeout_s,
            )
            until = clock.until(limit_s)
            if until is not None:
                found.append((until, f"{limit} within {limit_s:g} s"))
        return min(found, default=None)

    @property
    def restore_s(self) -> float:
        """How long loading a confirmed release may take."""
        return self._budgets.trial_timeout_s + update.TRIAL_GRACE_S
