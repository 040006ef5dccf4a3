"""Moving every lane of this device along the update table. All of it on the engine's one thread.

`drive` looks at the step that an attempt is in and does what that step needs; it may be called at
any time, and after a restart it is what picks up the work. Rules:

1. A step forward is on disk before anything is done for it; on a store that cannot be written it is
   tried again later, and nothing else happens to that lane meanwhile.
2. A step back (a fault, a deadline, a withdrawal) takes place at once, see `ledger`.
3. A lane never waits for another one's work: what hangs is given up at its deadline.
4. While an attempt waits (for its window, its byte budget, another trial) its deadlines do not run,
   and its reason says what it waits for.
"""

import logging
from collections.abc import Callable

from msgspec import structs

from edgefleet_agent.config import Config
from edgefleet_agent.downloading.allowance import Allowance
from edgefleet_agent.downloading.downloads import Downloads
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import StoreError, TransitionError
from edgefleet_agent.inference.serving import Model
from edgefleet_agent.updating import update
from edgefleet_agent.updating.deadlines import Deadlines
from edgefleet_agent.updating.driving import Driver
from edgefleet_agent.updating.journal import Assigned, Journal, Order
from edgefleet_agent.updating.lanes import Lanes
from edgefleet_agent.updating.ledger import Ledger
from edgefleet_agent.updating.loading import Loader
from edgefleet_agent.updating.maintenance import Windows
from edgefleet_agent.updating.moves import Moves
from edgefleet_agent.updating.standing import Standing
from edgefleet_agent.updating.steps import Steps
from edgefleet_agent.updating.surroundings import Surroundings
from edgefleet_agent.updating.update import Event, Limit, Plan
from edgefleet_agent.updating.work import BUNDLE, MAX_GIVEN_UP, Done, Task, Workers
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.messages import (
    Attempt,
    Block,
    BlocksUnavailable,
    Refusal,
    Slot,
)

log = logging.getLogger(__name__)

ARTIFACT_BLOCK = "artifact block"
# Between two tries to write what could not be written.
STORE_AGAIN_S = 10.0


