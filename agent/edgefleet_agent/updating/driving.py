"""Doing what the step of an attempt needs.

`drive` may be called at any time, and after a restart it is what picks up the work. It waits for
nothing: what has to wait says so, and is looked at again in the next turn.
"""

import functools
import logging
from datetime import datetime

from edgefleet_agent.downloading.downloads import Downloads
from edgefleet_agent.downloading.fetching import Fetch
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.updating import verification
from edgefleet_agent.updating.deadlines import Deadlines
from edgefleet_agent.updating.journal import Assigned, Journal
from edgefleet_agent.updating.lanes import Lanes
from edgefleet_agent.updating.ledger import Ledger
from edgefleet_agent.updating.maintenance import Windows
from edgefleet_agent.updating.moves import Moves
from edgefleet_agent.updating.standing import Standing
from edgefleet_agent.updating.steps import Steps
from edgefleet_agent.updating.surroundings import Surroundings
from edgefleet_agent.updating.update import Event
from edgefleet_agent.updating.work import Task, Workers
from edgefleet_protocol.messages import Step

log = logging.getLogger(__name__)


class Driver:
    """Drives the lanes of one store.

    Attributes:
        waits: key of a lane → what its attempt waits for, empty for nothing.
    """

    def __init__(
        self,
        around: Surroundings,
        windows: Windows,
        slots: Slots,
        ledger: Ledger,
        lanes: Lanes,
        standing: Standing,
        steps: Steps,
        workers: Workers,
        downloads: Downloads,
        deadlines: Deadlines,
        moves: Moves,
    ) -> None:
        self._around = around
        self._windows = windows
        self._slots = slots
        self._ledger = ledger
        self._lanes = lanes
        self._standing = standing
        self._steps = steps
        self._workers = workers
        self._downloads = downloads
        self._deadlines = deadlines
        self._moves = moves
        self.waits: dict[str, str] = {}

    def drive(self, key: str, now: float) -> None:
        """Do what the attempt's step needs, as often as it moves on by that."""
        while True:
            journal = self._ledger.journals.get(key)
            attempt = journal.attempt if journal else None
            if journal is None or attempt is None or attempt.is_final or self._moves.owes(key):
                waits = ""
            else:
                waits = self._drive(key, journal, attempt.target, attempt.step, now)
            if self._ledger.journals.get(key) is journal:
                break
        self._set_waiting(key, waits, now)

    def _drive(self, key: str, journal: Journal, target: Assigned, step: Step, now: float) -> str:
        """Do what one step needs; return what it waits for."""
        if step is Step.FETCHING:
            return self._drive_fetching(key, target, now)
        if step is Step.VERIFYING and key in self._moves.verified:
            waits = self._window_closed(journal, target)
            if not waits:
                self._moves.move(key, Event.VERIFIED, "", now)
            return waits
        if step is Step.VERIFYING:
            self._work(key, Task.VERIFY, target, now)
        elif step is Step.TRYING:
            others = [other for other in self._workers.keys(Task.TRY) if other != key]
            if others:
                return f"waits for the trial of {others[0]}"
            self._work(key, Task.TRY, target, now)
        elif step is Step.ACTIVE:
            self._drive_active(key, journal, target, now)
        return ""

    def _drive_fetching(self, key: str, target: Assigned, now: float) -> str:
        fetch = self._downloads.get(key)
        if fetch is None:
            fetch = self._begin_fetch(key, target, now)
        if fetch.opening:
            self._work(key, Task.OPEN, target, now)
        elif fetch.done:
            self._moves.move(key, Event.FETCHED, "", now)
        return self._downloads.waits(key)

    def _begin_fetch(self, key: str, target: Assigned, now: float) -> Fetch:
        attempt = self._ledger.journals[key].attempt
        journals = list(self._ledger.journals.values())
        fetch = Fetch(
            self._slots,
            target,
            functools.partial(
                verification.check_manifest, target=target, device=self._around.device
            ),
            now,
            attempt.fetched_bytes if attempt else 0,
            room=lambda bundle: self._slots.make_room(bundle, journals),
            max_bytes=target.order.max_bytes,
        )
        self._downloads.add(key, fetch, challenger=target.order.lane == "challenger")
        return fetch

    def _drive_active(self, key: str, journal: Journal, target: Assigned, now: float) -> None:
        if self._standing.is_restoring(key):
            return  # the release to fall back to comes first, and has a deadline of its own
        if key not in self._moves.placed:
            self._work(key, Task.ACTIVATE, target, now)
        elif target.order.confirm_rows == 0 and self._lanes.slot(journal) == target.slot:
            self._moves.move(key, Event.PROVEN, "", now)

    def _work(self, key: str, task: Task, target: Assigned, now: float) -> None:
        """Start the work of a step, if it does not run; else the step's deadline will end it."""
        if self._workers.began_at(key, task) is not None:
            return
        fetch = self._downloads.get(key)
        work = {
            Task.VERIFY: self._steps.verify,
            Task.TRY: self._steps.try_out,
            Task.ACTIVATE: self._steps.activate,
        }
        piece = self._steps.open(fetch) if task is Task.OPEN and fetch else work[task](target)
        self._workers.start(key, task, target.slot, piece, now)

    def _set_waiting(self, key: str, waits: str, now: float) -> None:
        """Note what is waited for, and let the clocks run or stand accordingly."""
        if waits and self.waits.get(key) != waits:
            log.info("%s %s", key, waits)
        self.waits[key] = waits
        fetch = self._downloads.get(key)
        offline = fetch is not None and not fetch.opening and not self._downloads.connected
        restoring = self._standing.is_restoring(key)
        self._deadlines.set_running(key, not (waits or offline or restoring), now)

    def _window_closed(self, journal: Journal, target: Assigned) -> str:
        """Say which maintenance window a new release has to wait for, empty for none."""
        primary = self._ledger.journals.get(journal.model)
        if target.order.urgent or primary is None or self._lanes.slot(primary) is None:
            return ""  # nothing serves that a switch could disturb
        return self._windows.reason(datetime.fromtimestamp(self._around.clock()).astimezone())
