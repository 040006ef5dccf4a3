import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.searching import pareto

# Few values, so that ties are common.
COSTS = st.tuples(*[st.integers(0, 4).map(float)] * 3)
POINTS = st.dictionaries(st.integers(), COSTS, max_size=20)


def test_a_point_that_is_nowhere_worse_and_somewhere_better_dominates() -> None:
    assert pareto.dominates((1, 2), (1, 3))
    assert not pareto.dominates((1, 2), (1, 2))
    assert not pareto.dominates((1, 4), (2, 3))


def test_equal_points_are_both_on_the_front() -> None:
    assert pareto.front({"a": (1, 1), "b": (1, 1), "c": (2, 1)}) == ["a", "b"]


def test_the_front_keeps_the_order_given() -> None:
    assert pareto.front({"slow": (1, 9), "middle": (5, 5), "big": (9, 1)}) == [
        "slow",
        "middle",
        "big",
    ]


def test_an_infinite_cost_is_worse_than_any_other() -> None:
    assert pareto.front({"a": (1, float("inf")), "b": (1, 7)}) == ["b"]


def test_a_cost_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="b: a cost that is no number"):
        pareto.front({"a": (1, 2), "b": (1, float("nan"))})


def test_points_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points of \[1, 2\] costs"):
        pareto.front({"a": (1,), "b": (1, 2)})


def test_no_points_have_an_empty_front() -> None:
    assert pareto.front({}) == []


@given(COSTS, COSTS)
def test_two_points_never_dominate_each_other(one: pareto.Point, other: pareto.Point) -> None:
    assert not (pareto.dominates(one, other) and pareto.dominates(other, one))


@given(COSTS, COSTS, COSTS)
def test_dominance_is_transitive(a: pareto.Point, b: pareto.Point, c: pareto.Point) -> None:
    if pareto.dominates(a, b) and pareto.dominates(b, c):
        assert pareto.dominates(a, c)


@given(POINTS)
def test_nothing_on_the_front_is_dominated_and_all_else_is_by_the_front(
    points: dict[int, pareto.Point],
) -> None:
    front = pareto.front(points)
    assert bool(front) == bool(points)
    for key, point in points.items():
        by_front = [other for other in front if pareto.dominates(points[other], point)]
        assert bool(by_front) == (key not in front)


@given(POINTS, COSTS)
def test_another_point_never_brings_one_back_to_the_front(
    points: dict[int, pareto.Point], new: pareto.Point
) -> None:
    key = max(points, default=0) + 1
    after = set(pareto.front({**points, key: new})) - {key}
    assert after <= set(pareto.front(points))
