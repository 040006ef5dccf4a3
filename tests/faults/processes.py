"""Cases that need processes: models that end the agent, real trials, a real broker and hub."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from edgefleet_agent import runtimes
from edgefleet_agent.config import Budgets, Config
from edgefleet_agent.testing import make_bundle
from edgefleet_agent.updating.trial import run as run_trial
from edgefleet_protocol import topics
from tests.faults.cases import Case, Outcome
from tests.faults.world import (
    MODELS,
    Facts,
    Order,
    World,
    complaints,
    in_child,
    right_scores,
    send,
    serving,
)

ROOT = Path(__file__).parents[2]
# More starts than any rule of the agent needs to give a release up.
_MAX_STARTS = 12


def deadly(world: World, order: Order, armed: Path | None = None) -> None:
    """Make the model of an order abort the process that loads it, from now on in this process."""
    digest = order.bundle.manifest.file("model").digest
    load: Callable[..., Any] = runtimes.load_bundle

    def load_or_die(bundle: Any, model: Path, *args: Any) -> Any:
        if model.name == digest and (armed is None or armed.exists()):
            os.abort()
        return load(bundle, model, *args)

    runtimes.load_bundle = load_or_die


def candidate_crashes(folder: Path) -> Outcome:
    """A candidate passes its trial and aborts the agent itself, each time it is loaded."""
    world = World(folder)
    first = world.order()
    bad = world.order()
    last = world.order()

    def life(orders: list[Order]) -> list[Facts]:
        deadly(world, bad)
        return world.live(orders)

    made = in_child(lambda: life([first]))
    assert not isinstance(made, str), made
    outcome = Outcome(before="r1", after="r1")
    return _restarted(outcome, world, functools.partial(life, [bad, last]), [first, bad, last])


def confirmed_crashes(folder: Path) -> Outcome:
    """A release that was confirmed starts to abort the agent at each of its starts, with no hub."""
    world = World(folder)
    first, second, last = world.order(), world.order(), world.order()
    armed = folder / "armed"

    def life(orders: list[Order]) -> list[Facts]:
        deadly(world, second, armed)
        return world.live(orders)

    made = in_child(lambda: life([first, second]))
    assert not isinstance(made, str), made
    armed.touch()
    outcome = Outcome(before="r2", after="r1")
    for _ in range(_MAX_STARTS):
        seen = in_child(lambda: _offline(world, second, armed))
        outcome.runs += 1
        if not isinstance(seen, str):
            break
    else:
        outcome.complaints.append(f"still crashing at its start {_MAX_STARTS}: {seen}")
        return outcome
    if seen[0].offline != first.digest:
        outcome.complaints.append("release 1 does not serve")
    seen = in_child(lambda: life([last]))
    if isinstance(seen, str):
        outcome.complaints.append(seen)
    else:
        outcome.complaints += complaints(world, seen[-1], [first, second, last])
    return outcome


def _offline(world: World, order: Order, armed: Path) -> list[Facts]:
    """Start without a word of the hub and see what serves; nothing is closed in the end."""
    deadly(world, order, armed)
    rig = world.rig()
    rig.link.disconnect()
    rig.engine.step(0.0)
    return [world.facts(rig, serving(rig))]


def _restarted(
    outcome: Outcome, world: World, life: Callable[[], list[Facts]], orders: list[Order]
) -> Outcome:
    """Start the device again and again, as a supervisor does, until a life ends well."""
    for _ in range(_MAX_STARTS):
        seen = in_child(life)
        outcome.runs += 1
        if not isinstance(seen, str):
            disturbed = orders[1:-1]
            outcome.complaints += complaints(world, seen[-1], orders, disturbed=disturbed)
            told = seen[-1].outcomes.get(disturbed[0].attempt)
            if told not in ({"rolled_back"}, {"failed"}):
                outcome.complaints.append(f"of the deadly release the hub heard {told}")
            return outcome
    outcome.complaints.append(f"it did not come back in {_MAX_STARTS} starts: {seen}")
    return outcome


def real_trial(model: str, folder: Path, *, timeout_s: float = 3.0) -> Outcome:
    """A model that hangs, or takes all memory, in a real trial; the agent is killed in it once."""
    world = World(folder)
    first = world.order()
    made = in_child(lambda: world.live([first]))
    assert not isinstance(made, str), made
    bundle = make_bundle((MODELS / model).read_bytes(), right_scores, version="v2")
    target = world.hub.release(bundle, 2)
    messages = world.hub.image_messages()
    messages.append((topics.down(world.hub.device, "assignment"), world.hub.assignment(target)))
    bad = Order(2, "refused", bundle, tuple(messages))
    world.orders.append(bad)
    last = world.order()
    budgets = Budgets(trial_timeout_s=timeout_s, trial_memory_bytes=128 * 1024 * 1024)
    config = Config(store=str(world.store), board="generic-x86_64", budgets=budgets)

    def life() -> list[Facts]:
        rig = world.rig(config=config, surroundings={"try_candidate": run_trial})
        send(rig, bad)
        rig.settle()
        facts = [world.facts(rig)]
        rig.close()
        return facts

    pid = os.fork()
    if pid == 0:
        try:
            life()
        finally:
            os._exit(0)
    _kill_in_trial(pid)
    outcome = Outcome(before="r1", after="r1", runs=2)
    seen = in_child(life)
    if isinstance(seen, str):
        outcome.complaints.append(seen)
    else:
        outcome.complaints += complaints(world, seen[-1], [first, bad])
    seen = in_child(lambda: world.live([last]))
    if isinstance(seen, str):
        outcome.complaints.append(seen)
    else:
        outcome.complaints += complaints(world, seen[-1], [first, bad, last])
    return outcome


def _kill_in_trial(pid: int) -> None:
    """Wait until the device has a trial running, then kill the device alone."""
    until = time.monotonic() + 30.0
    process = psutil.Process(pid)
    while not process.children():
        if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() > until:
            raise AssertionError("no trial was started")
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def whole_system(folder: Path) -> Outcome:
    """Real hub, broker and agent, killed in turn and together."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "tests/system/test_survival.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    outcome = Outcome(before="v1", after="v4", runs=4)
    if done.returncode:
        outcome.complaints.append(done.stdout[-3000:])
    return outcome


def cases() -> list[Case]:
    """Return all of them."""
    return [
        Case(
            "crash/candidate",
            "a release that passes its trial and aborts the agent when it is loaded",
            "given up after a few starts; the old release serves, the next order works",
            candidate_crashes,
            quick=True,
        ),
        Case(
            "crash/confirmed release",
            "a confirmed release begins to abort the agent at each start; no hub is in reach",
            "after a few starts the release before it serves",
            confirmed_crashes,
            quick=True,
        ),
        Case(
            "trial/hangs",
            "a model whose trial never ends; SIGKILL of the agent in the trial",
            "rejected; the trial's process ends by itself; the old release serves",
            functools.partial(real_trial, "endless.onnx"),
        ),
        Case(
            "trial/eats memory",
            "a model that asks for gigabytes in its trial; SIGKILL of the agent in the trial",
            "rejected; the old release serves",
            functools.partial(real_trial, "greedy.onnx", timeout_s=20.0),
        ),
        Case(
            "system/hub, broker and agent",
            "SIGKILL of the real hub, the real broker and the real agent, in turn and at once",
            "each update arrives",
            whole_system,
            limit_s=300.0,
        ),
    ]
