"""Random faults on one device after another: kills, disk errors, cuts, lost and mixed-up messages.

Every device (a *world*) has a seed of its own, made of the run's seed and its number, and decides
by it what happens next: a new release (good, refused, broken or faulty), and a fault while the
device works on it. After each fault the fault is gone, the broker says again what it retains, time
passes, and the invariants are looked at:

- *bricked*: the store cannot be opened, or nothing serves, or what serves answers wrongly;
- *wrong version*: what serves is not the release that the hub last heard confirmed;
- *stuck*: the newest order has not come to an end;
- *lost result*: an attempt that the device began has ended without a result at the hub, or with
  two that contradict each other.

A kill is an exception that no code of the agent catches, raised from a call that changes the disk;
after it every such call raises it again, so nothing more gets to the disk, and the store is opened
anew. (Real SIGKILLs and power cuts, at every call and not at random ones, are cases of `sweeps`.)
"""

import collections
import contextlib
import errno
import logging
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from edgefleet_agent.errors import AgentError
from edgefleet_agent.testing import Rig
from edgefleet_agent.updating.starts import GOOD_S
from tests.faults.world import OUTCOMES, World, answers_right, ask, send, serving

FAULTS_PER_WORLD = 100
_FAR = 1_000_000
_KINDS = ("good", "good", "good", "refused", "broken", "faulty")
# How an attempt may end otherwise because of a fault; all others leave it as it would have been.
_MAY_END = {
    "disk error": {"failed", "rolled_back"},
    "cut": {"failed", "rolled_back"},  # for up to a day, in which nobody asks for an answer
    "damaged": {"rejected"},  # by the third wrong answer for one block
}
_ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


class KilledError(BaseException):
    """The device process has ended here."""


