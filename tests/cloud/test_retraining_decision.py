"""When a challenger replaces the champion."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.retraining import decision, recipe
from edgefleet_cloud.retraining.recipe import Recipe
from edgefleet_cloud.training.comparison import Comparison

RECIPE = Recipe(trainer="sklearn", min_gain=0.05)
BETTER = Comparison(
    champion="1", challenger="2", champion_variant="onnx-int8", challenger_variant="onnx-int8",
    holdout="0" * 64, rows=400, champion_score=0.70, challenger_score=0.90, champion_only=10,
    challenger_only=90, gain=0.20, gain_se=0.02,
)  # fmt: skip


def judged(comparison: Comparison | None, **changes: Any) -> decision.Decision:
    guard = changes.pop("guard", None)
    champion = changes.pop("champion", "1")
    return decision.decide(comparison, guard, replace(RECIPE, **changes), champion)


def test_a_clear_gain_is_approved_with_its_figures() -> None:
    found = judged(BETTER)
    assert found.approved
    assert found.reason.startswith("90.0% against 70.0% on 400 held-out rows (p = ")
    assert (found.champion, found.challenger, found.gain, found.rows) == ("1", "2", 0.20, 400)


@pytest.mark.parametrize(("gain", "approved"), [(0.049, False), (0.05, True), (0.051, True)])
def test_the_least_gain(gain: float, approved: bool) -> None:
    assert judged(replace(BETTER, gain=gain)).approved is approved


@pytest.mark.parametrize(("better", "worse", "approved"), [(4, 0, False), (5, 0, True)])
def test_a_gain_on_too_few_rows_may_be_an_accident(better: int, worse: int, approved: bool) -> None:
    found = judged(replace(BETTER, challenger_only=better, champion_only=worse))
    assert found.approved is approved
    if not approved:
        assert found.reason.endswith("the difference may be an accident (p must be below 0.05)")


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_p_value_of_classes_is_the_exact_binomial_one(better: int, worse: int) -> None:
    expected = (
        stats.binomtest(better, better + worse, 0.5, alternative="greater").pvalue
        if better + worse
        else 1.0
    )
    assert decision.mcnemar(better, worse) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gain", "se", "p"),
    [(0.2, 0.1, 0.0228), (0.0, 0.1, 0.5), (0.2, 0.0, 1.0), (0.2, float("inf"), 1.0)],
)
def test_the_p_value_of_a_regression_comes_from_the_mean_gain(
    gain: float, se: float, p: float
) -> None:
    regression = replace(BETTER, champion_only=0, challenger_only=0, gain=gain, gain_se=se)
    assert decision.p_value(regression) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize(("loss", "approved"), [(0.021, False), (0.02, True), (-0.3, True)])
def test_what_may_be_lost_on_the_champions_own_rows(loss: float, approved: bool) -> None:
    guard = replace(BETTER, gain=-loss)
    assert judged(BETTER, guard=guard, max_loss=0.02).approved is approved


def test_an_unknown_loss_is_a_refusal_where_a_limit_is_set() -> None:
    found = judged(BETTER, max_loss=0.02)
    assert not found.approved
    assert "is not known" in found.reason


def test_a_comparison_with_a_champion_of_yesterday_counts_for_nothing() -> None:
    found = judged(BETTER, champion="3")
    assert not found.approved
    assert "the champion is version 3 by now, not 1" in found.reason


def test_without_a_comparison_only_a_first_version_is_approved() -> None:
    assert judged(None, champion=None).approved
    assert not judged(None, champion="1").approved


def test_a_figure_that_is_not_a_number_is_a_refusal() -> None:
    assert not judged(replace(BETTER, gain=float("nan"))).approved


@pytest.mark.parametrize(
    ("given_recipe", "text"),
    [
        ({}, "missing required field `trainer`"),
        ({"trainer": "x", "min_gain": float("nan")}, "min_gain is nan"),
        ({"trainer": "x", "min_gian": 0.1}, "unknown field `min_gian`"),
        ({"trainer": "x", "holdout_share": 1.0}, "Expected `float` < 1.0"),
        ({"trainer": "x", "strategy": "yolo"}, "strategy 'yolo'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(given_recipe: dict, text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        recipe.read(given_recipe)
