"""The trial of a candidate, in a child process: load it, run its golden vectors, measure it.

A model file can crash its runtime, never return, or ask for terabytes (all three were seen). So
it is first loaded where that hurts nobody. Rules:

1. The child limits its own data memory before it loads anything, and has a kernel timer that ends
   it even if the agent is gone and the runtime holds the interpreter lock.
2. The parent watches resident memory and time too; whatever the child does becomes a sentence.
3. Only a child that answered, with no fault, has passed.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from edgefleet_agent import runtimes
from edgefleet_agent.errors import AgentError
from edgefleet_protocol import golden, manifest, rows
from edgefleet_protocol.errors import ProtocolError

_POLL_S = 0.05
# Single-row calls that are timed; the median is reported.
_TIMED_CALLS = 21
_MAX_ANSWER_BYTES = 64 * 1024
# Python, numpy and a runtime without a model: 40 to 60 MiB measured.
_RUNTIME_BYTES = 96 * 1024 * 1024
_MAX_FAULTS_SHOWN = 5
# The child's own alarm comes a little after the parent's limit, which gives the better text.
_ALARM_GRACE_S = 5.0


class Request(Struct, frozen=True):
    """What the child is to do."""

    manifest: str
    model: str
    golden: str
    timeout_s: float
    memory_bytes: int


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What came out.

    Attributes:
        faults: why the candidate is refused; empty if it passed.
        latency_us: median time of one row.
        memory_bytes: resident memory that loading and running added.
    """

    faults: list[str]
    latency_us: float = 0.0
    memory_bytes: int = 0


def run(request: Request, cancelled: Callable[[], bool] = lambda: False) -> Verdict:
    """Try a candidate in a child process.

    Args:
        request: what to try.
        cancelled: looked at while waiting; the child is killed if it says True.

    Raises:
        OSError: if no child process can be started.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "edgefleet_agent.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdin is not None  # asked for by PIPE
        assert child.stdout is not None
        try:
            child.stdin.write(msgspec.json.encode(request))
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died already; its exit code says how
        complaint = _watch(child, request, cancelled)
        answer = b"" if complaint else child.stdout.read(_MAX_ANSWER_BYTES)
    if complaint:
        return Verdict([complaint])
    return _read_answer(child.returncode, answer)


def _watch(
    child: "subprocess.Popen[bytes]", request: Request, cancelled: Callable[[], bool]
) -> str:
    """Wait for the child; return why it was killed, empty if it ended by itself."""
    until = time.monotonic() + request.timeout_s
    process = psutil.Process(child.pid)
    while True:
        try:
            child.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            return ""
        complaint = ""
        try:
            used = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it has just ended
        if used > request.memory_bytes + _RUNTIME_BYTES:
            complaint = f"the trial used more than {request.memory_bytes} bytes of memory"
        elif time.monotonic() > until:
            complaint = f"the trial did not end within {request.timeout_s:g} s"
        elif cancelled():
            complaint = "the trial was cancelled"
        if complaint:
            child.kill()
            child.wait()
            return complaint


def _read_answer(code: int, answer: bytes) -> Verdict:
    if code < 0:
        name = signal.Signals(-code).name
        return Verdict([f"the model brought its runtime down (the trial ended by {name})"])
    try:
        return msgspec.json.decode(answer, type=Verdict)
    except msgspec.DecodeError:
        return Verdict([f"the trial ended with code {code} and without an answer"])


def main() -> int:
    """Run one trial: request on standard input, verdict on standard output."""
    # Runtimes print to standard output; the verdict gets a descriptor of its own.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    signal.setitimer(signal.ITIMER_REAL, request.timeout_s + _ALARM_GRACE_S)
    try:
        verdict = _try(request)
    except (AgentError, ProtocolError, OSError) as error:
        verdict = Verdict([str(error)[:1000]])
    except MemoryError:
        verdict = Verdict([f"the model needs more than {request.memory_bytes} bytes of memory"])
    answer.write(msgspec.json.encode(verdict))
    answer.close()
    return 0


def _try(request: Request) -> Verdict:
    bundle = manifest.decode(Path(request.manifest).read_bytes())
    vectors = golden.decode(Path(request.golden).read_bytes())
    process = psutil.Process()
    before = process.memory_info().rss
    _limit_memory(request.memory_bytes)
    session = runtimes.load_bundle(bundle, Path(request.model))
    tensors = rows.bind(bundle.signature, vectors.inputs())
    faults = golden.faults(vectors, session.run(tensors))
    one = {name: tensor[:1] for name, tensor in tensors.items()}
    times = []
    for _ in range(_TIMED_CALLS):
        started = time.perf_counter()
        session.run(one)
        times.append(time.perf_counter() - started)
    return Verdict(
        [f"golden vectors: {fault}" for fault in faults[:_MAX_FAULTS_SHOWN]],
        latency_us=round(sorted(times)[_TIMED_CALLS // 2] * 1e6, 1),
        memory_bytes=max(process.memory_info().rss - before, 0),
    )


def _limit_memory(allowed: int) -> None:
    """Bound writable memory. The address space (RLIMIT_AS) would count mapped libraries too."""
    status = Path("/proc/self/status").read_text("ascii")
    data_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
    limit = data_kib * 1024 + _RUNTIME_BYTES + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
