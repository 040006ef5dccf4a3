"""One step of one lane, and everything that goes with it.

Rules:

1. A step forward is on disk before anything is done for it. On a store that cannot be written it is
   owed: it is tried again, and nothing else happens to that lane meanwhile.
2. A step back takes place at once, see `ledger`.
3. A step that is left takes its work, its download and its notes with it.
"""

import logging

from msgspec import structs

from edgefleet_agent.downloading.downloads import Downloads
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import StoreError
from edgefleet_agent.updating import update
from edgefleet_agent.updating.deadlines import Deadlines
from edgefleet_agent.updating.journal import Journal
from edgefleet_agent.updating.ledger import Ledger
from edgefleet_agent.updating.standing import Standing
from edgefleet_agent.updating.update import Event
from edgefleet_agent.updating.work import STEPS, Workers
from edgefleet_protocol.messages import Step

log = logging.getLogger(__name__)

# Between two tries to write what could not be written.
STORE_AGAIN_S = 10.0
_FORWARD = (Event.FETCHED, Event.INCOMPLETE, Event.VERIFIED, Event.PASSED, Event.PROVEN)


class Moves:
    """The steps of all lanes of one store.

    Attributes:
        verified: lanes whose files are checked, and which may still have to wait for a window.
        placed: lanes whose candidate was put in its place by this process.
        keep_leftovers: None while there is nothing to delete; else whether what may be of use
            later is kept.
    """

    def __init__(
        self,
        slots: Slots,
        ledger: Ledger,
        standing: Standing,
        workers: Workers,
        downloads: Downloads,
        deadlines: Deadlines,
    ) -> None:
        self._slots = slots
        self._ledger = ledger
        self._standing = standing
        self._workers = workers
        self._downloads = downloads
        self._deadlines = deadlines
        self._owed: dict[str, tuple[Event, str]] = {}
        self._write_again_at = 0.0
        self.verified: set[str] = set()
        self.placed: set[str] = set()
        self.keep_leftovers: bool | None = None

    def move(self, key: str, event: Event, reason: str, now: float) -> None:
        """Go one step along the table; see the rules."""
        journal = update.advance(self.counted(key, now), event, reason)
        if event in _FORWARD:
            try:
                self._ledger.save(journal)
            except StoreError as error:
                log.error("%s cannot go on: %s", key, error)
                self._owed[key] = (event, reason)
                self._write_again_at = now + STORE_AGAIN_S
                return
        else:
            self._ledger.take(journal)
        self.leave(key)
        self.enter(key, now)
        attempt = journal.attempt
        if attempt and attempt.is_final:
            log.info("attempt %d of %s: %s %s", attempt.number, key, attempt.step, reason)
            self._standing.settle(key, now)
            self.keep_leftovers = attempt.step is not Step.REJECTED
            if not self._ledger.report_end(key):
                self._write_again_at = now + STORE_AGAIN_S

    def enter(self, key: str, now: float) -> None:
        """Start the clocks of the step that the attempt of a lane has come to."""
        self._deadlines.enter(key, self._ledger.journals[key].attempt, now)

    def owes(self, key: str) -> bool:
        """Tell whether a lane has come further than its journal could be written."""
        return key in self._owed

    def write_again(self, now: float) -> None:
        """Write and report what could not be, if it is time to."""
        if now < self._write_again_at:
            return
        self._write_again_at = now + STORE_AGAIN_S
        self._ledger.write_again()
        for key, (event, reason) in list(self._owed.items()):
            del self._owed[key]
            self.move(key, event, reason, now)
        for key in list(self._ledger.journals):
            self._ledger.report_end(key)

    def next_at(self) -> float | None:
        """Return when `write_again` has something to do, monotonic seconds."""
        return self._write_again_at if self._owed or self._ledger.owes else None

    def leave(self, key: str) -> None:
        """Let go of everything that belonged to the step before."""
        self._workers.give_up(key, *STEPS.values())
        self._downloads.drop(key)
        self.verified.discard(key)
        self.placed.discard(key)
        self._owed.pop(key, None)

    def counted(self, key: str, now: float) -> Journal:
        """Return the journal with the time and the bytes that this step has taken."""
        journal, fetch = self._ledger.journals[key], self._downloads.get(key)
        attempt = journal.attempt
        if attempt is None or attempt.is_final:
            return journal
        seconds = attempt.seconds + self._deadlines.seconds(key, now)
        attempt = structs.replace(attempt, seconds=seconds)
        if fetch:
            received = attempt.fetched_bytes + fetch.fetched_bytes
            attempt = structs.replace(
                attempt, fetched_bytes=received, total_bytes=fetch.total_bytes
            )
        return structs.replace(journal, attempt=attempt)

    def collect(self) -> None:
        """Delete what is not needed, after an attempt has ended; never in the middle of one."""
        if self.keep_leftovers is None:
            return
        keep, self.keep_leftovers = self.keep_leftovers, None
        try:
            gone = self._slots.collect(self._ledger.journals.values(), keep_leftovers=keep)
        except OSError as error:
            log.error("files that no release needs cannot be deleted: %s", error)
            return
        if gone:
            log.info("deleted %d files that no release needs", len(gone))
