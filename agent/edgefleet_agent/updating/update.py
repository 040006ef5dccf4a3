"""The update of one lane on one device: one table of steps, and the decisions around it.

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
5. An attempt number is tried once. Another try is a new number, given by the director; the device
   itself rejects a manifest that has failed `MAX_FAILURES` times within a day.
6. Every step that can wait has a deadline, in `DEADLINES`. It counts from when this process entered
   the step, on a monotonic clock: a board without a battery-backed clock may believe in 1970 until
   it has the network. Restarts cannot stretch it without end, because a candidate that saw
   `MAX_STARTS` starts unconfirmed is rolled back, and because bytes are bounded over restarts.
7. The table knows no lanes: a challenger goes the same way as what it challenges.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import structs

from edgefleet_agent.errors import TransitionError
from edgefleet_agent.updating.journal import Assigned, Failures, Installed, Journal, Order, Try
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import FINAL_STEPS, Attempt, Result, Step

# A candidate that brings the process down is given up at its third unconfirmed start.
MAX_STARTS = 3
# Attempts at one manifest that may end badly within 24 hours; the next one is not begun.
MAX_FAILURES = 5
DAY_S = 86_400.0
# Manifests whose failures are remembered.
_MAX_REMEMBERED = 8
# Hashing and unpacking 1 GiB takes about 20 s on a Raspberry Pi 4; a stuck disk takes for ever.
VERIFY_DEADLINE_S = 900.0
# 1 GiB at 2 kB/s, the slowest of mobile links, takes six days of connection.
FETCH_DEADLINE_S = 7 * DAY_S
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
    REFUSED = "refused"  # idle, fetching, verifying, trying → rejected: wrong, and stays wrong
    BROKE = "broke"  # fetching, verifying, trying → failed: this device could not do it
    OVERDUE = "overdue"  # fetching, verifying, trying → failed; active → rolled_back
    FAULTY = "faulty"  # active → rolled_back: it raised, gave no finite score, or crashed
    REPLACED = "replaced"  # any step that is not final → superseded
    DAMAGED = "damaged"  # confirmed → fetching: files of the serving release are no longer whole


_WORKING = (Step.FETCHING, Step.VERIFYING, Step.TRYING)

TABLE: dict[tuple[Step, Event], Step] = {
    (Step.IDLE, Event.START): Step.FETCHING,
    (Step.IDLE, Event.PRESENT): Step.CONFIRMED,
    (Step.IDLE, Event.REFUSED): Step.REJECTED,
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


class Limit(StrEnum):
    """What of a step is bounded. The value says what was not there in time."""

    STALL = "no new block"  # connected time since the last one; not while a budget is waited for
    FETCH = "not all blocks"  # connected time at `fetching`, likewise
    VERIFY = "no verdict on its files"
    TRY = "no verdict of its trial"
    LOAD = "not loaded"  # from `active` until the candidate answers
    PROVE = "not proven"  # from `active` until it is confirmed


DEADLINES: dict[Step, tuple[Limit, ...]] = {
    Step.FETCHING: (Limit.STALL, Limit.FETCH),
    Step.VERIFYING: (Limit.VERIFY,),
    Step.TRYING: (Limit.TRY,),
    Step.ACTIVE: (Limit.LOAD, Limit.PROVE),
}


def limit_s(limit: Limit, order: Order, *, fetch_stall_s: float, trial_timeout_s: float) -> float:
    """Return how long a limit is.

    Args:
        limit: which.
        order: of the attempt.
        fetch_stall_s: of the device's configuration.
        trial_timeout_s: likewise. Loading in this process has as long as the trial had.
    """
    return {
        Limit.STALL: fetch_stall_s,
        Limit.FETCH: FETCH_DEADLINE_S,
        Limit.VERIFY: VERIFY_DEADLINE_S,
        Limit.TRY: trial_timeout_s + TRIAL_GRACE_S,
        Limit.LOAD: trial_timeout_s + TRIAL_GRACE_S,
        Limit.PROVE: float(order.confirm_deadline_s),
    }[limit]


class Plan(StrEnum):
    """What an assignment means for one lane."""

    BEGIN = "begin"  # a new attempt
    KEEP = "keep"  # the attempt that is known already
    WITHDRAW = "withdraw"  # nothing is assigned to the lane any more


def decide(journal: Journal | None, assigned: Assigned | None) -> Plan:
    """Compare what is assigned to a lane with what is remembered of it.

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
    """Return the journal with a new attempt in its first step, or at its end already.

    Args:
        journal: of the lane.
        assigned: what is to be tried.
        now: Unix seconds.

    Raises:
        TransitionError: if an unfinished attempt is there; end it first.
    """
    if journal.attempt and not journal.attempt.is_final:
        raise TransitionError(f"attempt {journal.attempt.number} of {journal.key} is unfinished")
    attempt = Try(assigned.attempt, assigned, Step.IDLE, now)
    journal = structs.replace(journal, attempt=attempt)
    if journal.current and journal.current.slot == assigned.slot:
        return advance(journal, Event.PRESENT)
    failed = _failures(journal, assigned.slot.manifest, now)
    if failed and failed.count >= MAX_FAILURES:
        return advance(
            journal,
            Event.REFUSED,
            f"not tried again: {failed.count} attempts at this bundle ended badly within a day;"
            f" the last: {failed.reason}",
        )
    return advance(journal, Event.START)


