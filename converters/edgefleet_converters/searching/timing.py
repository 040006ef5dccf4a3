"""Time a variant beside float32, so that noise hits both. The adapter is `compare`.

1. All are loaded in one child process, at one thread, and fed the same single rows.
2. Everything is loaded anew 24 times, in turned order: where a load happens to put its memory
   alone makes it some per cent faster or slower (`python -m tests.bench timing`), however long
   it is timed.
3. Within a load, times are taken in blocks: some runs of one, then of the other, and in the next
   block the other way round, so that a slow second of the machine falls on both.
4. Each load gives one ratio of medians; the loads give the median ratio and its interval.
"""

import functools
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

# Loads a model anew and returns a call that does one run.
Load = Callable[[], Callable[[], object]]
# Of one block and model: long against the clock's resolution, short against a machine's moods.
_BLOCK_S = 0.002
_MAX_RUNS = 40
_MAX_BLOCKS = 4
# The least number whose extremes enclose the median in 95 of 100 cases is 6.
_MAX_LOADS, _MIN_LOADS = 24, 6
_TOTAL_S = 4.0
_WARM_UP_RUNS, _WARM_UP_S = 5, 0.02


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
        own_s: seconds, one for each load.
        other_s: seconds of the other in the same loads.
        confidence: of the interval.
    """
    return of_median([a / b for a, b in zip(own_s, other_s, strict=True)], confidence)


def alternate(
    loads: Sequence[Load], clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Load and run models side by side.

    Args:
        loads: of the models.
        clock: seconds.

    Returns:
        Seconds of one run, the median of each load, for each model: `(models, loads)`.
    """
    times: list[list[float]] = [[] for _ in loads]
    begun = clock()
    for turn in range(_MAX_LOADS):
        if turn >= _MIN_LOADS and clock() - begun > _TOTAL_S:
            break
        order = list(range(len(loads)))[:: 1 if turn % 2 == 0 else -1]
        calls = {index: loads[index]() for index in order}
        for index, seconds in _of_one_load(calls, clock).items():
            times[index].append(seconds)
    return times


def _of_one_load(
    calls: dict[int, Callable[[], object]], clock: Callable[[], float]
) -> dict[int, float]:
    """Return the seconds of one run of each call, the median of its blocks."""
    runs = {index: _runs_in_a_block(call, clock) for index, call in calls.items()}
    blocks: dict[int, list[float]] = {index: [] for index in calls}
    order = list(calls)
    begun = clock()
    for _ in range(_MAX_BLOCKS):
        for index in order:
            blocks[index].append(_median_s(calls[index], runs[index], clock))
        order.reverse()
        if clock() - begun > _TOTAL_S / _MAX_LOADS:
            break
    return {index: statistics.median(found) for index, found in blocks.items()}


def compare(variant: Model, others: dict[str, Model], rows: Samples, confidence: float) -> Compared:
    """Time a variant beside others. Call this in a child process.

    Args:
        variant: an `onnx` or `tflite` model.
        others: name → float32 model of the same original.
        rows: at least one; taken one at a time.
        confidence: of the intervals.
    """
    models = [variant, *others.values()]
    own, *times = alternate([functools.partial(_load, model, rows) for model in models])
    return Compared(
        {name: ratio(own, base, confidence) for name, base in zip(others, times, strict=True)},
        slow_kernels.of_onnx(variant.data) if variant.format == "onnx" else [],
    )


def _load(model: Model, rows: Samples) -> Callable[[], object]:
    """Return a call that runs the next row alone, round and round."""
    runtime: Runtime = "onnxruntime" if model.format == "onnx" else "litert"
    runner = runners.load(runtime, model.data, model.signature)
    tensors = rows.bind(model.signature)
    ones = itertools.cycle(
        [{name: v[i : i + 1] for name, v in tensors.items()} for i in range(len(rows))]
    )
    return lambda: runner.run(next(ones))


def _runs_in_a_block(call: Callable[[], object], clock: Callable[[], float]) -> int:
    """Warm up, and return how often the call fits into a block."""
    begun = clock()
    for _ in range(_WARM_UP_RUNS):
        call()
        if clock() - begun > _WARM_UP_S:
            break
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
