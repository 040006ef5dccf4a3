"""A device and its hub for fault cases: orders signed beforehand, lives of the device, invariants.

A *life* is one run of the device: the store is opened, what serves is looked at before the hub has
said anything, then the retained messages arrive and the device is let work until it has converged.
Lives run in processes forked from the case, which itself loads no model, so a life may be killed at
any instruction. What the hub has received is written to a file outside the device before it is
acknowledged, as a real hub commits before it acknowledges, so it outlives every life.
"""

import json
import os
import shutil
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnxruntime  # noqa: F401 - imported once here, not anew by each forked device
from msgspec import Struct, structs
from numpy.typing import NDArray

from edgefleet_agent.errors import AgentError
from edgefleet_agent.testing import Bundle, HubDouble, MemoryLink, Rig, make_bundle, padded_onnx
from edgefleet_agent.updating.trial import Request, Verdict
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.messages import FINAL_STEPS, Report, Result, Step
from tests.faults.powerloss import Store

MODELS = Path(__file__).parents[1] / "agent" / "models"
MODEL = "colours"
WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-1.0, 0.0, 2.0], [0.5, 0.5, -1.0]])
BIAS = np.array([0.1, 0.0, -0.1])
ROW = [1.0, 0.0, 0.0, 0.0]
# The faulty model gives a score that is not finite for this one, the right ones do not.
FAR_ROW = [200.0, 0.0, 0.0, 0.0]
CONFIRM_ROWS = 3
# Simulated waiting for whatever tries again by itself, in seconds.
_PATIENCE_S = (0.0, 1.0, 5.0, 10.0, 30.0, 60.0, 60.0, 600.0, 600.0, 3600.0)

# What becomes of an order on a device without faults.
Kind = Literal["good", "refused", "broken", "faulty"]
OUTCOMES: dict[Kind, Step] = {
    "good": Step.CONFIRMED,
    "refused": Step.REJECTED,
    "broken": Step.FAILED,
    "faulty": Step.ROLLED_BACK,
}

# How an attempt at a good release may end because of a fault. Never as rejected: that is for ever.
BAD_ENDS = (Step.FAILED, Step.ROLLED_BACK, Step.SUPERSEDED)


