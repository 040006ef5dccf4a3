"""Fronts of points whose every coordinate is a cost. Pure.

1. A point dominates another if it is nowhere worse and somewhere better.
2. The front is every point that none dominates: equal points are all on it, or all off it.
3. Every point off the front is dominated by one on it.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Point = Sequence[float]
Key = TypeVar("Key", bound=Hashable)


def dominates(one: Point, other: Point) -> bool:
    """Return whether `one` is nowhere worse than `other`, and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Mapping[Key, Point]) -> list[Key]:
    """Return the keys of the points that no other dominates, in the order given.

    Args:
        points: key → costs, all of one length. Infinite costs are allowed.

    Raises:
        ValueError: a cost is no number, or points differ in length.
    """
    _check(points)
    return [
        key
        for key, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    ]


def dominators(key: Key, points: Mapping[Key, Point]) -> list[Key]:
    """Return the keys on the front that dominate a point; empty if it is on the front."""
    return [other for other in front(points) if dominates(points[other], points[key])]


def _check(points: Mapping[Key, Point]) -> None:
    lengths = {len(point) for point in points.values()}
    if len(lengths) > 1:
        raise ValueError(f"points of {sorted(lengths)} costs cannot be compared")
    for key, point in points.items():
        if any(math.isnan(cost) for cost in point):
            raise ValueError(f"{key}: a cost that is no number cannot be compared")