class Disk:
    """Stands between the agent and `os`, and counts the calls that change the disk.

    Attributes:
        kill_in: calls until the device is killed.
        fail_in: calls until they fail.
        fail_for: how many calls fail then.
    """

    def __init__(self) -> None:
        self.kill_in = self.fail_in = _FAR
        self.fail_for = 0
        self.error = errno.EIO
        self.killed = False
        self.connections: list[sqlite3.Connection] = []

    def heal(self) -> None:
        """Let every call through from now on."""
        self.kill_in = self.fail_in = _FAR
        self.fail_for, self.killed = 0, False

    def point(self) -> None:
        """Pass one call, or do not."""
        if self.killed:
            raise KilledError
        self.kill_in -= 1
        self.fail_in -= 1
        if self.kill_in <= 0:
            self.killed = True
            raise KilledError
        if self.fail_in <= 0 and self.fail_for > 0:
            self.fail_for -= 1
            raise OSError(self.error, os.strerror(self.error))

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Stand there."""
        with contextlib.ExitStack() as held:
            for name in (
                "replace", "rename", "unlink", "remove", "fsync", "pwrite", "ftruncate",
                "posix_fallocate", "mkdir",
            ):  # fmt: skip
                held.enter_context(mock.patch.object(os, name, self._guarded(getattr(os, name))))
            opened = os.open

            def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
                if flags & (os.O_CREAT | os.O_TRUNC):
                    self.point()
                return opened(path, flags, *args, **options)

            held.enter_context(mock.patch.object(os, "open", open_))
            held.enter_context(mock.patch.object(sqlite3, "connect", self._connector()))
            yield

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        fsync = os.fsync

        def guarded(*args: Any, **options: Any) -> Any:
            self.point()
            # A process that is killed loses nothing by what was not fsynced, so time is saved here.
            return None if call is fsync else call(*args, **options)

        return guarded

    def _connector(self) -> Callable[..., sqlite3.Connection]:
        disk, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith(("INSERT", "DELETE", "UPDATE")):
                    disk.sqlite_point()
                return super().execute(sql, *args)

            def __exit__(self, *why: Any) -> Any:
                if why[0] is None:
                    try:
                        disk.sqlite_point()
                    except BaseException:
                        super().__exit__(*sys.exc_info())
                        raise
                return super().__exit__(*why)

        def connected(*args: Any, **options: Any) -> sqlite3.Connection:
            made = connect(*args, factory=Connection, **options)
            disk.connections.append(made)
            return made

        return connected

    def sqlite_point(self) -> None:
        """Pass one statement; SQLite tells of disk errors in its own way."""
        try:
            self.point()
        except OSError as error:
            raise sqlite3.OperationalError(f"disk I/O error: {error}") from error


@dataclass
class Tally:
    """What was counted.

    Attributes:
        faults: injected, by kind.
        violations: of an invariant, each with where it was found.
    """

    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    updates: collections.Counter[str] = field(default_factory=collections.Counter)
    violations: dict[str, list[str]] = field(
        default_factory=lambda: {name: [] for name in VIOLATIONS}
    )

    def add(self, other: "Tally") -> None:
        """Add another one to this."""
        self.faults += other.faults
        self.updates += other.updates
        for name, found in other.violations.items():
            self.violations[name] += found

    @property
    def failed(self) -> bool:
        """Whether anything was violated."""
        return any(self.violations.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        found = ", ".join(f"{len(texts)} {name}" for name, texts in self.violations.items())
        ended = ", ".join(f"{count} {kind}" for kind, count in sorted(self.updates.items()))
        return (
            f"faults: {kinds}\nupdates: {ended}\n"
            f"{self.faults.total()} faults, {self.updates.total()} updates: {found}"
        )


VIOLATIONS = ("bricked", "wrong versions", "stuck", "lost results")


class Soak:
    """One world: a device, its hub, and chance."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.tally = Tally()
        self.world = World(folder)
        self.disk = Disk()
        self.begun: set[int] = set()
        self.allowed: set[str] = set()
        self.fresh = True
        with self.disk.patched():
            self.rig = self.world.rig()
            self.order = self.world.order()
            self.recover()

    def fault(self) -> bool:
        """Let one thing happen, and look at the device; return whether all is well."""
        if self.chance.random() < 0.6:
            self.order = self.world.order(
                self.chance.choice(_KINDS),
                size_blocks=self.chance.choice((1, 1, 2)),  # type: ignore[arg-type]  # a literal of a tuple
            )
            self.allowed, self.fresh = set(), True
        kind = self.chance.choice(
            ("kill", "kill", "kill", "disk error", "cut", "lost", "twice", "mixed", "damaged",
             "forgetful hub", "clock"),
        )  # fmt: skip
        self.tally.faults[kind] += 1
        self.allowed |= _MAY_END.get(kind, set())
        with self.disk.patched():
            try:
                self._work_under(kind)
            except KilledError:
                self._reopen()
            self.disk.heal()
            if self.rig is None:
                return False
            self.recover()
        return not self.tally.failed

    def recover(self) -> None:
        """Without a fault: let the broker say what it retains, and look at the invariants."""
        rig = self.rig
        rig.link.disconnect()
        rig.link.published.clear()
        rig.link.connect()
        send(rig, self.order)
        self.world.converge(rig, self.order)
        # Kills in quick succession are a crash loop, and what serves would rightly be given up.
        rig.later(GOOD_S + 1)
        self._judge()

    def close(self) -> None:
        """Let go of everything."""
        with self.disk.patched():
            self.rig.close()

    def _work_under(self, kind: str) -> None:
        chance, rig, disk = self.chance, self.rig, self.disk
        if kind == "kill":
            disk.kill_in = chance.randint(1, 90)
        elif kind == "disk error":
            disk.fail_in, disk.fail_for = chance.randint(1, 90), chance.choice((1, 1, 3, 50))
            disk.error = chance.choice(_ERRORS)
        elif kind == "clock":
            rig.clock.now += chance.choice((-1, 1)) * 10 ** chance.uniform(0, 9)
        messages = list(self.order.messages)
        if kind == "mixed":
            chance.shuffle(messages)
        for topic, payload in messages:
            self._deliver(kind, topic, payload)
        for _ in range(chance.randint(3, 30)):
            rig.engine.step(0.0)
            self._note_begun()
            self._exchange(kind)
            if kind == "cut" and chance.random() < 0.2:
                self._cut()
            if serving(rig) and chance.random() < 0.3:
                with contextlib.suppress(AgentError):
                    ask(rig)

    def _deliver(self, kind: str, topic: str, payload: bytes) -> None:
        """Send a message of the hub as the broker does that day."""
        chance = self.chance
        if kind == "lost" and chance.random() < 0.4:
            return
        if kind == "damaged" and chance.random() < 0.4:
            at = chance.randrange(len(payload))
            payload = (
                payload[:at] + bytes([payload[at] ^ 1 << chance.randrange(8)]) + payload[at + 1 :]
            )
        self.rig.link.send(topic, payload)
        if kind == "twice" and chance.random() < 0.5:
            self.rig.link.send(topic, payload)

    def _exchange(self, kind: str) -> None:
        """Let the hub answer, with the day's broker between."""
        link, chance = self.rig.link, self.chance
        said = list(link.published)
        if kind == "lost":
            said = [message for message in said if chance.random() < 0.6]
        elif kind == "twice":
            said += [message for message in said if chance.random() < 0.5]
        elif kind == "mixed":
            chance.shuffle(said)
        link.published.clear()
        link.published.extend(said)
        send_as_is = link.send
        through = lambda topic, payload: self._deliver_with(send_as_is, kind, topic, payload)  # noqa: E731 - bound for one call
        with mock.patch.object(link, "send", through):
            self.world.hub.answer(link, acknowledge=kind != "forgetful hub")

    def _deliver_with(
        self, sent: Callable[[str, bytes], None], kind: str, topic: str, payload: bytes
    ) -> None:
        with mock.patch.object(self.rig.link, "send", sent):
            self._deliver(kind, topic, payload)

    def _cut(self) -> None:
        link = self.rig.link
        link.disconnect()
        link.published.clear()
        self.rig.engine.step(0.0)
        self.rig.monotonic.now += 10 ** self.chance.uniform(0, 5)
        self.rig.engine.step(0.0)
        link.connect()

    def _reopen(self) -> None:
        """Open the store that a kill has left; it may be killed again while it opens."""
        now = self.rig.clock.now
        again = self.chance.random() < 0.2
        for connection in self.disk.connections:
            connection.close()
        self.disk.connections.clear()
        self.disk.heal()
        if again:
            self.disk.kill_in = self.chance.randint(1, 20)
        try:
            self.rig = self._opened(now)
        except KilledError:
            self.disk.heal()
            self.rig = self._opened(now)
        self._note_begun()

    def _opened(self, now: float) -> Rig:
        rig = self.world.rig()
        rig.clock.now = now
        return rig

    def _note_begun(self) -> None:
        self.begun.update(attempt.number for attempt in self.rig.engine.attempts.summaries())

    def _judge(self) -> None:
        rig, order, violations = self.rig, self.order, self.tally.violations
        where = f"world {self.seed}, fault {self.tally.faults.total()}"
        self._note_begun()
        outcomes = self.world.hub.outcomes()
        confirmed = max((n for n, told in outcomes.items() if told == {"confirmed"}), default=0)
        wanted = self.world.orders[confirmed - 1].digest if confirmed else ""
        if not serving(rig) or not answers_right(rig):
            violations["bricked"].append(f"{where}: serving {serving(rig)!r}")
        elif serving(rig) != wanted:
            violations["wrong versions"].append(f"{where}: not release {confirmed}; {rig.steps()}")
        told = outcomes.get(order.attempt, set())
        if not told or not told <= {OUTCOMES[order.kind], *self.allowed}:
            violations["stuck"].append(
                f"{where}: attempt {order.attempt} told {told}; {rig.steps()}"
            )
        for number in sorted(self.begun):
            if len(outcomes.get(number, ())) != 1:
                violations["lost results"].append(f"{where}: {number} told {outcomes.get(number)}")
        if self.fresh:
            self.tally.updates[next(iter(told), "none")] += 1
        self.fresh = False
        self.begun.clear()


