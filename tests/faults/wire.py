"""Cases of what arrives, what does not, what hangs and what time it is, at each step of an attempt.

Each runs one device in its own process, by hand: the device is led to a step and held there, the
fault is injected, then everything is let go and must converge.
"""

import datetime
import functools
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from edgefleet_agent.config import Budgets, Config
from edgefleet_agent.downloading.fetching import WINDOW
from edgefleet_agent.testing import Repository
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.messages import Block, Result, Step
from tests.faults.cases import Case, Outcome
from tests.faults.world import (
    BAD_ENDS,
    MODEL,
    ROW,
    Facts,
    Order,
    World,
    answers_right,
    complaints,
    send,
    serving,
)

HELD = (Step.FETCHING, Step.VERIFYING, Step.TRYING, Step.ACTIVE)
HOUR_S, WEEK_S, YEAR_S = 3600.0, 7 * 86_400.0, 365 * 86_400.0
OUTBOX_BYTES = 64 * 1024
# SQLite folds its write-ahead log into the database after 1000 pages.
_LOG_BYTES = 5 * 1024 * 1024


class Device:
    """A device that serves release 1, under the hand of a case.

    Attributes:
        world: that it is in.
        rig: its engine.
        first: the order that it has carried out.
    """

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self._held: list[Callable[[], None]] = []
        self._holding = False
        budgets = Budgets(outbox_max_bytes=OUTBOX_BYTES)
        store = str(self.world.store)
        self.rig = self.world.rig(
            config=Config(store=store, board="generic-x86_64", budgets=budgets),
            surroundings={"start": self._start},
        )
        self.given: list[Order] = []
        self.first = self.give()
        self.world.converge(self.rig, self.first)
        assert serving(self.rig) == self.first.digest

    def give(self, **changes: object) -> Order:
        """Sign the next order and deliver it."""
        order = self.world.order(**changes)  # type: ignore[arg-type]  # passed through
        self.given.append(order)
        send(self.rig, order)
        return order

    def give_and_lead_to(self, step: Step) -> Order:
        """Deliver the next order, let the device work until it is at a step of it, and hold it.

        `fetching` means in the middle of the model's blocks: more than are asked for at one time.
        """
        order = self.give(size_blocks=WINDOW + 8 if step is Step.FETCHING else 2)
        self._holding = True
        for _ in range(400):
            self.rig.engine.step(0.0)
            newest = self.rig.engine.attempts.summaries()[0]
            in_blocks = newest.received_bytes > blocks.BLOCK_BYTES
            is_there = newest.number == order.attempt and newest.step == step
            if is_there and (step is not Step.FETCHING or in_blocks):
                return order
            if self._held:
                self._held.pop(0)()
            else:
                self.rig.hub.answer(self.rig.link)
        raise AssertionError(f"the device did not come to {step}: {newest}")

    def hold(self) -> None:
        """Let no work beside the engine's thread begin."""
        self._holding = True

    def let_go(self, *, hung: bool = False) -> None:
        """Run what is held, and everything from now on; what hung stays hung."""
        self._holding = False
        held, self._held = self._held, []
        for work in held if not hung else ():
            work()

    def end(self, order: Order, *disturbed: Order, ends: Collection[Step] = BAD_ENDS) -> Outcome:
        """Converge on an order, then on one more; return what is wrong.

        Args:
            order: that is in force.
            disturbed: whose attempt may have ended badly.
            ends: how it may have.
        """
        outcome = Outcome(before=f"r{self.first.attempt}", runs=1)
        self.world.converge(self.rig, order)
        facts = self.world.facts(self.rig)
        outcome.complaints = complaints(
            self.world, facts, self.given, disturbed=disturbed, ends=ends
        )
        outcome.after = self._name(facts)
        last = self.give()
        self.world.converge(self.rig, last)
        facts = self.world.facts(self.rig)
        outcome.complaints += complaints(
            self.world, facts, self.given, disturbed=disturbed, ends=ends
        )
        self.rig.close()
        return outcome

    def _name(self, facts: Facts) -> str:
        found = [f"r{order.attempt}" for order in self.given if order.digest == facts.serving]
        return found[0] if found else "–"

    def _start(self, work: Callable[[], None]) -> None:
        if self._holding:
            self._held.append(work)
        else:
            work()


