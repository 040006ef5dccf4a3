"""How near a changed ONNX model comes to the original's answers, and how fast it is here.

Steps that choose between forms of a model ask this. They see training rows alone, so what they
choose is judged afterwards by rows that had no part in it.

- fidelity: share of rows with the same class (classification), R² against the original's scores
  (else). 1 is the same.
- loss: Σ(s - ŝ)² / Σ(s - s̄)² over all scores s of the original and ŝ of the changed model: also
  tells two models apart that agree in every class.
"""

import time

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters import runners
from edgefleet_converters.answers import r2
from edgefleet_converters.samples import Samples
from edgefleet_converters.steps.registry import Context
from edgefleet_protocol.manifest import Signature, Task
from edgefleet_protocol.rows import Tensors

Scores = NDArray[np.float64]
JUDGED_ROWS = 1000
# Fewer rows than this apart from the calibration's say less than all rows together do.
_FEWEST_ROWS = 100
_TIMED_RUNS, _WARM_RUNS = 200, 20


def calibration_rows(context: Context, rows: int) -> Samples:
    """Return up to `rows` samples, spread evenly over all."""
    return context.samples.take(_spread(np.arange(len(context.samples)), rows))


def judged_rows(context: Context, rows: int) -> tuple[Samples, Scores]:
    """Return samples that `calibration_rows` left, and the original's scores for them.

    Where it left too few, all samples judge.
    """
    everything = np.arange(len(context.samples))
    left = np.setdiff1d(everything, _spread(everything, rows))
    index = _spread(left if len(left) >= _FEWEST_ROWS else everything, JUDGED_ROWS)
    return context.samples.take(index), context.scores[index]


def scores(data: bytes, signature: Signature, samples: Samples) -> Scores:
    """Run a model file on ONNX Runtime, `(n, width)` float64."""
    return runners.scores(runners.OnnxRunner(data, signature), samples.bind(signature))


def fidelity(task: Task, changed: Scores, original: Scores) -> float:
    """Return the share of equal classes, or R²."""
    if task == "classification" and original.shape[1] > 1:
        return float((changed.argmax(axis=1) == original.argmax(axis=1)).mean())
    return r2(changed, original)


def loss(changed: Scores, original: Scores) -> float:
    """Return the relative squared error; 0 is the same."""
    spread = float(((original - original.mean(axis=0)) ** 2).sum())
    error = float(((original - changed) ** 2).sum())
    return error / spread if spread else error


def median_us(data: bytes, signature: Signature, samples: Samples) -> float:
    """Return the median time of one row in µs, at one thread."""
    runner = runners.OnnxRunner(data, signature)
    one: Tensors = {name: values[:1] for name, values in samples.bind(signature).items()}
    for _ in range(_WARM_RUNS):
        runner.run(one)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        runner.run(one)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def _spread(index: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    if len(index) <= rows:
        return index
    return index[np.linspace(0, len(index) - 1, rows).astype(np.int64)]
