"""The trial of a candidate in a child process, and how the parent keeps hold of that child.

A model file can crash its runtime, never return, or ask for terabytes (all three were seen). So
it is first loaded where that hurts nobody; `trial_child` is what runs there. Rules:

1. The parent watches time and resident memory, and reads at most `_MAX_ANSWER_BYTES`; the child
   limits itself too, for the moments between two looks and for a parent that is gone.
2. The child is the leader of its own process group, and the group is killed at the end, so nothing
   that it started stays behind.
3. A child that does not go away when it is killed (the kernel holds it, in a driver or a dead disk)
   is left behind after `_KILL_WAIT_S`: the verdict says so, and the agent goes on.
4. Whatever the child does becomes a sentence; only a child that answered, with no fault, passed.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct, field

from edgefleet_agent.operating.health import resident_bytes
from edgefleet_agent.runtimes.execution import How

_POLL_S = 0.05
_KILL_WAIT_S = 5.0
_MAX_ANSWER_BYTES = 64 * 1024
# Python, numpy and a runtime without a model: 40 to 60 MiB measured.
RUNTIME_BYTES = 96 * 1024 * 1024
_CHILD = "edgefleet_agent.updating.trial_child"
# Children that the kernel would not let go of; collected when they end after all.
_left_behind: list["subprocess.Popen[bytes]"] = []


class Request(Struct, frozen=True):
    """What the child is to do.

    Attributes:
        manifest: path of the manifest; `model` and `golden` likewise.
        memory_bytes: that loading and running may add to what the runtime needs empty.
        how: threads and execution providers, as the release would be served with.
    """

    manifest: str
    model: str
    golden: str
    timeout_s: float
    memory_bytes: int
    how: How = field(default_factory=How)


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What came out.

    Attributes:
        faults: why the candidate is refused; empty if it passed.
        latency_us: time of one row: the best of several medians.
        memory_bytes: resident memory that loading and running added at its highest.
        provider: what computed.
        error: what kept the trial from being made, which is no fault of the candidate.
    """

    faults: list[str]
    latency_us: float = 0.0
    memory_bytes: int = 0
    provider: str = ""
    error: str = ""


def run(request: Request, cancelled: Callable[[], bool] = lambda: False) -> Verdict:
    """Try a candidate in a child process.

    Args:
        request: what to try.
        cancelled: looked at while waiting; the child is killed if it says True.

    Raises:
        OSError: if no child process can be started, or it cannot read its files.
    """
    _left_behind[:] = [child for child in _left_behind if child.poll() is None]
    child = subprocess.Popen(
        [sys.executable, "-m", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert child.stdin is not None  # asked for by PIPE
    assert child.stdout is not None
    answer = bytearray()
    try:
        # A child that died already is seen by its exit code. A request is shorter than what a
        # pipe takes at once, so a child that does not read holds nobody up.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(msgspec.json.encode(request))
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        os.set_blocking(child.stdout.fileno(), False)
        complaint = _watch(child, child.stdout.fileno(), answer, request, cancelled)
    finally:
        stuck = not _end(child)
        child.stdout.close()
    if stuck:
        complaint += f"; its process {child.pid} cannot be ended and stays behind in the kernel"
    if complaint:
        return Verdict([complaint])
    return _read_answer(child.returncode, bytes(answer))


def _watch(
    child: "subprocess.Popen[bytes]",
    output: int,
    answer: bytearray,
    request: Request,
    cancelled: Callable[[], bool],
) -> str:
    """Wait for the child and gather its answer; return why it is to be killed, empty if it ended.

    Args:
        child: the process.
        output: descriptor of its standard output, not blocking.
        answer: takes what it writes.
        request: with the limits.
        cancelled: whether nobody wants the answer any more.
    """
    until = time.monotonic() + request.timeout_s
    open_ = True
    while True:
        ended = child.poll() is not None
        # What a child that ended has written is all there; a process that it left behind and that
        # holds the pipe open is not waited for.
        while open_ and _readable(output, 0 if ended else _POLL_S):
            data = os.read(output, _MAX_ANSWER_BYTES)
            answer += data
            open_ = bool(data)
            if len(answer) > _MAX_ANSWER_BYTES:
                return f"the trial answered with more than {_MAX_ANSWER_BYTES} bytes"
        if ended:
            return ""
        if not open_:
            time.sleep(_POLL_S)
        # A child that has just ended has none.
        if (resident_bytes(child.pid) or 0) > request.memory_bytes + RUNTIME_BYTES:
            return f"the trial used more than {request.memory_bytes} bytes of memory"
        if time.monotonic() > until:
            return f"the trial did not end within {request.timeout_s:g} s"
        if cancelled():
            return "the trial was cancelled"


def _readable(descriptor: int, wait_s: float) -> bool:
    return bool(select.select([descriptor], [], [], wait_s)[0])


def _end(child: "subprocess.Popen[bytes]") -> bool:
    """Kill the child's whole group and wait for it; return whether it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        _left_behind.append(child)
        return False
    return True


def _read_answer(code: int, answer: bytes) -> Verdict:
    if code == -signal.SIGKILL:
        return Verdict(["the system ended the trial (SIGKILL), as it does when memory runs out"])
    if code == -signal.SIGALRM:
        return Verdict(["the trial did not end in time"])
    if code < 0:
        return Verdict([f"the model brought its runtime down (the trial ended by {_name(-code)})"])
    try:
        verdict = msgspec.json.decode(answer, type=Verdict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Verdict([f"the trial ended with code {code} and without an answer"])
    if verdict.error:
        raise OSError(f"the trial could not be made: {verdict.error}")
    return verdict


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
