"""Running cases, each in a process of its own with a time limit, and showing what came of them."""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from tests.faults.cases import Case, Outcome

_PR_SET_CHILD_SUBREAPER = 36
# A trial whose agent was killed ends by its own alarm.
_ORPHANS_END_WITHIN_S = 15.0
_SHOWN = 3


@dataclass
class Ran:
    """A case that was run."""

    case: Case
    outcome: Outcome
    seconds: float

    @property
    def verdict(self) -> str:
        """`ok`, `skipped` or `FAILED`."""
        if self.outcome.skipped:
            return "skipped"
        return "FAILED" if self.outcome.complaints else "ok"


@dataclass
class _Running:
    case: Case
    pid: int
    pipe: int
    since: float
    data: bytes = b""


def run_all(cases: list[Case], *, jobs: int, told: Callable[[Ran], None]) -> list[Ran]:
    """Run cases beside one another; `told` hears of each as it ends."""
    waiting, running, ended = list(cases), list[_Running](), []
    # In memory where there is such a file system: nothing here depends on a real disk's fsync.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    base = Path(tempfile.mkdtemp(prefix="edgefleet-faults-", dir=place))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                case = waiting.pop(0)
                running.append(_start(case, base / f"{len(waiting)}"))
            for one in _finished(running):
                running.remove(one)
                ended.append(_judge(one))
                told(ended[-1])
    finally:
        for one in running:
            _end(one)
        shutil.rmtree(base, ignore_errors=True)
    return ended


def table(ran: list[Ran]) -> Table:
    """Return the table of all cases."""
    made = Table(box=None, pad_edge=False)
    for name in ("case", "outcome", "serving", "times", "nothing lost", "s"):
        made.add_column(name, justify="right" if name in ("times", "s") else "left")
    for one in ran:
        outcome = one.outcome
        lost = "–" if outcome.skipped else ("no" if outcome.complaints else "yes")
        colour = {"ok": "green", "skipped": "yellow", "FAILED": "red"}[one.verdict]
        made.add_row(
            one.case.name,
            f"[{colour}]{one.verdict}[/]",
            f"{outcome.before} → {outcome.after}" if outcome.after else "",
            str(outcome.runs),
            lost,
            f"{one.seconds:.1f}",
        )
    return made


def show(console: Console, ran: list[Ran]) -> None:
    """Print the table, what failed, and the counts."""
    console.print(table(ran))
    for one in ran:
        if one.outcome.skipped:
            console.print(f"skipped {one.case.name}: {one.outcome.skipped}")
        for text in one.outcome.complaints[:_SHOWN]:
            console.print(f"FAILED {one.case.name}: {text}", markup=False)
        if len(one.outcome.complaints) > _SHOWN:
            console.print(f"       … and {len(one.outcome.complaints) - _SHOWN} more")


def counts(ran: list[Ran]) -> str:
    """Return the last line."""
    failed = sum(one.verdict == "FAILED" for one in ran)
    skipped = sum(one.verdict == "skipped" for one in ran)
    faults = sum(one.outcome.runs for one in ran)
    return f"{len(ran)} cases, {failed} failed, {skipped} skipped; {faults} faults injected"


def write_json(ran: list[Ran], path: Path) -> None:
    """Write everything that is known of the cases."""
    rows = [
        {
            "name": one.case.name,
            "injected": one.case.injected,
            "expected": one.case.expected,
            "verdict": one.verdict,
            "seconds": round(one.seconds, 3),
            **asdict(one.outcome),
        }
        for one in ran
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


def _start(case: Case, folder: Path) -> _Running:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_case(case, folder, writing)
    os.close(writing)
    return _Running(case, pid, reading, time.monotonic())


def _be_case(case: Case, folder: Path, pipe: int) -> None:
    """Run one case; never returns."""
    os.setsid()
    folder.mkdir()
    # Whatever a device leaves behind becomes a child of this process, and is seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        outcome = case.run(folder / "case")
        outcome.complaints += _orphans()
    except BaseException:
        outcome = Outcome([traceback.format_exc()])
    if outcome.complaints:
        with contextlib.suppress(OSError):
            outcome.complaints.append("log: " + (folder / "log").read_text("utf-8")[-1500:])
            if len(outcome.complaints[-1]) == len("log: "):
                outcome.complaints.pop()
    with os.fdopen(pipe, "wb") as out:
        out.write(msgspec.json.encode(outcome))
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _orphans() -> list[str]:
    """Return which processes of the case are still there when they should have ended."""
    until = time.monotonic() + _ORPHANS_END_WITHIN_S
    _, alive = psutil.wait_procs(
        psutil.Process().children(recursive=True), timeout=until - time.monotonic()
    )
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    return [f"a process was left: {process}" for process in left]


def _finished(running: list[_Running]) -> Iterator[_Running]:
    now = time.monotonic()
    ready, _, _ = select.select([one.pipe for one in running], [], [], 0.5)
    for one in list(running):
        if one.pipe in ready:
            data = os.read(one.pipe, 1 << 20)
            one.data += data
            if not data:
                yield one
        elif now - one.since > one.case.limit_s:
            yield one


def _judge(one: _Running) -> Ran:
    seconds = time.monotonic() - one.since
    if seconds > one.case.limit_s and not one.data:
        outcome = Outcome([f"hung: no end within {one.case.limit_s:g} s"])
    else:
        try:
            outcome = msgspec.json.decode(one.data, type=Outcome)
        except msgspec.DecodeError:
            outcome = Outcome(["the case's own process crashed"])
    _end(one)
    return Ran(one.case, outcome, seconds)


def _end(one: _Running) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.pid, signal.SIGKILL)
    os.close(one.pipe)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(one.pid, 0)
