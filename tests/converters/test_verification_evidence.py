"""Metrics and their intervals: equal to the textbook's, and as wide as they must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray
from sklearn import metrics

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.verification import evidence, truth
from edgefleet_converters.verification.evidence import Interval
from edgefleet_converters.verification.truth import Metric, Truth

Floats = NDArray[np.float64]


def classes(answers: Floats) -> Floats:
    """Return two-class scores that answer 0 or 1."""
    return np.stack([1 - answers, answers], axis=1)


def labelled(
    labels: Floats, metric: Metric | None = None, groups: NDArray[np.int64] | None = None
) -> Truth:
    """Return the truth of a model that is always right."""
    return Truth("classification", classes(labels), labels, metric, groups)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 5), st.floats(-9, 9), st.integers(0, 3)),
        min_size=3,
        max_size=40,
    )
)
def test_metrics_are_those_of_scikit_learn(rows: list[tuple[int, int, float, int]]) -> None:
    label, score, value, _ = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    both = len(set(label)) == 2
    values = Truth("regression", value[:, None], value)
    if np.ptp(value) > 1e-3:
        expected = metrics.r2_score(value, score)
        assert truth.rate(values, score[:, None]).value == pytest.approx(expected, rel=1e-6)
    if both:
        area = truth.rate(labelled(label, "auc"), np.stack([-score, score], axis=1)).value
        assert area == pytest.approx(metrics.roc_auc_score(label, score))
    answers = (score > 2).astype(np.float64)
    right = truth.rate(labelled(label), classes(answers)).value
    assert right == pytest.approx(metrics.accuracy_score(label, answers))


@pytest.mark.parametrize("metric", ["accuracy", "auc"])
def test_a_unit_drawn_twice_counts_as_two_rows(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    labels, scores = (rng.random(30) < 0.5).astype(np.float64), rng.random((30, 2))
    counts = rng.integers(0, 3, 30)
    rating = truth.rate(labelled(labels, metric), scores)
    repeated = np.repeat(np.arange(30), counts)
    written_out = truth.rate(labelled(labels[repeated], metric), scores[repeated]).value
    assert rating.of(counts[None].astype(np.float64))[0] == pytest.approx(written_out)


def test_reconstruction_is_judged_by_the_mean_error_of_each_group() -> None:
    inputs = np.zeros((6, 2))
    scores = np.array([[0.0, 2], [0, 0], [1, 1], [1, 1], [3, 0], [0, 0]])  # errors 2 0 1 1 4.5 0
    groups = np.array([4, 4, 7, 7, 9, 9])  # means 1, 1, 2.25
    labels = np.array([0.0, 0, 1, 1, 1, 1])
    held = Truth("score", inputs, labels, "reconstruction-auc", groups, inputs)
    # Of two pairs one is tied: half a point.
    assert truth.rate(held, scores).value == 0.75
    assert truth.rate(held, scores).units == 3
    mixed = structs.replace(held, labels=np.array([0.0, 1, 1, 1, 1, 1]))
    with pytest.raises(BadInputError, match="group 0 has rows of both labels"):
        truth.rate(mixed, scores)
    with pytest.raises(BadInputError, match="needs a model whose output is like its one input"):
        truth.rate(held, scores[:, :1])


def test_auc_asks_for_two_classes_and_both_labels() -> None:
    three = Truth("classification", np.eye(3), np.arange(3.0), "auc")
    with pytest.raises(BadInputError, match="auc needs two classes or one score; the model has 3"):
        truth.rate(three, np.eye(3))
    with pytest.raises(BadInputError, match=r"labels 0 and 1, both present; found \[1.0\]"):
        truth.rate(labelled(np.ones(3), "auc"), np.zeros((3, 2)))


def test_without_labels_the_original_is_right() -> None:
    original = classes(np.array([0.0, 1, 1, 0]))
    found = evidence.compare(
        Truth("classification", original, None, "auc"), classes(np.array([0.0, 1, 0, 0]))
    )
    assert (found.metric, found.labelled) == ("accuracy", False)
    assert (found.original.point, found.score.point, found.agreement) == (1.0, 0.75, 0.75)
    values = np.arange(8.0).reshape(4, 2)
    assert evidence.compare(Truth("score", values, None), values).drop.point == 0.0


def test_figures_of_parity() -> None:
    original = classes(np.array([0.0, 1, 1, 0]))
    scores = original.copy()
    scores[0] += [-0.002, 0.002]
    found = evidence.compare(labelled(np.array([0.0, 1, 1, 0])), scores)
    assert (found.parity_max, found.parity_mean) == pytest.approx((0.002, 0.0005))
    assert (found.drop.point, found.agreement, found.units) == (0.0, 1.0, 4)


@pytest.mark.parametrize(("rows", "at_most"), [(100, 0.03), (300, 0.01), (1000, 0.003)])
def test_no_difference_is_held_to_the_rule_of_three(rows: int, at_most: float) -> None:
    labels = np.zeros(rows)
    found = evidence.compare(labelled(labels), classes(labels))
    assert found.drop.point == 0.0
    assert found.drop.high == pytest.approx(at_most, rel=0.05)
    assert found.drop.low == pytest.approx(-found.drop.high, rel=0.35)


@pytest.mark.parametrize(
    ("rows", "lost", "won"), [(60, 0.05, 0.02), (200, 0.02, 0.01), (1000, 0.005, 0.002)]
)
def test_the_interval_covers_the_true_loss_as_often_as_it_says(
    rows: int, lost: float, won: float
) -> None:
    """60 samples of a known loss: at 95 % or better, 53 hits or fewer come once in 100."""
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(60):
        draw = rng.random(rows)
        before = ((draw >= lost) & (draw < lost + won)).astype(np.float64)
        known = Truth("classification", classes(before), np.zeros(rows))
        after = classes((draw < lost).astype(np.float64))
        drop = evidence.compare(known, after, seed=seed, resamples=400).drop
        hits += drop.low <= lost - won <= drop.high
    assert hits > 53


def test_what_both_get_wrong_is_no_noise() -> None:
    """Paired: half the rows are wrong in both, yet the loss is known to a fraction of a point."""
    labels = np.zeros(2000)
    wrong = np.arange(2000) % 2
    known = Truth("classification", classes(wrong.astype(np.float64)), labels)
    found = evidence.compare(known, classes(wrong.astype(np.float64)))
    assert found.drop.high < 0.002
    assert found.score.high - found.score.low > 0.03


def test_rows_of_one_group_are_one_piece_of_evidence() -> None:
    labels = np.zeros(1000)
    after = classes((np.arange(1000) % 50 == 0).astype(np.float64))
    groups = np.arange(1000) // 100
    alone = evidence.compare(labelled(labels), after).drop
    together = evidence.compare(labelled(labels, groups=groups), after)
    assert (together.units, together.drop.point) == (10, alone.point)
    assert together.drop.high > 2 * alone.high


def test_equal_seeds_draw_the_same_rows() -> None:
    values = np.random.default_rng(0).random((50, 1))
    known = Truth("regression", values, values[:, 0])
    first = evidence.compare(known, values**2, seed=5)
    assert evidence.compare(known, values**2, seed=5) == first
    assert evidence.compare(known, values**2, seed=6) != first


def test_less_confidence_is_a_narrower_interval() -> None:
    drawn = np.arange(1001.0)
    usual, narrow = evidence.interval(500.0, drawn), evidence.interval(500.0, drawn, 0.8)
    assert (usual.low, usual.high) == pytest.approx((25.0, 975.0))
    assert (narrow.low, narrow.high) == pytest.approx((100.0, 900.0))
    assert evidence.interval(-3.0, drawn).low == -3.0  # never without its own figure


@pytest.mark.parametrize(
    ("low", "point", "high", "verdict"),
    [
        (-0.01, 0.0, 0.005, "within"),
        (-0.01, 0.0, 0.0051, "undecided"),
        (0.005, 0.01, 0.02, "undecided"),
        (0.0051, 0.01, 0.02, "over"),
    ],
)
def test_a_budget_is_decided_by_the_ends_of_the_interval(
    low: float, point: float, high: float, verdict: str
) -> None:
    assert evidence.budget_verdict(Interval(point, low, high), 0.005) == verdict


@settings(max_examples=50)
@given(st.floats(0.001, 0.05), st.floats(0.0005, 0.05), st.floats(0.002, 0.08))
def test_as_many_rows_as_are_said_to_decide_do(width: float, budget: float, point: float) -> None:
    labels = np.zeros(400)
    found = structs.replace(
        evidence.compare(labelled(labels), classes(labels), resamples=10),
        drop=Interval(point, point - width, point + width),
    )
    rows = evidence.units_to_decide(found, budget)
    if rows is None:
        assert point == pytest.approx(budget)
        return
    assert rows >= 400
    narrowed = width * (400 / (1.01 * rows)) ** 0.5
    drop = Interval(point, point - narrowed, point + narrowed)
    assert evidence.budget_verdict(drop, budget) != "undecided"
