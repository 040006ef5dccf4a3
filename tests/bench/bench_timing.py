"""How often a model comes out slower than itself: the error of the search's rule for times.

Each of two models of real size is compared with itself as variants are with float32. An interval of
95 % may lie above 1 in 2.5 of 100 cases.
"""

from collections.abc import Iterator
from pathlib import Path

from edgefleet_converters import child, opening
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.recipes import recipe, workshop
from edgefleet_converters.samples import Samples
from edgefleet_converters.searching import timing
from edgefleet_converters.searching.timing import Compared
from edgefleet_converters.steps.registry import Model
from tests.bench.metric import Metric
from tests.bench.subjects import Subject, subjects

FOLDER = Path("build/bench/subjects")
REPEATS = 10


def run() -> list[Metric]:
    """Return the share of comparisons that call a model slower than itself, and how far off."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = [
        child.run("timing", timing.compare, model, {"itself": model}, rows, 0.95, returns=Compared)
        for subject in subjects(FOLDER, ["digits-cnn", "kws"])
        for model, rows in _models(subject)
        for _ in range(REPEATS)
    ]
    ratios = [compared.against["itself"] for compared in found]
    slower = sum(ratio.low > 1 for ratio in ratios) / len(ratios)
    highest = max(ratio.high for ratio in ratios)
    return [
        Metric("a model called slower than itself", 100 * slower, "%", "of a right interval", 2.5),
        Metric("highest end of an interval", highest, "times", "the truth", 1.0),
    ]


def _models(subject: Subject) -> Iterator[tuple[Model, Samples]]:
    """Yield the float32 variants of a subject, with rows to run."""
    request = ConversionRequest(str(subject.model), str(subject.sample), subject.label)
    prepared = opening.prepare(request)
    recipes = [recipe.builtin()[name] for name in ("onnx-fp32", "tflite-fp32")]
    for made in workshop.make(prepared.opened.bases, recipes, prepared.context).values():
        assert isinstance(made, Model), made
        yield made, prepared.trial