def superseded(step: Step, folder: Path) -> Outcome:
    device = Device(folder)
    stuck = device.give_and_lead_to(step)
    newer = device.give()
    device.rig.engine.step(0.0)
    device.let_go()
    return device.end(newer, stuck)


def withdrawn(step: Step, folder: Path) -> Outcome:
    device = Device(folder)
    stuck = device.give_and_lead_to(step)
    topic = topics.down(device.world.hub.device, "assignment")
    device.rig.link.send(topic, device.world.hub.assignment())
    device.rig.settle()
    device.let_go()
    device.rig.later(HOUR_S)
    gone = serving(device.rig) == ""
    outcome = device.end(device.give(), stuck)
    if not gone:
        outcome.complaints.append("a withdrawn model still served")
    return outcome


def refused_order(step: Step, kind: str, folder: Path) -> Outcome:
    """An order that must not be believed arrives while an attempt is at a step."""
    device = Device(folder)
    hub = device.world.hub
    order = device.give_and_lead_to(step)
    last_target = hub.release(order.bundle, order.attempt)
    if kind == "unsigned":
        right, hub.director = hub.director, Repository()
        payload = hub.assignment(last_target)
        hub.director = right
    elif kind == "expired":
        life, hub.director.life = hub.director.life, datetime.timedelta(days=-1)
        payload = hub.assignment(last_target)
        hub.director.life = life
    elif kind == "foreign":
        payload = hub.assignment(last_target, device="cam-2")
    elif kind == "old":
        payload = hub.assignment(last_target, sequence=0)
    else:
        payload = b"\x00 garbage"
    device.rig.link.send(topics.down(hub.device, "assignment"), payload)
    device.rig.engine.step(0.0)
    device.let_go()
    return device.end(order)


def cut(step: Step, seconds: float, folder: Path) -> Outcome:
    device = Device(folder)
    order = device.give_and_lead_to(step)
    device.rig.link.disconnect()
    while device.rig.engine.has_news:  # what had arrived is handled before, in no time
        device.rig.engine.step(0.0)
    for _ in range(10):
        device.rig.monotonic.now += seconds / 10
        device.rig.engine.step(0.0)
    served = answers_right(device.rig)
    device.rig.link.published.clear()
    device.rig.link.connect()
    device.let_go()
    # A trial or a proof may run out of time without a network; a download must not.
    may_end = [order] if step in (Step.VERIFYING, Step.TRYING, Step.ACTIVE) else []
    outcome = device.end(order, *may_end)
    if not served:
        outcome.complaints.append("it did not answer without the network")
    return outcome


def hung(step: Step, folder: Path) -> Outcome:
    device = Device(folder)
    order = device.give_and_lead_to(step)
    if step is Step.FETCHING:
        device.let_go()
        blob = order.bundle.manifest.file("model").transfer.digest
        kept = device.world.hub.blobs.pop(blob)
        device.world.hub.block = lambda digest, index: b""  # type: ignore[method-assign]  # says nothing
        device.rig.link.published.clear()
        for _ in range(40):
            device.rig.engine.step(0.0)
            device.rig.link.published.clear()
            device.rig.monotonic.now += 60.0
        del device.world.hub.block
        device.world.hub.blobs[blob] = kept
    else:
        for _ in range(40):
            device.rig.engine.step(0.0)
            device.rig.hub.answer(device.rig.link)
            device.rig.monotonic.now += 120.0
    ended = device.rig.steps()[MODEL]
    device.let_go(hung=True)
    outcome = device.end(order, order)
    if ended not in (Step.FAILED, Step.ROLLED_BACK):
        outcome.complaints.append(f"hung in {step} for an hour, and the attempt is {ended}")
    return outcome


def hung_opening(folder: Path) -> Outcome:
    """Looking at what is on disk of a download never ends."""
    device = Device(folder)
    device.hold()
    order = device.give()
    for _ in range(40):
        device.rig.engine.step(0.0)
        device.rig.hub.answer(device.rig.link)
        device.rig.monotonic.now += 120.0
    ended = device.rig.steps()[MODEL]
    device.let_go(hung=True)
    outcome = device.end(order, order)
    if ended != Step.FAILED:
        outcome.complaints.append(f"hung for an hour, and the attempt is {ended}")
    return outcome


