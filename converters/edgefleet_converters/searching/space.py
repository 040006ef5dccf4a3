"""Spaces: recipes with open choices, out of which the search draws recipes.

A space is a recipe in which an option may be `{one_of: [a, b, …]}`:

```yaml
name: onnx-int8-space
summary: Static int8, every calibration.
gives: onnx
steps:
  - onnx-int8-static: {calibration: {method: {one_of: [minmax, entropy]}}}
```

1. A point of a space is one value for each choice, and gives a recipe whose name is that of the
   space and the number of the point, so that equal points have equal names in every search.
2. The first value of each choice is its default; the first point is tried first.
3. Every point is a valid recipe; a space with a point that is not, is refused when it is read.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.recipes import recipe as recipes
from edgefleet_converters.recipes.recipe import Recipe

# Points of one space that are checked when it is read, and so the most that a space may have.
MAX_POINTS = 4096
_OPEN = "one_of"

Place = tuple[str | int, ...]


class Dimension(Struct, frozen=True):
    """One open choice.

    Attributes:
        place: of the option in the steps: number of the step, step, option, ….
        values: to choose from, the default first.
    """

    place: Place
    values: list[Any]

    @property
    def name(self) -> str:
        """Of the option, as people read it."""
        return ".".join(str(part) for part in self.place[2:])


class Space(Struct, frozen=True):
    """A recipe with open choices.

    Attributes:
        steps: as in a recipe, with the first value in the place of each choice.
    """

    name: str
    summary: str
    gives: str
    steps: list[Any]
    dimensions: list[Dimension]

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(dimension.values) for dimension in self.dimensions)

    def points(self) -> Iterator[tuple[int, ...]]:
        """Yield every point, as the number of the value of each choice; the default first."""
        return itertools.product(*(range(len(d.values)) for d in self.dimensions))

    def number(self, point: tuple[int, ...]) -> int:
        """Return the place of a point among all."""
        place = 0
        for index, dimension in zip(point, self.dimensions, strict=True):
            place = place * len(dimension.values) + index
        return place

    def recipe(self, point: tuple[int, ...]) -> Recipe:
        """Return the recipe at a point.

        Raises:
            BadInputError: it is not valid.
        """
        steps = self.steps
        chosen = []
        for index, dimension in zip(point, self.dimensions, strict=True):
            value = dimension.values[index]
            steps = _with(steps, dimension.place, value)
            chosen.append(f"{dimension.name} {value}")
        text = yaml.safe_dump(
            {
                "name": f"{self.name}-{self.number(point):03}",
                "summary": ", ".join(chosen) or self.summary,
                "gives": self.gives,
                "steps": steps,
            },
            sort_keys=False,
        )
        return recipes.parse(text, f"{self.name} at {point}")


@functools.cache
def builtin() -> dict[str, Space]:
    """Return the spaces of this release, by name."""
    folder = resources.files(__package__) / "spaces"
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    spaces = [parse(text, name) for name, text in sorted(texts.items()) if name.endswith(".yaml")]
    return {space.name: space for space in spaces}


def read(path: Path) -> Space:
    """Read a space.

    Raises:
        BadInputError: it cannot be read, or breaks a rule of this module or of recipes.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(recipes.MAX_RECIPE_BYTES + 1)
        if len(data) > recipes.MAX_RECIPE_BYTES:
            raise BadInputError(f"{path}: over {recipes.MAX_RECIPE_BYTES} bytes; no space is")
        return parse(data.decode("utf-8"), str(path))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 text (byte {error.start})") from error


def parse(text: str, source: str) -> Space:
    """Read a space from its YAML, and check all its points.

    Args:
        text: of the space.
        source: where it came from, for error texts.

    Raises:
        BadInputError: it breaks a rule of this module or of recipes.
    """
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInputError(f"{source}: no YAML: {' '.join(str(error).split())}") from error
    keys = ("name", "summary", "gives", "steps")
    if not isinstance(found, dict) or set(found) != set(keys) or not _is_list(found["steps"]):
        raise BadInputError(f"{source}: expected a space with {', '.join(keys)}")
    dimensions = [Dimension(place, values) for place, values in _open_choices(found["steps"], ())]
    steps = found["steps"]
    for dimension in dimensions:
        if not _is_list(dimension.values) or not dimension.values:
            raise BadInputError(f"{source}: {dimension.name}: expected a list of values to choose")
        steps = _with(steps, dimension.place, dimension.values[0])
    name, summary, gives = (str(found[key]) for key in keys[:3])
    space = Space(name, summary, gives, steps, dimensions)
    if space.size > MAX_POINTS:
        raise BadInputError(f"{source}: {space.size} points; a space may have {MAX_POINTS}")
    for point in space.points():
        space.recipe(point)
    return space


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _open_choices(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict):
        if set(value) == {_OPEN}:
            yield place, value[_OPEN]
            return
        for key, inner in value.items():
            yield from _open_choices(inner, (*place, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _open_choices(inner, (*place, index))


def _with(value: Any, place: Place, new: Any) -> Any:
    """Return a copy of nested lists and maps with `new` in one place."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = _with(value[place[0]], place[1:], new)
    return copy