def advance(journal: Journal, event: Event, reason: str = "") -> Journal:
    """Return the journal after `event`: the one way in which an attempt moves.

    Raises:
        TransitionError: if the table has no such transition.
    """
    attempt = journal.attempt
    if attempt is None:
        raise TransitionError(f"{event} without an attempt for {journal.key}")
    step = TABLE.get((attempt.step, event))
    if step is None:
        raise TransitionError(
            f"attempt {attempt.number} of {journal.key}: no transition for {event}"
            f" at {attempt.step}"
        )
    changed = structs.replace(
        attempt, step=step, reason=reason[:MAX_REASON], starts=1 if step is Step.ACTIVE else 0
    )
    journal = structs.replace(journal, attempt=changed)
    if step is Step.CONFIRMED:
        return _confirmed(journal, changed)
    if attempt.step is not Step.IDLE and step in (Step.FAILED, Step.REJECTED, Step.ROLLED_BACK):
        return _failed(journal, changed)
    return journal


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


def suspect(journals: Sequence[Journal]) -> Journal | None:
    """Return the lane to go back in when the agent crashes soon after each start.

    Nothing tells which model brought a process down, so it is the newest change: a challenger
    before any primary, then the release that came last.

    Args:
        journals: of the lanes in which one can go back.
    """
    return max(
        (journal for journal in journals if journal.current),
        key=lambda j: (j.lane == "challenger", j.current.attempt if j.current else 0),
        default=None,
    )


def gone_back(journal: Journal, reason: str) -> Journal:
    """Return the journal with the release before the serving one in its place.

    The floor stays: what was confirmed once does not become older by it. An attempt that has not
    come to `active` is given up too, so that it does not undo this.

    Raises:
        TransitionError: if there is no release to go back to.
    """
    if journal.candidate:
        return advance(journal, Event.FAULTY, reason)
    if journal.current is None or (journal.previous is None and journal.lane == "primary"):
        raise TransitionError(f"{journal.key} has no release before this one to go back to")
    if journal.attempt and not journal.attempt.is_final:
        journal = advance(journal, Event.REPLACED, reason)
    return structs.replace(journal, current=journal.previous, previous=None)


def reordered(journal: Journal, order: Order) -> Journal:
    """Return the journal with other running orders for the attempt's release, wherever it is."""
    attempt = journal.attempt
    if attempt is None or attempt.target.order == order:
        return journal
    target = structs.replace(attempt.target, order=order)
    current = journal.current
    if current and current.slot == target.slot:
        current = structs.replace(current, order=order)
    return structs.replace(
        journal, current=current, attempt=structs.replace(attempt, target=target)
    )


def withdrawn(journal: Journal) -> Journal:
    """Return the journal of a lane with nothing assigned to it; floor and number stay."""
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
        attempt.target.order.lane,
        attempt.tried,
    )


def result(attempt: Try) -> Result:
    """Return how an attempt ended, as it is reported to the hub: the same whenever it is asked."""
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
        round(attempt.seconds, 3),
    )


def _confirmed(journal: Journal, attempt: Try) -> Journal:
    target, old = attempt.target, journal.current
    new = Installed(target.slot, target.order, attempt.number)
    previous = journal.previous if old is None or old.slot == new.slot else old
    return structs.replace(
        journal,
        current=new,
        previous=previous,
        floor=max(journal.floor, new.slot.release),
        failures=tuple(f for f in journal.failures if f.manifest != target.slot.manifest),
    )


def _failed(journal: Journal, attempt: Try) -> Journal:
    manifest, at = attempt.target.slot.manifest, attempt.began_at
    before = _failures(journal, manifest, at)
    count, since = (before.count, before.since) if before else (0, at)
    # A clock that was set back must not make the failures last for years.
    new = Failures(manifest, count + 1, min(since, at), attempt.reason[:200])
    others = [f for f in journal.failures if f.manifest != manifest]
    return structs.replace(journal, failures=(*others, new)[-_MAX_REMEMBERED:])


def _failures(journal: Journal, manifest: str, now: float) -> Failures | None:
    """Return the failures of a manifest, None if the day is over since the first of them."""
    for failures in journal.failures:
        if failures.manifest == manifest and now - failures.since < DAY_S:
            return failures
    return None
