"""Tests and effect sizes on pairs of sketches. Vectorised over features, no state.

A drift alarm needs both: a test says that a difference is no accident, an effect size that it is
worth acting on. With many rows every harmless difference is significant, with few every PSI is
large.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from edgefleet_protocol import drift
from edgefleet_protocol.sketch import INFINITE, MISSING, Counts, Moments

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# The chi-square approximation holds where both expected counts of a bin are at least this many
# (W. G. Cochran 1954, "Some methods for strengthening the common χ² tests"); rarer bins are pooled.
MIN_EXPECTED = 5.0
# A sensor at rest still shows noise of a small part of its working range.
STUCK_VARIANCE_SHARE = 1e-4
# A feature that has one value in nearly all training rows cannot be told from a stuck one.
VARIES_BELOW_SHARE = 0.9


def p_values(sample: Counts, reference: Counts) -> Floats:
    """Test for each feature whether sample and reference have one distribution.

    Pearson's two-sample chi-square on the collapsed bins of `protocol.drift`:
    Σ (√(m/n) a_i - √(n/m) b_i)² / (a_i + b_i), with (bins - 1) degrees of freedom.

    Args:
        sample: `(n_features, 68)` counts.
        reference: likewise; it decides where the collapsed bins lie.

    Returns:
        `(n_features,)` p-values; 1 where there is nothing to compare.
    """
    a, b = _pool_rare(*drift.collapse(sample, reference))
    n, m = a.sum(axis=1, keepdims=True), b.sum(axis=1, keepdims=True)
    both = a + b
    used = (both > 0) & (n > 0) & (m > 0)
    ratio = np.sqrt(np.maximum(m, 1) / np.maximum(n, 1))
    term = (ratio * a - b / ratio) ** 2 / np.where(used, both, 1)
    statistic = np.where(used, term, 0.0).sum(axis=1)
    freedom = used.sum(axis=1) - 1
    p: Floats = np.where(freedom > 0, chdtrc(np.maximum(freedom, 1), statistic), 1.0)
    return p


def effect(sample: Counts, reference: Counts, design: float = 1.0) -> Floats:
    """Return PSI on 16 bins less what it is expected to be without drift, `(n_features,)`.

    Args:
        sample: `(n_features, 68)` counts.
        reference: likewise.
        design: so many rows tell as much as one independent row (the design effect of L. Kish,
            "Survey Sampling", 1965); the expectation grows with it.
    """
    return drift.psi(sample, reference) - design * drift.psi_null(sample, reference)


def benjamini_hochberg(p: Floats, q: float, tests: int | None = None) -> Flags:
    """Tell which hypotheses to reject at a false discovery rate of at most `q`.

    The largest k with p_(k) ≤ q k / tests is sought, and the k smallest p-values are rejected
    (Y. Benjamini, Y. Hochberg 1995). Where only a part of a family is at hand, `tests` is the size
    of the whole family: the others then count as not rejected, which can only make it stricter.

    Args:
        p: of any shape.
        q: for example .01.
        tests: at least `p.size`, which is the default.

    Returns:
        Flags in the shape of `p`.
    """
    flat = p.ravel()
    if flat.size == 0:
        return np.zeros(p.shape, bool)
    limits = q * np.arange(1, flat.size + 1) / max(tests or 0, flat.size)
    ordered = np.sort(flat)
    passing = np.flatnonzero(ordered <= limits)
    cut = ordered[passing[-1]] if passing.size else -1.0
    rejected: Flags = p <= cut
    return rejected


def varies(reference: Counts, moments: Moments) -> Flags:
    """Tell which features vary in the reference enough that standing still is a fault."""
    total = np.maximum(reference.sum(axis=1), 1)
    largest = reference[:, :MISSING].max(axis=1) / total
    flags: Flags = (largest < VARIES_BELOW_SHARE) & (moments[:, 2] > 0)
    return flags


def stands_still(counts: Counts, moments: Moments, reference: Moments) -> Flags:
    """Tell which features hardly move compared with how they moved in the reference.

    A feature stands still when its variance is below 1/10,000 of the reference's, or when it gives
    no finite value at all (a sensor that is unplugged).

    Args:
        counts: `(n_features, 68)` of the sample.
        moments: `(n_features, 5)` of the sample.
        reference: `(n_features, 5)` of the reference.
    """
    variance = moments[:, 2] / np.maximum(moments[:, 0], 1)
    usual = reference[:, 2] / np.maximum(reference[:, 0], 1)
    lost = (counts[:, MISSING] + counts[:, INFINITE]) == counts.sum(axis=1)
    flags: Flags = (counts.sum(axis=1) > 0) & (lost | (variance <= STUCK_VARIANCE_SHARE * usual))
    return flags


def _pool_rare(a: Counts, b: Counts) -> tuple[Counts, Counts]:
    """Add up the bins that are too rare to be tested alone in a last column of their own."""
    n, m = a.sum(axis=1, keepdims=True), b.sum(axis=1, keepdims=True)
    expected = (a + b) * (np.minimum(n, m) / np.maximum(n + m, 1))
    rare = expected < MIN_EXPECTED
    pooled = [
        np.column_stack([np.where(rare, 0, side), np.where(rare, side, 0).sum(axis=1)])
        for side in (a, b)
    ]
    return pooled[0], pooled[1]
