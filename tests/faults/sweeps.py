"""Systematic cases: one update, and a fault at every system call of it that changes the disk.

An update is run once to its end under `syscalls.run`, which names every such call. Then it is run
again for each of them, on a fresh copy of the same device, with the fault at that call. Nothing is
sampled where a case says "each".
"""

import errno
import functools
import json
from collections.abc import Callable
from pathlib import Path

from edgefleet_protocol.messages import Step
from tests.faults import syscalls
from tests.faults.cases import Case, Outcome
from tests.faults.powerloss import RULES, Disk, Store
from tests.faults.syscalls import Call, Fate
from tests.faults.world import MODEL, Kind, Order, World, complaints, in_child

# What a path below the store is of.
FILES = {
    "journal": ("models",),
    "start counter": ("boots.json",),
    "assignment counter": ("trust/counters.json",),
    "time floor": ("trust/time.json",),
    "last contact": ("contact.json",),
    "trust metadata": ("trust/image", "trust/director", "trust"),
    "installed file": ("files",),
    "download": ("parts",),
    "outbox": ("outbox.sqlite",),
    "store folder": ("",),
}
STAGES = {
    "written": ("open", "write", "pwrite", "writev", "fallocate", "ftruncate", "mkdir"),
    "deleted": ("unlink", "rmdir"),
    "fsynced": ("fsync", "fdatasync"),
    "renamed": ("rename", "link", "symlink"),
}
# What makes a step's scenario, and in words what the device is doing there.
SCENARIO: dict[Step, Kind] = {
    Step.IDLE: "good",
    Step.FETCHING: "good",
    Step.VERIFYING: "good",
    Step.TRYING: "good",
    Step.ACTIVE: "good",
    Step.CONFIRMED: "good",
    Step.FAILED: "broken",
    Step.REJECTED: "refused",
    Step.ROLLED_BACK: "faulty",
    Step.SUPERSEDED: "good",
}
# Each phase that other updaters' suites name: scenario, and the calls that are in it.
PHASES: dict[str, tuple[Kind, Callable[[Call, str], bool]]] = {
    "download": ("good", lambda call, step: call.path.startswith("store/parts/")),
    "verify": ("good", lambda call, step: step == Step.VERIFYING),
    "install": ("good", lambda call, step: call.new_path.startswith("store/files/")),
    "activate": ("good", lambda call, step: step == Step.ACTIVE),
    "commit": ("good", lambda call, step: step == Step.CONFIRMED),
    "rollback": ("faulty", lambda call, step: step == Step.ROLLED_BACK),
    "cleanup": ("good", lambda call, step: call.name == "unlink" and "outbox" not in call.path),
}

Chosen = Callable[[Call, str], bool]


def file_of(call: Call) -> str:
    """Return which kind of file a call is about, by `FILES`; empty for none of them."""
    path = call.new_path.removeprefix("store").lstrip("/").removesuffix(".partial")
    for kind, places in FILES.items():
        for place in places:
            if path == place or (
                place and path.startswith((f"{place}/", f"{place}-", f"{place}."))
            ):
                return kind
    return ""


def stage_of(call: Call) -> str:
    """Return what is done to the file, by `STAGES`; empty for none of them."""
    return next((stage for stage, names in STAGES.items() if call.name in names), "")


