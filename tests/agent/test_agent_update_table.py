"""The update table: every transition, what serves when, and what is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edgefleet_agent.errors import TransitionError
from edgefleet_agent.updating import update
from edgefleet_agent.updating.journal import Assigned, Installed, Journal, Order
from edgefleet_agent.updating.update import (
    MAX_FAILURES,
    MAX_STARTS,
    TABLE,
    Event,
    Plan,
    advance,
    begin,
    decide,
    restarted,
)
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import FINAL_STEPS, Slot, Step

ORDER = Order(1000, 0, 3600)


def assigned(release: int, attempt: int | None = None) -> Assigned:
    slot = Slot("m", f"v{release}", release, "x", f"{release:064d}")
    return Assigned(slot, "onnxruntime", 100, release if attempt is None else attempt, ORDER)


def confirmed(release: int) -> Journal:
    journal = begin(Journal("m"), assigned(release), 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    return journal


def at(step: Step, release: int = 2) -> Journal:
    journal = begin(confirmed(1), assigned(release), 0.0)
    path = {
        Step.FETCHING: [],
        Step.VERIFYING: [Event.FETCHED],
        Step.TRYING: [Event.FETCHED, Event.VERIFIED],
        Step.ACTIVE: [Event.FETCHED, Event.VERIFIED, Event.PASSED],
    }
    for event in path[step]:
        journal = advance(journal, event)
    return journal


def test_every_step_is_reached_and_every_unfinished_step_can_be_superseded() -> None:
    assert set(TABLE.values()) == set(Step) - {Step.IDLE}
    for step in set(Step) - FINAL_STEPS:
        assert TABLE[(step, Event.REPLACED)] is Step.SUPERSEDED


def test_no_event_leaves_a_final_step_except_damage_of_what_serves() -> None:
    leaving = {key for key in TABLE if key[0] in FINAL_STEPS}
    assert leaving == {(Step.CONFIRMED, Event.DAMAGED)}


@pytest.mark.parametrize("step", [Step.FETCHING, Step.VERIFYING, Step.TRYING])
def test_the_release_before_serves_until_the_candidate_is_active(step: Step) -> None:
    journal = at(step)
    assert journal.serving is not None
    assert journal.serving.slot.release == 1
    assert journal.kept is None


def test_an_active_candidate_serves_and_the_release_before_is_kept() -> None:
    journal = at(Step.ACTIVE)
    assert journal.serving == Installed(assigned(2).slot, ORDER, attempt=2)
    assert journal.kept is not None
    assert journal.kept.slot.release == 1
    assert journal.floor == 1


@pytest.mark.parametrize("event", [Event.FAULTY, Event.OVERDUE, Event.REPLACED])
def test_what_ends_an_active_candidate_brings_the_release_before_back(event: Event) -> None:
    journal = advance(at(Step.ACTIVE), event, "why")
    assert journal.serving is not None
    assert journal.serving.slot.release == 1
    assert journal.floor == 1
    assert journal.attempt is not None
    assert journal.attempt.reason == "why"


def test_confirmation_raises_the_floor_and_keeps_one_previous_release() -> None:
    journal = confirmed(1)
    for release in (2, 3):
        journal = begin(journal, assigned(release), 0.0)
        for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
            journal = advance(journal, event)
    assert (journal.current and journal.current.slot.release) == 3
    assert (journal.previous and journal.previous.slot.release) == 2
    assert journal.floor == 3
    assert journal.manifests == {f"{2:064d}", f"{3:064d}"}


def test_a_release_that_serves_already_is_confirmed_at_once_under_its_new_attempt() -> None:
    journal = begin(confirmed(1), assigned(1, attempt=9), 0.0)
    assert journal.attempt is not None
    assert (journal.attempt.number, journal.attempt.step) == (9, Step.CONFIRMED)
    assert journal.previous is None


def test_the_third_unconfirmed_start_is_the_last_one() -> None:
    journal = at(Step.ACTIVE)
    for starts in range(2, MAX_STARTS + 1):
        journal = restarted(journal)
        assert journal.attempt is not None
        assert (journal.attempt.step, journal.attempt.starts) == (Step.ACTIVE, starts)
    journal = restarted(journal)
    assert journal.attempt is not None
    assert journal.attempt.step is Step.ROLLED_BACK
    assert journal.attempt.reason == "3 starts of the agent without a confirmation"


@pytest.mark.parametrize("step", [Step.FETCHING, Step.VERIFYING, Step.TRYING])
def test_starts_are_counted_for_an_active_candidate_only(step: Step) -> None:
    journal = at(step)
    assert restarted(journal) is journal


def test_an_attempt_is_begun_only_after_the_one_before_has_ended() -> None:
    with pytest.raises(TransitionError, match="attempt 2 of m is unfinished"):
        begin(at(Step.FETCHING), assigned(3), 0.0)


def test_a_higher_number_begins_and_the_same_one_is_kept() -> None:
    journal = advance(at(Step.ACTIVE), Event.FAULTY)
    assert decide(None, assigned(1)) is Plan.BEGIN
    assert decide(journal, assigned(2, attempt=3)) is Plan.BEGIN
    assert decide(journal, assigned(2)) is Plan.KEEP
    assert decide(journal, None) is Plan.WITHDRAW


@pytest.mark.parametrize(("release", "attempt"), [(1, 1), (3, 2)])
def test_an_older_attempt_and_a_number_used_twice_are_refused(release: int, attempt: int) -> None:
    with pytest.raises(RefusedError) as caught:
        decide(at(Step.FETCHING), assigned(release, attempt))
    assert caught.value.reason == "rollback"


def test_a_withdrawn_model_keeps_its_floor_and_its_attempt() -> None:
    journal = update.withdrawn(at(Step.TRYING))
    assert journal.serving is None
    assert journal.floor == 1
    assert journal.manifests == set()
    assert journal.attempt is not None
    assert journal.attempt.step is Step.SUPERSEDED
    assert update.withdrawn(journal) == journal


def test_a_damaged_release_is_fetched_again_while_the_one_before_serves() -> None:
    journal = begin(confirmed(1), assigned(2), 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    journal = update.damaged(journal, "bit rot")
    assert journal.attempt is not None
    assert (journal.attempt.step, journal.attempt.number) == (Step.FETCHING, 2)
    assert journal.serving is not None
    assert journal.serving.slot.release == 1


def test_other_running_orders_reach_the_attempt_and_the_current_release() -> None:
    order = Order(50, 0, 60)
    journal = update.reordered(confirmed(1), order)
    assert journal.current is not None
    assert journal.attempt is not None
    assert journal.current.order == journal.attempt.target.order == order
    assert update.reordered(journal, order) is journal


def test_every_step_that_can_wait_has_a_deadline() -> None:
    assert set(update.DEADLINES) == set(Step) - FINAL_STEPS - {Step.IDLE}
    named = {limit for limits in update.DEADLINES.values() for limit in limits}
    assert named == set(update.Limit)
    for limit in update.Limit:
        assert update.limit_s(limit, ORDER, fetch_stall_s=1.0, trial_timeout_s=1.0) > 0


def failed(journal: Journal, times: int, at: float = 0.0) -> Journal:
    for number in range(10, 10 + times):
        journal = advance(begin(journal, assigned(2, number), at), Event.BROKE, "broken")
    return journal


@pytest.mark.parametrize(
    ("times", "later_s", "step"),
    [
        (MAX_FAILURES - 1, 0.0, Step.FETCHING),
        (MAX_FAILURES, 0.0, Step.REJECTED),
        (MAX_FAILURES, update.DAY_S - 1, Step.REJECTED),
        (MAX_FAILURES, update.DAY_S, Step.FETCHING),
        (MAX_FAILURES, -1e9, Step.REJECTED),  # a clock that was set back makes nothing new
    ],
)
def test_a_manifest_is_tried_a_bounded_number_of_times_a_day(
    times: int, later_s: float, step: Step
) -> None:
    journal = begin(failed(confirmed(1), times), assigned(2, 99), later_s)
    assert journal.attempt is not None
    assert journal.attempt.step is step
    other = begin(failed(confirmed(1), times), assigned(3, 99), 0.0)
    assert other.attempt is not None
    assert other.attempt.step is Step.FETCHING


def test_a_confirmation_forgets_the_failures_before_it() -> None:
    journal = failed(confirmed(1), MAX_FAILURES - 1)
    journal = begin(journal, assigned(2, 50), 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    assert journal.failures == ()


def test_going_back_takes_the_release_before_and_keeps_floor_and_result() -> None:
    journal = begin(confirmed(1), assigned(2), 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    back = update.gone_back(journal, "why")
    assert (back.current and back.current.slot.release, back.previous, back.floor) == (1, None, 2)
    assert back.attempt == journal.attempt
    with pytest.raises(TransitionError, match="m has no release before this one to go back to"):
        update.gone_back(back, "why")


def test_going_back_from_an_unconfirmed_release_rolls_it_back() -> None:
    journal = update.gone_back(at(Step.ACTIVE), "why")
    assert journal.attempt is not None
    assert (journal.attempt.step, journal.attempt.reason) == (Step.ROLLED_BACK, "why")


def test_going_back_ends_an_update_that_is_under_way() -> None:
    journal = begin(confirmed(1), assigned(2), 0.0)
    for event in (Event.FETCHED, Event.VERIFIED, Event.PASSED, Event.PROVEN):
        journal = advance(journal, event)
    journal = update.gone_back(begin(journal, assigned(3), 0.0), "why")
    assert journal.attempt is not None
    assert journal.attempt.step is Step.SUPERSEDED
    assert (journal.current and journal.current.slot.release) == 1


def test_the_suspect_of_crashes_is_the_challenger_and_then_the_newest_release() -> None:
    old, new = confirmed(1), structs.replace(confirmed(7), model="new")
    beside = structs.replace(confirmed(3), lane="challenger")
    assert update.suspect([old, new, beside]) is beside
    assert update.suspect([old, new]) is new
    assert update.suspect([Journal("m")]) is None


@given(st.lists(st.sampled_from([*Event, "begin", "back", "damage", "restart"]), max_size=40))
def test_whatever_happens_the_floor_never_falls_and_something_verified_serves(
    events: list[str],
) -> None:
    journal, release = confirmed(1), 1
    results: dict[int, set[Step]] = {}
    for event in events:
        floor, before = journal.floor, journal.attempt
        try:
            if event == "begin":
                release += 1
                journal = begin(journal, assigned(release), 0.0)
            elif event == "back":
                journal = update.gone_back(journal, "")
            elif event == "damage" and journal.previous:
                journal = update.damaged(journal, "")
            elif event == "restart":
                journal = update.restarted(journal)
            elif event in set(Event) - {Event.DAMAGED}:  # that one is `damage`
                journal = advance(journal, Event(event))
        except TransitionError:
            assert journal.attempt is before
        attempt = journal.attempt
        assert attempt is not None
        if attempt.is_final:
            results.setdefault(attempt.number, set()).add(attempt.step)
        assert before is None or attempt.number >= before.number
        assert journal.floor >= floor
        assert journal.serving is not None
        assert journal.current is not None
        assert journal.current.slot.manifest in journal.manifests
        assert journal.serving.slot.release <= release


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_without_damage_an_attempt_ends_once_and_for_good(events: list[Event]) -> None:
    journal = begin(confirmed(1), assigned(2), 0.0)
    ended: Step | None = None
    for event in events:
        if event is Event.DAMAGED:
            continue
        with contextlib.suppress(TransitionError):
            journal = advance(journal, event)
        assert journal.attempt is not None
        assert ended in (None, journal.attempt.step)
        ended = journal.attempt.step if journal.attempt.is_final else None
