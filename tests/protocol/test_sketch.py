"""Sketches: exact merge, exact codec, refusal of what does not fit."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgefleet_protocol import sketch
from edgefleet_protocol.errors import MalformedError

FEATURES = [
    sketch.Feature("size", edges=[0.0, 1.0, 2.0, 4.0]),
    sketch.Feature("constant", edges=[5.0, 5.0]),
    sketch.Feature("never", edges=[]),
    sketch.Feature("colour", "categorical", vocabulary=["red", "green"]),
]
TABLES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 40), st.just(4)),
    elements=st.one_of(
        st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 4.0, 5.0, np.nan, np.inf, -np.inf])
    ),
)


def counts_of(values: list[float], feature: sketch.Feature) -> dict[int, int]:
    row = sketch.count_rows([feature], np.array(values).reshape(-1, 1))[0]
    return {int(i): int(row[i]) for i in np.flatnonzero(row)}


def test_each_value_falls_where_the_layout_says() -> None:
    size, constant, never, colour = FEATURES
    assert counts_of([-0.1], size) == {sketch.UNDER: 1}
    assert counts_of([0.0, 0.99], size) == {1: 2}
    assert counts_of([1.0], size) == {2: 1}
    assert counts_of([4.0], size) == {3: 1}
    assert counts_of([4.01], size) == {sketch.OVER: 1}
    assert counts_of([np.nan, np.inf, -np.inf], size) == {sketch.MISSING: 1, sketch.INFINITE: 2}
    assert counts_of([4.9, 5.0, 5.1], constant) == {sketch.UNDER: 1, 1: 1, sketch.OVER: 1}
    assert counts_of([3.0], never) == {sketch.OVER: 1}
    assert counts_of([0.0, 1.0, 2.0, -1.0, np.nan], colour) == {
        1: 1,
        2: 1,
        sketch.OVER: 2,
        sketch.MISSING: 1,
    }


def test_training_quantiles_have_at_most_64_bins_of_equal_mass() -> None:
    values = np.random.default_rng(1).normal(size=6400)
    feature = sketch.numeric_feature("x", values)
    assert feature.bins == 64
    counts = sketch.count_rows([feature], values.reshape(-1, 1))[0]
    assert counts[1:65].min() >= 99
    assert counts[1:65].max() <= 101
    assert counts[sketch.UNDER] == counts[sketch.OVER] == 0


def test_ties_and_constants_give_fewer_bins() -> None:
    assert sketch.numeric_feature("x", np.array([1.0, 2.0, 2.0, 3.0])).bins <= 63
    assert sketch.numeric_feature("x", np.array([7.0, 7.0])).edges == [7.0, 7.0]
    assert sketch.numeric_feature("x", np.array([np.nan, np.inf])).edges == []


@given(TABLES, TABLES)
def test_merged_counts_equal_the_counts_of_all_rows(left: np.ndarray, right: np.ndarray) -> None:
    merged = sketch.count_rows(FEATURES, left) + sketch.count_rows(FEATURES, right)
    assert np.array_equal(merged, sketch.count_rows(FEATURES, np.concatenate([left, right])))
    assert (merged.sum(axis=1) == len(left) + len(right)).all()


@given(TABLES, st.integers(0, 2**40))
def test_packed_counts_come_back(rows: np.ndarray, factor: int) -> None:
    counts = sketch.count_rows(FEATURES, rows) * factor
    packed = sketch.pack_counts(counts, FEATURES)
    assert np.array_equal(sketch.unpack_counts(packed, FEATURES), counts)


@pytest.mark.parametrize(("largest", "width"), [(255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_counts_are_narrowed_to_the_smallest_width(largest: int, width: int) -> None:
    counts = np.zeros((1, sketch.COLUMNS), np.int64)
    counts[0, 1] = largest
    assert sketch.pack_counts(counts, FEATURES[:1])[0] == width


@pytest.mark.parametrize("data", [b"", b"\x03abc", b"\x01abc", b"\x01" + bytes(100)])
def test_counts_that_do_not_fit_the_features_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match="expected 28 counts"):
        sketch.unpack_counts(data, FEATURES[:1] * 4)


@settings(max_examples=50)
@given(TABLES, TABLES)
def test_merged_moments_equal_the_moments_of_all_rows(left: np.ndarray, right: np.ndarray) -> None:
    merged = sketch.merge_moments(sketch.moments_of(left), sketch.moments_of(right))
    whole = sketch.moments_of(np.concatenate([left, right]))
    assert np.array_equal(merged[:, [0, 3, 4]], whole[:, [0, 3, 4]])
    np.testing.assert_allclose(merged[:, 1], whole[:, 1], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(merged[:, 2], whole[:, 2], rtol=1e-6, atol=1e-3)


def test_moments_keep_their_precision_at_a_large_offset() -> None:
    rows = 1e6 + np.random.default_rng(2).normal(size=(2000, 1))
    merged = sketch.moments_of(rows[:1])
    for row in rows[1:]:
        merged = sketch.merge_moments(merged, sketch.moments_of(row.reshape(1, 1)))
    assert merged[0, 2] / 2000 == pytest.approx(rows.var(), rel=1e-8)


def test_moments_that_cannot_be_are_refused() -> None:
    good = sketch.moments_of(np.ones((3, 2)))
    assert np.array_equal(sketch.unpack_moments(sketch.pack_moments(good), 2), good)
    with pytest.raises(MalformedError, match="expected 120"):
        sketch.unpack_moments(sketch.pack_moments(good), 3)
    for column, value in ((0, -1.0), (1, np.nan), (2, -1.0)):
        bad = good.copy()
        bad[0, column] = value
        with pytest.raises(MalformedError, match="negative or non-finite"):
            sketch.unpack_moments(sketch.pack_moments(bad), 2)


def profile() -> sketch.ReferenceProfile:
    rows = np.array([[0.5, 5.0, 1.0, 0.0]])
    return sketch.ReferenceProfile(
        1,
        FEATURES,
        sketch.pack_counts(sketch.count_rows(FEATURES, rows), FEATURES),
        sketch.pack_moments(sketch.moments_of(rows)),
    )


def test_a_profile_comes_back() -> None:
    assert sketch.decode_profile(sketch.encode_profile(profile())) == profile()


def test_a_profile_whose_parts_do_not_fit_is_refused() -> None:
    whole = profile()
    falling = [sketch.Feature("size", edges=[1.0, 0.0])]
    for wrong in (
        msgspec.structs.replace(whole, counts=whole.counts[:-1]),
        msgspec.structs.replace(whole, moments=b""),
        msgspec.structs.replace(whole, version=9),
        msgspec.structs.replace(whole, features=falling),
    ):
        with pytest.raises(MalformedError):
            sketch.decode_profile(sketch.encode_profile(wrong))
    with pytest.raises(MalformedError, match="not a reference profile"):
        sketch.decode_profile(b"\xc1")


def test_confidence_bins_are_sixteenths() -> None:
    values = np.array([0.0, 0.0624, 0.0625, 0.99, 1.0, 1.2, np.nan])
    assert sketch.confidence_bin(values).tolist() == [0, 0, 1, 15, 15, 15, 0]
