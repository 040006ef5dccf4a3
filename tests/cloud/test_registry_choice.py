"""Which variant a device gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.registry.choice import Candidate, rank
from edgefleet_protocol.manifest import Measured, Needs
from edgefleet_protocol.profiles import DeviceProfile

BOTH = DeviceProfile("rpi4", {"onnxruntime": "1.20.0", "litert": "2.1.0"}, 1 << 30)
ONNX = DeviceProfile("rpi4", {"onnxruntime": "1.20.0"}, 1 << 30)


def candidate(
    name: str, latency_us: float = 10.0, score: float | None = 0.9, size: int = 100
) -> Candidate:
    runtime = "litert" if name.startswith("tflite") else "onnxruntime"
    minimum = "1.16" if runtime == "onnxruntime" else "2.0"
    return Candidate(
        name, Needs(runtime, minimum), Measured(0.0, 1.0, latency_us, score, 100), size
    )


def test_only_fitting_variants_are_offered() -> None:
    candidates = [candidate("tflite-int8", 1.0), candidate("onnx-fp32", 9.0)]
    assert rank(candidates, ONNX) == ["onnx-fp32"]
    assert rank(candidates, BOTH) == ["tflite-int8", "onnx-fp32"]


def test_nothing_fits_a_device_without_a_runtime() -> None:
    assert rank([candidate("onnx-fp32")], DeviceProfile("rpi4", {}, 1 << 30)) == []


def test_a_device_with_tflite_runtime_only_gets_what_is_known_to_run_there() -> None:
    old = DeviceProfile("rpi-32bit", {"tflite-runtime": "2.14.0"}, 1 << 30)
    measured = Measured(0.0, 1.0, 1.0, 0.9, 100)
    known = Needs("litert", "1.0", alternatives={"tflite-runtime": "2.14"})
    candidates = [
        Candidate("tflite-dynamic", Needs("litert", "2.0"), measured, 1),
        Candidate("tflite-int8", known, measured, 100),
    ]
    assert rank(candidates, old) == ["tflite-int8"]
    assert rank(candidates, BOTH) == ["tflite-dynamic", "tflite-int8"]


@pytest.mark.parametrize(
    ("score", "first"), [(0.90, "fast"), (0.89, "fast"), (0.8899, "exact"), (None, "exact")]
)
def test_the_fastest_within_one_point_of_the_best_comes_first(
    score: float | None, first: str
) -> None:
    candidates = [candidate("exact", 20.0, 0.90), candidate("fast", 5.0, score)]
    assert rank(candidates, ONNX)[0] == first


def test_of_equally_fast_ones_the_smaller_comes_first_and_then_the_name_decides() -> None:
    candidates = [
        candidate("c", size=200),
        candidate("b", size=100),
        candidate("a", size=100),
    ]
    assert rank(candidates, ONNX) == ["a", "b", "c"]


def test_without_any_score_latency_decides() -> None:
    candidates = [candidate("slow", 9.0, None), candidate("fast", 3.0, None)]
    assert rank(candidates, ONNX) == ["fast", "slow"]


def test_a_better_variant_that_does_not_fit_raises_no_bar() -> None:
    candidates = [candidate("tflite-fp32", 9.0, 0.99), candidate("onnx-int8", 1.0, 0.90)]
    candidates.append(candidate("onnx-fp32", 2.0, 0.905))
    assert rank(candidates, ONNX) == ["onnx-int8", "onnx-fp32"]


@given(
    st.lists(
        st.tuples(st.floats(1, 100), st.one_of(st.none(), st.floats(0, 1)), st.integers(1, 10)),
        max_size=8,
    )
)
def test_the_order_does_not_depend_on_the_order_of_the_candidates(
    figures: list[tuple[float, float | None, int]],
) -> None:
    candidates = [candidate(f"v{i}", *figure) for i, figure in enumerate(figures)]
    ranked = rank(candidates, ONNX)
    assert ranked == rank(candidates[::-1], ONNX)
    assert sorted(ranked) == sorted(c.name for c in candidates)