def wrong_blocks(folder: Path, *, how_many: int) -> Outcome:
    device = Device(folder)
    hub, left = device.world.hub, how_many

    def block(digest: str, index: int) -> bytes:
        nonlocal left
        right = type(hub).block(hub, digest, index)
        if left and digest != order_digest():
            left -= 1
            return bytes(len(right))
        return right

    def order_digest() -> str:
        return device.given[-1].digest

    hub.block = block  # type: ignore[method-assign]  # the double's own way to misbehave
    order = device.give(size_blocks=4)
    device.world.converge(device.rig, order)
    del hub.block
    return device.end(order, order, ends=[Step.REJECTED])


def oversized(step: Step, folder: Path) -> Outcome:
    """Messages beyond every limit arrive on each topic while an attempt is at a step."""
    device = Device(folder)
    hub = device.world.hub
    order = device.give_and_lead_to(step)
    huge = bytes(24 * 1024 * 1024)
    for topic in (
        topics.down(hub.device, "assignment"),
        topics.down(hub.device, "blocks"),
        topics.down(hub.device, "ack"),
        topics.fleet_meta("targets"),
    ):
        device.rig.link.send(topic, huge)
        device.rig.engine.step(0.0)
    digest = order.bundle.manifest.file("model").transfer.digest
    block = Block(digest, 0, bytes(4 * blocks.BLOCK_BYTES))
    device.rig.link.send(topics.down(hub.device, "blocks"), codec.encode(block, compress=False))
    device.let_go()
    return device.end(order)


def oversized_artifact(folder: Path) -> Outcome:
    """The bundle weighs more than its order allows."""
    device = Device(folder)
    order = device.give(size_blocks=8, max_bytes=blocks.BLOCK_BYTES)
    device.world.converge(device.rig, order)
    return device.end(order, order, ends=[Step.REJECTED])


def already_installed(folder: Path) -> Outcome:
    device = Device(folder)
    hub = device.world.hub
    target = hub.release(device.first.bundle, 1, confirm_rows=3)
    again = msgspec.structs.replace(target, attempt=2)
    asked = len(hub.requests)
    hub.send_all(device.rig.link, again)
    device.rig.settle()
    told = hub.outcomes().get(2)
    found = []
    if told != {"confirmed"}:
        found.append(f"the hub heard {told}")
    if len(hub.requests) != asked:
        found.append("blocks were asked for")
    if serving(device.rig) != device.first.digest or not answers_right(device.rig):
        found.append("it does not serve")
    device.rig.close()
    return Outcome(found, "r1", "r1", 1)


def reporting_fails(folder: Path) -> Outcome:
    """The hub never acknowledges: a year, a failed update a month, windows all the time."""
    device = Device(folder)
    rig, world = device.rig, device.world
    link = rig.link
    commits = len(world.hub.results())

    def silent_year() -> None:
        for _ in range(12):
            order = device.give(kind="refused", window_rows=1)
            for _ in range(6):
                rig.settle(acknowledge=False)
                rig.monotonic.now += 5 * 86_400.0
            assert rig.steps()[MODEL] == "rejected", (order.attempt, rig.steps())
            for _ in range(60):
                rig.engine.model(MODEL).predict(ROW)
            rig.settle(acknowledge=False)

    first = device.give(window_rows=1)
    world.converge(rig, first)
    silent_year()
    bytes_held = sum(path.stat().st_size for path in world.store.glob("outbox*"))
    link.disconnect()
    link.published.clear()
    link.connect()
    last = device.give()
    for _ in range(60):
        rig.later(60.0)
    outcome = device.end(last)
    numbers = {(store, number) for store, number, *_ in world.hub.results()}
    if len(numbers) < commits + 12:
        outcome.complaints.append(f"{len(numbers)} results at the hub")
    if bytes_held > 2 * OUTBOX_BYTES + _LOG_BYTES:
        outcome.complaints.append(f"the outbox grew to {bytes_held} bytes")
    outcome.runs = 13
    return outcome


def clock_at(year: int, folder: Path) -> Outcome:
    """The clock is wrong by years; the device goes by the time that the hub attests."""
    device = Device(folder)
    now = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
    right_time = device.rig.clock.now
    device.rig.clock.now = now.timestamp()
    order = device.give()
    device.world.converge(device.rig, order)
    served = serving(device.rig)
    answers = answers_right(device.rig)
    device.rig.clock.now = right_time
    outcome = device.end(order)
    if not served or not answers:
        outcome.complaints.append(f"it did not serve in {year}")
    if served != order.digest:
        outcome.complaints.append(f"in {year} the wrong release served")
    return outcome


