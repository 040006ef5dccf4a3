"""How often a model comes out slower than itself: the error of the rules for times.

1. Of the search: each of two models of real size is compared with itself as variants are with
   float32. An interval of 95 % may lie above 1 in 2.5 of 100 cases.
2. Of `edgefleet-compat --baseline`: the same models in exact releases, run several times while the
   machine is left alone and as often while every core has a loop that never pauses. Every run is a
   baseline for every other: each "slower" is a build that would have failed for nothing. That the
   rule is not blind show the same runs with times multiplied.
"""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgefleet_converters import child, opening
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.recipes import recipe, workshop
from edgefleet_converters.samples import Samples
from edgefleet_converters.searching import timing
from edgefleet_converters.searching.timing import Compared
from edgefleet_converters.steps.registry import Model
from edgefleet_hardware import baseline, loads, matrix, runtimes, static
from edgefleet_hardware.baseline import Allowed
from edgefleet_hardware.cases import Case
from edgefleet_hardware.loads import Load
from edgefleet_hardware.results import Document
from edgefleet_hardware.runtimes import NEWEST, Runtime
from tests.bench.metric import Metric
from tests.bench.subjects import Subject, subjects

FOLDER = Path("build/bench/subjects")
REPEATS = 10
# Of the baseline's rule, in each state of the machine.
RUNS = 4


def run() -> list[Metric]:
    """Return the shares of comparisons that call a model slower than itself, and how far off."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    named = [
        (subject.name, model, rows)
        for subject in subjects(FOLDER, ["digits-cnn", "kws"])
        for model, rows in _models(subject)
    ]
    cases = [
        Case(name, "onnx" if model.format == "onnx" else "tflite", model.data)
        for name, model, _ in named
    ]
    return [*_of_search([(model, rows) for _, model, rows in named]), *_of_baselines(cases)]


def _of_search(models: list[tuple[Model, Samples]]) -> Iterator[Metric]:
    found = [
        child.run("timing", timing.compare, model, {"itself": model}, rows, 0.95, returns=Compared)
        for model, rows in models
        for _ in range(REPEATS)
    ]
    ratios = [compared.against["itself"] for compared in found]
    slower = sum(ratio.low > 1 for ratio in ratios) / len(ratios)
    highest = max(ratio.high for ratio in ratios)
    yield Metric("a model called slower than itself", 100 * slower, "%", "of a right interval", 2.5)
    yield Metric("highest end of an interval", highest, "times", "the truth", 1.0)


def _of_baselines(cases: list[Case]) -> Iterator[Metric]:
    quiet = [_document(cases) for _ in range(RUNS)]
    with _busy_cores():
        busy = [_document(cases) for _ in range(RUNS)]
    pairs = {
        "left alone": list(itertools.permutations(quiet, 2)),
        "busy": list(itertools.permutations(busy, 2)),
        "busy, its baseline left alone": list(itertools.product(busy, quiet)),
    }
    for machine, compared in pairs.items():
        name = f"models called slower than in a baseline, machine {machine}"
        yield Metric(name, _called_slower(compared), "%", "of a right interval", 2.5)
    for factor in (1.2, 1.5):
        compared = [
            (_slowed(now, factor), before) for now, before in itertools.chain(*pairs.values())
        ]
        name = f"of models made {factor:g} times as slow"
        yield Metric(name, _called_slower(compared), "%", "of all", 100.0)


def _document(cases: list[Case]) -> Document:
    releases = [Runtime.parse(text) for text in NEWEST.values()]
    targets = matrix.local_targets(releases, [runtimes.own()], loads.USUAL)
    return matrix.build(cases, targets, static.teller(), lambda _: None)


def _called_slower(pairs: list[tuple[Document, Document]]) -> float:
    """Return which share of models is called slower in one run than in another, in per cent."""
    changes = [
        change.what
        for now, before in pairs
        for change in baseline.compare(now, before, Allowed()).regressions
    ]
    return 100 * changes.count("processor time in µs") / sum(len(now.cells) for now, _ in pairs)


def _slowed(document: Document, factor: float) -> Document:
    """Return a run with every call slower by a factor, at the pace that it had."""
    cells = []
    for cell in document.cells:
        assert cell.outcome is not None
        slower = [
            Load(load.median_us * factor, load.cpu_us * factor, load.pace_us)
            for load in cell.outcome.loads
        ]
        outcome = msgspec.structs.replace(cell.outcome, loads=slower)
        cells.append(msgspec.structs.replace(cell, outcome=outcome))
    return Document(cells)


@contextlib.contextmanager
def _busy_cores() -> Iterator[None]:
    """Keep every core busy."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _models(subject: Subject) -> Iterator[tuple[Model, Samples]]:
    """Yield the float32 variants of a subject, with rows to run."""
    request = ConversionRequest(str(subject.model), str(subject.sample), subject.label)
    prepared = opening.prepare(request)
    recipes = [recipe.builtin()[name] for name in ("onnx-fp32", "tflite-fp32")]
    for made in workshop.make(prepared.opened.bases, recipes, prepared.context).values():
        assert isinstance(made, Model), made
        yield made, prepared.trial
