"""Steps: what can be done to a model on its way to a device. Each is small, named and documented.

A step takes a model file in one format and gives one in the same or another format. Recipes
(`edgefleet_converters.recipes`) are lists of steps. A module of this package registers its steps
with the decorator `step`; `all_steps` imports the modules and lists what they registered.

Rules for a step:

1. It runs in a child process and may import whatever it needs, inside the function.
2. Equal input gives equal bytes: seeds come from the context, and nothing reads the clock.
3. It learns from the context's samples alone; the rows that judge a variant are not among them.
4. What it cannot do is an `UnsupportedError` that says why, never a model that is left as it was.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.samples import Samples
from edgefleet_protocol.manifest import Signature, Task

Format = Literal["keras", "savedmodel", "onnx", "tflite"]
# What devices run; the others are only on the way.
TARGETS: tuple[Format, ...] = ("onnx", "tflite")
# In the order in which `edgefleet-convert recipes` shows their steps.
_MODULES = (
    "conversions",
    "graph",
    "float16",
    "onnx_int8",
    "onnx_weights",
    "mixed_precision",
    "tflite_equalization",
    "tflite_quantize",
    "pruning",
    "distillation",
)


class Model(Struct, frozen=True):
    """A model on its way.

    Attributes:
        data: the file; a SavedModel as a zip archive of its folder.
        signature: with the names of this file, inputs in the order of the original model's.
        notes: what steps found out, for the report: step → anything that JSON can hold.
    """

    format: Format
    data: bytes
    signature: Signature
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a step may learn from.

    Attributes:
        task: of the model.
        samples: training rows.
        scores: of the original model for them, `(n, width)` float64.
        labels: class indices or values of the same rows, `(n,)` float64; None without labels.
        seed: of everything random.
    """

    task: Task
    samples: Samples
    scores: NDArray[np.float64]
    labels: NDArray[np.float64] | None
    seed: int


class NoOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """For steps that have no choice."""


Options = TypeVar("Options", bound=Struct)
Run = Callable[[Model, Any, Context], Model]


@dataclass(frozen=True)
class Step:
    """A registered step.

    Attributes:
        name: in recipes.
        takes: formats that it works on.
        gives: format of the result.
        options: struct of its options, every one with a default and its limits.
        reference: paper or documentation that describes the method.
        exact: whether the model answers as before, up to float32 rounding. Recipes of exact steps
            alone are held to parity, all others to what they get right.
        run: the function; its docstring's first line is the step's summary.
    """

    name: str
    takes: tuple[Format, ...]
    gives: Format
    options: type[Struct]
    reference: str
    exact: bool
    run: Run

    @property
    def summary(self) -> str:
        """One sentence on what it does."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def configure(self, options: dict[str, object]) -> Struct:
        """Return checked options.

        Raises:
            BadInputError: an unknown option or a value out of its limits.
        """
        try:
            return msgspec.convert(options, self.options)
        except msgspec.ValidationError as error:
            known = ", ".join(self.options.__struct_fields__) or "none"
            raise BadInputError(f"step {self.name}: {error}; its options are: {known}") from error


_steps: dict[str, Step] = {}


def step(
    name: str,
    *,
    takes: Format | tuple[Format, ...],
    gives: Format,
    reference: str,
    exact: bool = False,
    options: type[Options] = NoOptions,  # type: ignore[assignment]  # a default of a type variable
) -> Callable[
    [Callable[[Model, Options, Context], Model]], Callable[[Model, Options, Context], Model]
]:
    """Register a function `(model, options, context) -> model` as a step."""

    def register(
        run: Callable[[Model, Options, Context], Model],
    ) -> Callable[[Model, Options, Context], Model]:
        if name in _steps:
            raise ValueError(f"two steps are called {name}")
        formats: tuple[Format, ...] = (takes,) if isinstance(takes, str) else takes
        _steps[name] = Step(name, formats, gives, options, reference, exact, run)
        return run

    return register


def all_steps() -> dict[str, Step]:
    """Return every step by name."""
    for module in _MODULES:
        importlib.import_module(f"edgefleet_converters.steps.{module}")
    return dict(_steps)


def find(name: str) -> Step:
    """Return a step.

    Raises:
        BadInputError: if there is none of that name.
    """
    known = all_steps()
    if name not in known:
        raise BadInputError(f"no step is called {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]