def play(faults: int, seed: str, folder: Path) -> Tally:
    """Play one world; stop at the first violation.

    Args:
        faults: how many at most.
        seed: of all chance in it: the same one plays the same again.
        folder: for the device; it is removed.
    """
    world = Soak(folder, seed)
    for _ in range(faults):
        if not world.fault():
            break
    else:
        world.close()
    shutil.rmtree(folder, ignore_errors=True)
    return world.tally


def soak(faults: int, seed: int, *, folder: Path, jobs: int) -> Tally:
    """Inject so many faults into one world after another; stop after the first bad one."""
    tally = Tally()
    counts = [FAULTS_PER_WORLD] * (faults // FAULTS_PER_WORLD)
    counts += [faults % FAULTS_PER_WORLD] if faults % FAULTS_PER_WORLD else []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting = [
            pool.submit(play, count, f"{seed}/{number}", folder / str(number))
            for number, count in enumerate(counts)
        ]
        for played in as_completed(waiting):
            if not played.cancelled():
                tally.add(played.result())
            if tally.failed:
                pool.shutdown(wait=False, cancel_futures=True)
    return tally


def main(faults: int, seed: int, jobs: int) -> int:
    """Run the soak and print its counts; return the exit code."""
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    # In memory where there is such a file system: it is kept by nobody, and 50 times as fast.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edgefleet-soak-", dir=place) as folder:
        tally = soak(faults, seed, folder=Path(folder), jobs=jobs)
    for name, found in tally.violations.items():
        for text in found[:5]:
            print(f"{name}: {text}")
    print(f"seed {seed}, {time.monotonic() - started:.0f} s")
    print(tally)
    return 1 if tally.failed else 0
