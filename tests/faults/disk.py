"""Cases of the store itself: a full and a read-only file system, and files that are damaged.

Full and read-only are real: a tmpfs of a few MiB in a mount namespace of the case's own.
"""

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from edgefleet_agent.config import Config, Storage
from edgefleet_agent.testing import Rig
from tests.faults.cases import Case, Outcome
from tests.faults.world import (
    Order,
    World,
    answers_right,
    complaints,
    in_child,
    send,
    serving,
)

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_SIZE_BYTES = 3 * 1024 * 1024


def mount_small(folder: Path, size_bytes: int = _SIZE_BYTES) -> str:
    """Mount a small file system at `folder`, for this process and its children only.

    Returns:
        What is missing to do so; empty if it was done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags, user, group = _CLONE_NEWNS, os.geteuid(), os.getegid()
    if user != 0:
        flags |= _CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", "ascii")
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command[:3])}: {done.stderr.strip()}"
    return ""


class SmallDevice:
    """A device on a file system of 3 MiB that serves release 1."""

    def __init__(self, folder: Path) -> None:
        self.missing = mount_small(folder / "device")
        if self.missing:
            return
        self.world = World(folder)
        self.given: list[Order] = []
        self.rig = self.open()
        self.first = self.order()
        self.world.converge(self.rig, self.first)
        assert serving(self.rig) == self.first.digest

    def open(self) -> Rig:
        """Start the device's agent."""
        store = str(self.world.store)
        config = Config(store=store, board="generic-x86_64", storage=Storage(keep_free_bytes=0))
        return self.world.rig(config=config)

    def order(self, size_blocks: int = 2) -> Order:
        """Sign the next order and deliver it."""
        order = self.world.order(size_blocks=size_blocks)
        self.given.append(order)
        send(self.rig, order)
        return order

    def fill(self) -> None:
        """Leave no room for anybody."""
        with (self.world.folder / "filler").open("wb", buffering=0) as file:
            for size_bytes in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size_bytes))
                except OSError:
                    continue

    def mend(self) -> None:
        """Give the room back."""
        (self.world.folder / "filler").unlink()

    def read_only(self, yes: bool) -> None:
        """Remount."""
        how = f"remount,{'ro' if yes else 'rw'},size={_SIZE_BYTES}"
        subprocess.run(["mount", "-o", how, str(self.world.folder)], check=True)

    def end(self, order: Order, *disturbed: Order) -> Outcome:
        """Converge on an order, then on one more; return what is wrong."""
        outcome = Outcome(before="r1", runs=1)
        for newest in (order, None):
            newest = newest or self.order()
            self.world.converge(self.rig, newest)
            facts = self.world.facts(self.rig)
            outcome.complaints += complaints(self.world, facts, self.given, disturbed=disturbed)
            if not outcome.after:
                found = [o.attempt for o in self.given if o.digest == facts.serving]
                outcome.after = f"r{found[0]}" if found else "–"
        self.rig.close()
        return outcome


def _on_small(case: Callable[[SmallDevice], Outcome]) -> Callable[[Path], Outcome]:
    @functools.wraps(case)
    def run(folder: Path) -> Outcome:
        device = SmallDevice(folder)
        return Outcome(skipped=device.missing) if device.missing else case(device)

    return run


@_on_small
def no_room_for_release(device: SmallDevice) -> Outcome:
    """A release that is larger than the disk is refused before its download; a smaller one fits."""
    order = device.order(size_blocks=40)
    device.world.converge(device.rig, order)
    received = device.rig.engine.attempts.summaries()[0].received_bytes
    outcome = device.end(order, order)
    if received > 128 * 1024:
        outcome.complaints.append(f"{received} bytes were fetched for nothing")
    return outcome


@_on_small
def full(device: SmallDevice) -> Outcome:
    """Not one byte is left, an order comes, time passes; then there is room again."""
    device.fill()
    order = device.order()
    device.world.converge(device.rig, order)
    served = serving(device.rig) and answers_right(device.rig)
    device.mend()
    outcome = device.end(order, order)
    if not served:
        outcome.complaints.append("it did not serve while the disk was full")
    return outcome


@_on_small
def filled_in_download(device: SmallDevice) -> Outcome:
    """The disk is filled by somebody else in the middle of a download."""
    order = device.order(size_blocks=8)
    for _ in range(8):
        device.rig.engine.step(0.0)
        device.rig.hub.answer(device.rig.link)
    device.fill()
    device.world.converge(device.rig, order)
    served = serving(device.rig) and answers_right(device.rig)
    device.mend()
    outcome = device.end(order, order)
    if not served:
        outcome.complaints.append("it did not serve while the disk was full")
    return outcome


def _started_on(
    device: SmallDevice, broken: Callable[[], None], mended: Callable[[], None]
) -> Outcome:
    device.rig.close()
    broken()
    device.rig = device.open()
    served = serving(device.rig) and answers_right(device.rig)
    order = device.order()
    device.world.converge(device.rig, order)
    mended()
    outcome = device.end(order, order)
    if not served:
        outcome.complaints.append("it did not serve after its start")
    return outcome


@_on_small
def started_full(device: SmallDevice) -> Outcome:
    """The agent is started on a full disk."""
    return _started_on(device, device.fill, device.mend)


@_on_small
def started_read_only(device: SmallDevice) -> Outcome:
    """The agent is started on a read-only store."""
    return _started_on(device, lambda: device.read_only(True), lambda: device.read_only(False))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: _write(path, bytes(path.stat().st_size)) or None,
    "flipped": lambda path: _write(path, _flipped(path.read_bytes())) or None,
    "deleted": lambda path: path.unlink(),
}


def damaged(kind: str, folder: Path) -> Outcome:
    """Each file of the store in turn is damaged while the agent is down."""
    world = World(folder)
    first, second = world.order(), world.order()
    made = in_child(lambda: world.live([first, second]))
    assert not isinstance(made, str), made
    world.keep()
    last = world.order()
    outcome = Outcome(before="r2", after="r2")
    files = sorted(
        path.relative_to(world.store)
        for path in world.store.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    for name in files:
        if name.parts[0] in ("identity", "lock"):
            continue  # a device without its identity is nobody; enrolment says so
        world.again()
        DAMAGES[kind](world.store / name)
        seen = in_child(lambda: world.live([second, last]))
        outcome.runs += 1
        if isinstance(seen, str):
            outcome.complaints.append(f"{name} {kind}: {seen}")
            continue
        found = complaints(world, seen[-1], [first, second, last])
        if not seen[0].serving:
            found.append("nothing serves")
        outcome.complaints += [f"{name} {kind}: {text}" for text in found]
    return outcome


def _write(path: Path, data: bytes) -> int:
    return path.write_bytes(data)


def _flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] if data else data


def cases() -> list[Case]:
    """Return all of them."""
    end = "the old release serves all the time; with room again the next order is carried out"
    found = [
        Case("disk/too small for the release", "a release larger than the file system", end,
             no_room_for_release, quick=True),
        Case("disk/full", "not one byte is left when the order arrives", end, full, quick=True),
        Case("disk/filled mid-download", "somebody fills the disk in a download", end,
             filled_in_download, quick=True),
        Case("disk/started full", "the agent starts on a full disk", end, started_full, quick=True),
        Case("disk/started read-only", "the agent starts on a read-only store", end,
             started_read_only, quick=True),
    ]  # fmt: skip
    found += [
        Case(
            f"damage/{kind}",
            f"each file of the store in turn is {kind} while the agent is down",
            "a release that was verified serves; the next order is carried out",
            functools.partial(damaged, kind),
        )
        for kind in DAMAGES
    ]
    return found
