"""Spaces, and the ways through them."""

from pathlib import Path

import pytest

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching import explore, space
from edgefleet_converters.searching.explore import Outcome
from edgefleet_converters.searching.space import Space

TEXT = """
name: small-space
summary: Two choices.
gives: onnx
steps:
  - onnx-optimize
  - onnx-int8-static:
      activations: {one_of: [u8, s8]}
      calibration: {one_of: [minmax, entropy, percentile]}
"""


def _space(name: str = "small-space", text: str = TEXT) -> Space:
    return space.parse(text.replace("small-space", name), "s.yaml")


def test_every_point_is_a_recipe_with_its_number_in_the_name() -> None:
    small = _space()
    assert small.size == 6
    recipes = [small.recipe(point) for point in small.points()]
    assert [recipe.name for recipe in recipes] == [f"small-space-{n:03}" for n in range(6)]
    assert recipes[0].steps[1].options == {"activations": "u8", "calibration": "minmax"}
    assert recipes[5].steps[1].options == {"activations": "s8", "calibration": "percentile"}
    assert recipes[5].summary == "activations s8, calibration percentile"


def test_making_a_recipe_leaves_the_space_as_it_was() -> None:
    small = _space()
    small.recipe((1, 2))
    assert small.recipe((0, 0)).steps[1].options["activations"] == "u8"


def test_the_spaces_of_this_release_hold_valid_recipes_only() -> None:
    found = space.builtin()
    assert "onnx-int8-space" in found
    assert all(name == one.name and one.size > 1 for name, one in found.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[u8, s8]", "[u8, s7]"), "activations"),
        (("[u8, s8]", "u8"), "activations: expected a list of values"),
        (("[u8, s8]", "[]"), "activations: expected a list of values"),
        (("onnx-optimize", "onnx-optimise"), "onnx-optimise"),
        (("gives: onnx\n", ""), "expected a space with name, summary, gives, steps"),
        (("small-space", "Small Space"), "Small Space"),
    ],
)
def test_a_space_with_a_fault_is_refused(change: tuple[str, str], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        _space(text=TEXT.replace(*change))


def test_a_space_of_too_many_points_is_refused() -> None:
    rows = ", ".join(str(n) for n in range(1, 1001))
    text = TEXT.replace("activations:", f"rows: {{one_of: [{rows}]}}\n      activations:")
    with pytest.raises(BadInputError, match="6000 points; a space may have 4096"):
        _space(text=text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        space.read(tmp_path / "none.yaml")
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match="not UTF-8"):
        space.read(tmp_path / "s.yaml")


def test_small_spaces_are_tried_whole_with_the_defaults_first() -> None:
    way = explore.explorer([_space("a"), _space("b")], trials=12, seed=0)
    first = way.propose(2)
    assert [(one.space, one.point) for one in first] == [("a", (0, 0)), ("b", (0, 0))]
    rest = way.propose(99)
    assert len(rest) == 10
    assert [one.number for one in first + rest] == list(range(12))
    assert way.propose(99) == []
    assert way.note == "12 of all 12 points of the spaces were tried"


def test_a_space_of_which_nothing_can_be_made_is_left_out() -> None:
    way = explore.explorer([_space("a"), _space("b")], trials=12, seed=0)
    while proposals := way.propose(2):
        way.tell(
            {one.number: Outcome((1, 1, 1), 0) if one.space == "a" else None for one in proposals}
        )
    assert way.note == (
        "8 of all 12 points of the spaces were tried; left out, because nothing could be made of"
        " it: b"
    )


def _outcome(point: tuple[int, ...]) -> Outcome:
    """Smaller is better in every choice, but the very smallest is over the budget."""
    return Outcome((100.0 - sum(point), 10.0, 0.0), 1.0 if point == (1, 2) else -1.0)


def _walk(trials: int, seed: int) -> tuple[list[tuple[str, tuple[int, ...]]], str]:
    way = explore.explorer([_space("a"), _space("b"), _space("c")], trials, seed)
    seen = []
    while proposals := way.propose(4):
        seen += [(one.space, one.point) for one in proposals]
        way.tell({one.number: _outcome(one.point) for one in proposals})
    return seen, way.note


def test_large_spaces_are_sampled_without_repeating_a_point_defaults_first() -> None:
    seen, note = _walk(trials=12, seed=3)
    assert len(seen) == len(set(seen)) == 12
    assert seen[:3] == [("a", (0, 0)), ("b", (0, 0)), ("c", (0, 0))]
    assert note.startswith("12 of 18 points of the spaces were tried, as a sampler proposed them")
    assert "a better one may be among them" in note


def test_equal_seeds_propose_equal_points() -> None:
    assert _walk(trials=10, seed=1) == _walk(trials=10, seed=1)


def test_a_sampler_that_finds_nothing_new_ends_early_and_says_so() -> None:
    way = explore.Sampled([_space("a")], 7, seed=0)  # more trials than points
    tried = []
    while proposals := way.propose(3):
        tried += proposals
        way.tell({one.number: _outcome(one.point) for one in proposals})
    assert len(tried) <= 6
    assert "it ended early: the sampler found nothing new" in way.note