def right_scores(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return what every right model of these cases gives."""
    z = np.exp(rows @ WEIGHTS + BIAS)
    return (z / z.sum(axis=1, keepdims=True)).astype(np.float32)


class Facts(Struct, frozen=True):
    """What a life saw of its device.

    Attributes:
        offline: manifest that served before the hub had said anything; empty for none.
        serving: manifest that serves at the end.
        right: whether the answers at both times were the right model's.
        steps: step of the newest attempt of each model.
        floor: highest confirmed release by the journal.
        waiting: messages that the device still has to say.
        leftovers: what should not be in the store.
        starts: how often the store had to be opened before it could be.
    """

    offline: str
    serving: str
    right: bool
    steps: dict[str, str]
    floor: int
    waiting: int
    leftovers: list[str]
    starts: int
    outcomes: dict[int, set[str]]


@dataclass(frozen=True)
class Order:
    """One assignment as the broker retains it, with the image metadata that goes with it."""

    attempt: int
    kind: Kind
    bundle: Bundle
    messages: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> str:
        """Of its manifest."""
        return self.bundle.digest


class CommittingHub(HubDouble):
    """A hub whose memory of reports is a file: written first, acknowledged then."""

    def __init__(self, ledger: Path) -> None:
        super().__init__()
        self.ledger = ledger

    def answer(self, link: MemoryLink, *, acknowledge: bool = True) -> int:
        """Commit what arrived, then answer as any hub."""
        for topic, payload in link.published:
            if topics.parse_up(topic)[1] == "report":
                report = codec.decode(payload, Report)
                if isinstance(report.body, Result):
                    self._commit(report, report.body)
        return super().answer(link, acknowledge=acknowledge)

    def committed(self) -> bytes:
        """Return the ledger as it is."""
        return self.ledger.read_bytes() if self.ledger.exists() else b""

    def outcomes(self) -> dict[int, set[str]]:
        """Return attempt → every outcome that was ever reported of it."""
        found: dict[int, set[str]] = defaultdict(set)
        for _, _, attempt, outcome in self.results():
            found[attempt].add(outcome)
        return dict(found)

    def results(self) -> set[tuple[str, int, int, str]]:
        """Return (outbox, number, attempt, outcome) of every result, each once."""
        lines = self.committed().decode("ascii").splitlines()
        return {(row[0], row[1], row[2], row[3]) for row in map(json.loads, lines)}

    def _commit(self, report: Report, result: Result) -> None:
        row = [report.store, report.number, result.attempt, str(result.outcome)]
        with self.ledger.open("a", encoding="ascii") as file:
            file.write(json.dumps(row) + "\n")


class World:
    """A folder with a device in it, and the hub beside it.

    Attributes:
        folder: of the device; nothing else is below it.
        store: of the device's agent.
        hub: with everything that it has signed.
        orders: signed so far, oldest first.
    """

    def __init__(self, folder: Path) -> None:
        self._base = folder
        self.folder = folder / "device"
        self.store = self.folder / "store"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hub = CommittingHub(folder / "ledger.jsonl")
        self.hub.identity_into(self.store)
        self.orders: list[Order] = []
        self._kinds: dict[str, Kind] = {}
        self._committed = b""

    def order(self, kind: Kind = "good", *, size_blocks: int = 2, **changes: Any) -> Order:
        """Sign the next release of the model; `changes` are fields of its director target."""
        number = len(self.orders) + 1
        name = "brittle.onnx" if kind == "faulty" else "classifier.onnx"
        size_bytes = int((size_blocks - 0.5) * blocks.BLOCK_BYTES)
        data = padded_onnx((MODELS / name).read_bytes(), size_bytes, seed=number)
        bundle = make_bundle(data, right_scores, model=MODEL, version=f"v{number}")
        self._kinds[bundle.manifest.file("model").digest] = kind
        target = self.hub.release(bundle, number, confirm_rows=CONFIRM_ROWS, **changes)
        messages = self.hub.image_messages()
        messages.append((topics.down(self.hub.device, "assignment"), self.hub.assignment(target)))
        order = Order(number, kind, bundle, tuple(messages))
        self.orders.append(order)
        return order

    def right(self, order: Order) -> Order:
        """Return what must serve after an order: itself, or the last good one before it."""
        return next(o for o in reversed(self.orders[: order.attempt]) if o.kind == "good")

    def keep(self) -> None:
        """Remember device and ledger as they are now, for `again`."""
        shutil.rmtree(self._base / "kept", ignore_errors=True)
        shutil.copytree(self.folder, self._base / "kept", symlinks=True)
        self._committed = self.hub.committed()

    def again(self, store: Store | None = None, committed: bytes | None = None) -> None:
        """Put device and ledger back to what was kept, or to what is given."""
        shutil.rmtree(self.folder)
        if store is None:
            shutil.copytree(self._base / "kept", self.folder, symlinks=True)
        else:
            store.write(self.store)
        self.hub.ledger.write_bytes(self._committed if committed is None else committed)

    def try_candidate(self, request: Request, _: Callable[[], bool]) -> Verdict:
        """Judge by the model's digest, in no time; real trials are cases of their own."""
        kind = self._kinds[Path(request.model).name]
        if kind == "broken":
            raise OSError("no process can be started")
        return Verdict(["it is refused in every trial"] if kind == "refused" else [])

    def rig(self, **options: Any) -> Rig:
        """Open the device on this process."""
        around = {"try_candidate": self.try_candidate, **options.pop("surroundings", {})}
        return Rig(self.store, self.hub, surroundings=around, **options)

    def live(
        self, orders: Sequence[Order], mended: Callable[[], None] | None = None
    ) -> list[Facts]:
        """Run one life in this process: converge on each order in turn.

        Args:
            orders: in the order in which they arrive.
                mended: called when the device has got as far with an order as it can by itself.

        Returns:
            What was seen after each order.
        """
        rig, starts = self._open()
        offline = serving(rig)
        right = answers_right(rig)
        seen = []
        for order in orders:
            send(rig, order)
            self.converge(rig, order)
            if mended:
                mended()
                self.converge(rig, order)
            right = right and answers_right(rig)
            facts = self.facts(rig, offline)
            seen.append(structs.replace(facts, right=right, starts=starts))
        rig.close()
        return seen

    def facts(self, rig: Rig, offline: str = "") -> Facts:
        """Return what is to be seen of the device now."""
        journal = rig.engine.attempts.journals.get(MODEL)
        return Facts(
            offline,
            serving(rig),
            answers_right(rig),
            rig.steps(),
            journal.floor if journal else 0,
            rig.hub.answer(rig.link),
            self.leftovers(serving(rig)),
            1,
            self.hub.outcomes(),
        )

    def leftovers(self, manifest: str) -> list[str]:
        """Return what should not be in a store at rest.

        That is unfinished files, and damaged files of the release that serves. Files of older
        releases are hashed before they are used again, and not before.
        """
        found = [f"left over: {p.relative_to(self.store)}" for p in self.store.rglob("*.partial")]
        for order in self.orders:
            if order.digest != manifest:
                continue
            for digest in (manifest, *(file.digest for file in order.bundle.manifest.files)):
                path = self.store / "files" / digest
                if not path.exists() or sha256(path.read_bytes()).hexdigest() != digest:
                    found.append(f"damaged: files/{digest[:12]}")
        return found

    def _open(self) -> tuple[Rig, int]:
        """Open the store, as often as a supervisor would."""
        for start in range(1, 6):
            try:
                return self.rig(), start
            except (AgentError, OSError) as error:
                last = error
        raise AssertionError(f"the store cannot be opened: {last}") from last

    def converge(self, rig: Rig, order: Order) -> None:
        """Let device and hub work, and time pass, until an order has come to its end, or not."""
        wanted = self.right(order).digest
        for wait_s in _PATIENCE_S:
            rig.later(wait_s)
            if serving(rig):
                ask(rig)
            newest = rig.engine.attempts.summaries()
            ended = [a.number == order.attempt and a.step in FINAL_STEPS for a in newest]
            if serving(rig) == wanted and ended == [True]:
                return


def send(rig: Rig, order: Order) -> None:
    """Deliver everything that the broker retains with an order."""
    for topic, payload in order.messages:
        rig.link.send(topic, payload)


def ask(rig: Rig) -> None:
    """Ask enough rows for a confirmation; a faulty candidate is found by the first."""
    for row in (FAR_ROW, *[ROW] * CONFIRM_ROWS):
        rig.engine.model(MODEL).predict(row)
    rig.settle()


def serving(rig: Rig) -> str:
    """Return the manifest that serves, empty for none."""
    slot = rig.engine.model(MODEL).slot
    return slot.manifest if slot else ""


def answers_right(rig: Rig) -> bool:
    """Tell whether the device answers as the right model does, if it answers at all."""
    if not serving(rig):
        return True
    scores = rig.engine.model(MODEL).predict(ROW).scores
    return bool(np.allclose(scores, right_scores(np.array([ROW]))[0], atol=1e-4))


def in_child(work: Callable[[], list[Facts]]) -> list[Facts] | str:
    """Run a life in a forked process; return what it saw, or how it ended instead."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(msgspec.json.encode(work()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (
        msgspec.json.decode(data, type=list[Facts])
        if code == 0
        else f"the device ended with {code}"
    )


def complaints(
    world: World,
    facts: Facts,
    orders: Sequence[Order],
    *,
    disturbed: Collection[Order] = (),
    ends: Collection[Step] = BAD_ENDS,
) -> list[str]:
    """Return which invariants do not hold after a device was given these orders.

    Args:
        world: of the device.
        facts: seen after the last of the orders.
        orders: every one that the device has been given, oldest first; the last is in force.
        disturbed: orders whose attempt may have ended badly because of a fault.
        ends: how those may have ended.
    """
    found = []
    names = {order.digest: f"release {order.attempt}" for order in world.orders} | {"": "nothing"}
    wanted = world.right(orders[-1])
    settled = orders[-1] not in disturbed
    floors = {wanted.attempt}
    if not settled:
        floors |= {order.attempt for order in orders if order.kind == "good"} | {0}
    elif facts.serving != wanted.digest:
        found.append(f"{names[facts.serving]} serves, not release {wanted.attempt}; {facts.steps}")
    # An unconfirmed candidate may serve after a restart: its trial has passed.
    tried = {order.digest for order in orders if order.kind in ("good", "faulty")}
    for digest in (facts.offline, facts.serving):
        if digest and digest not in tried:
            found.append(f"{names[digest]} served, which never passed a trial")
    if not facts.right:
        found.append("it answered wrongly")
    if facts.floor not in floors:
        found.append(f"the floor is {facts.floor}, not {wanted.attempt}")
    if facts.waiting and settled:
        found.append(f"{facts.waiting} messages are still to be said")
    for order in orders:
        told = facts.outcomes.get(order.attempt, set())
        due = [{str(OUTCOMES[order.kind])}]
        if order in disturbed:
            due += [{str(step)} for step in ends]
        if told not in due and (settled or told):
            said = " and ".join(sorted(told)) or "nothing"
            found.append(f"of attempt {order.attempt} the hub heard {said}")
    return found + (facts.leftovers if settled else [])
