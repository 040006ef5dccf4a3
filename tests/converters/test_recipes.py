"""Recipes: read from YAML with the line of every fault, and the built-in ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.conversion import DEFAULT_VARIANTS, VARIANTS
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.recipes import recipe as recipes_of
from edgefleet_converters.recipes import workshop
from edgefleet_converters.recipes.recipe import Recipe, StepCall
from edgefleet_converters.steps import registry
from edgefleet_converters.steps.registry import Format

FORMATS: tuple[Format, ...] = ("keras", "savedmodel", "onnx", "tflite")
GOOD = """\
name: small
summary: Made small.
gives: onnx
steps:
  - onnx-optimize
  - onnx-int8-static:
      activations: s8
      rows: 64
"""


def refusal(text: str) -> str:
    with pytest.raises(BadInputError) as caught:
        recipes_of.parse(text, "r.yaml")
    return str(caught.value)


def test_a_recipe_is_its_name_what_it_gives_and_its_steps() -> None:
    assert recipes_of.parse(GOOD, "r.yaml") == Recipe(
        "small",
        "Made small.",
        "onnx",
        [
            StepCall("onnx-optimize"),
            StepCall("onnx-int8-static", {"activations": "s8", "rows": 64}),
        ],
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary: Made small.", "about: x", "line 2: unknown key 'about'; expected name, summary"),
        ("gives: onnx", "gives: keras", "line 3: gives 'keras'; expected onnx or tflite"),
        ("name: small", "name: Small!", "line 1: name 'Small!': expected 1 to 64 lower-case"),
        ("gives: onnx\n", "", "line 1: the recipe has no gives"),
        ("- onnx-optimize", "- onnx-optimise", "line 5: no step is called 'onnx-optimise'"),
        ("rows: 64", "rows: 0", "line 7: step onnx-int8-static: Expected `int` >= 1"),
        ("rows: 64", "lines: 64", "contains unknown field `lines`"),
        ("rows: 64", "activations: u8", "line 8: 'activations' is given twice"),
        ("name: small", "name: small\nname: other", "line 2: 'name' is given twice"),
        ("rows: 64", "rows: &a 64", r"line 8: anchors (& and *) are not read in recipes"),
        ("  - onnx-optimize\n", "  - [a]\n", "line 5: a step: expected text"),
        ("name: small", "name: [small", "r.yaml: no YAML: "),
        ("rows: 64", "rows: 2001-13-45", "line 7: options: month must be in 1..12"),
        ("rows: 64", "rows: !!python/name:os.system x", "line 7: options: could not determine"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_with_its_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in refusal(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: the recipe is empty; expected name, summary, gives, steps"),
        ("- a\n", "line 1: expected a recipe as `key: value`"),
        ("name: a\nsummary: b\ngives: onnx\nsteps: fast\n", "line 4: steps: expected a list"),
        (
            "name: a\nsummary: b\ngives: onnx\nsteps:\n- onnx-fp16: {}\n  onnx-compact: {}\n",
            "line 5: a step is its name, or `name: {option: value}`",
        ),
        ("[" * 5000, "r.yaml: no YAML: "),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str) -> None:
    assert message in refusal(text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none.yaml: cannot be read: No such file"):
        recipes_of.read(tmp_path / "none.yaml")
    (tmp_path / "long.yaml").write_bytes(b" " * (recipes_of.MAX_RECIPE_BYTES + 1))
    with pytest.raises(BadInputError, match=r"long.yaml: over 65536 bytes"):
        recipes_of.read(tmp_path / "long.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(BadInputError, match=r"latin.yaml: not UTF-8 text \(byte 8\)"):
        recipes_of.read(tmp_path / "latin.yaml")


@given(
    rows=st.integers(1, 1000),
    percentile=st.floats(60, 100),
    layers=st.lists(st.text(st.characters(categories=("L", "N", "P")), min_size=1), max_size=3),
    summary=st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40),
)
def test_what_is_written_is_read_back(
    rows: int, percentile: float, layers: list[str], summary: str
) -> None:
    options = {"rows": rows, "percentile": percentile, "exclude": layers}
    steps = [StepCall("onnx-optimize"), StepCall("onnx-int8-static", options)]
    recipe = Recipe("a", summary, "onnx", steps)
    assert recipes_of.parse(recipes_of.dump(recipe), "r.yaml") == recipe


@pytest.mark.parametrize("name", VARIANTS)
def test_every_built_in_recipe_can_be_made_from_some_format(name: str) -> None:
    recipe = recipes_of.builtin()[name]
    assert recipe.name == name
    assert recipe.summary.endswith(".")
    assert name.startswith(recipe.gives)
    workshop.plan(recipe, FORMATS)
    assert recipes_of.parse(recipes_of.dump(recipe), name) == recipe


def test_each_default_variant_is_a_built_in_recipe() -> None:
    assert set(DEFAULT_VARIANTS) <= set(VARIANTS)


def test_only_conversions_and_what_keeps_the_answers_are_exact() -> None:
    exact = {name for name, recipe in recipes_of.builtin().items() if recipe.is_exact}
    assert exact == {"onnx-fp32", "tflite-fp32"}
    assert Recipe("a", "b", "onnx", [StepCall("onnx-optimize")]).is_exact
    assert not Recipe("a", "b", "onnx", [StepCall("onnx-fp16")]).is_exact


@pytest.mark.parametrize("name", sorted(registry.all_steps()))
def test_every_step_says_what_it_does_and_where_it_is_described(name: str) -> None:
    step = registry.find(name)
    assert step.summary.endswith(".")
    assert step.reference.startswith("https://")
    # Every option has a default, so that a step is usable by its name alone.
    step.configure({})
