"""Tests and effect sizes against slow, plain counterparts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgefleet_cloud.monitoring import statistics
from edgefleet_protocol import sketch


def counted(training: np.ndarray, *samples: np.ndarray) -> list[np.ndarray]:
    features = [sketch.numeric_feature("x", training)]
    return [sketch.count_rows(features, rows.reshape(-1, 1)) for rows in (training, *samples)]


def brute_force_bh(p: list[float], q: float, tests: int) -> list[bool]:
    best = max((k for k in range(1, len(p) + 1) if sorted(p)[k - 1] <= q * k / tests), default=0)
    return [value <= sorted(p)[best - 1] if best else False for value in p]


@given(
    st.lists(st.floats(0, 1) | st.floats(0, 0.01), max_size=40),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.integers(0, 100),
)
def test_benjamini_hochberg_is_the_definition(p: list[float], q: float, more: int) -> None:
    found = statistics.benjamini_hochberg(np.array(p), q, len(p) + more)
    assert found.tolist() == brute_force_bh(p, q, len(p) + more)


def test_a_larger_family_is_stricter() -> None:
    p = np.array([0.004, 0.9])
    assert statistics.benjamini_hochberg(p, 0.01).tolist() == [True, False]
    assert statistics.benjamini_hochberg(p, 0.01, 3).tolist() == [False, False]


def test_the_p_value_is_that_of_the_contingency_table() -> None:
    rng = np.random.default_rng(1)
    training, sample = rng.normal(size=1600), rng.normal(0.1, 1, size=800)
    reference, counts = counted(training, sample)
    found = statistics.p_values(counts, reference)[0]
    edges = np.quantile(training, np.linspace(0, 1, 17))
    edges[0], edges[-1] = -np.inf, np.inf
    table = [np.histogram(rows, edges)[0] for rows in (sample, training)]
    assert found == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-6)


def test_without_drift_p_values_are_uniform_also_for_ties_and_rare_values() -> None:
    rng = np.random.default_rng(2)
    # A pixel: mostly 0, whole numbers up to 16, the high ones rare.
    weights = np.array([600, *np.geomspace(100, 0.5, 16)])
    draw = lambda n: rng.choice(17, n, p=weights / weights.sum()).astype(float)  # noqa: E731  # local
    p = [statistics.p_values(*reversed(counted(draw(900), draw(500))))[0] for _ in range(1500)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(np.array(p) < 0.001) <= 0.005


def test_nothing_to_compare_is_no_evidence() -> None:
    reference, empty = counted(np.arange(50.0), np.zeros(0))
    assert statistics.p_values(empty, reference).tolist() == [1.0]
    constant, same = counted(np.full(50, 3.0), np.full(20, 3.0))
    assert statistics.p_values(same, constant).tolist() == [1.0]


def test_the_effect_is_about_zero_without_drift_and_grows_with_it() -> None:
    rng = np.random.default_rng(3)
    training = rng.normal(size=900)
    still = [
        statistics.effect(*reversed(counted(training, rng.normal(size=500))))[0] for _ in range(300)
    ]
    assert max(still) < 0.1
    shifted = statistics.effect(*reversed(counted(training, rng.normal(0.5, 1, 500))))[0]
    assert shifted > 0.1


def test_a_feature_that_stands_still_is_told_from_one_that_moves() -> None:
    rng = np.random.default_rng(4)
    training = rng.normal(5, 2, size=900)
    cases = {
        "moves": rng.normal(5, 2, 500),
        "moves elsewhere": rng.normal(50, 2, 500),
        "noise of a sensor at rest": rng.normal(5, 0.01, 500),
        "frozen": np.full(500, 7.0),
        "unplugged": np.full(500, np.nan),
    }
    found = {}
    for name, rows in cases.items():
        _, counts = counted(training, rows)
        moments = [sketch.moments_of(r.reshape(-1, 1)) for r in (rows, training)]
        found[name] = bool(statistics.stands_still(counts, *moments)[0])
    assert found == {
        "moves": False,
        "moves elsewhere": False,
        "noise of a sensor at rest": True,
        "frozen": True,
        "unplugged": True,
    }


@pytest.mark.parametrize(("ones", "varies"), [(90, False), (91, True), (500, True)])
def test_a_feature_with_one_value_in_nine_tenths_of_the_rows_does_not_vary(
    ones: int, varies: bool
) -> None:
    values = np.zeros(900)
    values[:ones] = 1.0
    features = [sketch.Feature("x", "categorical", vocabulary=["a", "b"])]
    counts = sketch.count_rows(features, values.reshape(-1, 1))
    moments = sketch.moments_of(values.reshape(-1, 1))
    assert bool(statistics.varies(counts, moments)[0]) is varies
