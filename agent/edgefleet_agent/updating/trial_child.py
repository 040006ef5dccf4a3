"""The child of a trial: load the candidate, run its golden vectors, measure it.

1. Before it loads anything it limits itself: writable memory, time (by a kernel timer, which ends
   it even while the runtime holds the interpreter lock), size of files, open files, processes; no
   core dump; lowest priority; first choice of the kernel when memory runs out; dead when the agent
   is. A GPU's driver reserves address space without end, so with one, only the parent's look at
   resident memory bounds it.
2. The runtime itself is not counted as the model's memory.
3. Latency: a round is the median of up to `_TIMED_CALLS` single rows. A busy board slows rounds
   down and never makes one faster than the model is, so the best of up to `_ROUNDS` rounds counts,
   and rounds end as soon as one is within the manifest's budget. All take `_TIMING_SHARE` of the
   time limit at most.
"""

import ctypes
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgefleet_agent import runtimes
from edgefleet_agent.errors import AgentError
from edgefleet_agent.runtimes import Session
from edgefleet_agent.updating.trial import RUNTIME_BYTES, Request, Verdict
from edgefleet_protocol import golden, manifest
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.manifest import Manifest, Signature
from edgefleet_protocol.rows import Tensors

_TIMED_CALLS, _LEAST_CALLS, _ROUNDS = 21, 3, 5
_PAUSE_S = 0.05
_TIMING_SHARE = 0.25
_MAX_FAULTS_SHOWN = 5
_MAX_TEXT = 1000
# The child's own alarm comes a little after the parent's limit, which gives the better text.
_ALARM_GRACE_S = 5.0
_NICE = 10
_MAX_OPEN_FILES, _MAX_TASKS = 1024, 4096  # tasks are counted for the whole user, by the kernel
_MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_ENGINE_BYTES = 4 * 1024 * 1024 * 1024
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Run one trial: request on standard input, verdict on standard output."""
    # Runtimes print to standard output; the verdict gets a descriptor of its own.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    _limit_process(request)
    try:
        verdict = _try(request)
    except (AgentError, ProtocolError) as error:
        verdict = Verdict([_with_memory(str(error), request)[:_MAX_TEXT]])
    except MemoryError:
        verdict = Verdict([_too_much(request.memory_bytes)])
    except OSError as error:
        if error.errno == errno.ENOMEM:
            verdict = Verdict([_too_much(request.memory_bytes)])
        else:
            verdict = Verdict([], error=str(error)[:_MAX_TEXT])
    except Exception as error:
        # Whatever it is, the person at the hub must read it: standard error goes nowhere.
        verdict = Verdict([f"internal error in the trial: {error!r}"[:_MAX_TEXT]])
    answer.write(msgspec.json.encode(verdict))
    answer.flush()
    # Runtimes have crashed while they were being taken down, after all was well.
    os._exit(0)


def _try(request: Request) -> Verdict:
    bundle = manifest.decode(Path(request.manifest).read_bytes())
    signature = bundle.signature
    vectors = golden.decode(Path(request.golden).read_bytes())
    tensors = golden.inputs_of(signature, vectors)
    runtimes.warm(bundle.needs.runtime)
    before = _status_bytes("VmRSS")
    if not request.how.uses_gpu:
        _limit_memory(request.memory_bytes)
    session = runtimes.load_bundle(bundle, Path(request.model), request.how)
    wrong = golden.faults(vectors, session.run(tensors))[:_MAX_FAULTS_SHOWN]
    faults = [f"golden vectors: {fault}" for fault in wrong]
    one = first_row(signature, tensors)
    session.run_all(one, [tensor.name for tensor in signature.outputs])
    budget_us = bundle.needs.max_latency_us
    latency_us = round(_latency_us(session, one, budget_us, request.timeout_s * _TIMING_SHARE), 1)
    memory_bytes = max(_status_bytes("VmHWM") - before, 0)
    faults += budget_faults(bundle, latency_us, memory_bytes, request.memory_bytes)
    return Verdict(faults, latency_us, memory_bytes, session.provider)


def first_row(signature: Signature, tensors: Tensors) -> Tensors:
    """Return the input tensors of the first row alone."""
    if not signature.takes_batches:
        return tensors
    return {name: tensor[:1] for name, tensor in tensors.items()}


def budget_faults(
    bundle: Manifest, latency_us: float, memory_bytes: int, trial_memory_bytes: int
) -> list[str]:
    """Return what a candidate takes more of than it may. Exactly the budget is within it.

    Args:
        bundle: with the budgets in its needs, 0 for none.
        latency_us: of one row.
        memory_bytes: that it added.
        trial_memory_bytes: that the device's configuration grants.
    """
    faults = []
    allowed_us, allowed_bytes = bundle.needs.max_latency_us, bundle.needs.max_memory_bytes
    if 0 < allowed_us < latency_us:
        faults.append(
            f"one row takes {latency_us:.0f} us on this device; the manifest's budget is"
            f" {allowed_us} us"
        )
    if 0 < allowed_bytes < memory_bytes:
        faults.append(
            f"the model adds {memory_bytes} bytes of memory on this device; the manifest's budget"
            f" is {allowed_bytes} bytes"
        )
    if memory_bytes > trial_memory_bytes:
        faults.append(
            f"the model adds {memory_bytes} bytes of memory; the device's configuration grants"
            f" {trial_memory_bytes} bytes"
        )
    return faults


def best_median(
    measure: Callable[[], float], budget_us: float, allowed_s: float, clock: Callable[[], float]
) -> float:
    """Return the least of several medians of repeated measurements.

    Args:
        measure: makes one call and returns what it took, microseconds.
        budget_us: a median within it ends the rounds; 0 for no budget, and one round.
        allowed_s: for all rounds; a first round of the fewest calls is always made.
        clock: monotonic seconds.
    """
    until = clock() + allowed_s
    best = float("inf")
    for number in range(_ROUNDS):
        if number:
            time.sleep(_PAUSE_S)  # a burst of other work passes
        times: list[float] = []
        while len(times) < _TIMED_CALLS and (
            clock() < until or (number == 0 and len(times) < _LEAST_CALLS)
        ):
            times.append(measure())
        if len(times) >= _LEAST_CALLS:
            best = min(best, sorted(times)[len(times) // 2])
        if best <= budget_us or not budget_us or clock() >= until:
            break
    return best


def _latency_us(session: Session, one: Tensors, budget_us: int, allowed_s: float) -> float:
    def measure() -> float:
        started = time.perf_counter()
        session.run(one)
        return (time.perf_counter() - started) * 1e6

    return best_median(measure, budget_us, allowed_s, time.monotonic)


def _limit_process(request: Request) -> None:
    """Bound everything that needs no knowledge of the runtime."""
    signal.setitimer(signal.ITIMER_REAL, request.timeout_s + _ALARM_GRACE_S)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    largest = _MAX_ENGINE_BYTES if request.how.engines else _MAX_FILE_BYTES
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, _MAX_TASKS),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))
    os.nice(_NICE)
    # Anybody may make a process a better choice for the kernel, as long as it is its own.
    Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def _limit_memory(allowed: int) -> None:
    """Bound writable memory. The address space (RLIMIT_AS) would count mapped libraries too."""
    limit = _status_bytes("VmData") + RUNTIME_BYTES + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _status_bytes(name: str) -> int:
    """Return a figure of this process, such as VmRSS (resident) or VmHWM (its highest)."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if name in line) * 1024


def _with_memory(text: str, request: Request) -> str:
    """Say first that memory ran out, where a runtime's own words only hint at it."""
    hints = ("bad_alloc", "Failed to allocate", "Cannot allocate memory", "out of memory")
    if any(hint in text for hint in hints):
        return f"{_too_much(request.memory_bytes)} [{text}]"
    return text


def _too_much(allowed: int) -> str:
    return f"the model needs more than {allowed} bytes of memory"


if __name__ == "__main__":
    sys.exit(main())
