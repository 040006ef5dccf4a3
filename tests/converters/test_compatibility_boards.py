"""Board profiles, the command `check`, and what they make of models and bundles."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgefleet_converters.cli import app
from edgefleet_converters.compatibility import boards, check, liveness, releases
from edgefleet_converters.compatibility.facts import Facts, OnnxFacts
from edgefleet_converters.compatibility.liveness import Step
from edgefleet_converters.compatibility.releases import Asked
from edgefleet_converters.errors import BadInputError
from edgefleet_protocol import profiles

OWN = """
name = "my-board"
title = "My board"
architecture = "aarch64"
cpu = "4x Cortex-A55"
isa = "armv8.2-a"
cores = 4
clock_mhz = 1800
memory_bytes = 2147483648
features = ["neon", "dotprod"]
wheels = ["onnxruntime"]
[sources]
cpu = "data sheet"
cores = "data sheet"
clock_mhz = "data sheet"
memory_bytes = "data sheet"
wheels = "package index"
"""


def facts(memory_bytes: int = 0) -> Facts:
    return Facts("onnx", 10, activation_bytes=memory_bytes, onnx=OnnxFacts(8, 17, {}, []))


def run(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["check", *arguments])
    return outcome.exit_code, outcome.output


def test_profiles_and_the_protocols_boards_agree() -> None:
    assert set(boards.all_boards()) == set(profiles.BOARDS)
    for name, board in boards.all_boards().items():
        known = profiles.BOARDS[name]
        assert (board.title, board.architecture, board.memory_bytes) == (
            known.title, known.architecture, known.memory_bytes,
        )  # fmt: skip


def test_each_figure_of_a_board_names_its_source() -> None:
    figures = {"cpu", "cores", "clock_mhz", "memory_bytes", "features", "wheels"}
    for board in boards.all_boards().values():
        assert figures <= set(board.sources), board.name
        assert all(board.sources.values()), board.name


def test_a_persons_own_board_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN, "utf-8")
    board = boards.find(str(path))
    assert (board.name, board.cores, board.model_memory_bytes) == ("my-board", 4, 512 << 20)
    assert board.offers("onnxruntime")
    assert not board.offers("tflite-runtime")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("cores = 4", "cores = 0", "Expected `int` >= 1"),
        ("cores = 4", "kores = 4", "unknown field `kores`"),
        ('"neon", ', '"vnni", ', r"features \['vnni'\] are not known"),
        ('["onnxruntime"]', '["torch"]', r"wheels \['torch'\] are no runtimes"),
        ('clock_mhz = "data sheet"\n', "", r"\[sources\] names none for: clock_mhz"),
        ('name = "my-board"', 'name = "My Board"', "matching regex"),
        ("[sources]", "[sources", "is no TOML"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, text: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace(old, new, 1), "utf-8")
    with pytest.raises(BadInputError, match=text):
        boards.read(path)


def test_an_unknown_board_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadInputError, match="no board is called 'rpi9'; there are: generic-arm64"):
        boards.find("rpi9")
    with pytest.raises(BadInputError, match="cannot be read"):
        boards.find("none.toml")


@pytest.mark.parametrize("extra", [0, 1])
def test_a_model_may_take_a_quarter_of_a_boards_memory(extra: int) -> None:
    board = boards.find("rpi4")
    verdict = check.judge(facts((256 << 20) + extra), "onnxruntime", "1.20", board)
    assert verdict.fits == (extra == 0)
    assert verdict.board == "rpi4"
    if extra:
        assert "a model on Raspberry Pi 4 may take 268,435,456" in verdict.reasons[0]


@pytest.mark.parametrize("extra", [0, 1])
def test_without_a_board_no_model_may_need_more_than_any_has(extra: int) -> None:
    verdict = check.judge(facts(check.LARGEST_BOARD_BYTES + extra), "onnxruntime", "1.20")
    assert verdict.fits == (extra == 0)


def test_a_runtime_without_a_wheel_for_the_board_does_not_fit() -> None:
    board = boards.find("rpi-32bit")
    verdict = check.judge(facts(), "onnxruntime", "1.20", board)
    assert verdict.reasons == [
        (
            "onnxruntime 1.20 does not exist for Raspberry Pi with a 32-bit system; it has:"
            " tflite-runtime, onnxruntime 1.21"
        )
    ]
    assert check.judge(facts(), "onnxruntime", "1.21.0", board).fits  # Debian's package


def test_peak_memory_counts_tensors_that_live_at_the_same_time() -> None:
    steps = [Step(["x"], ["a"]), Step(["a"], ["b"]), Step(["b"], ["y"])]
    sizes = {"x": 1, "a": 10, "b": 100, "y": 1000}
    assert liveness.peak_bytes(steps, sizes, ["x"], ["y"]) == 1100
    assert liveness.peak_bytes(steps, sizes, ["x"], ["y", "a"]) == 1110
    inside = [Step(["x"], ["y"], inside_bytes=7)]
    assert liveness.peak_bytes(inside, sizes, ["x"], ["y"]) == 1008
    assert liveness.peak_bytes([], sizes, ["x", "x"], ["x"]) == 1


@pytest.mark.parametrize(
    ("text", "asked"),
    [("onnxruntime==1.18", Asked("onnxruntime", "1.18")),
     ("litert == 2.3.0", Asked("ai-edge-litert", "2.3.0"))],
)  # fmt: skip
def test_runtimes_are_asked_for_as_requirements_are_written(text: str, asked: Asked) -> None:
    assert releases.asked(text) == asked


@pytest.mark.parametrize("text", ["onnxruntime", "onnxruntime==new", "onnxruntime>=1.18"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"expected a form like onnxruntime==1\.18"):
        releases.asked(text)


def test_the_command_answers_with_its_exit_code(shared_models: Path) -> None:
    model = str(shared_models / "derived/ultraface_slim320_int8_qdq.onnx")
    assert run(model, "--runtime", "onnxruntime==1.18", "--board", "rpi4")[0] == 0
    code, text = run(model, "--runtime", "onnxruntime==1.18", "--runtime", "onnxruntime==1.17",
                     "--json")  # fmt: skip
    assert code == 1
    verdicts = json.loads(text)
    assert [verdict["fits"] for verdict in verdicts] == [True, False]
    assert "ai.onnx.ml opset 5 is newer than 4" in verdicts[1]["reasons"][0]


def test_without_a_runtime_all_known_releases_are_shown(shared_models: Path) -> None:
    code, text = run(str(shared_models / "tflm/hello_world_int8.tflite"), "--board", "rpi-32bit")
    assert code == 0
    assert "tflite-runtime 2.14.0" in text
    assert "ai-edge-litert" not in text  # there is none for this board


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["broken_inputs/made_zero_length.onnx"], "it is empty"),
        (["none.onnx"], "cannot be read: No such file"),
        (["tflm/hello_world_int8.tflite", "--board", "rpi9"], "no board is called 'rpi9'"),
        (["tflm/hello_world_int8.tflite", "--runtime", "litert==9.9"], "nothing is known of it"),
    ],
)
def test_what_cannot_be_read_or_asked_is_exit_code_2(
    shared_models: Path, arguments: list[str], text: str
) -> None:
    code, output = run(str(shared_models / arguments[0]), *arguments[1:])
    assert code == 2
    assert text in " ".join(output.split())


def test_an_answer_for_a_small_model_takes_less_than_two_seconds(shared_models: Path) -> None:
    data = (shared_models / "silero_vad/silero_vad_16k_op15.onnx").read_bytes()
    begun = time.process_time()
    facts_ = check.inspect(data)
    for version in check.known_releases("onnxruntime"):
        assert check.judge(facts_, "onnxruntime", version).fits
    # Of this process; the child's second is the interpreter's and the onnx package's start.
    assert time.process_time() - begun < 1.0
