"""How a model is retrained: what a trigger, or a person, says once and the hub then does alone."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.rollouts.plan import STRATEGIES
from edgefleet_cloud.values import Json
from edgefleet_converters.conversion import DeviceBudget

Share = Annotated[float, Meta(gt=0, lt=1)]


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe.

    Attributes:
        trainer: of `training.trainers`, with its parameters.
        parameters: likewise.
        purpose: only samples that were consented to for this purpose are used.
        min_samples: labelled rows from the field below which nothing is trained.
        base: digests or names of datasets that are trained on too; None for the one that the
            champion was trained on.
        holdout_share: of the field rows, on which champion and challenger are compared.
        seed: of the split and of the training.
        variants: to make; None for those of the champion, bound to the same boards, so that what
            a search chose stays; where their recipes are not known, for all that apply.
        budget: of the model on a device.
        min_gain: the challenger's score on the held-out field rows must be higher by at least
            this, and significantly higher than the champion's.
        max_loss: on the rows that the champion was judged on, the challenger may be worse by this
            much; None for no such check.
        auto_release: roll an approved challenger out at once.
        strategy, to, stages, gate: of that rollout.
        order: of that rollout; None for the order of the model's newest rollout.
    """

    trainer: str
    parameters: Json = field(default_factory=dict)
    purpose: str = "retraining"
    min_samples: Annotated[int, Meta(ge=20)] = 500
    base: list[str] | None = None
    holdout_share: Share = 0.3
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    variants: list[str] | None = None
    budget: DeviceBudget = field(default_factory=DeviceBudget)
    min_gain: Annotated[float, Meta(ge=0, le=1)] = 0.01
    max_loss: Annotated[float, Meta(ge=0, le=1)] | None = None
    auto_release: bool = True
    strategy: str = "canary"
    to: str = "all"
    stages: list[float] | None = None
    gate: Json = field(default_factory=dict)
    order: Json | None = None


def read(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `given` describes.

    Raises:
        InvalidError: unknown or missing name, wrong type, or a value out of its limits.
    """
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidError(f"recipe: {name} is {value}; expected a number")
    try:
        recipe = msgspec.convert(dict(given), Recipe)
    except msgspec.ValidationError as error:
        raise InvalidError(f"recipe: {error}") from error
    if recipe.strategy not in STRATEGIES:
        raise InvalidError(
            f"recipe: strategy {recipe.strategy!r}; expected one of {', '.join(STRATEGIES)}"
        )
    return recipe
