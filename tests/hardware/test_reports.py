"""What firmware CI reads: JUnit XML, the Markdown summary, regressions, measurements. Pure."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from edgefleet_converters.searching import measurements as search_side
from edgefleet_hardware import baseline, junit, measuring, results, summary
from edgefleet_hardware.baseline import Allowed, Comparison
from edgefleet_hardware.errors import BadUseError
from edgefleet_hardware.loads import Load
from edgefleet_hardware.outcomes import Outcome, latency
from edgefleet_hardware.results import Cell, Document, Told
from edgefleet_hardware.targets import About

PI = About("onnxruntime", "1.18.1", "Raspberry Pi 4 Model B", "rpi4")
EMULATED = About("onnxruntime", "1.18.1", "cortex-a72", "rpi4", is_emulated=True)
# Medians of twelve loads around 100 µs, as a board gives them.
TIMES = [100.0 + (index * 7) % 11 / 10 for index in range(12)]
PACE_US = 50.0


def loads(times: list[float], pace_us: float = PACE_US) -> list[Load]:
    return [Load(time, time, pace_us) for time in times]


def right(times: list[float] = TIMES, **figures: object) -> Outcome:
    given = {"memory_peak_bytes": 50 << 20, "agreement": 1.0, "loads": loads(times), **figures}
    return Outcome("right", "off by up to 0", latency(times), times, **given)  # type: ignore[arg-type]


def cell(outcome: Outcome | None = None, **fields: object) -> Cell:
    made = Cell("kws/onnx-int8", "a" * 64, 30_000, PI, Told(True), outcome or right())
    return msgspec.structs.replace(made, **fields)


def worse(now: Cell, before: Cell | None = None, **allowed: float) -> list[str]:
    found = baseline.compare(Document([now]), Document([before or cell()]), Allowed(**allowed))
    return [change.what for change in found.regressions]


def test_a_run_like_the_last_one_is_no_regression() -> None:
    assert worse(cell()) == []


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (cell(size_bytes=30_601), "bytes"),
        (cell(right(memory_peak_bytes=(60 << 20) + 1)), "peak memory in bytes"),
        (cell(right(agreement=0.999)), "agreement"),
        (cell(right([time * 1.13 for time in TIMES])), "processor time in µs"),
        (cell(Outcome("wrong", "off by up to 3")), "outcome"),
        (cell(outcome=None, untried="no connection"), "could be tried"),
    ],
)
def test_what_became_worse_is_named(now: Cell, what: str) -> None:
    now = msgspec.structs.replace(now, outcome=None) if now.untried else now
    assert worse(now) == [what]


@pytest.mark.parametrize(
    "now",
    [
        cell(size_bytes=30_600),
        cell(right(memory_peak_bytes=60 << 20)),
        cell(right([time * 1.09 for time in TIMES])),
        cell(right([time / 2 for time in TIMES])),
        # Two slow loads of twelve move the tail, not the median.
        cell(right([*TIMES[:-2], 5000.0, 5000.0])),
        # On the clock it is slower; the processor was, for everything.
        cell(right(loads=loads([time * 1.5 for time in TIMES], PACE_US * 1.5))),
        # The process had to wait for the processor.
        cell(right(loads=[Load(time * 3, time, PACE_US) for time in TIMES])),
        # The processor was faster for the fixed work, and not for the model.
        cell(right(loads=loads(TIMES, PACE_US / 2))),
    ],
)
def test_what_is_within_the_allowance_or_better_is_not(now: Cell) -> None:
    assert worse(now) == []


def test_scattered_loads_are_no_proof_that_it_is_slower() -> None:
    before = cell(right([80.0, 100.0, 160.0] * 4))
    assert worse(cell(right([90.0, 130.0, 170.0] * 4)), before) == []


def notes(now: Cell, before: Cell) -> list[str]:
    return baseline.compare(Document([now]), Document([before]), Allowed()).notes


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_loads_are_not_compared_and_that_is_told(count: int) -> None:
    few = cell(right(loads=loads(TIMES[:count])))
    slow = cell(right([time * 9 for time in TIMES]))
    assert worse(slow, few) == []
    counts = f"fresh loads were {count} before and are 12 now; 6 tell an interval"
    assert notes(slow, few) == [f"kws/onnx-int8 on {PI}: times are not compared: {counts}"]


def test_six_loads_are_enough_to_be_compared() -> None:
    before = cell(right(loads=loads(TIMES[:6])))
    slow = cell(right([time * 9 for time in TIMES]))
    assert worse(slow, before) == ["processor time in µs"]
    assert notes(slow, before) == []


def test_what_was_never_timed_needs_no_note() -> None:
    untimed = cell(Outcome("right"))
    assert notes(untimed, untimed) == []


@pytest.mark.parametrize(
    ("factor", "text"), [(1.09, None), (1.11, "1.11"), (0.92, None), (0.9, "0.90")]
)
def test_a_processor_at_another_pace_is_told(factor: float, text: str | None) -> None:
    found = notes(cell(right(loads=loads(TIMES, PACE_US * factor))), cell())
    told = (
        f"{PI}: the processor took {text} times as long for the same work as in the baseline; give"
        " the board a fixed clock, or take the baseline anew"
    )
    assert found == ([told] if text else [])


def test_a_document_of_version_1_is_read_and_its_times_are_not_compared() -> None:
    made = json.loads(results.encode(Document([cell()])))
    made["version"] = 1
    del made["cells"][0]["outcome"]["loads"]
    old = results.decode(json.dumps(made).encode())
    slow = Document([cell(right([time * 9 for time in TIMES], agreement=0.5))])
    found = baseline.compare(slow, old, Allowed())
    assert [change.what for change in found.regressions] == ["agreement"]
    assert "fresh loads were 0 before and are 12 now" in found.notes[0]
    made["version"] = 3
    with pytest.raises(BadUseError, match="result document version 3: expected 1 or 2"):
        results.decode(json.dumps(made).encode())


def test_allowances_can_be_changed() -> None:
    assert worse(cell(right(agreement=0.995)), drop=0.005) == []
    assert worse(cell(right(agreement=0.994)), drop=0.005) == ["agreement"]


def test_what_the_baseline_does_not_know_is_told() -> None:
    new = cell(case="kws/onnx-fp16")
    found = baseline.compare(Document([cell(), new]), Document([cell()]), Allowed())
    assert found.regressions == []
    assert found.missing == ["kws/onnx-fp16 on onnxruntime==1.18.1 on Raspberry Pi 4 Model B"]


def test_a_baseline_of_another_board_is_refused() -> None:
    other = cell(target=About("onnxruntime", "1.18.1", "Raspberry Pi 5", "rpi5"))
    with pytest.raises(BadUseError, match=r"the baseline is of .*Raspberry Pi 5; this run is of"):
        baseline.compare(Document([cell()]), Document([other]), Allowed())


def test_a_document_survives_being_written_and_read() -> None:
    document = Document([cell(), cell(Outcome("crashed", "SIGSEGV"), case="b")])
    assert results.decode(results.encode(document)) == document


def test_junit_counts_failures_and_errors_for_each_target() -> None:
    document = Document(
        [
            cell(),
            cell(Outcome("wrong", "off by <3> & more\x00\x1b[31m"), case="b"),
            cell(target=EMULATED, outcome=None, untried="no emulator"),
        ]
    )
    document = Document(
        [*document.cells[:2], msgspec.structs.replace(document.cells[2], outcome=None)]
    )
    root = ET.fromstring(junit.encode(document))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    suites = root.findall("testsuite")
    assert [suite.get("name") for suite in suites] == [str(PI), str(EMULATED)]
    assert [suite.get("tests") for suite in suites] == ["2", "1"]
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("type") == "wrong"
    assert (failure.get("message") or "").startswith("wrong: off by <3> & more")
    error = root.find(".//error")
    assert error is not None
    assert error.get("message") == "no emulator"
    for case in root.iter("testcase"):
        assert case.get("classname")
        assert float(case.get("time") or "") >= 0


def test_the_summary_shows_what_failed_first_and_cannot_be_broken_by_what_a_model_said() -> None:
    document = Document([cell(), cell(Outcome("crashed", "a | b\n# @everyone <img>"), case="b")])
    text = summary.markdown(document, Comparison())
    assert "1 of 2 right, 0 could not be tried." in text
    assert "nothing is worse than in the baseline" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "p50" not in line]
    assert rows[0].startswith("| b | **crashed** |")
    assert rows[1].startswith("| kws/onnx-int8 | right | 100 (100–101) | 101 | 50 |")
    assert "@everyone" not in text
    assert "<img>" not in text
    assert all(line.count("|") == 8 for line in rows)


def test_reports_show_the_interval_over_loads_only_where_there_are_enough() -> None:
    enough = cell(right([27.8, 27.6, 28.1, 28.0, 28.2, 27.2]))
    few = cell(right([27.8]), case="few")
    document = Document([enough, few])
    rows = summary.markdown(document).splitlines()[-2:]
    assert rows[0].startswith("| kws/onnx-int8 | right | 27.9 (27.2–28.2) | 28.2 | 50 |")
    assert rows[1].startswith("| few | right | 27.8 | 27.8 | 50 |")
    said = [text.text for text in ET.fromstring(junit.encode(document)).iter("system-out")]
    assert said == [
        "off by up to 0\nmedian of 6 loads 27.9 µs, 27.2 to 28.2 at 95 % confidence",
        "off by up to 0",
    ]


def test_measurements_are_of_real_boards_only_and_the_search_reads_them(tmp_path: Path) -> None:
    document = Document(
        [cell(), cell(target=EMULATED), cell(target=About("onnxruntime", "1", "x"))]
    )
    path = tmp_path / "measurements.json"
    path.write_bytes(measuring.encode(measuring.measurements(document)))
    found = search_side.on_board([search_side.read(path)], "rpi4")
    (model,) = found.values()
    assert model.model.loads_us == TIMES
    assert model.model.latency_us is not None
    assert model.model.latency_us.p50 == pytest.approx(100.5, abs=0.1)
