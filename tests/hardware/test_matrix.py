"""The matrix: what is told, what is tried, and what they come to together."""

import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from edgefleet_hardware import matrix, report, results, runtimes
from edgefleet_hardware.cases import Case, Expected
from edgefleet_hardware.errors import BadUseError, TargetUnavailableError
from edgefleet_hardware.outcomes import Kind, Outcome
from edgefleet_hardware.results import Cell, Document, Told
from edgefleet_hardware.runtimes import PROCESSORS, Runtime
from edgefleet_hardware.targets import About

FITS, REFUSED = Told(True), Told(False, ["no kernel"])
A53 = About("onnxruntime", "1.18.1", "cortex-a53", "rpi-zero2w", True)
OWN = About("onnxruntime", "1.18.1", "x86-64", "generic-x86_64")


def cell(told: Told | None, kind: Kind | None, name: str = "m", about: About = OWN) -> Cell:
    outcome = None if kind is None else Outcome(kind, f"{kind} it was")
    return Cell(name, "d" * 64, 10, about, told, outcome, "" if outcome else "no emulator")


@pytest.mark.parametrize("kind", ["right", "wrong", "refused", "crashed", "hung", "over-memory"])
def test_fits_agrees_with_right_and_refused_with_all_else(kind: Kind) -> None:
    assert cell(FITS, kind).agrees == (kind == "right")
    assert cell(REFUSED, kind).agrees == (kind != "right")
    assert cell(FITS, kind).is_broken_promise == (kind != "right")
    assert not cell(REFUSED, kind).is_broken_promise


def test_a_cell_that_was_not_tried_agrees_with_nothing() -> None:
    for told in (FITS, REFUSED, None):
        assert not cell(told, None).agrees
        assert not cell(told, None).is_broken_promise


def test_counts_name_each_disagreement_and_broken_promises_first() -> None:
    strict = cell(REFUSED, "right", "strict")
    broken = cell(FITS, "crashed", "broken")
    counted = results.count([cell(FITS, "right"), strict, broken, cell(FITS, None)])
    assert (counted.cells, counted.tried, counted.agreeing) == (4, 3, 1)
    assert counted.disagreeing == [broken, strict]
    assert counted.broken_promises == 1
    first, second, last = report.summary(counted)
    assert first == (
        "disagreement: broken, onnxruntime==1.18.1 on x86-64: the check said it fits; it was"
        " crashed: run: crashed: crashed it was"
    )
    assert second == (
        "disagreement: strict, onnxruntime==1.18.1 on x86-64: the check refused it; it was right:"
        " check: no kernel"
    )
    assert last == (
        "4 cells, 1 not tried; agreement 33.33% (1 of 3); 2 disagreements, of which 1 broken"
        " promises (said to fit, not right)"
    )


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        ([cell(FITS, "right"), cell(REFUSED, "right")], 0),
        ([cell(FITS, "right"), cell(FITS, "hung")], 1),
        ([cell(FITS, "right"), cell(FITS, None)], 3),
        ([cell(FITS, "wrong"), cell(FITS, None)], 1),
    ],
)
def test_the_exit_code_never_takes_untried_for_success(cells: list[Cell], code: int) -> None:
    assert results.exit_code(cells) == code


def test_where_nothing_is_run_the_check_decides() -> None:
    told = cell(FITS, None)
    assert results.exit_code([told], is_told_only=True) == 0
    assert results.exit_code([told, cell(REFUSED, None)], is_told_only=True) == 1


def test_a_document_comes_back_as_it_was() -> None:
    document = Document([cell(FITS, "right"), cell(REFUSED, None)])
    assert results.decode(results.encode(document)) == document


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"[]", "no result document"),
        (b"\xff", "no result document"),
        (msgspec.json.encode(Document([], 3)), "result document version 3: expected 1 or 2"),
    ],
)
def test_what_is_no_document_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadUseError, match=text):
        results.decode(data)


