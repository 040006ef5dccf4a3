"""Distances from sketches against their exact counterparts."""

import numpy as np
import pytest

from edgefleet_protocol import drift, sketch


def pair(sample: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = [sketch.numeric_feature("x", training)]
    return (
        sketch.count_rows(features, sample.reshape(-1, 1)),
        sketch.count_rows(features, training.reshape(-1, 1)),
    )


def exact_ks(left: np.ndarray, right: np.ndarray) -> float:
    grid = np.sort(np.concatenate([left, right]))
    below = [
        np.searchsorted(np.sort(side), grid, side="right") / len(side) for side in (left, right)
    ]
    return float(np.abs(below[0] - below[1]).max())


def test_ks_of_the_sketch_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for shift in (0.0, 0.1, 0.5, 2.0):
        for draw in (rng.normal, rng.exponential, rng.uniform):
            for _ in range(10):
                training, sample = draw(size=2000), draw(size=500) + shift
                errors.append(
                    abs(drift.ks(*pair(sample, training))[0] - exact_ks(sample, training))
                )
    # 64 bins of equal mass: a step of the exact curve hides inside one bin at most.
    assert max(errors) <= 0.02
    assert np.mean(errors) <= 0.006


def test_without_drift_psi_is_about_its_null_expectation() -> None:
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(200):
        counts, reference = pair(rng.normal(size=500), rng.normal(size=900))
        ratios.append(drift.psi(counts, reference)[0] / drift.psi_null(counts, reference)[0])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_psi_grows_with_the_shift() -> None:
    rng = np.random.default_rng(5)
    training = rng.normal(size=5000)
    found = [drift.psi(*pair(rng.normal(size=2000) + s, training))[0] for s in (0, 0.2, 0.5, 1, 3)]
    assert found == sorted(found)
    assert found[0] < 0.02
    assert found[2] > 0.2


def test_bins_are_added_up_and_never_split() -> None:
    rng = np.random.default_rng(6)
    counts, reference = pair(rng.normal(size=700), rng.normal(size=6400))
    sample16, reference16 = drift.collapse(counts, reference)
    assert sample16.sum() == 700
    assert reference16.sum() == 6400
    assert reference16.shape == (1, 17)
    assert reference16[0, :16].min() >= 399


def test_a_constant_feature_that_moves_is_seen() -> None:
    for value in (4.0, 6.0):
        counts, reference = pair(np.full(500, value), np.full(900, 5.0))
        assert drift.psi(counts, reference)[0] > 1
    counts, reference = pair(np.full(500, 5.0), np.full(900, 5.0))
    assert drift.psi(counts, reference)[0] == 0


def test_missing_values_are_a_bin_of_their_own() -> None:
    rng = np.random.default_rng(7)
    sample = rng.normal(size=500)
    sample[:100] = np.nan
    counts, reference = pair(sample, rng.normal(size=900))
    assert drift.psi(counts, reference)[0] > 0.5


def test_no_rows_are_no_drift() -> None:
    counts, reference = pair(np.zeros(0), np.arange(10.0))
    assert drift.psi(counts, reference)[0] == 0
    assert drift.psi_null(counts, reference)[0] == 0
    assert drift.ks(counts, reference)[0] == 0
