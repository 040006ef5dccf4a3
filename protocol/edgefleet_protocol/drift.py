"""Distances between a sketch and a reference, the same on the device and at the hub.

- PSI, population stability index: Σ (p_i - q_i) ln(p_i / q_i) over bins (Siddiqi 2006).
- KS, Kolmogorov-Smirnov: largest difference of the two cumulative shares.

Both work on 16 bins collapsed from 64 (exact: bins are only added up, never interpolated), plus
one bin for values that were missing or not finite. Under no drift PSI is about
(bins - 1)(1/n + 1/m), so a PSI means nothing without its row counts: subtract `psi_null` first.
"""

import numpy as np
from numpy.typing import NDArray

from edgefleet_protocol.sketch import INFINITE, MAX_BINS, MISSING, OVER, UNDER, Counts

BINS = 16


def collapse(counts: Counts, reference: Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add up the bins of one feature into at most 16 of about equal reference mass, plus one.

    Args:
        counts: `(68,)` of the sample.
        reference: `(68,)` of the reference; it alone decides where the 16 bins lie.

    Returns:
        Both as `(k + 1,)` int64, k from 1 to 16; the last element counts missing and infinite
        values.
        Under-range falls into the first bin and over-range into the last (for a constant feature
        both are bins of their own), so that a sample that leaves the training range moves mass.
    """
    inner = slice(UNDER, OVER + 1)
    mass = np.cumsum(reference[inner])
    total = mass[-1]
    if total == 0:
        group = np.minimum(np.arange(OVER + 1) * BINS // (MAX_BINS + 2), BINS - 1)
    else:
        # A bin belongs to the sixteenth in which its own middle lies.
        middle = mass - reference[inner] / 2
        group = np.minimum((middle * BINS / total).astype(np.int64), BINS - 1)
    _, group = np.unique(group, return_inverse=True)
    k = int(group.max()) + 1
    sample_bins = np.bincount(group, weights=counts[inner], minlength=k).astype(np.int64)
    reference_bins = np.bincount(group, weights=reference[inner], minlength=k).astype(np.int64)
    sample_lost = counts[MISSING] + counts[INFINITE]
    reference_lost = reference[MISSING] + reference[INFINITE]
    return np.append(sample_bins, sample_lost), np.append(reference_bins, reference_lost)


def psi(counts: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return the population stability index of each feature on 16 collapsed bins.

    Shares are smoothed by half a count a bin (Jeffreys), so that an empty bin stays finite.

    Args:
        counts: `(n_features, 68)` of the sample.
        reference: `(n_features, 68)` of the reference.

    Returns:
        `(n_features,)`; 0 where either side has no rows.
    """
    return np.array([_psi(*collapse(c, r)) for c, r in zip(counts, reference, strict=True)])


def psi_null(counts: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return what PSI is expected to be with no drift: (bins - 1)(1/n + 1/m) for each feature."""
    return np.array([_null(*collapse(c, r)) for c, r in zip(counts, reference, strict=True)])


def ks(counts: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return the KS distance of each feature over all 64 bins, missing values left out.

    The mean error against the exact statistic is .0048 and the largest .016
    (`tests/protocol/test_drift.py` measures it).
    """
    sample = counts[:, UNDER : OVER + 1].astype(np.float64)
    base = reference[:, UNDER : OVER + 1].astype(np.float64)
    n, m = sample.sum(axis=1, keepdims=True), base.sum(axis=1, keepdims=True)
    gap = np.abs(
        np.cumsum(sample / np.maximum(n, 1), axis=1) - np.cumsum(base / np.maximum(m, 1), axis=1)
    )
    distance: NDArray[np.float64] = np.where((n * m)[:, 0] > 0, gap.max(axis=1), 0.0)
    return distance


def _psi(sample: NDArray[np.int64], base: NDArray[np.int64]) -> float:
    n, m = int(sample.sum()), int(base.sum())
    if n == 0 or m == 0:
        return 0.0
    sample, base = _drop_empty(sample, base)
    p = (sample + 0.5) / (n + 0.5 * len(sample))
    q = (base + 0.5) / (m + 0.5 * len(base))
    return float(((p - q) * np.log(p / q)).sum())


def _null(sample: NDArray[np.int64], base: NDArray[np.int64]) -> float:
    n, m = int(sample.sum()), int(base.sum())
    if n == 0 or m == 0:
        return 0.0
    return (len(_drop_empty(sample, base)[0]) - 1) * (1 / n + 1 / m)


def _drop_empty(
    sample: NDArray[np.int64], base: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    used = (sample + base) > 0
    return sample[used], base[used]
