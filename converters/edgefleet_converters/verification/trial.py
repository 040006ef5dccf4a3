"""Run a variant on its real runtime, in a child process that holds nothing else.

A file that crashes the runtime then refuses one variant, and memory is that of the variant alone.
"""

import os
import time
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters import runners
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification.arithmetic import Arithmetic, arithmetic_of
from edgefleet_protocol import golden
from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.rows import Tensors

_SINGLE_ROWS = 8
# Ninety-ninth percentiles need some hundred runs; a slow model keeps at least the last of few.
_WARM_UP, _TIMED_RUNS, _TIMED_S = 20, 500, 0.5


class Latency(Struct, frozen=True):
    """Wall time of one row at one thread, µs: percentiles of `runs` calls."""

    p50_us: float
    p90_us: float
    p99_us: float
    runs: int


class Trial(Struct, frozen=True):
    """What a variant did on its runtime.

    Attributes:
        scores: `(n, width)` float64, from batches.
        single: scores of the first rows, each run alone.
        latency: of one row.
        memory_bytes: resident memory added by loading it and running rows one by one.
        peak_bytes: the most that was added while doing so.
        arithmetic: in what numbers it computes.
    """

    scores: NDArray[np.float64]
    single: NDArray[np.float64]
    latency: Latency
    memory_bytes: int
    peak_bytes: int
    arithmetic: Arithmetic


def measure(runtime: Runtime, model: Model, samples: Samples) -> Trial:
    """Run a variant on its runtime. Call this in a child process.

    Args:
        runtime: family name.
        model: the variant.
        samples: at least one.
    """
    _load_runtime(runtime)
    tensors = samples.bind(model.signature)
    ones = [
        {name: values[i : i + 1] for name, values in tensors.items()}
        for i in range(min(_SINGLE_ROWS, len(samples)))
    ]
    before = _resident_bytes()
    _forget_peak()
    runner = runners.load(runtime, model.data, model.signature)
    single = np.concatenate([runner.run(one) for one in ones])
    latency = _latency(runner, ones)
    # What is resident may grow by less than the file where the process had memory to spare.
    memory = max(_resident_bytes() - before, len(model.data))
    peak = max(_peak_bytes() - before, memory)
    scores = runners.scores(runner, tensors)
    return Trial(scores, single, latency, memory, peak, arithmetic_of(runtime, model.data))


def golden_faults(runtime: Runtime, model: Model, vectors: bytes) -> list[str]:
    """Run golden vectors on the installed runtime. Call this in a child process.

    Args:
        runtime: family name.
        model: the variant.
        vectors: bytes of the bundle's golden file.

    Returns:
        Every way in which the runtime's scores differ too much; empty if it is right.
    """
    expected = golden.decode(vectors)
    tensors = golden.inputs_of(model.signature, expected)
    runner = runners.load(runtime, model.data, model.signature)
    return golden.faults(expected, runners.scores(runner, tensors))


def _load_runtime(runtime: Runtime) -> None:
    """Import the runtime, so that its own memory is not counted as the model's."""
    if runtime == "onnxruntime":
        import onnxruntime  # noqa: F401  # imported for its effect
    else:
        import ai_edge_litert.interpreter  # noqa: F401  # imported for its effect


def _latency(runner: runners.Runner, ones: list[Tensors]) -> Latency:
    times: list[float] = []
    begin = time.perf_counter()
    for turn in range(_WARM_UP + _TIMED_RUNS):
        start = time.perf_counter()
        runner.run(ones[turn % len(ones)])
        times.append(time.perf_counter() - start)
        if start - begin > _TIMED_S:
            break
    timed = np.array(times[min(_WARM_UP, len(times) - 1) :]) * 1e6
    p50, p90, p99 = (float(value) for value in np.percentile(timed, [50, 90, 99]))
    return Latency(p50, p90, p99, len(timed))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _forget_peak() -> None:
    """Let the kernel count the peak of resident memory from now on (proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        # Not allowed in some containers; the peak then includes loading the runtime, never less.
        return


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