@dataclasses.dataclass
class Recorder:
    """A target that answers at once, and remembers what it was given."""

    about: About
    kind: Kind = "right"
    calls: list[int] = dataclasses.field(default_factory=list)
    missing: str = ""

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        if self.missing:
            raise TargetUnavailableError(self.missing)
        self.calls = [len(case.inputs["x"]) for case in cases]
        return [Outcome(self.kind) for _ in cases]


ROWS = np.zeros((matrix.EMULATED_CALLS + 1, 1, 2), np.float32)
CASES = [
    Case("a", "onnx", b"a", inputs={"x": ROWS}, expected=Expected({"y": ROWS}, {"y": 0.0}, 33)),
    Case("b", "tflite", b"b", inputs={"x": ROWS}),
]


def test_a_model_meets_the_runtimes_of_its_format_and_emulators_get_the_first_calls() -> None:
    own, emulated = Recorder(OWN), Recorder(A53)
    lines: list[str] = []
    document = matrix.build(CASES, [emulated, own], lambda _case, _about: FITS, lines.append)
    assert [(cell.case, cell.target) for cell in document.cells] == [("a", A53), ("a", OWN)]
    assert (emulated.calls, own.calls) == ([matrix.EMULATED_CALLS], [33])
    assert lines == [f"{about}: 1 of 1 right, 1 as told" for about in (OWN, A53)]


def test_a_target_that_cannot_be_tried_leaves_cells_that_say_why() -> None:
    lines: list[str] = []
    absent = Recorder(A53, missing="no qemu")
    document = matrix.build(CASES, [absent], lambda _case, _about: REFUSED, lines.append)
    assert [(each.outcome, each.untried) for each in document.cells] == [(None, "no qemu")]
    assert lines == [f"{A53}: not tried: no qemu"]
    assert "not tried" in report.markdown(document)


def test_told_cells_are_not_run() -> None:
    own = Recorder(OWN)
    document = matrix.told(CASES, [own], lambda _case, _about: REFUSED)
    assert own.calls == []
    assert [(each.case, each.told, each.outcome) for each in document.cells] == [
        ("a", REFUSED, None)
    ]


def test_the_page_marks_disagreements_and_says_why() -> None:
    page = report.markdown(
        Document([cell(FITS, "right"), cell(FITS, "wrong", about=A53), cell(REFUSED, "hung", "z")])
    )
    assert "| m | onnxruntime 1.18.1 | fits | right | wrong (!) |" in page
    assert "| z | onnxruntime 1.18.1 | refused | hung |  |" in page
    assert "- `m` in onnxruntime 1.18.1: run: wrong: wrong it was\n" in page
    assert "- `z` in onnxruntime 1.18.1: check: no kernel — run: hung: hung it was\n" in page


@pytest.mark.parametrize("text", ["onnxruntime", "onnxruntime==", "keras==3.0", "litert==2.3"])
def test_a_runtime_is_named_by_its_distribution_and_version(text: str) -> None:
    with pytest.raises(BadUseError, match="expected NAME==VERSION"):
        Runtime.parse(text)


def test_runtimes_and_processors_are_found_by_name() -> None:
    assert str(Runtime.parse("tflite-runtime==2.14.0")) == "tflite-runtime==2.14.0"
    assert Runtime.parse("tflite-runtime==2.14.0").format == "tflite"
    assert runtimes.processor("cortex-a72") is PROCESSORS["cortex-a72"]
    with pytest.raises(BadUseError, match="processor 'max': expected one of x86-64, arm64, cor"):
        runtimes.processor("max")


def test_every_processor_has_a_board_profile_with_its_core() -> None:
    from edgefleet_converters.compatibility import boards

    for processor in PROCESSORS.values():
        board = boards.find(processor.board)
        assert board.architecture == processor.wheels
        assert not processor.is_emulated or board.qemu_cpu == processor.name


def test_the_newest_releases_are_in_the_matrix() -> None:
    assert set(runtimes.NEWEST.values()) <= set(matrix.RUNTIMES)
