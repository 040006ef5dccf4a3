"""Whether a challenger replaces the champion. Decisions only.

Both have answered the same held-out rows from the field. The challenger is approved if

1. its score is higher by at least `min_gain`,
2. that it is better is no accident: a paired one-sided test at `ALPHA` says so. Classification:
   McNemar's exact test on the rows that only one of them had right (Q. McNemar 1947). Regression:
   the mean gain over its standard error against the normal distribution,
3. on the rows that the champion was judged on, it does not lose more than `max_loss` (where the
   recipe asks for that).

Anything that is missing or cannot be compared is a refusal.
"""

import math

from msgspec import Struct
from scipy.special import bdtr, ndtr

from edgefleet_cloud.retraining.recipe import Recipe
from edgefleet_cloud.training.comparison import Comparison

ALPHA = 0.05


class Decision(Struct, frozen=True):
    """Approved or refused, why, and the figures.

    Attributes:
        p: of the paired test.
        guard_loss: what the challenger loses on the champion's own hold-out rows; None if that
            was not compared.
    """

    approved: bool
    reason: str
    champion: str | None = None
    challenger: str | None = None
    champion_score: float | None = None
    challenger_score: float | None = None
    rows: int = 0
    gain: float | None = None
    p: float | None = None
    guard_loss: float | None = None


def decide(
    comparison: Comparison | None,
    guard: Comparison | None,
    recipe: Recipe,
    champion: str | None,
) -> Decision:
    """Judge a challenger.

    Args:
        comparison: on the held-out field rows, None where there was no champion.
        guard: on the champion's own hold-out rows, None if they were not compared.
        recipe: its `min_gain` and `max_loss`.
        champion: that stands now, None if there is none.
    """
    if comparison is None:
        if champion is None:
            return Decision(True, "there is no champion to compare with")
        return Decision(False, f"it was not compared with the champion, version {champion}")
    p = p_value(comparison)
    loss = None if guard is None else -guard.gain
    refusals = _refusals(comparison, p, loss, recipe, champion)
    figures = (
        f"{comparison.challenger_score:.1%} against {comparison.champion_score:.1%}"
        f" on {comparison.rows} held-out rows (p = {p:.2g})"
    )
    return Decision(
        approved=not refusals,
        reason="; ".join([figures, *refusals]),
        champion=comparison.champion,
        challenger=comparison.challenger,
        champion_score=comparison.champion_score,
        challenger_score=comparison.challenger_score,
        rows=comparison.rows,
        gain=comparison.gain,
        p=p,
        guard_loss=loss,
    )


def p_value(comparison: Comparison) -> float:
    """Return the one-sided p-value of "the challenger is no better" on paired rows."""
    only_new, only_old = comparison.challenger_only, comparison.champion_only
    if only_new + only_old:
        return mcnemar(only_new, only_old)
    if comparison.gain_se <= 0 or not math.isfinite(comparison.gain_se):
        return 1.0
    return float(ndtr(-comparison.gain / comparison.gain_se))


def mcnemar(better: int, worse: int) -> float:
    """Return P(X ≥ better), X binomial (better + worse, 1/2): McNemar's exact one-sided test."""
    if better == 0:
        return 1.0
    return float(bdtr(worse, better + worse, 0.5))


def _refusals(
    comparison: Comparison,
    p: float,
    loss: float | None,
    recipe: Recipe,
    champion: str | None,
) -> list[str]:
    found = []
    if comparison.champion != champion:
        found.append(f"the champion is version {champion} by now, not {comparison.champion}")
    if not comparison.gain >= recipe.min_gain:
        found.append(f"a gain of {comparison.gain:.1%}; at least {recipe.min_gain:.1%} is needed")
    if not p < ALPHA:
        found.append(f"the difference may be an accident (p must be below {ALPHA:g})")
    if recipe.max_loss is not None:
        if loss is None:
            found.append("what it loses on the champion's own rows is not known")
        elif not loss <= recipe.max_loss:
            found.append(
                f"it loses {loss:.1%} on the champion's own rows; at most {recipe.max_loss:.1%} may"
            )
    return found
