"""The journals of all lanes: in memory, on disk, and what of them the hub has to hear.

Rules:

1. `save` is for steps forward: it raises, and nothing has changed.
2. `take` is for steps back: it holds at once, and is written as soon as the store lets it. A full
   disk keeps no faulty release in place.
3. The result of an attempt goes into the outbox after its end is on disk, and once: an attempt that
   died between the outbox and its mark here says the very same again.
"""

import logging
from collections.abc import Callable

from msgspec import structs

from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import AgentError, StoreError
from edgefleet_agent.updating import update
from edgefleet_agent.updating.journal import Journal
from edgefleet_protocol.messages import Refusal, Result

log = logging.getLogger(__name__)


class Ledger:
    """All journals of one store.

    Args:
        slots: where they lie.
        report: puts a result or a refusal into the outbox.
    """

    def __init__(self, slots: Slots, report: Callable[[Result | Refusal], None]) -> None:
        self._slots = slots
        self._report = report
        self._unsaved: set[str] = set()
        self.journals: dict[str, Journal] = {}

    def read(self) -> None:
        """Read all journals; tell about those that cannot be read."""
        self.journals, complaints = self._slots.journals()
        for complaint in complaints:
            log.error("%s", complaint)
            self._report(Refusal("journal", "damaged", complaint))

    def save(self, journal: Journal) -> None:
        """Write a journal, then take it as the truth.

        Raises:
            StoreError: if it cannot be written.
        """
        try:
            self._slots.save(journal)
        except OSError as error:
            raise StoreError(f"journal {journal.key} cannot be written: {error}") from error
        self.journals[journal.key] = journal
        self._unsaved.discard(journal.key)

    def take(self, journal: Journal) -> None:
        """Take a journal as the truth, and write it now or later."""
        self.journals[journal.key] = journal
        try:
            self.save(journal)
        except StoreError as error:
            log.error("%s; it is tried again", error)
            self._unsaved.add(journal.key)

    def write_again(self) -> None:
        """Write what could not be written."""
        for key in list(self._unsaved):
            self.take(self.journals[key])

    @property
    def owes(self) -> bool:
        """Whether something has yet to be written or reported."""
        return bool(self._unsaved) or any(map(_is_unreported, self.journals.values()))

    def report_end(self, key: str) -> bool:
        """Report the result of an attempt that has ended; return whether none is owed now."""
        journal = self.journals[key]
        attempt = journal.attempt
        if attempt is None or not _is_unreported(journal):
            return True
        if key in self._unsaved:
            return False
        try:
            self._report(update.result(attempt))
        except AgentError as error:
            log.error("the result of attempt %d of %s waits: %s", attempt.number, key, error)
            return False
        reported = structs.replace(attempt, reported=True)
        self.take(structs.replace(journal, attempt=reported))
        return True


def _is_unreported(journal: Journal) -> bool:
    attempt = journal.attempt
    return attempt is not None and attempt.is_final and not attempt.reported
