"""The update of one model on one device: one table of steps, and the decisions around it.

    idle → fetching → verifying → trying → active (unconfirmed) → confirmed

with the ends `failed` (this device could not; another attempt may), `rejected` (the release is
wrong and stays wrong), `rolled_back` (it served, and was found wanting), `superseded` (a newer
assignment took its place). Rules:

1. `advance` is the only way from one step to the next, and only along `TABLE`.
2. A step is on disk before anything of it is done, so a process killed at any instruction goes on
   from a step that it knows. Every step may be done twice.
3. What serves follows from the journal alone: the candidate while it is `active`, else `current`.
   So going back is one write, and the previous version is never deleted before the new one is
   confirmed.
4. A release floor is raised at the confirmation, in the same write; a lower release is never
   accepted again (`protocol.trust`, rule 6).
5. An attempt number is tried once. Another try is a new number, given by the director.
6. Deadlines count from when this process entered the step, on a monotonic clock: a board without a
   battery-backed clock may believe in 1970 until it has the network. Restarts cannot stretch them
   without end, because a candidate that saw `MAX_STARTS` starts unconfirmed is rolled back.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, structs

from edgefleet_agent.errors import TransitionError
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.messages import FINAL_STEPS, Attempt, Count, Slot, Step
from edgefleet_protocol.trust import SamplePolicy

FORMAT = 1
# A candidate that brings the process down is given up at its third unconfirmed start.
MAX_STARTS = 3
# Hashing and unpacking 1 GiB takes about 20 s on a Raspberry Pi 4; a stuck disk takes for ever.
VERIFY_DEADLINE_S = 900.0
# On top of the trial's own time limit, which the trial's process keeps itself.
TRIAL_GRACE_S = 30.0
MAX_REASON = 2000


class Event(StrEnum):
    """What moves an attempt on."""

    START = "start"  # idle → fetching: a verified assignment names a new attempt
    PRESENT = "present"  # idle → confirmed: that very release is confirmed and serves already
    FETCHED = "fetched"  # fetching → verifying: every block has arrived
    INCOMPLETE = "incomplete"  # verifying → fetching: a stored file was damaged and dropped
    VERIFIED = "verified"  # verifying → trying: every file is what the manifest says
    PASSED = "passed"  # trying → active: the golden vectors came out right in the trial
    PROVEN = "proven"  # active → confirmed: enough rows served without a fault
    REFUSED = "refused"  # fetching, verifying, trying → rejected: wrong, and stays wrong
    BROKE = "broke"  # fetching, verifying, trying → failed: this device could not do it
    OVERDUE = "overdue"  # fetching, verifying, trying → failed; active → rolled_back
    FAULTY = "faulty"  # active → rolled_back: it raised, gave no finite score, or crashed
    REPLACED = "replaced"  # any step that is not final → superseded
    DAMAGED = "damaged"  # confirmed → fetching: files of the serving release are no longer whole


_WORKING = (Step.FETCHING, Step.VERIFYING, Step.TRYING)

TABLE: dict[tuple[Step, Event], Step] = {
    (Step.IDLE, Event.START): Step.FETCHING,
    (Step.IDLE, Event.PRESENT): Step.CONFIRMED,
    (Step.FETCHING, Event.FETCHED): Step.VERIFYING,
    (Step.VERIFYING, Event.INCOMPLETE): Step.FETCHING,
    (Step.VERIFYING, Event.VERIFIED): Step.TRYING,
    (Step.TRYING, Event.PASSED): Step.ACTIVE,
    (Step.ACTIVE, Event.PROVEN): Step.CONFIRMED,
    (Step.ACTIVE, Event.OVERDUE): Step.ROLLED_BACK,
    (Step.ACTIVE, Event.FAULTY): Step.ROLLED_BACK,
    (Step.CONFIRMED, Event.DAMAGED): Step.FETCHING,
    **{(step, Event.REFUSED): Step.REJECTED for step in _WORKING},
    **{(step, Event.BROKE): Step.FAILED for step in _WORKING},
    **{(step, Event.OVERDUE): Step.FAILED for step in _WORKING},
    **{(step, Event.REPLACED): Step.SUPERSEDED for step in Step if step not in FINAL_STEPS},
}


class Order(Struct, frozen=True):
    """How the director wants a release to be run; see `protocol.trust.DirectorTarget`."""

    window_rows: Annotated[int, Meta(ge=1)]
    confirm_rows: Annotated[int, Meta(ge=0)]
    confirm_deadline_s: Annotated[int, Meta(gt=0)]
    samples: SamplePolicy | None = None


class Assigned(Struct, frozen=True):
    """One model that a verified assignment lists.

    Attributes:
        manifest_bytes: length of the manifest, as signed.
    """

    slot: Slot
    runtime: Runtime
    manifest_bytes: Count
    attempt: Count
    order: Order


class Installed(Struct, frozen=True):
    """A release that was confirmed on this device."""

    slot: Slot
    order: Order


class Try(Struct, frozen=True):
    """One attempt, finished or not.

    Attributes:
        reason: why it ended as it did.
        began_at: Unix seconds, for the report only.
        starts: how often the agent has started while this attempt was `active`.
        fetched_bytes: received for this attempt.
        total_bytes: to be received, 0 while the manifest is not there.
        reported: its result is in the outbox.
    """

    number: Count
    target: Assigned
    step: Step
    began_at: float
    reason: str = ""
    starts: Count = 0
    fetched_bytes: Count = 0
    total_bytes: Count = 0
    reported: bool = False

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.step in FINAL_STEPS


class Journal(Struct, frozen=True):
    """Everything that a device remembers of one model, in one file that is replaced as a whole.

    It stays when the model is withdrawn, because the floor and the attempt number must.

    Attributes:
        current: the newest confirmed release.
        previous: the one before it, kept to go back to.
        floor: highest confirmed release number.
    """

    model: str
    current: Installed | None = None
    previous: Installed | None = None
    attempt: Try | None = None
    floor: Count = 0
    format: int = FORMAT

    @property
    def candidate(self) -> Installed | None:
        """The release of an unconfirmed, active attempt."""
        if self.attempt is None or self.attempt.step is not Step.ACTIVE:
            return None
        return Installed(self.attempt.target.slot, self.attempt.target.order)

    @property
    def serving(self) -> Installed | None:
        """What answers now (rule 3)."""
        return self.candidate or self.current

    @property
    def kept(self) -> Installed | None:
        """What can be gone back to."""
        return self.current if self.candidate else self.previous

    @property
    def manifests(self) -> set[str]:
        """Digests of all manifests whose files must stay on disk."""
        held = {item.slot.manifest for item in (self.current, self.previous) if item}
        if self.attempt and not self.attempt.is_final:
            held.add(self.attempt.target.slot.manifest)
        return held


class Plan(StrEnum):
    """What an assignment means for one model."""

    BEGIN = "begin"  # a new attempt
    KEEP = "keep"  # the attempt that is known already
    WITHDRAW = "withdraw"  # the model is not assigned any more


def decide(journal: Journal | None, assigned: Assigned | None) -> Plan:
    """Compare what is assigned with what is remembered.

    Raises:
        RefusedError: `rollback`: an attempt older than one that was tried, or a number used again
            for another release.
    """
    if assigned is None:
        return Plan.WITHDRAW
    known = journal.attempt if journal else None
    if known is None or assigned.attempt > known.number:
        return Plan.BEGIN
    if assigned.attempt == known.number and assigned.slot == known.target.slot:
        return Plan.KEEP
    raise RefusedError(
        "rollback",
        f"attempt {assigned.attempt} of {assigned.slot.model} release {assigned.slot.release}:"
        f" this device has tried attempt {known.number}, release {known.target.slot.release}",
    )


def begin(journal: Journal, assigned: Assigned, now: float) -> Journal:
    """Return the journal with a new attempt in its first step.

    Raises:
        TransitionError: if an unfinished attempt is there; end it first.
    """
    if journal.attempt and not journal.attempt.is_final:
        raise TransitionError(f"attempt {journal.attempt.number} of {journal.model} is unfinished")
    attempt = Try(assigned.attempt, assigned, Step.IDLE, now)
    event = Event.START
    if journal.current and journal.current.slot == assigned.slot:
        event = Event.PRESENT
    return advance(structs.replace(journal, attempt=attempt), event)


def advance(journal: Journal, event: Event, reason: str = "") -> Journal:
    """Return the journal after `event`: the one way in which an attempt moves.

    Raises:
        TransitionError: if the table has no such transition.
    """
    attempt = journal.attempt
    if attempt is None:
        raise TransitionError(f"{event} without an attempt for {journal.model}")
    step = TABLE.get((attempt.step, event))
    if step is None:
        raise TransitionError(
            f"attempt {attempt.number} of {journal.model}: no transition for {event}"
            f" at {attempt.step}"
        )
    changed = structs.replace(
        attempt,
        step=step,
        reason=reason[:MAX_REASON],
        starts=1 if step is Step.ACTIVE else 0,
        reported=False,
    )
    journal = structs.replace(journal, attempt=changed)
    return _confirmed(journal, attempt.target) if step is Step.CONFIRMED else journal


def restarted(journal: Journal) -> Journal:
    """Return the journal as a new process must see it: one more start, or one too many."""
    attempt = journal.attempt
    if attempt is None or attempt.step is not Step.ACTIVE:
        return journal
    if attempt.starts >= MAX_STARTS:
        return advance(
            journal, Event.FAULTY, f"{attempt.starts} starts of the agent without a confirmation"
        )
    return structs.replace(journal, attempt=structs.replace(attempt, starts=attempt.starts + 1))


def reordered(journal: Journal, order: Order) -> Journal:
    """Return the journal with other running orders for the attempt's release, wherever it is."""
    attempt = journal.attempt
    if attempt is None or attempt.target.order == order:
        return journal
    target = structs.replace(attempt.target, order=order)
    current = journal.current
    if current and current.slot == target.slot:
        current = Installed(current.slot, order)
    return structs.replace(
        journal, current=current, attempt=structs.replace(attempt, target=target)
    )