def clock_jumps(step: Step, folder: Path) -> Outcome:
    """The clock jumps to 1970, to 2040 and back while an attempt is at a step."""
    device = Device(folder)
    order = device.give_and_lead_to(step)
    right_time = device.rig.clock.now
    for now in (0.0, 2.2e9, right_time):
        device.rig.clock.now = now
        device.rig.engine.step(0.0)
    device.rig.clock.now = 0.0
    device.let_go()
    device.rig.settle()
    device.rig.clock.now = right_time
    outcome = device.end(order)
    negative = [r for r in device.world.hub.bodies(Result) if r.seconds < 0]
    if negative or any(r.seconds > 86_400 for r in device.world.hub.bodies(Result)):
        outcome.complaints.append("a result took less than nothing, or years")
    return outcome


def lost_session(step: Step, folder: Path) -> Outcome:
    """The broker restarts: what was on its way and what was subscribed is lost."""
    device = Device(folder)
    order = device.give_and_lead_to(step)
    device.rig.link.disconnect()
    device.rig.link.published.clear()
    device.rig.link.listening.clear()
    device.let_go()
    device.rig.engine.step(0.0)
    device.rig.link.connect()
    return device.end(order)


def cases() -> list[Case]:
    """Return all of them."""
    found: list[Case] = []

    def add(name: str, injected: str, expected: str, run: Callable[[Path], Outcome]) -> None:
        found.append(Case(name, injected, expected, run, quick=True, limit_s=60.0))

    same = "the attempt ends as it would have without it"
    for step in HELD:
        bind = functools.partial
        add(
            f"supersede/in {step}",
            f"a newer order while the attempt is {step}",
            "the newer release serves; the older attempt is superseded",
            bind(superseded, step),
        )
        add(
            f"withdraw/in {step}",
            f"the model is taken off the device while an attempt is {step}",
            "nothing serves until the model is ordered again",
            bind(withdrawn, step),
        )
        add(
            f"hang/in {step}",
            f"{step} never ends",
            "the attempt ends at its deadline, the old release serves, the next order works",
            bind(hung, step),
        )
        add(
            f"network/cut for an hour in {step}",
            "the link goes down, and comes back an hour later",
            same,
            bind(cut, step, HOUR_S),
        )
        add(
            f"network/cut for a week in {step}",
            "the link goes down, and comes back a week later",
            same,
            bind(cut, step, WEEK_S),
        )
        add(
            f"network/broker without memory in {step}",
            "the broker restarts and has lost sessions and messages",
            same,
            bind(lost_session, step),
        )
        add(
            f"oversized/messages in {step}",
            f"messages beyond every limit while the attempt is {step}",
            same,
            bind(oversized, step),
        )
        add(
            f"clock/jumps in {step}",
            f"the clock jumps to 1970, 2040 and back while the attempt is {step}",
            same,
            bind(clock_jumps, step),
        )
        for kind in ("unsigned", "expired", "foreign", "old", "garbled"):
            add(
                f"refuse/{kind} order in {step}",
                f"an {kind} assignment while the attempt is {step}",
                same,
                bind(refused_order, step, kind),
            )
    add(
        "hang/before the first block",
        "looking at what is on disk of a download never ends",
        "the attempt ends at its deadline, the old release serves, the next order works",
        hung_opening,
    )
    for year in (1970, 2040):
        add(
            f"clock/at {year}",
            f"the device believes in {year} when the order arrives",
            "what serves goes on; with the right time the order is carried out, without a restart",
            functools.partial(clock_at, year),
        )
    add(
        "blocks/two wrong",
        "the hub sends two wrong blocks",
        same,
        functools.partial(wrong_blocks, how_many=2),
    )
    add(
        "blocks/all wrong",
        "every block of the model is wrong",
        "the attempt ends, the old release serves, the next order works",
        functools.partial(wrong_blocks, how_many=10_000),
    )
    add(
        "oversized/artifact",
        "a bundle of more bytes than its order allows",
        "the attempt ends, the old release serves, the next order works",
        oversized_artifact,
    )
    add(
        "install/already there",
        "the release that serves is ordered again",
        "confirmed without a download",
        already_installed,
    )
    add(
        "report/never acknowledged",
        "a year without one acknowledgement, with windows and an update a month",
        "no result is lost, the outbox stays within its bound",
        reporting_fails,
    )
    return found
