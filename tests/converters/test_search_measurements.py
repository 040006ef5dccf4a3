"""Medians, ratios of times, and figures from boards."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching import measurements, timing
from edgefleet_converters.searching.candidates import Distribution
from edgefleet_converters.searching.measurements import MeasuredModel, MeasurementFile, Run
from edgefleet_converters.searching.medians import of_median
from edgefleet_converters.verification.evidence import Interval
from tests.converters.search_values import digest


@pytest.mark.parametrize(
    ("count", "low", "high"),
    # Ranks out of tables of the sign test for 95 % (Conover, table A3).
    [(5, 1, 5), (8, 1, 8), (9, 2, 8), (12, 3, 10), (20, 6, 15), (60, 22, 39)],
)
def test_the_interval_of_a_median_lies_between_known_ranks(count: int, low: int, high: int) -> None:
    values = [float(value) for value in range(1, count + 1)]
    assert of_median(values) == Interval((count + 1) / 2, low, high)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.floats(0.5, 0.999))
def test_the_median_lies_in_its_interval_and_more_confidence_never_narrows_it(
    values: list[float], confidence: float
) -> None:
    found = of_median(values, confidence)
    assert min(values) <= found.low <= found.point <= found.high <= max(values)
    surer = of_median(values, min(0.9999, confidence + 0.05))
    assert surer.low <= found.low
    assert surer.high >= found.high


def test_a_ratio_is_taken_within_each_load_so_that_a_slow_second_cancels_out() -> None:
    own = [2.0, 20.0, 2.0, 2.0, 20.0, 2.0, 2.0, 2.0]
    other = [1.0, 10.0, 1.0, 1.0, 10.0, 1.0, 1.0, 1.0]
    assert timing.ratio(own, other) == Interval(2.0, 2.0, 2.0)


class _World:
    """A clock that moves only while something runs, and remembers who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def load(self, name: str, *seconds: float) -> timing.Load:
        """Load a call that takes the next of these times, from load to load, round and round."""
        times = itertools.cycle(seconds)

        def load() -> Callable[[], object]:
            self.ran.append(f"load {name}")
            took = next(times)

            def run() -> None:
                self.now += took
                self.ran.append(name)

            return run

        return load


def test_models_are_loaded_anew_in_turned_order_and_run_in_alternating_blocks() -> None:
    world = _World()
    loads = [world.load("a", 0.0009, 0.0011), world.load("b", 0.004)]
    own, other = timing.alternate(loads, world.clock)
    assert own == pytest.approx([0.0009, 0.0011] * 12)
    assert other == pytest.approx([0.004] * 24)
    warm_up = [*["a"] * 6, *["b"] * 6]
    blocks = [*"aab", *"baa"] * 2  # two runs of a fill a block, one of b overfills it
    first = ["load a", "load b", *warm_up, *blocks]
    assert world.ran[: len(first)] == first
    assert world.ran[len(first) : len(first) + 3] == ["load b", "load a", "b"]


def test_a_slow_model_is_loaded_as_often_as_an_interval_needs_and_run_little() -> None:
    world = _World()
    own, _ = timing.alternate([world.load("a", 1.0), world.load("b", 1.0)], world.clock)
    assert len(own) == 6
    # Of each load: one run to warm up, one to size the blocks, one block.
    assert world.ran.count("a") == 6 * 3


def _model(name: str, p50: float | None, **others: object) -> MeasuredModel:
    latency = None if p50 is None else Distribution(p50, p50, p50)
    return MeasuredModel(digest(name), name, latency_us=latency, **others)  # type: ignore[arg-type]  # test values


def _file(*models: MeasuredModel, board: str = "rpi4") -> MeasurementFile:
    return MeasurementFile([Run(board, "onnxruntime", "1.18.1", list(models))])


def _ratio_over_loads(own_us: list[float], other_us: list[float]) -> Interval | None:
    models = _model("a", 50.0, loads_us=own_us), _model("b", 100.0, loads_us=other_us)
    found = measurements.on_board([_file(*models)], "rpi4")
    return found[digest("a")].against(digest("b"), 0.95)


def test_medians_of_one_load_are_uncertain_by_what_two_loads_of_a_model_differ() -> None:
    one = Interval(0.5, 0.425, 0.575)
    assert _ratio_over_loads([], []) == one
    assert _ratio_over_loads([50.0] * 5, [100.0] * 6) == one


def test_loads_of_one_turn_are_compared_in_pairs() -> None:
    base = [100.0, 200.0, 100.0, 200.0, 100.0, 200.0]
    faster = [90.0, 180.0, 91.0, 182.0, 89.0, 178.0]
    assert _ratio_over_loads(faster, base) == Interval(0.9, 0.89, 0.91)
    # A model that takes long has fewer; the first are those of the same turns.
    assert _ratio_over_loads(faster, [*base, 1.0]) == Interval(0.9, 0.89, 0.91)


def test_times_of_version_1_count_as_those_of_one_load(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    model = {"outcome": "right", "latency_us": {"p50": 50.0, "p90": 60.0, "p99": 70.0}}
    models = [
        model | {"sha256": digest("a"), "samples_us": [50.0] * 100},
        model | {"sha256": digest("b"), "samples_us": [50.0] * 100},
    ]
    run = {"board": "rpi4", "runtime": "onnxruntime", "runtime_version": "1", "measured": models}
    path.write_text(json.dumps({"runs": [run], "version": 1}))
    found = measurements.on_board([measurements.read(path)], "rpi4")
    assert found[digest("a")].against(digest("b"), 0.95) == Interval(1.0, 0.85, 1.15)


def test_models_of_different_runs_are_not_compared() -> None:
    files = [_file(_model("a", 50.0)), _file(_model("b", 100.0))]
    found = measurements.on_board(files, "rpi4")
    assert found[digest("a")].against(digest("b"), 0.95) is None


def test_what_was_not_timed_is_not_compared() -> None:
    found = measurements.on_board([_file(_model("a", None), _model("b", 1.0))], "rpi4")
    assert found[digest("a")].against(digest("b"), 0.95) is None
    assert found[digest("b")].against(digest("a"), 0.95) is None


def test_only_figures_of_the_board_count_and_the_last_of_several() -> None:
    files = [
        _file(_model("a", 1.0)),
        _file(_model("a", 2.0)),
        _file(_model("a", 3.0), board="rpi5"),
    ]
    latency = measurements.on_board(files, "rpi4")[digest("a")].model.latency_us
    assert latency is not None
    assert latency.p50 == 2.0


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    written = _file(_model("a", 1.5, memory_peak_bytes=7))
    file.write_bytes(msgspec.json.encode(written))
    assert measurements.read(file) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "missing required field `runs`"),
        ('{"runs": [], "version": 3}', "measurements of version 3; this release reads 1 and 2"),
        ("[", "no file of measurements"),
        (
            '{"runs":[{"board":"b","runtime":"ort","runtime_version":"1","measured":[]}]}',
            "Invalid enum value 'ort'",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(BadInputError, match=said):
        measurements.read(file)
