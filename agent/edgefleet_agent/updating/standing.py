"""What stands in each lane after an attempt has ended, or the agent has started.

The confirmed release stands. Where it cannot be loaded the one before it does, and the damaged one
is fetched again; where it brings the agent down at each start, it is given up for the one before.
"""

import logging
from collections.abc import Callable

from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import TransitionError
from edgefleet_agent.updating import update
from edgefleet_agent.updating.journal import Journal
from edgefleet_agent.updating.lanes import Lanes
from edgefleet_agent.updating.ledger import Ledger
from edgefleet_agent.updating.steps import Steps
from edgefleet_agent.updating.work import BUNDLE, Done, Task, Workers
from edgefleet_protocol.messages import Refusal, Result

log = logging.getLogger(__name__)


class Standing:
    """Confirmed releases and their loading. Used by the engine's thread."""

    def __init__(
        self,
        slots: Slots,
        ledger: Ledger,
        lanes: Lanes,
        workers: Workers,
        steps: Steps,
        report: Callable[[Result | Refusal], None],
    ) -> None:
        self._slots = slots
        self._ledger = ledger
        self._lanes = lanes
        self._workers = workers
        self._steps = steps
        self._report = report

    def settle(self, key: str, now: float) -> None:
        """Let the confirmed release of a lane stand, or nothing if there is none."""
        journal = self._ledger.journals[key]
        current = journal.current
        if current is None:
            self._lanes.clear(journal)
            return
        served = self._lanes.loaded(journal, current.slot)
        if served:
            self._lanes.put_confirmed(journal, current, served)
        else:
            self._workers.start(key, Task.RESTORE, current.slot, self._steps.restore(current), now)

    def is_restoring(self, key: str) -> bool:
        """Tell whether the confirmed release of a lane is being loaded."""
        return self._workers.began_at(key, Task.RESTORE) is not None

    def take_restored(self, done: Done, now: float) -> None:
        """Hear that the loading of a confirmed release has ended."""
        key = done.token.key
        journal = self._ledger.journals[key]
        current = journal.current
        if current is None or current.slot != done.token.slot:
            return
        if done.served:
            self._lanes.put_confirmed(journal, current, done.served)
        else:
            self.set_damaged(key, done.reason, now)

    def set_damaged(self, key: str, why: str, now: float) -> None:
        """Take the release before, where the confirmed one cannot be loaded."""
        journal = self._ledger.journals[key]
        if journal.current is None:
            return
        slot = journal.current.slot
        text = f"{key} release {slot.release} cannot be served: {why}"
        log.error("%s", text)
        self._report(Refusal(BUNDLE, "damaged", text, slot.manifest))
        self._ledger.take(update.damaged(journal, text))
        self.settle(key, now)

    def give_up_suspect(self, now: float) -> str | None:
        """Go back from the release that is likeliest to bring the agent down at each start.

        Returns:
            The lane that went back, None if none could or if a candidate is likelier.
        """
        journals = list(self._ledger.journals.values())
        if any(journal.candidate for journal in journals):
            return None  # it has a count of starts of its own
        found = update.suspect([journal for journal in journals if self._can_go_back(journal)])
        if found is None:
            text = "the agent crashes again and again, and no release is left to go back from"
            log.critical("%s", text)
            self._report(Refusal("release", "crash-loop", text))
            return None
        text = f"the agent ended within minutes of {update.MAX_STARTS} starts in a row"
        self.go_back(found, "crash-loop", text, now)
        return found.key

    def go_back(self, journal: Journal, word: str, reason: str, now: float) -> None:
        """Let the release before the confirmed one stand.

        Args:
            journal: of the lane, without a candidate.
            word: for the hub.
            reason: for people.
            now: monotonic seconds.

        Raises:
            TransitionError: if there is nothing to go back to.
        """
        if journal.current is None or not self._can_go_back(journal):
            raise TransitionError(f"{journal.key} has no release on disk to go back to")
        slot = journal.current.slot
        changed = update.gone_back(journal, reason)
        text = f"{journal.key} went back from release {slot.release}"
        text += (
            f" to {changed.current.slot.release}: {reason}" if changed.current else f": {reason}"
        )
        log.warning("%s", text)
        self._ledger.take(changed)
        self._report(Refusal("release", word, text, slot.manifest))
        self.settle(journal.key, now)

    def _can_go_back(self, journal: Journal) -> bool:
        if journal.current is None:
            return False
        if journal.lane == "challenger":
            return True
        before = journal.previous
        return before is not None and self._slots.is_whole(before.slot.manifest)
