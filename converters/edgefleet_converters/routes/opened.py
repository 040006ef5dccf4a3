"""What a route hands on: the original model's answers, and the files from which recipes start.

A route is a module of this package with one function, which runs in a child process:

    open(file: ModelFile, samples: Samples, hints: Hints) -> Opened

It opens the model file, predicts all samples with the original and gives one or more bases.
"""

from dataclasses import dataclass

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edgefleet_converters.steps.registry import Format, Model
from edgefleet_converters.tables import Column
from edgefleet_converters.verification.arithmetic import Arithmetic
from edgefleet_protocol.manifest import Task


@dataclass(frozen=True)
class Hints:
    """What a person said about the model; formats differ in how much of it they need.

    Attributes:
        labels: right answers of the samples, as they stand in the table; None without any.
        classes: names of the classes in the order of the outputs; None to find them.
        score_output: the output that holds the scores; None to find it.
        seed: of everything random.
    """

    labels: Column | None = None
    classes: list[str] | None = None
    score_output: str | None = None
    seed: int = 0


class Opened(Struct, frozen=True):
    """A model file, opened.

    Attributes:
        columns: features that the model takes, in its order; empty for tensors.
        classes: in the order of the scores (classification), else empty.
        scores: of the original model for all samples, `(n, width)` float64, all finite.
        bases: format → the model in it, with the names of that file. At least one.
        timings_s: what was done → seconds.
        arithmetic: in what numbers the original computes; found by `opening`, not by the route.
    """

    task: Task
    columns: list[str]
    classes: list[str]
    scores: NDArray[np.float64]
    bases: dict[Format, Model]
    timings_s: dict[str, float] = field(default_factory=dict)
    arithmetic: Arithmetic = "float32"