def withdrawn(journal: Journal) -> Journal:
    """Return the journal of a model that is not assigned any more; floor and number stay."""
    if journal.attempt and not journal.attempt.is_final:
        journal = advance(journal, Event.REPLACED, "the model was withdrawn from this device")
    return structs.replace(journal, current=None, previous=None)


def damaged(journal: Journal, reason: str) -> Journal:
    """Return the journal after files of the current release were found damaged.

    The previous release serves in the meantime; the damaged one is fetched again.
    """
    current = journal.current
    journal = structs.replace(journal, current=journal.previous, previous=None)
    attempt = journal.attempt
    if (
        attempt
        and attempt.step is Step.CONFIRMED
        and current
        and attempt.target.slot == current.slot
    ):
        journal = advance(journal, Event.DAMAGED, reason)
    return journal


def deadline_s(journal: Journal, *, fetch_stall_s: float, trial_timeout_s: float) -> float | None:
    """Return how long the attempt may stay at its step (rule 6), None for ever.

    For `fetching` it counts anew with each block, and not while there is no connection.
    """
    attempt = journal.attempt
    if attempt is None:
        return None
    return {
        Step.FETCHING: fetch_stall_s,
        Step.VERIFYING: VERIFY_DEADLINE_S,
        Step.TRYING: trial_timeout_s + TRIAL_GRACE_S,
        Step.ACTIVE: attempt.target.order.confirm_deadline_s,
    }.get(attempt.step)


def summary(attempt: Try) -> Attempt:
    """Return the attempt as it is reported to the hub."""
    slot = attempt.target.slot
    received = min(attempt.fetched_bytes, attempt.total_bytes)
    if attempt.step in (Step.VERIFYING, Step.TRYING, Step.ACTIVE, Step.CONFIRMED):
        received = attempt.total_bytes  # some of it may have come before a restart
    return Attempt(
        attempt.number,
        slot.model,
        slot.release,
        slot.manifest,
        attempt.step,
        attempt.reason,
        received,
        attempt.total_bytes,
    )


def _confirmed(journal: Journal, target: Assigned) -> Journal:
    new = Installed(target.slot, target.order)
    old = journal.current
    previous = journal.previous if old is None or old.slot == new.slot else old
    return structs.replace(
        journal,
        current=new,
        previous=previous,
        floor=max(journal.floor, new.slot.release),
    )