class Attempts:
    """All lanes of one device and what is being done about them."""

    def __init__(
        self,
        config: Config,
        slots: Slots,
        models: Callable[[str], Model],
        surroundings: Surroundings,
    ) -> None:
        around = surroundings
        self._around = around
        self._loader = Loader(config, slots, around.device, around.clock, around.on_window)
        steps = Steps(config, slots, self._loader, around.try_candidate)
        self._workers = Workers(around.start, around.deliver)
        self._slots = slots
        self._ledger = Ledger(slots, around.report)
        self._lanes = Lanes(models, around.on_proven)
        self._standing = Standing(
            slots, self._ledger, self._lanes, self._workers, steps, around.report
        )
        self._deadlines = Deadlines(config.budgets)
        allowance = Allowance(
            config.folder,
            config.network,
            around.link_class,
            around.clock,
            monotonic=around.monotonic,
            start=around.start,
        )
        self.downloads = Downloads(allowance)
        self._moves = Moves(
            slots, self._ledger, self._standing, self._workers, self.downloads, self._deadlines
        )
        self._driver = Driver(
            around,
            Windows.parse(config.maintenance.windows),
            slots,
            self._ledger,
            self._lanes,
            self._standing,
            steps,
            self._workers,
            self.downloads,
            self._deadlines,
            self._moves,
        )

    @property
    def journals(self) -> dict[str, Journal]:
        """Key of each lane → its journal."""
        return self._ledger.journals

    # -- life ------------------------------------------------------------------------------------

    def open(self, now: float, *, crash_loop: bool = False) -> bool:
        """Read the journals, and begin to load what they say serves.

        Args:
            now: monotonic seconds.
            crash_loop: the agent ended soon after each of its last starts.

        Returns:
            Whether a release was given up because the agent had crashed.
        """
        self._ledger.read()
        gave_up = False
        for journal in list(self.journals.values()):
            seen = update.restarted(journal)
            if seen is not journal:
                gave_up |= journal.candidate is not None and seen.candidate is None
                self._ledger.take(seen)
        if crash_loop and not gave_up:
            gave_up = self._standing.give_up_suspect(now) is not None
        for key in list(self.journals):
            self._moves.enter(key, now)
            self._standing.settle(key, now)
            self._driver.drive(key, now)
        return gave_up

    @property
    def restoring(self) -> bool:
        """Whether a confirmed release is being loaded."""
        return bool(self._workers.keys(Task.RESTORE))

    def close(self) -> None:
        """Stop what runs beside; nothing is decided by it."""
        self._workers.close()
        self.downloads.close()

    # -- what is assigned ------------------------------------------------------------------------

    def check(self, targets: list[Assigned]) -> None:
        """Refuse an assignment that goes back behind an attempt made before.

        Raises:
            RefusedError: `rollback`.
        """
        for target in targets:
            update.decide(self.journals.get(target.key), target)

    def apply(self, targets: list[Assigned], now: float) -> None:
        """Act on a verified assignment: the full list of what this device is to run.

        A lane that cannot be brought there keeps no other from it; it may be applied again.

        Raises:
            StoreError: if something could not be written.
        """
        assigned = {target.key: target for target in targets}
        failed: StoreError | None = None
        # New attempts come first, so that a promoted challenger's files are needed all the time.
        for key in sorted(self.journals.keys() | assigned.keys(), key=lambda k: k not in assigned):
            try:
                self._apply(key, assigned.get(key), now)
            except StoreError as error:
                failed = error
        self._moves.collect()
        if failed:
            raise failed

    def _apply(self, key: str, target: Assigned | None, now: float) -> None:
        plan = update.decide(self.journals.get(key), target)
        if plan is Plan.WITHDRAW or target is None:
            self._withdraw(key, now)
        elif plan is Plan.KEEP:
            self._reorder(key, target.order)
        else:
            self._begin(key, target, now)
        self._driver.drive(key, now)

    def _begin(self, key: str, target: Assigned, now: float) -> None:
        journal = self.journals.get(key) or Journal(target.slot.model, lane=target.order.lane)
        if journal.attempt and not journal.attempt.is_final:
            self._moves.move(key, Event.REPLACED, f"attempt {target.attempt} took its place", now)
            journal = self.journals[key]
        if journal.attempt and not self._ledger.report_end(key):
            # The new attempt would overwrite the only record of how the old one ended.
            raise StoreError(f"attempt {journal.attempt.number} of {key} is not reported yet")
        journal = self.journals.get(key, journal)
        self._ledger.save(update.begin(journal, target, self._around.clock()))
        self._moves.leave(key)
        self._moves.enter(key, now)
        log.info("attempt %d: %s release %d", target.attempt, key, target.slot.release)
        self._ledger.report_end(key)  # it may have ended at once

    def _reorder(self, key: str, order: Order) -> None:
        journal = update.reordered(self.journals[key], order)
        if journal is self.journals[key]:
            return
        self._ledger.save(journal)
        serving = journal.serving
        served = self._lanes.loaded(journal, serving.slot) if serving else None
        if serving and served and self._lanes.slot(journal) == serving.slot:
            policy = self._loader.policy(order, served.signature)
            served.recorder.reorder(order.window_rows, policy)
            self._lanes.reorder(journal, serving)

    def _withdraw(self, key: str, now: float) -> None:
        journal = update.withdrawn(self._moves.counted(key, now))
        before = self.journals[key]
        if (journal.current, journal.previous) == (before.current, before.previous) and (
            before.attempt is None or before.attempt.is_final
        ):
            return
        self._moves.leave(key)
        self._ledger.take(journal)
        self._moves.enter(key, now)
        self._lanes.clear(journal)
        self._ledger.report_end(key)
        self._moves.keep_leftovers = False
        log.info("%s was withdrawn from this device", key)

    def go_back(self, model: str, reason: str, now: float) -> None:
        """Return to the release before the serving one, because a person at the device says so.

        Raises:
            TransitionError: if there is no such model, or nothing to go back to.
        """
        journal = self.journals.get(model)
        if journal is None:
            raise TransitionError(f"this device has no model {model!r}")
        if journal.candidate:
            self._moves.move(model, Event.FAULTY, reason, now)
            return
        self._standing.go_back(journal, "rolled-back-here", reason, now)
        attempt = self.journals[model].attempt
        if attempt and attempt.is_final:
            self._moves.leave(model)
            self._moves.enter(model, now)

    # -- what arrives ----------------------------------------------------------------------------

    def take_block(self, block: Block, now: float) -> None:
        """Give a block to every attempt that misses it."""
        for arrival in self.downloads.receive(block, now):
            key = arrival.key
            if isinstance(arrival.error, OSError):
                self._moves.move(
                    key, Event.BROKE, f"a block cannot be stored: {arrival.error}", now
                )
            elif arrival.error:
                self._end_refused(key, arrival.error, block.digest, now)
            elif arrival.complaint:
                self._around.report(
                    Refusal(ARTIFACT_BLOCK, "hash-mismatch", arrival.complaint, block.digest)
                )
            else:
                self._deadlines.restart(key, Limit.STALL, now)
                self._driver.drive(key, now)

    def take_unavailable(self, answer: BlocksUnavailable, now: float) -> None:
        """Hear that the hub cannot serve a blob."""
        for key, fetch in self.downloads.for_blob(answer.digest):
            try:
                fetch.unavailable(answer.reason, now)
            except StoreError as error:
                self._moves.move(key, Event.BROKE, str(error), now)

    def take_done(self, done: Done, now: float) -> None:
        """Hear that a piece of work has ended."""
        if not self._workers.take(done):
            done.discard()  # nobody waits for it any more
            return
        key = done.token.key
        if done.token.task is Task.RESTORE:
            before = self.journals[key].attempt
            self._standing.take_restored(done, now)
            if self.journals[key].attempt is not before:  # it is to be fetched again
                self._moves.enter(key, now)
        elif done.opened:
            self._take_opened(done, now)
        elif done.served:
            self._place(done)
        else:
            self._take_verdict(done, now)
        self._driver.drive(key, now)

    def _take_opened(self, done: Done, now: float) -> None:
        key, fetch = done.token.key, self.downloads.get(done.token.key)
        if fetch is None or done.opened is None:
            done.discard()
            return
        if done.opened.deleted:
            log.info("deleted for %s: %s", key, ", ".join(done.opened.deleted))
            self._forget_deleted()
        try:
            fetch.take_opened(done.opened, now)
        except RefusedError as error:
            self._end_refused(key, error, done.token.slot.manifest, now)
        else:
            self._deadlines.restart(key, Limit.STALL, now)

    def _forget_deleted(self) -> None:
        """Name no previous release that had to give its room to a download."""
        for journal in list(self.journals.values()):
            if journal.previous and not self._slots.is_whole(journal.previous.slot.manifest):
                self._ledger.take(structs.replace(journal, previous=None))

    def _place(self, done: Done) -> None:
        key, served = done.token.key, done.served
        journal = self.journals[key]
        if served and journal.candidate:
            self._moves.placed.add(key)
            self._deadlines.reached(key, Limit.LOAD)
            self._lanes.put_candidate(journal, journal.candidate, served, done.max_latency_us)

    def _take_verdict(self, done: Done, now: float) -> None:
        key = done.token.key
        if done.refusal:
            self._around.report(done.refusal)
        journal = self.journals[key]
        if done.tried and journal.attempt:
            # Written with the step that follows from it.
            attempt = structs.replace(journal.attempt, tried=done.tried)
            self.journals[key] = structs.replace(journal, attempt=attempt)
        if done.token.task is Task.ACTIVATE:
            reason = f"cannot serve in this process: {done.reason}"
            self._moves.move(key, Event.FAULTY, reason, now)
        elif done.event is Event.VERIFIED:
            self._moves.verified.add(key)  # drive() looks whether it has to wait
        elif done.event:
            self._moves.move(key, done.event, done.reason, now)

    def take_fault(self, slot: Slot, reason: str, now: float) -> None:
        """Hear that a candidate failed while it served."""
        for key in self._candidates(slot):
            self._moves.move(key, Event.FAULTY, reason, now)

    def take_proven(self, key: str, slot: Slot, now: float) -> None:
        """Hear that the candidate of a lane has served enough rows."""
        if key in self._candidates(slot):
            self._moves.move(key, Event.PROVEN, "", now)

    def _candidates(self, slot: Slot) -> list[str]:
        return [
            key
            for key, journal in self.journals.items()
            if journal.candidate and journal.candidate.slot == slot
        ]

    def connected(self, now: float) -> None:
        """Ask again for what the old connection had been asked for."""
        self.downloads.reconnected(now)
        for key in self.journals:
            self._deadlines.restart(key, Limit.STALL, now)

    def disconnected(self, now: float) -> None:
        """Stop the clocks of downloads."""
        self.downloads.connected = False
        for key in list(self.journals):
            self._driver.drive(key, now)

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """End what is overdue, take up what was left, write and report what is owed."""
        self._moves.write_again(now)
        for key in list(self.journals):
            self._end_overdue(key, now)
            self._driver.drive(key, now)
        self._moves.collect()

    def next_at(self) -> float | None:
        """Return when `tick` should be called next, monotonic seconds."""
        times = [self.downloads.next_at(), self._moves.next_at()]
        for key, journal in self.journals.items():
            deadline = self._deadlines.next(key, journal.attempt)
            times.append(deadline[0] if deadline else None)
            times.append(self._restored_by(key))
        return min((at for at in times if at is not None), default=None)

    def _restored_by(self, key: str) -> float | None:
        began_at = self._workers.began_at(key, Task.RESTORE)
        return None if began_at is None else began_at + self._deadlines.restore_s

    def _end_overdue(self, key: str, now: float) -> None:
        restored_by = self._restored_by(key)
        if restored_by is not None and now >= restored_by:
            self._workers.give_up(key, Task.RESTORE)
            self._standing.set_damaged(
                key, f"not loaded within {self._deadlines.restore_s:g} s", now
            )
            self._moves.enter(key, now)
            self._tell_hanging()
        attempt = self.journals[key].attempt
        deadline = self._deadlines.next(key, attempt)
        if attempt and deadline and now >= deadline[0] and not self._moves.owes(key):
            text = f"no end of {attempt.step} in time: {deadline[1]}"
            self._moves.move(key, Event.OVERDUE, text, now)
            self._tell_hanging()

    def _tell_hanging(self) -> None:
        hanging = [f"{token.task} of {token.key}" for token in self._workers.hanging]
        if len(hanging) >= MAX_GIVEN_UP:
            text = (
                f"work hangs, and no more is begun: {', '.join(hanging)}. The disk or a runtime"
                " does not answer: look at the disk, and start the agent anew"
            )
            log.critical("%s", text)
            self._around.report(Refusal("agent", "hung-work", text))

    # -- for the state message -------------------------------------------------------------------

    def slot(self, journal: Journal) -> Slot | None:
        """Return the release that stands in a lane now."""
        return self._lanes.slot(journal)

    def summaries(self) -> list[Attempt]:
        """Return the newest attempt of each lane, with its progress and what it waits for."""
        found = []
        for key, journal in sorted(self.journals.items()):
            attempt, fetch = journal.attempt, self.downloads.get(key)
            if attempt is None:
                continue
            if fetch:
                attempt = structs.replace(
                    attempt, fetched_bytes=fetch.held_bytes, total_bytes=fetch.total_bytes
                )
            reason = self._driver.waits.get(key) or attempt.reason
            found.append(update.summary(structs.replace(attempt, reason=reason)))
        return found

    def _end_refused(
        self, key: str, error: RefusedError | MalformedError, digest: str, now: float
    ) -> None:
        reason = error.reason if isinstance(error, RefusedError) else "malformed"
        what = ARTIFACT_BLOCK if reason in ("hash-mismatch", "too-many-bytes") else BUNDLE
        self._around.report(Refusal(what, reason, str(error), digest))
        self._moves.move(key, Event.REFUSED, f"{reason}: {error}", now)
