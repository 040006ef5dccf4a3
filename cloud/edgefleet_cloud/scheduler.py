"""The hub's heartbeat: one thread that runs every part in turn, round after round.

A part that fails is logged and counted, and the others run all the same; the next round tries it
again. So no single fault stops the hub, and none goes unseen.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Something to do in every round."""

    name: str
    run: Callable[[], object]


class Scheduler:
    """Runs the parts in order, then pauses, until it is stopped.

    Args:
        parts: in the order in which they depend on each other.
        pause_s: between two rounds, unless woken.

    Attributes:
        failures: part → rounds in which it has failed since the start.
        rounds: rounds run since the start.
    """

    def __init__(self, parts: Sequence[Part], pause_s: float, woken: threading.Event) -> None:
        self._parts = parts
        self._pause_s = pause_s
        self._woken = woken
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._in_a_row: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.rounds = 0

    def start(self) -> None:
        """Start the rounds."""
        self._thread.start()

    def stop(self) -> None:
        """End after the running round."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> None:
        """Run every part once."""
        for part in self._parts:
            try:
                part.run()
            except Exception as error:
                # The one place where any error may end: see the module's rules.
                self._note(part.name, error)
            else:
                self._in_a_row[part.name] = 0
        self.rounds += 1

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.round()
            self._woken.wait(self._pause_s)
            self._woken.clear()

    def _note(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        self._in_a_row[name] += 1
        count = self._in_a_row[name]
        # Full at the 1st, 2nd, 4th, 8th … time in a row: a lasting fault must not fill the disk.
        trace = error if count & (count - 1) == 0 else None
        logger.error("%s failed (%d in a row): %s", name, count, error, exc_info=trace)