def step_now(world: World) -> str:
    """Return the newest attempt's step by the journal on disk; empty if there is none to read."""
    try:
        # The first line is the journal, a checksum may follow.
        line = (world.store / "models" / f"{MODEL}.json").read_bytes().split(b"\n")[0]
        attempt = json.loads(line)["attempt"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # just being replaced
    return str(attempt["step"]) if attempt and attempt["number"] > 1 else Step.IDLE


class Sweep:
    """One scenario on one device: release 1 serves, release 2 is ordered, release 3 comes last."""

    def __init__(self, folder: Path, kind: Kind, *, first: bool = False) -> None:
        """Make the device.

        Args:
            folder: empty.
            kind: of the order that is disturbed.
            first: it is the first order of a new device.
        """
        self.world = World(folder)
        self.orders: list[Order] = []
        if not first:
            self.orders.append(self.world.order())
            self._live(self.orders)
        self.disturbed = self.world.order(kind)
        self.last = self.world.order()
        self.world.keep()

    def calls(self) -> list[tuple[Call, str]]:
        """Run the update undisturbed; return each call with the step it was made in."""
        found: list[tuple[Call, str]] = []

        def note(call: Call) -> Fate:
            if call.path != "mended":
                found.append((call, step_now(self.world)))
            return Fate.GO_ON

        self.world.again()
        code = self._traced(note)
        assert code == 0, f"the undisturbed update ended with {code}"
        strange = [str(call) for call, _ in found if not (file_of(call) and stage_of(call))]
        assert not strange, f"calls of no known kind: {strange}"
        return found

    def kill(self, at: Call) -> list[str]:
        """Kill the device before one call; return what is wrong after its next life."""
        self.world.again()
        code = self._traced(lambda call: Fate.KILL if call.number == at.number else Fate.GO_ON)
        assert code == -9, f"the device was to be killed before {at}; it ended with {code}"
        return [f"killed before {at}: {text}" for text in self.recover()]

    def fail(self, at: Call, error: int, *, lasting: bool) -> list[str]:
        """Let one call fail, or it and all later ones that write; return what is wrong then."""
        self.world.again()
        mended = False

        def fate(call: Call) -> Fate | int:
            nonlocal mended
            mended = mended or call.path == "mended"
            if call.number == at.number:
                return error
            later = lasting and call.number > at.number and not mended
            # A full disk refuses what needs room, a read-only one every change; both say first
            # that a folder is there already.
            stages = ("written",) if error == errno.ENOSPC else ("written", "renamed", "deleted")
            refused = stage_of(call) in stages and call.name != "mkdir"
            return error if later and refused else Fate.GO_ON

        code = self._traced(fate)
        if code != 0:
            return [f"{errno.errorcode[error]} at {at}: the device ended with {code}"]
        found = self.recover(disturbed=True)
        return [f"{errno.errorcode[error]} at {at}: {text}" for text in found]

    def recover(self, *, disturbed: bool = False) -> list[str]:
        """Start the device again, give it the same order, then the last one; judge each."""
        given, allowed = [*self.orders, self.disturbed], []
        lives = [self.disturbed, self.last]
        if disturbed:  # its attempt may have ended; the same order is nothing new then
            lives, allowed = [self.last], [self.disturbed]
        seen = in_child(lambda: self.world.live(lives))
        if isinstance(seen, str):
            return [seen]
        found = [] if disturbed else complaints(self.world, seen[0], given)
        return found + complaints(self.world, seen[-1], [*given, self.last], disturbed=allowed)

    def power_losses(self, rule: str) -> dict[str, tuple[str, Store, bytes]]:
        """Run the update undisturbed; return what a power cut at each call leaves by one rule.

        Returns:
            Digest of the store → where the cut was, the store, and the hub's ledger at that time.
        """
        self.world.again()
        disk = Disk(self.world.store)
        found: dict[str, tuple[str, Store, bytes]] = {}

        def look(call: Call) -> Fate:
            store = disk.after_power_loss(rule, seed=call.number)
            found.setdefault(
                store.digest, (f"power cut before {call}", store, self.world.hub.committed())
            )
            return Fate.GO_ON

        def done(call: Call) -> None:
            if stage_of(call) == "fsynced":
                disk.made_durable(call.path.removeprefix("store").lstrip("/"))

        code = self._traced(look, done)
        disk.close()
        assert code == 0, f"the undisturbed update ended with {code}"
        return found

    def lose_power(self, rule: str) -> Outcome:
        """Start the device from each store that a power cut may leave by one rule."""
        outcome = self.outcome()
        for where, store, ledger in self.power_losses(rule).values():
            self.world.again(store, ledger)
            outcome.complaints += [f"{where}: {text}" for text in self.recover()]
            outcome.runs += 1
        return outcome

    def outcome(self) -> Outcome:
        """Return an outcome without a fault yet."""
        before = f"r{self.orders[-1].attempt}" if self.orders else "–"
        return Outcome(before=before, after=f"r{self.world.right(self.disturbed).attempt}")

    def _live(self, orders: list[Order]) -> None:
        """Make the device what it is before the fault."""
        seen = in_child(lambda: self.world.live(orders))
        wrong = seen if isinstance(seen, str) else complaints(self.world, seen[-1], orders)
        assert not wrong, f"the device could not be made: {wrong}"

    def _traced(
        self, before: Callable[[Call], Fate | int], after: Callable[[Call], None] = lambda _: None
    ) -> int:
        def life() -> None:
            self.world.live([self.disturbed], mended=(self.world.folder / "mended").mkdir)

        return syscalls.run(life, self.world.folder, before, after)


def killed_at_each(kind: Kind, chosen: Chosen, folder: Path, *, first: bool = False) -> Outcome:
    """Kill the device before each chosen call of an update."""
    sweep = Sweep(folder, kind, first=first)
    outcome = sweep.outcome()
    for call, step in sweep.calls():
        if chosen(call, step):
            outcome.complaints += sweep.kill(call)
            outcome.runs += 1
    return _not_empty(outcome)


def failed_at_each(
    kind: Kind, chosen: Chosen, error: int, folder: Path, *, lasting: bool = False
) -> Outcome:
    """Let each chosen call of an update fail once, or from then on until it is mended."""
    sweep = Sweep(folder, kind)
    outcome = sweep.outcome()
    if not syscalls.CAN_FAIL_CALLS:
        outcome.skipped = "failing a system call of another process is done on x86-64 only"
        return outcome
    for call, step in sweep.calls():
        if chosen(call, step):
            outcome.complaints += sweep.fail(call, error, lasting=lasting)
            outcome.runs += 1
    return _not_empty(outcome)


def power_lost(kind: Kind, rule: str, folder: Path, *, first: bool = False) -> Outcome:
    """Cut the power before each call of an update, by one rule of what is lost."""
    return _not_empty(Sweep(folder, kind, first=first).lose_power(rule))


def _not_empty(outcome: Outcome) -> Outcome:
    if not outcome.runs:
        outcome.complaints.append("no system call of the update is of this kind")
    return outcome


def _in_step(step: Step) -> Chosen:
    return lambda call, now: now == step and not call.path.endswith(("-shm",))


def _of_file(kind: str, stage: str) -> Chosen:
    return lambda call, _: file_of(call) == kind and stage_of(call) == stage


def _every(_: Call, __: str) -> bool:
    return True


def cases() -> list[Case]:
    """Return every systematic case."""
    found = []
    same = "the update ends as it would have without the fault"
    bad = "the old release serves, or the new one; a later order is carried out"
    words = {
        "written": "before each write",
        "fsynced": "between write and fsync",
        "renamed": "between fsync and rename",
        "deleted": "before each deletion",
    }
    for step, kind in SCENARIO.items():
        if step is Step.SUPERSEDED:
            continue  # a case of `wire`: it takes two orders
        chosen = _in_step(step)
        found += [
            Case(
                f"kill/in {step}",
                f"SIGKILL at each disk call while the attempt is {step}",
                same,
                functools.partial(killed_at_each, kind, chosen),
                quick=step in (Step.TRYING, Step.ACTIVE),
            ),
            Case(
                f"error/in {step}",
                f"EIO at each disk call while the attempt is {step}",
                bad,
                functools.partial(failed_at_each, kind, chosen, errno.EIO),
                quick=step is Step.VERIFYING,
            ),
        ]
    for phase, (kind, chosen) in PHASES.items():
        found += [
            Case(
                f"kill/{phase}",
                f"SIGKILL at each disk call of {phase}",
                same,
                functools.partial(killed_at_each, kind, chosen),
            ),
            Case(
                f"error/{phase}",
                f"EIO at each disk call of {phase}",
                bad,
                functools.partial(failed_at_each, kind, chosen, errno.EIO),
            ),
            Case(
                f"full/{phase}",
                f"no space from each disk call of {phase} on, until there is some again",
                bad,
                functools.partial(failed_at_each, kind, chosen, errno.ENOSPC, lasting=True),
            ),
            Case(
                f"read-only/{phase}",
                f"the store is read-only from each disk call of {phase} on, until it is mended",
                bad,
                functools.partial(failed_at_each, kind, chosen, errno.EROFS, lasting=True),
            ),
        ]
    for file in FILES:
        for stage, when in words.items():
            if (file, stage) in _NEVER:
                continue
            found.append(
                Case(
                    f"kill/{file}, {stage}",
                    f"SIGKILL {when} of {file}",
                    same,
                    functools.partial(killed_at_each, "good", _of_file(file, stage)),
                    quick=file == "journal" and stage == "renamed",
                )
            )
    found.append(
        Case(
            "kill/first install",
            "SIGKILL at each disk call of the first update of a new device",
            same,
            functools.partial(killed_at_each, "good", _every, first=True),
        )
    )
    for kind in ("refused", "broken", "faulty"):
        found.append(
            Case(
                f"kill/{kind} release",
                f"SIGKILL at each disk call of an update to a {kind} release",
                same,
                functools.partial(killed_at_each, kind, _every),
            )
        )
    for rule in RULES:
        for kind in ("good", "refused", "faulty"):
            found.append(
                Case(
                    f"power/{rule}, {kind}",
                    f"power cut at each disk call of an update to a {kind} release; {rule}",
                    same,
                    functools.partial(power_lost, kind, rule),
                )
            )
        found.append(
            Case(
                f"power/{rule}, first",
                f"power cut at each disk call of the first update; {rule}",
                same,
                functools.partial(power_lost, "good", rule, first=True),
            )
        )
    return found


# Kinds of files to which this is never done.
_NEVER = {
    ("download", "renamed"),
    ("outbox", "renamed"),
    ("store folder", "written"),
    ("store folder", "renamed"),
    ("store folder", "deleted"),
}
