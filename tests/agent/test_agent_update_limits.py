"""What bounds an update: deadlines, hangs, attempts, bytes, windows, starts."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefleet_agent.config import Budgets, Config, Maintenance, Network
from edgefleet_agent.testing import Bundle, Clock, HubDouble, Rig
from edgefleet_agent.updating import update
from edgefleet_agent.updating.starts import GOOD_S
from edgefleet_agent.updating.trial import Verdict
from edgefleet_agent.updating.work import MAX_GIVEN_UP
from edgefleet_protocol.messages import Refusal, Result

Make = Callable[..., Bundle]
Rigs = Callable[..., Rig]
ROW = [0.3, -0.2, 0.9, 0.1]
BUDGETS = Budgets(trial_timeout_s=10.0, fetch_stall_s=100.0)
LIMITS_S = {
    "fetching": 100.0,
    "verifying": update.VERIFY_DEADLINE_S,
    "trying": 10.0 + update.TRIAL_GRACE_S,
    "active": 10.0 + update.TRIAL_GRACE_S,
}


class Hanging:
    """Runs work at once, but for that of one step, which it keeps as a hung thread would."""

    def __init__(self) -> None:
        self.step = ""
        self.device: Rig | None = None
        self.kept: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None]) -> None:
        steps = self.device.steps() if self.device else {}
        if self.step == "start" or (self.step and self.step in steps.values()):
            self.kept.append(work)
        else:
            work()


@pytest.fixture
def hanging() -> Hanging:
    return Hanging()


@pytest.fixture
def limited(rig: Rigs, tmp_path: Path, hanging: Hanging) -> Callable[..., Rig]:
    """Open a device with short limits whose work can hang."""

    def make(**changes: Any) -> Rig:
        around = {"start": hanging, **changes.pop("surroundings", {})}
        config = Config(
            store=str(tmp_path / "store"), board="generic-x86_64", budgets=BUDGETS, **changes
        )
        hanging.device = rig(config=config, surroundings=around)
        return hanging.device

    return make


def outcomes(hub: HubDouble) -> list[tuple[int, str, str]]:
    return [(body.attempt, str(body.outcome), body.reason) for body in hub.bodies(Result)]


def refusals(hub: HubDouble) -> list[tuple[str, str]]:
    return [(body.what, body.reason) for body in hub.bodies(Refusal)]


def serving(device: Rig) -> list[int]:
    return [slot.release for slot in device.engine.state().serving]


# -- hangs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", LIMITS_S)
def test_work_that_hangs_ends_its_attempt_at_the_deadline_and_nothing_else(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, hanging: Hanging, step: str
) -> None:
    device = limited()
    first = hub.release(bundle(), 1)
    hub.send_all(device.link, first)
    device.settle()
    second = hub.release(bundle(version="v2", rows=70), 2)
    hanging.step = step
    hub.send_all(device.link, second)
    device.settle()
    hanging.step = ""
    other = hub.release(bundle(model="other", rows=80), 3)
    hub.send_all(device.link, second, other)
    device.settle()
    # A trial alone makes another model wait, for no longer than its own deadline.
    assert device.steps() == {
        "colours": step,
        "other": "trying" if step == "trying" else "confirmed",
    }
    device.later(LIMITS_S[step] - 0.5)
    assert device.steps()["colours"] == step
    device.later(0.5)
    (reason,) = [why for attempt, _, why in outcomes(hub) if attempt == 2]
    assert {o[:2] for o in outcomes(hub)} == {
        (1, "confirmed"),
        (2, "rolled_back" if step == "active" else "failed"),
        (3, "confirmed"),
    }
    assert reason.startswith(f"no end of {step} in time: ")
    assert device.engine.model("colours").predict(ROW).release == 1
    late = hanging.kept[:]
    for work in late:  # what hung comes back after all: nobody listens
        work()
    device.settle()
    assert len(outcomes(hub)) == 3
    assert serving(device) == [1, 3]


def test_a_confirmed_release_whose_loading_hangs_gives_way_to_the_one_before(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, hanging: Hanging
) -> None:
    device = limited()
    for release in (1, 2):
        hub.send_all(device.link, hub.release(bundle(version=f"v{release}", rows=60), release))
        device.settle()
    device.close()
    hanging.step, hanging.device = "start", None
    device = limited()
    device.settle()
    assert serving(device) == []
    hanging.step = ""
    device.later(LIMITS_S["active"] - 0.5)
    assert serving(device) == []
    device.later(0.5)
    assert serving(device) in ([1], [2])  # 2 again if it could be fetched, tried and loaded anew
    assert ("bundle", "damaged") in refusals(hub)
    assert device.engine.model("colours").predict(ROW)


def test_when_too_much_hangs_no_more_is_begun_and_the_hub_is_told(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, hanging: Hanging
) -> None:
    device = limited()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hanging.step = "trying"
    for number in range(2, 2 + MAX_GIVEN_UP + 1):
        target = hub.release(bundle(version=f"v{number}", rows=60 + number), number)
        hub.send_all(device.link, target)
        device.settle()
        device.later(LIMITS_S["trying"])
    assert len(hanging.kept) == MAX_GIVEN_UP
    assert ("agent", "hung-work") in refusals(hub)
    assert device.engine.model("colours").predict(ROW).release == 1
    hanging.step = ""
    for work in hanging.kept:
        work()
    device.settle()
    hub.send_all(device.link, hub.release(bundle(version="v9", rows=90), 90))
    device.settle()
    assert outcomes(hub)[-1] == (90, "confirmed", "")


def test_trials_take_turns_and_the_one_that_waits_is_not_overdue(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, hanging: Hanging
) -> None:
    device = limited()
    hanging.step = "trying"
    first = hub.release(bundle(model="first"), 1)
    hub.send_all(device.link, first)
    device.settle()
    hanging.step = ""
    second = hub.release(bundle(model="second"), 2)
    hub.send_all(device.link, first, second)
    device.settle()
    attempts = {attempt.model: attempt for attempt in device.engine.state().attempts}
    assert attempts["second"].reason == "waits for the trial of first"
    device.later(LIMITS_S["trying"])
    assert device.steps() == {"first": "failed", "second": "confirmed"}


# -- bounds --------------------------------------------------------------------------------------


def test_a_manifest_that_fails_again_and_again_is_rejected_at_once_for_the_rest_of_a_day(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    tries = []

    def trial(request: Any, cancelled: Any) -> Verdict:
        tries.append(request)
        return Verdict(["it is wrong"])

    clock = Clock()
    device = rig(surroundings={"try_candidate": trial, "clock": clock})
    target = hub.release(bundle(), 1)
    for attempt in range(1, update.MAX_FAILURES + 3):
        hub.send_all(device.link, msgspec.structs.replace(target, attempt=attempt))
        device.settle()
    assert len(tries) == update.MAX_FAILURES
    attempt, outcome, reason = outcomes(hub)[-1]
    assert (attempt, outcome) == (update.MAX_FAILURES + 2, "rejected")
    assert reason == (
        "not tried again: 5 attempts at this bundle ended badly within a day; the last: it is wrong"
    )
    clock.now += update.DAY_S
    hub.send_all(device.link, msgspec.structs.replace(target, attempt=99))
    device.settle()
    assert len(tries) == update.MAX_FAILURES + 1


def test_an_order_bounds_the_bytes_of_its_attempt(rig: Rigs, hub: HubDouble, bundle: Make) -> None:
    device = rig()
    made = bundle()
    target = hub.release(made, 1, max_bytes=len(made.data) + 10)
    hub.send_all(device.link, target)
    device.settle()
    assert outcomes(hub)[0][:2] == (1, "rejected")
    assert hub.bodies(Result)[0].bytes_fetched == len(made.data)


def test_a_release_that_is_there_is_confirmed_without_a_request(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    target = hub.release(bundle(), 1)
    hub.send_all(device.link, target)
    device.settle()
    hub.requests.clear()
    hub.send_all(device.link, msgspec.structs.replace(target, attempt=7))
    device.settle()
    assert outcomes(hub)[-1] == (7, "confirmed", "")
    assert hub.requests == []


def test_a_superseded_trial_is_told_to_stop(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, hanging: Hanging
) -> None:
    stopped = []

    def trial(request: Any, cancelled: Callable[[], bool]) -> Verdict:
        stopped.append(cancelled())
        return Verdict([])

    device = limited(surroundings={"try_candidate": trial})
    hanging.step = "trying"
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hanging.step = ""
    hub.send_all(device.link, hub.release(bundle(version="v2", rows=70), 2))
    device.settle()
    hanging.kept[0]()
    assert stopped == [False, True]
    assert outcomes(hub)[0][1] == "superseded"


# -- waiting -------------------------------------------------------------------------------------


def at(text: str) -> float:
    return datetime.fromisoformat(text).astimezone().timestamp()


def test_a_new_release_waits_for_its_maintenance_window(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make
) -> None:
    clock = Clock(at("2026-03-04T12:00:00"))
    device = limited(maintenance=Maintenance(["02:00-04:00"]), surroundings={"clock": clock})
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]  # nothing served, so nothing to disturb
    hub.send_all(device.link, hub.release(bundle(version="v2", rows=70), 2))
    device.settle()
    assert device.steps() == {"colours": "verifying"}
    assert device.state.attempts[0].reason == "waits for the maintenance window Thu 02:00"
    device.later(update.VERIFY_DEADLINE_S * 10)
    assert device.steps() == {"colours": "verifying"}
    clock.now = at("2026-03-05T02:00:00")
    device.later(5.0)
    assert outcomes(hub)[-1] == (2, "confirmed", "")


def test_an_urgent_release_waits_for_no_window(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make
) -> None:
    clock = Clock(at("2026-03-04T12:00:00"))
    device = limited(maintenance=Maintenance(["02:00-04:00"]), surroundings={"clock": clock})
    for release in (1, 2):
        made = bundle(version=f"v{release}", rows=60 + release)
        hub.send_all(device.link, hub.release(made, release, urgent=True))
        device.settle()
    assert [o[:2] for o in outcomes(hub)] == [(1, "confirmed"), (2, "confirmed")]


def test_a_download_waits_for_its_byte_budget_and_is_not_stalled_by_it(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make, models: Path
) -> None:
    from edgefleet_agent.testing import padded_onnx
    from edgefleet_protocol.blocks import BLOCK_BYTES

    data = padded_onnx((models / "classifier.onnx").read_bytes(), 4 * BLOCK_BYTES)
    clock = Clock()
    network = Network(link="metered", metered_bytes_per_day=3 * BLOCK_BYTES)
    device = limited(network=network, surroundings={"clock": clock})
    hub.send_all(device.link, hub.release(bundle(data=data), 1))
    device.settle()
    device.later(5.0)
    assert device.steps() == {"colours": "fetching"}
    assert device.state.attempts[0].reason.startswith("waits for its byte budget until ")
    device.later(BUDGETS.fetch_stall_s * 3)
    assert device.steps() == {"colours": "fetching"}
    clock.now += update.DAY_S + 1000
    device.monotonic.now += update.DAY_S + 1000
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]


# -- starts --------------------------------------------------------------------------------------


def crash(device: Rig) -> None:
    """End the agent without a word."""
    device.engine.attempts.close()
    device.engine._outbox.close()


def test_the_fourth_start_in_vain_gives_the_newest_confirmed_release_up(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    for release in (1, 2):
        hub.send_all(device.link, hub.release(bundle(version=f"v{release}", rows=60), release))
        device.settle()
    device.close()
    for _ in range(update.MAX_STARTS):
        device = rig()
        assert serving(device) == [2]
        crash(device)
    device = rig()
    assert serving(device) == [1]  # before any connection
    device.settle()
    assert ("release", "crash-loop") in refusals(hub)
    assert [o[:2] for o in outcomes(hub)] == [(1, "confirmed"), (2, "confirmed")]
    hub.send_all(device.link, hub.release(bundle(version="v3", rows=61), 3))
    device.settle()
    assert serving(device) == [3]


def test_starts_after_which_the_agent_worked_well_are_forgotten(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    for release in (1, 2):
        hub.send_all(device.link, hub.release(bundle(version=f"v{release}", rows=60), release))
        device.settle()
    device.later(GOOD_S - 1)
    crash(device)
    for _ in range(update.MAX_STARTS - 1):
        device = rig()
        crash(device)
    device = rig()
    assert serving(device) == [1]
    device.later(GOOD_S)
    crash(device)
    for _ in range(update.MAX_STARTS):
        device = rig()
        assert serving(device) == [1]
        crash(device)


def test_a_challenger_is_the_first_to_be_given_up(rig: Rigs, hub: HubDouble, bundle: Make) -> None:
    device = rig()
    for release in (1, 2):
        champion = hub.release(bundle(version=f"v{release}", rows=60), release)
        hub.send_all(device.link, champion)
        device.settle()
    challenger = hub.release(bundle("classifier.tflite", version="v3"), 3, role="shadow")
    hub.send_all(device.link, champion, challenger)
    device.settle()
    device.close()
    for _ in range(update.MAX_STARTS):
        crash(rig())
    state = rig().engine.state()
    assert [slot.release for slot in state.serving] == [2]
    assert state.challengers == []


def test_an_agent_that_has_nothing_to_go_back_to_goes_on_with_what_it_has(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    device.close()
    for _ in range(update.MAX_STARTS):
        crash(rig())
    device = rig()
    assert serving(device) == [1]
    device.settle()
    assert ("release", "crash-loop") in refusals(hub)


def test_a_count_of_starts_that_is_lost_goes_on_above_any_that_was(
    rig: Rigs, hub: HubDouble
) -> None:
    device = rig()
    device.settle()
    device.close()
    for path in device.store.glob("boots.json*"):
        path.write_bytes(b"\0" * 20)
    device = rig()
    device.settle()
    assert hub.states[-1].boot > hub.states[0].boot
    assert ("store", "damaged") in refusals(hub)


# -- time ----------------------------------------------------------------------------------------


def test_the_seconds_of_a_result_are_those_that_were_worked_whatever_the_clock_does(
    limited: Callable[..., Rig], hub: HubDouble, bundle: Make
) -> None:
    clock = Clock(2_000_000_000.0)
    device = limited(surroundings={"clock": clock})
    hub.send_all(device.link, hub.release(bundle(), 1, confirm_rows=1))
    device.settle()
    clock.now = 0.0
    device.later(12.0)
    device.close()
    device = limited(surroundings={"clock": clock})
    device.settle()
    device.later(3.0)
    device.engine.model("colours").predict(ROW)
    device.settle()
    assert outcomes(hub) == [(1, "confirmed", "")]
    assert hub.bodies(Result)[0].seconds == 3.0  # since the last step that was written


def test_real_threads_that_hang_do_not_hold_up_the_engine(
    rig: Rigs, hub: HubDouble, bundle: Make
) -> None:
    import threading

    let_go = threading.Event()

    def trial(request: Any, cancelled: Any) -> Verdict:
        let_go.wait(60.0)
        return Verdict([])

    device = rig(
        surroundings={
            "try_candidate": trial,
            "start": lambda work: threading.Thread(target=work, daemon=True).start(),
        }
    )
    hub.send_all(device.link, hub.release(bundle(), 1))
    deadline = time.monotonic() + 30
    while device.steps() != {"colours": "trying"}:
        assert time.monotonic() < deadline
        device.engine.step(0.05)
        hub.answer(device.link)
    device.later(update.TRIAL_GRACE_S + 120.0)
    assert outcomes(hub)[0][1] == "failed"
    let_go.set()
