"""The median of few values, with its interval. Pure."""

import math
from collections.abc import Sequence

from edgefleet_converters.verification.evidence import Interval


def of_median(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median of independent values with its distribution-free interval.

    The k-th smallest and k-th largest of n values enclose the median with a probability of
    1 - 2 P(B < k), where B counts heads of n fair coins (Conover, Practical Nonparametric
    Statistics, 3.2). With too few values for the confidence, the ends are the extremes.

    Args:
        values: at least one.
        confidence: least probability that the interval holds the median.

    >>> of_median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    Interval(point=4.5, low=1.0, high=8.0)
    """
    ordered = sorted(values)
    n = len(ordered)
    heads, k = 1, 0
    # P(B <= k) must stay within half of what the confidence leaves over.
    while k + 1 < (n + 1) // 2:
        heads += math.comb(n, k + 1)
        if heads / 2**n > (1 - confidence) / 2:
            break
        k += 1
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Interval(middle, ordered[k], ordered[n - 1 - k])
