"""From a model file and samples to verified variants: the one way in for hub and command line.

1. Read and check the samples; open the model in a child process (`opening`).
2. Make the recipes in one child process (`recipes.workshop`).
3. Run each variant on its runtime in a child process of its own; accept or refuse it (`compiling`).
4. Count the training rows into the reference profile.

A variant that cannot be made, or crashes its child, is refused with the reason; the others go on.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from edgefleet_converters import answers, opening, profile
from edgefleet_converters import data as rows_of
from edgefleet_converters.bundles import Bundle, write_bundle
from edgefleet_converters.compiling import compile_variant
from edgefleet_converters.conversion import (
    DEFAULT_VARIANTS,
    VARIANTS,
    Compiled,
    ConversionRequest,
    ConversionResult,
    Limits,
)
from edgefleet_converters.errors import BadInputError, NothingVerifiedError, UnsupportedError
from edgefleet_converters.opening import Prepared
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe, StepCall, builtin
from edgefleet_converters.verification.truth import Truth, rate
from edgefleet_protocol import sketch

__all__ = [
    "VARIANTS",
    "Bundle",
    "Compiled",
    "ConversionRequest",
    "ConversionResult",
    "Limits",
    "Progress",
    "convert",
    "write_bundle",
]

# Called with the share done, 0 to 1, and what is being done now. It cancels by raising.
Progress = Callable[[float, str], None]

# Share of the progress at which each phase ends: a guess, for the eye.
_READ, _OPENED, _MADE = 0.05, 0.3, 0.7


@dataclass
class _Clock:
    """Where the time goes."""

    seconds: dict[str, float] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._begun, 3)
        self._begun = now


def convert(request: ConversionRequest, progress: Progress | None = None) -> ConversionResult:
    """Convert, compress and verify one model.

    Args:
        request: what to convert, and how.
        progress: is told how far it is; if it raises, the children are killed and the exception
            goes on.

    Raises:
        BadInputError: the model file or the samples cannot be used.
        UnsupportedError: no route converts the model.
        NothingVerifiedError: every variant was refused.
        ChildError: a route crashed, hung or ran out of memory.
    """
    recipes = _recipes(request)
    tell = progress or _tell_nobody
    clock = _Clock()
    tell(0.0, "reading the samples")
    data = rows_of.read(request)
    clock.end("read")
    tell(_READ, f"opening {request.model_path}")
    prepared = opening.prepare(request, data)
    clock.end("open")
    if request.variants is None:
        recipes = _applicable(recipes, prepared)
    compiled = _compile_all(request, recipes, prepared, tell, clock)
    _require_one(prepared, compiled)
    training = prepared.context
    reference = profile.reference_profile(training.samples, prepared.signature, training.scores)
    tell(1.0, "done")
    opened = prepared.opened
    return ConversionResult(
        opened.task,
        opened.columns,
        opened.classes,
        sketch.encode_profile(reference),
        _metrics(prepared.truth),
        compiled,
        clock.seconds | {f"open: {what}": s for what, s in opened.timings_s.items()},
    )


def _tell_nobody(fraction: float, text: str) -> None:
    del fraction, text


def _recipes(request: ConversionRequest) -> list[Recipe]:
    """Return the recipes that a request asks for.

    Raises:
        BadInputError: an unknown variant, two recipes of one name, or a sparsity that is none.
    """
    unknown = sorted(set(request.variants or ()) - set(VARIANTS))
    if unknown or (request.variants == [] and not request.recipes):
        raise BadInputError(
            f"unknown variants {', '.join(unknown) or '(none given)'}; expected some of"
            f" {', '.join(VARIANTS)}"
        )
    if request.sparsity is not None and not 0 < request.sparsity < 1:
        raise BadInputError(f"sparsity {request.sparsity}: expected a share between 0 and 1")
    wanted = DEFAULT_VARIANTS if request.variants is None else request.variants
    known = [
        _with_sparsity(recipe, request.sparsity)
        for name, recipe in builtin().items()
        if name in wanted
    ]
    names = [*VARIANTS, *(recipe.name for recipe in request.recipes)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInputError(f"two recipes are called {', '.join(twice)}; give another name")
    return known + request.recipes


def _with_sparsity(recipe: Recipe, sparsity: float | None) -> Recipe:
    """Return the recipe with another share of zeros, where it says one."""
    if sparsity is None:
        return recipe
    steps = [
        StepCall(call.step, call.options | {"sparsity": sparsity})
        if "sparsity" in call.options
        else call
        for call in recipe.steps
    ]
    return msgspec.structs.replace(recipe, steps=steps)


def _applicable(recipes: list[Recipe], prepared: Prepared) -> list[Recipe]:
    """Return the recipes that some base leads to: nobody asked for the others by name."""
    found = []
    for recipe in recipes:
        try:
            workshop.plan(recipe, prepared.opened.bases)
        except UnsupportedError:
            continue
        found.append(recipe)
    return found


def _compile_all(
    request: ConversionRequest,
    recipes: list[Recipe],
    prepared: Prepared,
    tell: Progress,
    clock: _Clock,
) -> list[Compiled]:
    made = workshop.make(
        prepared.opened.bases,
        recipes,
        prepared.context,
        lambda fraction, text: tell(_OPENED + fraction * (_MADE - _OPENED), f"making {text}"),
    )
    clock.end("make")
    compiled = []
    for position, recipe in enumerate(recipes):
        tell(_MADE + position / len(recipes) * (1 - _MADE), f"verifying {recipe.name}")
        compiled.append(
            compile_variant(
                prepared,
                recipe,
                made[recipe.name],
                limits=request.limits,
                budget=request.budget,
            )
        )
    clock.end("verify")
    return compiled


def _metrics(truth: Truth) -> dict[str, float]:
    """Return how good the original is on held-out rows; nothing without labels."""
    if truth.labels is None:
        return {}
    if truth.metric in (None, "accuracy", "r2"):
        return answers.metrics_of(truth.task, truth.original, truth.labels)
    rating = rate(truth, truth.original)
    return {truth.judged_by: rating.value, "rows": float(len(truth.original))}


def _require_one(prepared: Prepared, compiled: list[Compiled]) -> None:
    if any(variant.state == "verified" for variant in compiled):
        return
    reasons = {variant.name: variant.reason for variant in compiled}
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    path = prepared.file.path
    raise NothingVerifiedError(f"{path}: no variant could be verified:{listed}", reasons)
