"""Doing what the update table says, for every model of this device.

`drive` looks at the step that an attempt is in and does what that step needs; it may be called at
any time, and after a restart it is what picks up the work. Slow work (hashing, the trial, loading)
runs on a thread of its own and comes back as a `Done`, which counts only if the attempt is still
at the step that started it. Everything else happens on the engine's one thread.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterator

from msgspec import Struct, structs

from edgefleet_agent import trial, update, verification
from edgefleet_agent.config import Config
from edgefleet_agent.errors import AgentError, StoreError
from edgefleet_agent.fetching import WINDOW, Fetch
from edgefleet_agent.loading import Loader
from edgefleet_agent.serving import Model, Proof, Served
from edgefleet_agent.sketching import ClosedWindow
from edgefleet_agent.slots import Slots
from edgefleet_agent.update import Assigned, Event, Installed, Journal, Order, Plan
from edgefleet_protocol.errors import MalformedError, ProtocolError, RefusedError
from edgefleet_protocol.messages import (
    Attempt,
    Block,
    BlockRequest,
    BlocksUnavailable,
    Refusal,
    Result,
    Slot,
    Step,
)
from edgefleet_protocol.profiles import DeviceProfile

log = logging.getLogger(__name__)

ARTIFACT_BLOCK, BUNDLE = "artifact block", "bundle"
Work = Callable[[], None]


class Token(Struct, frozen=True):
    """The attempt and the step that a piece of work belongs to."""

    model: str
    number: int
    step: Step


class Done(Struct, frozen=True):
    """A piece of work has ended: with an event for the table, or with a loaded model."""

    token: Token
    event: Event | None = None
    reason: str = ""
    refusal: Refusal | None = None
    served: Served | None = None


class Surroundings(Struct, frozen=True):
    """What attempts need of the agent around them.

    Attributes:
        device: what this device is.
        clock: Unix seconds.
        report: puts a result or a refusal into the outbox.
        deliver: queues a `Done` for the engine's thread.
        on_window: queues a closed window.
        on_proven: queues the news that a candidate has served enough rows.
        start: runs a piece of work beside the engine's thread.
        try_candidate: `trial.run`.
    """

    device: DeviceProfile
    clock: Callable[[], float]
    report: Callable[[Result | Refusal], None]
    deliver: Callable[[Done], None]
    on_window: Callable[[ClosedWindow], None]
    on_proven: Callable[[Slot], None]
    start: Callable[[Work], None]
    try_candidate: Callable[[trial.Request, Callable[[], bool]], trial.Verdict] = trial.run


class Attempts:
    """All models of one device and what is being done about them."""

    def __init__(
        self,
        config: Config,
        slots: Slots,
        models: Callable[[str], Model],
        surroundings: Surroundings,
    ) -> None:
        self._config = config
        self._slots = slots
        self._model = models
        self._around = surroundings
        self._loader = Loader(
            config, slots, surroundings.device, surroundings.clock, surroundings.on_window
        )
        self._entered: dict[str, float] = {}
        self._fetches: dict[str, Fetch] = {}
        self._working: dict[str, Token] = {}
        self._connected_at: float | None = None
        self._cancelled = threading.Event()
        self.journals: dict[str, Journal] = {}

    # -- life ------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Read the journals and serve what they say serves.

        Args:
            now: monotonic seconds.
        """
        self.journals, complaints = self._slots.journals()
        for complaint in complaints:
            log.error("%s", complaint)
            self._around.report(Refusal("journal", "damaged", complaint))
        for model in list(self.journals):
            self._entered[model] = now
            self._store(update.restarted(self.journals[model]))
            self._serve_installed(model)
        for model in list(self.journals):
            self.drive(model, now)

    def close(self) -> None:
        """Stop what runs beside; nothing is decided by it."""
        self._cancelled.set()
        for fetch in self._fetches.values():
            fetch.close()
        self._fetches.clear()

    # -- what is assigned ------------------------------------------------------------------------

    def check(self, targets: list[Assigned]) -> None:
        """Refuse an assignment that goes back behind an attempt made before.

        Raises:
            RefusedError: `rollback`.
        """
        for target in targets:
            update.decide(self.journals.get(target.slot.model), target)

    def apply(self, targets: list[Assigned], now: float) -> None:
        """Act on a verified assignment: the full list of what this device is to run."""
        assigned = {target.slot.model: target for target in targets}
        for model in sorted(self.journals.keys() | assigned.keys()):
            target = assigned.get(model)
            plan = update.decide(self.journals.get(model), target)
            if plan is Plan.WITHDRAW or target is None:
                self._withdraw(model)
            elif plan is Plan.KEEP:
                self._reorder(model, target.order)
            else:
                self._begin(model, target, now)
            self.drive(model, now)

    # -- what arrives ----------------------------------------------------------------------------

    def take_block(self, block: Block, now: float) -> None:
        """Give a block to every attempt that misses it."""
        for model, fetch in list(self._fetches.items()):
            try:
                complaint = fetch.receive(block, now)
            except (RefusedError, MalformedError) as error:
                self._end_refused(model, error, now, block.digest)
                continue
            except OSError as error:
                self._move(model, Event.BROKE, f"a block cannot be stored: {error}", now)
                continue
            if complaint:
                self._refuse_block(complaint, block.digest)
            if fetch.done:
                self.drive(model, now)

    def take_unavailable(self, answer: BlocksUnavailable, now: float) -> None:
        """Hear that the hub cannot serve a blob."""
        for model, fetch in list(self._fetches.items()):
            if fetch.digest != answer.digest:
                continue
            try:
                fetch.unavailable(answer.reason, now)
            except StoreError as error:
                self._move(model, Event.BROKE, str(error), now)

    def take_done(self, done: Done, now: float) -> None:
        """Hear that a piece of work has ended."""
        token = done.token
        if self._working.get(token.model) == token:
            del self._working[token.model]
        if not self._is_current(token):
            return  # superseded, or over its deadline, meanwhile
        if done.refusal:
            self._around.report(done.refusal)
        if done.served:
            self._serve_candidate(token.model, done.served)
        if done.event:
            self._move(token.model, done.event, done.reason, now)
        self.drive(token.model, now)

    def take_fault(self, slot: Slot, reason: str, now: float) -> None:
        """Hear that a candidate failed while it served."""
        if self._is_candidate(slot):
            self._move(slot.model, Event.FAULTY, reason, now)

    def take_proven(self, slot: Slot, now: float) -> None:
        """Hear that a candidate has served enough rows."""
        if self._is_candidate(slot):
            self._move(slot.model, Event.PROVEN, "", now)

    def connected(self, now: float) -> None:
        """Ask again for what the old connection had been asked for."""
        self._connected_at = now
        for fetch in self._fetches.values():
            fetch.reconnected(now)

    def disconnected(self) -> None:
        """Stop the clock of downloads."""
        self._connected_at = None

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """End what is overdue, and take up what was left."""
        for model in list(self.journals):
            until = self._deadline(model)
            if until is not None and now >= until:
                step = self.journals[model].attempt
                self._move(
                    model, Event.OVERDUE, f"no end of {step.step if step else ''} in time", now
                )
            self.drive(model, now)

    def next_at(self) -> float | None:
        """Return when `tick` or `requests` should be called next, monotonic seconds."""
        times = [self._deadline(model) for model in self.journals]
        if self._connected_at is not None:
            times += [fetch.next_at() for fetch in self._fetches.values()]
        return min((at for at in times if at is not None), default=None)

    def requests(self, now: float) -> Iterator[BlockRequest]:
        """Yield what to ask the hub for now; the window is shared by all downloads."""
        if self._connected_at is None:
            return
        window = max(WINDOW // max(len(self._fetches), 1), 1)
        for fetch in self._fetches.values():
            request = fetch.request(now, window)
            if request:
                yield request

    @property
    def wanted_blobs(self) -> set[str]:
        """Digests of the blobs that are being fetched now."""
        return {fetch.digest for fetch in self._fetches.values() if fetch.digest}

    def summaries(self) -> list[Attempt]:
        """Return the newest attempt of each model, downloads with their progress."""
        found = []
        for model, journal in sorted(self.journals.items()):
            if journal.attempt is None:
                continue
            attempt, fetch = journal.attempt, self._fetches.get(model)
            if fetch:
                attempt = structs.replace(
                    attempt, fetched_bytes=fetch.held_bytes, total_bytes=fetch.total_bytes
                )
            found.append(update.summary(attempt))
        return found

    # -- steps -----------------------------------------------------------------------------------

    def drive(self, model: str, now: float) -> None:
        """Do what the attempt's step needs, as often as it moves on by that."""
        attempt = self.journals[model].attempt
        if attempt is None or attempt.is_final:
            return
        target = attempt.target
        if attempt.step is Step.FETCHING:
            self._drive_fetching(model, target, now)
        elif attempt.step is Step.VERIFYING:
            self._start(model, functools.partial(self._verify, target))
        elif attempt.step is Step.TRYING:
            self._start(model, functools.partial(self._try, target))
        elif attempt.step is Step.ACTIVE:
            if self._model(model).slot != target.slot:
                self._start(model, functools.partial(self._activate, target))
            elif target.order.confirm_rows == 0:
                self._move(model, Event.PROVEN, "", now)

    def _drive_fetching(self, model: str, target: Assigned, now: float) -> None:
        fetch, attempt = self._fetches.get(model), self.journals[model].attempt
        if fetch is None:
            before_bytes = attempt.fetched_bytes if attempt else 0
            check = functools.partial(
                verification.check_manifest, target=target, device=self._around.device
            )
            try:
                fetch = Fetch(self._slots, target, check, now, before_bytes)
            except (RefusedError, MalformedError) as error:
                self._end_refused(model, error, now, target.slot.manifest)
                return
            except OSError as error:
                self._move(model, Event.BROKE, f"no room for the download: {error}", now)
                return
            self._fetches[model] = fetch
        if fetch.done:
            self._move(model, Event.FETCHED, "", now)
            self.drive(model, now)

    def _start(self, model: str, work: Callable[[Token], Done]) -> None:
        attempt = self.journals[model].attempt
        assert attempt is not None  # drive() has looked
        token = Token(model, attempt.number, attempt.step)
        if model in self._working and self._is_current(self._working[model]):
            return
        self._working[model] = token
        self._around.start(lambda: self._around.deliver(_guarded(work, token)))

    def _verify(self, target: Assigned, token: Token) -> Done:
        bundle = self._slots.manifest(target.slot.manifest)
        bad = self._slots.drop_damaged(bundle)
        for file in self._slots.absent(bundle):
            if not self._slots.has_part(file):
                bad.append(f"{file.role} file {file.digest}")
            elif not bad:
                self._slots.install(file)
        if bad:
            return Done(token, Event.INCOMPLETE, f"damaged on disk: {', '.join(bad)}")
        verification.read_reference(bundle, self._slots.read(bundle.file("reference")))
        verification.read_golden(bundle, self._slots.read(bundle.file("golden")))
        return Done(token, Event.VERIFIED)

    def _try(self, target: Assigned, token: Token) -> Done:
        bundle = self._slots.manifest(target.slot.manifest)
        budgets = self._config.budgets
        request = trial.Request(
            str(self._slots.path(target.slot.manifest)),
            str(self._slots.path(bundle.file("model").digest)),
            str(self._slots.path(bundle.file("golden").digest)),
            budgets.trial_timeout_s,
            budgets.trial_memory_bytes,
        )
        verdict = self._around.try_candidate(
            request, lambda: self._cancelled.is_set() or not self._is_current(token)
        )
        if verdict.faults:
            return Done(token, Event.REFUSED, "; ".join(verdict.faults))
        log.info(
            "trial of %s release %d passed: %.0f us a row, %d bytes",
            token.model,
            target.slot.release,
            verdict.latency_us,
            verdict.memory_bytes,
        )
        return Done(token, Event.PASSED)

    def _activate(self, target: Assigned, token: Token) -> Done:
        try:
            served, bundle = self._loader.load(Installed(target.slot, target.order))
            vectors = verification.read_golden(bundle, self._slots.read(bundle.file("golden")))
            served.check(vectors)
        except (AgentError, ProtocolError, OSError) as error:
            return Done(token, Event.FAULTY, f"cannot serve in this process: {error}")
        return Done(token, served=served)

    # -- serving ---------------------------------------------------------------------------------

    def _serve_installed(self, model: str) -> None:
        """Serve the current release, or the previous one if the current cannot be loaded."""
        journal = self.journals[model]
        while journal.current:
            try:
                served, _ = self._loader.load(journal.current, whole=True)
            except (AgentError, ProtocolError, OSError) as error:
                text = f"{model} release {journal.current.slot.release} cannot be served: {error}"
                log.error("%s", text)
                self._around.report(Refusal(BUNDLE, "damaged", text, journal.current.slot.manifest))
                journal = update.damaged(journal, text)
                self._store(journal)
                continue
            self._model(model).serve(served)
            return

    def _serve_candidate(self, model: str, served: Served) -> None:
        journal = self.journals[model]
        attempt = journal.attempt
        assert attempt is not None  # the token was current
        place = self._model(model)
        current = place.loaded(journal.current.slot) if journal.current else None
        proof = Proof(
            attempt.target.order.confirm_rows,
            functools.partial(self._around.on_proven, served.slot),
        )
        place.serve(served, current, proof)
        log.info("serving %s release %d, unconfirmed", model, served.slot.release)

    # -- journals --------------------------------------------------------------------------------

    def _begin(self, model: str, target: Assigned, now: float) -> None:
        journal = self.journals.get(model) or Journal(model)
        if journal.attempt and not journal.attempt.is_final:
            self._move(model, Event.REPLACED, f"attempt {target.attempt} took its place", now)
            journal = self.journals[model]
        self._entered[model] = now
        self._store(update.begin(journal, target, self._around.clock()))
        log.info("attempt %d: %s release %d", target.attempt, model, target.slot.release)

    def _reorder(self, model: str, order: Order) -> None:
        journal = update.reordered(self.journals[model], order)
        if journal is self.journals[model]:
            return
        self._store(journal)
        place = self._model(model)
        if journal.serving and place.slot == journal.serving.slot:
            served = place.loaded(journal.serving.slot)
            if served:
                served.recorder.reorder(order.window_rows, self._loader.policy(order))

    def _withdraw(self, model: str) -> None:
        journal = update.withdrawn(self.journals[model])
        if journal == self.journals[model]:
            return
        self._drop_fetch(model)
        self._store(journal)
        self._model(model).serve(None)
        log.info("%s was withdrawn from this device", model)
        self._collect()

    def _move(self, model: str, event: Event, reason: str, now: float) -> None:
        """Go one step along the table: on disk first, then in memory, then in what serves."""
        fetch = self._fetches.get(model)
        journal = self.journals[model]
        if fetch and journal.attempt:
            counted = structs.replace(
                journal.attempt,
                fetched_bytes=journal.attempt.fetched_bytes + fetch.fetched_bytes,
                total_bytes=fetch.total_bytes,
            )
            journal = structs.replace(journal, attempt=counted)
        journal = update.advance(journal, event, reason)
        self._drop_fetch(model)
        self._entered[model] = now
        self._store(journal)
        attempt = journal.attempt
        if attempt and attempt.is_final:
            log.info("attempt %d of %s: %s %s", attempt.number, model, attempt.step, reason)
            self._settle(model)

    def _settle(self, model: str) -> None:
        """After an attempt has ended: let the right release serve, and clear up."""
        journal, place = self.journals[model], self._model(model)
        serving = journal.serving
        if serving is None:
            place.serve(None)
        else:
            served = place.loaded(serving.slot)
            if served:
                place.serve(served)
            else:
                self._serve_installed(model)
        self._collect()

    def _store(self, journal: Journal) -> None:
        self._slots.save(journal)
        self.journals[journal.model] = journal
        attempt = journal.attempt
        if attempt and attempt.is_final and not attempt.reported:
            self._around.report(_result(attempt, self._around.clock()))
            reported = structs.replace(attempt, reported=True)
            journal = structs.replace(journal, attempt=reported)
            self._slots.save(journal)
            self.journals[journal.model] = journal

    def _end_refused(
        self, model: str, error: RefusedError | MalformedError, now: float, digest: str
    ) -> None:
        reason = error.reason if isinstance(error, RefusedError) else "malformed"
        what = ARTIFACT_BLOCK if reason in ("hash-mismatch", "too-many-bytes") else BUNDLE
        self._around.report(Refusal(what, reason, str(error), digest))
        self._move(model, Event.REFUSED, f"{reason}: {error}", now)

    def _refuse_block(self, complaint: str, digest: str) -> None:
        self._around.report(Refusal(ARTIFACT_BLOCK, "hash-mismatch", complaint, digest))

    def _drop_fetch(self, model: str) -> None:
        fetch = self._fetches.pop(model, None)
        if fetch:
            fetch.close()

    def _collect(self) -> None:
        gone = self._slots.collect(self.journals.values())
        if gone:
            log.info("deleted %d files that no release needs", len(gone))

    def _is_current(self, token: Token) -> bool:
        journal = self.journals.get(token.model)
        attempt = journal.attempt if journal else None
        return attempt is not None and attempt.number == token.number and attempt.step is token.step

    def _is_candidate(self, slot: Slot) -> bool:
        journal = self.journals.get(slot.model)
        candidate = journal.candidate if journal else None
        return candidate is not None and candidate.slot == slot

    def _deadline(self, model: str) -> float | None:
        journal = self.journals[model]
        budgets = self._config.budgets
        allowed = update.deadline_s(
            journal,
            fetch_stall_s=budgets.fetch_stall_s,
            trial_timeout_s=budgets.trial_timeout_s,
        )
        if allowed is None:
            return None
        since = self._entered[model]
        if journal.attempt and journal.attempt.step is Step.FETCHING:
            fetch = self._fetches.get(model)
            if fetch is None or self._connected_at is None:
                return None
            since = max(since, fetch.progress_at, self._connected_at)
        return since + allowed


def _guarded(work: Callable[[Token], Done], token: Token) -> Done:
    """Run a piece of work; whatever it raises becomes an event for the table."""
    try:
        return work(token)
    except RefusedError as error:
        refusal = Refusal(BUNDLE, error.reason, str(error))
        return Done(token, Event.REFUSED, f"{error.reason}: {error}", refusal)
    except ProtocolError as error:
        refusal = Refusal(BUNDLE, "malformed", str(error))
        return Done(token, Event.REFUSED, f"malformed: {error}", refusal)
    except (AgentError, OSError) as error:
        return Done(token, Event.BROKE, str(error))
    except Exception as error:
        # A defect of ours must end the attempt, not the thread that would report it.
        log.exception("work for %s failed", token)
        return Done(token, Event.BROKE, f"internal error: {error!r}")


def _result(attempt: update.Try, now: float) -> Result:
    slot = attempt.target.slot
    return Result(
        attempt.number,
        slot.model,
        slot.version,
        slot.release,
        slot.manifest,
        attempt.step,
        attempt.reason,
        attempt.fetched_bytes,
        max(now - attempt.began_at, 0.0),
    )
