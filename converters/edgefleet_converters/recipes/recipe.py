"""Recipes: lists of steps under a name, read from YAML.

```yaml
name: onnx-mixed
summary: int8 where it costs nothing, float32 in the layers that are sensitive.
gives: onnx
steps:
  - onnx-mixed-precision:
      fidelity: 0.995
```

1. `gives` is what a device runs: `onnx` or `tflite`. Where the model at hand, or a step, has
   another format, the workshop fills in the conversion; a recipe may also name it itself.
2. Every key, step and option is known and within its limits, or the file is refused with its line.
3. Nothing is repeated by reference (YAML anchors): what is read is what stands there.
"""

import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import yaml
from msgspec import Struct, field

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.steps import registry
from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import MalformedError

# A recipe of a hundred steps has some 5 KB.
MAX_RECIPE_BYTES = 65_536
Target = Literal["onnx", "tflite"]
_KEYS = ("name", "summary", "gives", "steps")


class StepCall(Struct, frozen=True):
    """One step of a recipe and the options that are not left at their defaults."""

    step: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Text that is equal for equal calls."""
        return f"{self.step}{msgspec.json.encode(self.options, order='sorted').decode()}"


class Recipe(Struct, frozen=True):
    """What is done to a model, and what comes of it.

    Attributes:
        name: of the variant that it makes; a name that a manifest can hold.
        summary: one sentence for people.
        gives: format that devices run.
        steps: in their order; none where the model is only converted.
    """

    name: str
    summary: str
    gives: Target
    steps: list[StepCall]

    @property
    def is_exact(self) -> bool:
        """Whether the result answers like the original up to float32 rounding."""
        return all(registry.find(call.step).exact for call in self.steps)


@functools.cache
def builtin() -> dict[str, Recipe]:
    """Return the recipes of this release by name: those that only convert first, then by name."""
    folder = resources.files(__package__) / "builtin"
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    recipes = [parse(file.read_text(encoding="utf-8"), file.name) for file in files]
    recipes.sort(key=lambda recipe: (recipe.gives, bool(recipe.steps), recipe.name))
    return {recipe.name: recipe for recipe in recipes}


def read(path: str | Path) -> Recipe:
    """Read a recipe and check its steps and options.

    Raises:
        BadInputError: the file cannot be read, or breaks a rule of this module.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise BadInputError(f"{path}: over {MAX_RECIPE_BYTES} bytes; expected a short recipe")
        return parse(data.decode("utf-8"), str(path))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 text (byte {error.start})") from error


def parse(text: str, source: str) -> Recipe:
    """Read a recipe from its YAML.

    Args:
        text: of the recipe.
        source: where it came from, for error texts.

    Raises:
        BadInputError: names the line that breaks a rule of this module.
    """
    try:
        _refuse_anchors(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInputError(f"{source}: no YAML: {' '.join(str(error).split())}") from error
    if root is None:
        raise BadInputError(f"{source}: the recipe is empty; expected {', '.join(_KEYS)}")
    entries = dict(_entries(root, source, "a recipe"))
    for key, node in entries.items():
        if key not in _KEYS:
            raise _wrong(source, node, f"unknown key {key!r}; expected {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in entries]
    if missing:
        raise _wrong(source, root, f"the recipe has no {', '.join(missing)}")
    name, summary, gives = (
        _text(entries[key], source, key) for key in ("name", "summary", "gives")
    )
    try:
        identifiers.model_name(name)
    except MalformedError as error:
        expected = "expected 1 to 64 lower-case letters, digits, '_' or '-'"
        raise _wrong(source, entries["name"], f"name {name!r}: {expected}") from error
    if gives not in registry.TARGETS:
        raise _wrong(source, entries["gives"], f"gives {gives!r}; expected onnx or tflite")
    calls = list(_calls(entries["steps"], source))
    return Recipe(name, summary, cast(Target, gives), calls)


def dump(recipe: Recipe) -> str:
    """Return the YAML of a recipe; `parse` reads it back."""
    steps = [{call.step: call.options} if call.options else call.step for call in recipe.steps]
    written = {"name": recipe.name, "summary": recipe.summary, "gives": recipe.gives}
    return yaml.safe_dump(written | {"steps": steps}, sort_keys=False, width=100)


def _calls(node: yaml.Node, source: str) -> Iterator[StepCall]:
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong(source, node, "steps: expected a list (`[]` to convert only)")
    for item in node.value:
        if isinstance(item, yaml.MappingNode):
            entries = list(_entries(item, source, "a step"))
            if len(entries) != 1:
                raise _wrong(source, item, "a step is its name, or `name: {option: value}`")
            name, given = entries[0]
            options = _options(given, source)
        else:
            name, given, options = _text(item, source, "a step"), item, {}
        try:
            registry.find(name).configure(options)
        except BadInputError as error:
            raise _wrong(source, given, str(error)) from error
        yield StepCall(name, options)


def _options(node: yaml.Node, source: str) -> dict[str, Any]:
    list(_entries(node, source, "options"))  # for its checks
    loader = yaml.SafeLoader("")
    try:
        options: dict[str, Any] = loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise _wrong(source, node, f"options: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    return options


def _entries(node: yaml.Node, source: str, what: str) -> Iterator[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(source, node, f"expected {what} as `key: value`, found {node.value!r:.60}")
    seen: set[str] = set()
    for key, value in node.value:
        name = _text(key, source, "a key")
        if name in seen:
            raise _wrong(source, key, f"{name!r} is given twice")
        seen.add(name)
        yield name, value


def _text(node: yaml.Node, source: str, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or not str(node.value).strip():
        raise _wrong(source, node, f"{what}: expected text")
    return str(node.value).strip()


def _refuse_anchors(text: str, source: str) -> None:
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            line = token.start_mark.line + 1
            raise BadInputError(f"{source}: line {line}: anchors (& and *) are not read in recipes")


def _wrong(source: str, node: yaml.Node, text: str) -> BadInputError:
    return BadInputError(f"{source}: line {node.start_mark.line + 1}: {text}")
