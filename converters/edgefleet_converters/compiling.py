"""One model file to one variant: run, judged, and if accepted given golden vectors and needs."""

import logging
from importlib import metadata

from edgefleet_converters import child
from edgefleet_converters.compatibility import check
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.releases import RuntimeName
from edgefleet_converters.conversion import RUNTIMES, Compiled, DeviceBudget, Limits
from edgefleet_converters.errors import BadInputError, ConversionError, UnsupportedError
from edgefleet_converters.opening import Prepared, count_as
from edgefleet_converters.recipes import recipe as recipes
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.recipes.workshop import Refused
from edgefleet_converters.steps.registry import Model
from edgefleet_converters.verification import goldens, judging, trial
from edgefleet_converters.verification.evidence import CONFIDENCE
from edgefleet_converters.verification.trial import Trial
from edgefleet_protocol.manifest import Needs

logger = logging.getLogger(__name__)


def compile_variant(
    prepared: Prepared,
    recipe: Recipe,
    made: Model | Refused,
    *,
    limits: Limits,
    budget: DeviceBudget,
) -> Compiled:
    """Verify what a recipe made.

    Args:
        prepared: the original, and what variants are judged on.
        recipe: of the variant.
        made: by the workshop.
        limits: how far it may be off.
        budget: on the device; travels in the manifest.

    Returns:
        The variant: verified, or refused with the reason.
    """
    if isinstance(made, Refused):
        return _refused(recipe, made.reason)
    try:
        tried = try_variant(prepared, recipe, made)
    except ConversionError as error:
        return _refused(recipe, str(error), made)
    return compile_tried(prepared, recipe, made, tried, limits=limits, budget=budget)


def try_variant(prepared: Prepared, recipe: Recipe, made: Model) -> Trial:
    """Run a variant on its runtime, in a child process.

    Raises:
        ConversionError: the samples do not fit it, or the runtime crashed, hung or refused it.
    """
    what = f"verifying {recipe.name}"
    runtime = RUNTIMES[recipe.gives]
    return child.run(what, trial.measure, runtime, made, prepared.trial, returns=Trial)


def compile_tried(
    prepared: Prepared,
    recipe: Recipe,
    made: Model,
    tried: Trial,
    *,
    limits: Limits,
    budget: DeviceBudget,
    confidence: float = CONFIDENCE,
) -> Compiled:
    """Judge a variant that has been run.

    Args:
        prepared: the original, and what variants are judged on.
        recipe: of the variant.
        made: by the workshop.
        tried: by `try_variant`.
        limits: how far it may be off.
        budget: on the device; travels in the manifest.
        confidence: of the intervals.

    Returns:
        The variant: verified, or refused with the reason.
    """
    runtime = RUNTIMES[recipe.gives]
    signature = count_as(made.signature, prepared.trial)
    # Runtimes round integers and halves differently, so not even a conversion of those is exact.
    exact = recipe.is_exact and prepared.opened.arithmetic == "float32"
    try:
        judged = judging.judge(
            tried,
            prepared.truth,
            limits,
            exact=exact,
            seed=prepared.context.seed,
            confidence=confidence,
        )
    except BadInputError as error:
        return _refused(recipe, str(error), made)
    vectors = b""
    if not judged.reasons:
        vectors = goldens.encode(signature, prepared.trial, tried.scores, tried.arithmetic)
    facts = check.inspect(made.data)
    return Compiled(
        recipe.name,
        runtime,
        "refused" if judged.reasons else "verified",
        "; ".join(judged.reasons),
        made.data,
        vectors,
        signature,
        Needs(
            runtime,
            _oldest_runtime(made.format, facts),
            tried.memory_bytes,
            max_latency_us=budget.max_latency_us,
            max_memory_bytes=budget.max_memory_bytes,
            alternatives=check.lowest_alternatives(facts),
        ),
        judged.measured,
        judged.evidence,
        tried.latency,
        tried.peak_bytes,
        made.notes,
        recipes.dump(recipe),
    )


def _refused(recipe: Recipe, reason: str, made: Model | None = None) -> Compiled:
    """Return a variant that could not be made, or that did not run."""
    return Compiled(
        recipe.name,
        RUNTIMES[recipe.gives],
        "refused",
        reason,
        b"" if made is None else made.data,
        notes={} if made is None else made.notes,
        recipe=recipes.dump(recipe),
    )


def _oldest_runtime(model_format: str, facts: Facts) -> str:
    """Return the oldest release of the runtime that is known to run a model.

    Where the tables cannot tell, that is the release installed here, on which it has just run.
    """
    runtime: RuntimeName = "onnxruntime" if model_format == "onnx" else "ai-edge-litert"
    try:
        return check.lowest_runtime(facts, runtime)
    except UnsupportedError as error:
        logger.info("%s: the installed release is taken as the oldest: %s", model_format, error)
        return metadata.version(runtime)
