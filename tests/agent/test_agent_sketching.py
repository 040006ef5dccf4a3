"""The recorder: counts equal to the contract's, windows of the right rows, late labels."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_agent.inference.sketching import FLUSH_ROWS, MAX_RECENT_ROWS, ClosedWindow, Recorder
from edgefleet_protocol import codec, sketch
from edgefleet_protocol.messages import Health, Report, Slot
from edgefleet_protocol.sketch import Feature, ReferenceProfile

SLOT = Slot("m", "v1", 1, "x", "0" * 64)
RNG = np.random.default_rng(20)
TRAINING = RNG.normal(size=(500, 3))
FEATURES = [
    sketch.numeric_feature("plain", TRAINING[:, 0]),
    sketch.numeric_feature("tied", np.round(TRAINING[:, 1])),
    sketch.numeric_feature("constant", np.full(500, 2.5)),
    Feature("empty"),
    Feature("category", "categorical", vocabulary=["a", "b", "c"]),
]
CLASSES = ["red", "green"]
VALUES = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1.0, 2.0, 2.5, 3.0, 0.5, -0.5, 1e308, -1e308]
VALUES += [FEATURES[0].edges[0], FEATURES[0].edges[-1], FEATURES[0].edges[7], 2.9999999999]


def profile(features: list[Feature] = FEATURES) -> ReferenceProfile:
    nothing = np.zeros((0, len(features)))
    return ReferenceProfile(
        0,
        features,
        sketch.pack_counts(sketch.count_rows(features, nothing), features),
        sketch.pack_moments(sketch.moments_of(nothing)),
        CLASSES,
        [0, 0],
        [0] * 16,
    )


def recorder(**changes: Any) -> tuple[Recorder, list[ClosedWindow]]:
    windows: list[ClosedWindow] = []
    options: dict[str, Any] = {
        "profile": profile(),
        "reference": "1" * 64,
        "classes": CLASSES,
        "window_rows": 1000,
        "recent_bytes": 1 << 20,
        "clock": lambda: 50.0,
        "on_window": windows.append,
    }
    return Recorder(SLOT, **{**options, **changes}), windows


def feed(made: Recorder, rows: NDArray[np.float64]) -> list[int]:
    return [made.add(row, index % 2, 0.75, 3.0) for index, row in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(VALUES) | st.floats(-4, 4), min_size=5, max_size=5),
        min_size=1,
        max_size=700,
    )
)
def test_counts_are_those_of_the_contract_bit_for_bit(cells: list[list[float]]) -> None:
    rows = np.array(cells)
    made, windows = recorder(window_rows=len(rows))
    feed(made, rows)
    (window,) = windows
    np.testing.assert_array_equal(window.counts, sketch.count_rows(FEATURES, rows))
    packed = window.pack(Health())
    np.testing.assert_array_equal(
        sketch.unpack_moments(packed.moments, len(FEATURES))[:, 0], np.isfinite(rows).sum(axis=0)
    )


@pytest.mark.parametrize("hole", [None, np.nan, np.inf])
def test_moments_are_those_of_all_rows_together(hole: float | None) -> None:
    rows = RNG.normal(loc=[1e6, 0, -5, 3, 1], size=(1000, 5))
    if hole is not None:
        rows[::7, 1] = hole
    made, windows = recorder()
    feed(made, rows)
    np.testing.assert_allclose(windows[0].totals.moments, sketch.moments_of(rows), rtol=1e-9)


@pytest.mark.parametrize("window_rows", [1, 7, FLUSH_ROWS - 1, FLUSH_ROWS, FLUSH_ROWS + 1, 1000])
def test_a_window_has_exactly_its_rows(window_rows: int) -> None:
    made, windows = recorder(window_rows=window_rows)
    rows = RNG.normal(size=(3 * window_rows, 5))
    feed(made, rows[:-1])
    assert [window.totals.rows for window in windows] == [window_rows] * 2
    feed(made, rows[-1:])
    assert [window.totals.rows for window in windows] == [window_rows] * 3
    total = sum(window.counts for window in windows)
    np.testing.assert_array_equal(total, sketch.count_rows(FEATURES, rows))


def test_failures_count_towards_the_end_of_a_window_and_not_as_rows() -> None:
    made, windows = recorder(window_rows=10)
    feed(made, RNG.normal(size=(4, 5)))
    made.fail(5)
    assert windows == []
    made.fail()
    assert (windows[0].totals.rows, windows[0].totals.errors) == (4, 6)


def test_finish_hands_over_what_is_open_and_nothing_twice() -> None:
    made, windows = recorder()
    made.finish()
    feed(made, RNG.normal(size=(3, 5)))
    made.finish()
    made.finish()
    assert [window.totals.rows for window in windows] == [3]
    feed(made, RNG.normal(size=(1000, 5)))
    assert [window.totals.rows for window in windows] == [3, 1000]


def test_predictions_confidences_and_latency_fall_into_their_bins() -> None:
    made, windows = recorder(window_rows=6)
    for top, confidence, latency_us in (
        (0, 0.0, 0.2),
        (0, 0.0624, 1.0),
        (1, 0.0626, 1.99),
        (1, 1.0, 2.0),
        (1, 0.5, 1023.9),
        (1, 0.5, 1024.0),
    ):
        made.add(np.zeros(5), top, confidence, latency_us)
    totals = windows[0].totals
    assert totals.predictions.tolist() == [2, 4]
    assert np.flatnonzero(totals.confidences).tolist() == [0, 1, 8, 15]
    assert {i: n for i, n in enumerate(totals.latency_us.tolist()) if n} == {
        0: 3,
        1: 1,
        9: 1,
        10: 1,
    }


def test_a_label_finds_its_row_and_counts_once() -> None:
    made, windows = recorder(window_rows=4)
    ids = feed(made, RNG.normal(size=(3, 5)))
    assert made.label(ids[0], "red")
    assert made.label(ids[1], "red")
    assert made.label(ids[1], "green")
    assert not made.label(ids[2] + 1, "red")
    assert not made.label(ids[0] - 1, "red")
    feed(made, RNG.normal(size=(1, 5)))
    assert (windows[0].totals.labelled, windows[0].totals.correct) == (2, 1)


def test_a_label_is_forgotten_when_its_row_is_about_to_be_written_over() -> None:
    made, _ = recorder(window_rows=10**6)
    ids = feed(made, np.zeros((MAX_RECENT_ROWS - FLUSH_ROWS, 5)))
    assert made.label(ids[0], "red")
    feed(made, np.zeros((FLUSH_ROWS - 1, 5)))
    assert made.label(ids[1], "red")
    feed(made, np.zeros((1, 5)))
    assert not made.label(ids[2], "red")
    assert made.label(ids[FLUSH_ROWS], "red")


def test_ids_of_an_earlier_recorder_find_nothing() -> None:
    old, _ = recorder()
    new, _ = recorder()
    feed(new, np.zeros((5, 5)))
    assert not any(new.label(number, "red") for number in feed(old, np.zeros((5, 5))))


def test_a_regression_counts_neither_classes_nor_labels() -> None:
    made, windows = recorder(classes=[], window_rows=2)
    ids = [made.add(np.zeros(5), -1, 3.25, 1.0) for _ in range(2)]
    assert made.label(ids[0], "3.5")
    body = windows[0].pack(Health())
    assert (body.predictions, body.labelled, body.rows) == ([], 0, 2)


def test_a_class_that_the_profile_does_not_know_is_left_out_of_its_counts() -> None:
    made, windows = recorder(classes=["red", "violet"], window_rows=4)
    feed(made, np.zeros((4, 5)))
    assert windows[0].totals.predictions.tolist() == [2, 0]


def test_shorter_windows_take_effect_at_once() -> None:
    made, windows = recorder()
    feed(made, np.zeros((300, 5)))
    made.reorder(200, None)
    assert [window.totals.rows for window in windows] == [300]
    feed(made, np.zeros((200, 5)))
    assert [window.totals.rows for window in windows] == [300, 200]


def test_rows_of_many_threads_are_all_counted() -> None:
    made, windows = recorder(window_rows=4000)
    row = np.zeros(5)

    def work() -> None:
        for _ in range(1000):
            made.add(row, 0, 0.5, 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert windows[0].totals.rows == 4000
    assert windows[0].counts[0].sum() == 4000


def test_a_report_of_eighteen_columns_weighs_at_most_two_and_a_half_kilobytes() -> None:
    training = RNG.normal(size=(5000, 16))
    features = [sketch.numeric_feature(f"f{i}", training[:, i]) for i in range(16)]
    features += [Feature(f"c{i}", "categorical", vocabulary=list("abcdefgh")) for i in range(2)]
    made, windows = recorder(profile=profile(features))
    codes = RNG.integers(0, 8, size=(1000, 2))
    feed(made, np.hstack([RNG.normal(size=(1000, 16)), codes]))
    report = Report("device-1", "0" * 16, 1, 1.7e9, windows[0].pack(Health(1.0, 1, 1.0, 1, 1.0)))
    assert len(codec.encode(report)) <= 2500


def test_packing_names_the_release_and_the_profile(
    scores: Callable[[NDArray[np.float64]], NDArray[np.float32]],
) -> None:
    made, windows = recorder(window_rows=300)
    feed(made, RNG.normal(size=(300, 5)))
    body = windows[0].pack(Health())
    assert (body.model, body.release, body.reference) == ("m", 1, "1" * 64)
    assert len(body.psi) == 5
    assert sum(body.latency_us) == body.rows == 300
    assert sketch.unpack_counts(body.counts, FEATURES).sum() == 300 * 5
