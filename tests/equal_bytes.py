"""Make every built-in recipe of a model twice, in two processes and in opposite order, and compare.

    python -m tests.equal_bytes MODEL SAMPLE

Prints one line for each recipe and leaves with 1 if one of them gave other bytes. `onnx-int8` and
what is built on it may: it times its candidates.
"""

import sys
from collections.abc import Sequence

from edgefleet_converters import opening
from edgefleet_converters.conversion import ConversionRequest
from edgefleet_converters.opening import Prepared
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.identifiers import digest_of


def digests(prepared: Prepared, recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return what each recipe makes, by its digest, or why it makes nothing."""
    made = workshop.make(prepared.opened.bases, recipes, prepared.context)
    return {
        name: digest_of(each.data) if isinstance(each, Model) else f"refused: {each.reason}"
        for name, each in made.items()
    }


def main(model: str, sample: str) -> int:
    """Compare all built-in recipes of one model; return the exit code."""
    recipes = list(recipes_of.builtin().values())
    prepared = opening.prepare(ConversionRequest(model, sample))
    first, second = digests(prepared, recipes), digests(prepared, recipes[::-1])
    for recipe in recipes:
        same = "equal" if first[recipe.name] == second[recipe.name] else "DIFFERS"
        print(f"{recipe.name:24} {same:8} {first[recipe.name][:100]}")
    return int(first != second)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
