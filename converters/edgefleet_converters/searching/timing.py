"""Time a variant beside float32, so that noise hits both. The adapter is `compare`.

1. Both are loaded in one child process, at one thread, and fed the same single rows.
2. Times are taken in blocks: some runs of one, then of the other, and in the next block the other
   way round, so that a slow second of the machine falls on both.
3. Each block gives one ratio of medians; the blocks give the median ratio and its interval.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from edgefleet_converters import runners
from edgefleet_converters.samples import Samples
from edgefleet_converters.searching import slow_kernels
from edgefleet_converters.searching.medians import of_median
from edgefleet_converters.searching.slow_kernels import Kernels
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification.evidence import Interval
from edgefleet_protocol.manifest import Runtime

# Of one block and model: long against the clock's resolution, short against a machine's moods.
_BLOCK_S = 0.002
_MAX_RUNS = 40
# 60 blocks put the interval of a median some 25 percentiles apart.
_MAX_BLOCKS, _MIN_BLOCKS = 60, 10
_TOTAL_S = 3.0
_WARM_UP_RUNS = 5


class Compared(Struct, frozen=True):
    """What a variant was beside others.

    Attributes:
        against: name of the other → time of the variant as a share of its.
        kernels: that the variant's file needs, as far as some CPUs are slow at them.
    """

    against: dict[str, Interval]
    kernels: list[Kernels]


def ratio(own_s: Sequence[float], other_s: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median ratio of times taken in pairs, with its interval.

    Args:
        own_s: seconds, one for each block.
        other_s: seconds of the other in the same blocks.
        confidence: of the interval.
    """
    return of_median([a / b for a, b in zip(own_s, other_s, strict=True)], confidence)


def alternate(
    calls: Sequence[Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Run calls in alternating blocks.

    Args:
        calls: each does one run.
        clock: seconds.

    Returns:
        Seconds of one run, the median of each block, for each call: `(calls, blocks)`.
    """
    for call in calls:
        for _ in range(_WARM_UP_RUNS):
            call()
    runs = [_runs_in_a_block(call, clock) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    begun = clock()
    for block in range(_MAX_BLOCKS):
        if block >= _MIN_BLOCKS and clock() - begun > _TOTAL_S:
            break
        order = range(len(calls)) if block % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            times[index].append(_median_s(calls[index], runs[index], clock))
    return times


def compare(variant: Model, others: dict[str, Model], rows: Samples, confidence: float) -> Compared:
    """Time a variant beside others. Call this in a child process.

    Args:
        variant: an `onnx` or `tflite` model.
        others: name → float32 model of the same original.
        rows: at least one; taken one at a time.
        confidence: of the intervals.
    """
    models = [variant, *others.values()]
    own, *times = alternate([_caller(model, rows) for model in models])
    return Compared(
        {name: ratio(own, base, confidence) for name, base in zip(others, times, strict=True)},
        slow_kernels.of_onnx(variant.data) if variant.format == "onnx" else [],
    )


def _caller(model: Model, rows: Samples) -> Callable[[], object]:
    """Return a call that runs the next row alone, round and round."""
    runtime: Runtime = "onnxruntime" if model.format == "onnx" else "litert"
    runner = runners.load(runtime, model.data, model.signature)
    tensors = rows.bind(model.signature)
    ones = itertools.cycle(
        [{name: v[i : i + 1] for name, v in tensors.items()} for i in range(len(rows))]
    )
    return lambda: runner.run(next(ones))


def _runs_in_a_block(call: Callable[[], object], clock: Callable[[], float]) -> int:
    start = clock()
    call()
    return min(_MAX_RUNS, max(1, int(_BLOCK_S / max(clock() - start, 1e-9))))


def _median_s(call: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(runs):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)
