"""The runner, started as on a board, in the runtimes that are installed here."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgefleet_hardware import jobs, on_target, tflite_traps, traps
from edgefleet_hardware.cases import Case, Expected, Limits
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.loads import Load
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.runtimes import RuntimeName
from edgefleet_protocol.identifiers import digest_of

LIMITS = Limits(time_s=20.0)
SHORT = Limits(time_s=1.0)


def onnx_model(
    *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, rows: str | int = "n"
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [rows, 2])],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    imports = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    data: bytes = proto.SerializeToString()
    return data


NEGATE = onnx_model(helper.make_node("Neg", ["x"], ["y"]))
ROWS = np.arange(6, dtype=np.float32).reshape(1, 3, 2)


def negated(name: str, **changes: object) -> Case:
    expected = Expected({"y": -ROWS}, {"y": 0.0}, 3)
    case = Case(name, "onnx", NEGATE, inputs={"x": ROWS}, expected=expected, limits=LIMITS)
    return dataclasses.replace(case, **changes)  # type: ignore[arg-type]  # fields of a case


def trap(name: str, limits: Limits) -> Case:
    return next(case for case in traps.onnx_cases(limits) if case.name == f"traps/{name}.onnx")


def run(
    folder: Path, cases: list[Case], runtime: RuntimeName, version: str = "", loads: int = 0
) -> list[Outcome]:
    folder.mkdir(exist_ok=True)
    jobs.write(folder, cases, runtime, version, loads)
    told = subprocess.run(
        [sys.executable, "-B", jobs.SCRIPT, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return jobs.read(folder, cases, told.stdout + told.stderr)[1]


@pytest.fixture(scope="module")
def onnx_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    constant = helper.make_node(
        "Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [1], [3 << 28])
    )
    filling = [
        constant,
        helper.make_node("ConstantOfShape", ["n"], ["w"]),
        helper.make_node("ReduceMax", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    words = np.array([[["a", "b"]]])
    cases = [
        negated("right"),
        negated("wrong", expected=Expected({"y": ROWS}, {"y": 0.5}, 3)),
        negated("digest", digest=digest_of(NEGATE)),
        negated("flipped", digest=digest_of(NEGATE + b" ")),
        trap("endless-loop", SHORT),
        negated("after the endless one"),
        negated("hungry", data=onnx_model(*filling), limits=Limits(20.0, 512 << 20)),
        trap("opset-999", LIMITS),
        trap("constant-4-tb", LIMITS),
        Case("seeded", "onnx", NEGATE, limits=LIMITS),
        Case(
            "text",
            "onnx",
            onnx_model(helper.make_node("Identity", ["x"], ["y"]), kind=TensorProto.STRING),
            inputs={"x": words},
            expected=Expected({"y": words}, {"y": 0.0}, 1),
            limits=LIMITS,
        ),
        negated(
            "in pieces", data=onnx_model(helper.make_node("Neg", ["x"], ["y"]), rows=2), meant=True
        ),
    ]
    folder = tmp_path_factory.mktemp("onnx")
    outcomes = run(folder, cases, "onnxruntime", metadata.version("onnxruntime"), loads=2)
    return {case.name: outcome for case, outcome in zip(cases, outcomes, strict=True)}


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("right", "right", "off by up to 0"),
        ("wrong", "wrong", "'y' is off by up to 10; 0.5 is allowed"),
        ("digest", "right", "off by up to 0"),
        ("flipped", "refused", "is expected"),
        ("traps/endless-loop.onnx", "hung", "no answer within 1 s"),
        ("after the endless one", "right", "off by up to 0"),
        ("hungry", "over-memory", "took more than 512 MiB of memory"),
        ("traps/opset-999.onnx", "refused", "999"),
        ("seeded", "right", "finite; nothing to compare with"),
        ("text", "right", "off by up to 0"),
        ("in pieces", "right", "off by up to 0"),
    ],
)
def test_an_onnx_case_comes_out_as_it_should(
    onnx_outcomes: dict[str, Outcome], name: str, kind: str, text: str
) -> None:
    outcome = onnx_outcomes[name]
    assert outcome.kind == kind, outcome.detail
    assert text in outcome.detail


def test_a_constant_of_4_tb_does_not_come_out_right(onnx_outcomes: dict[str, Outcome]) -> None:
    assert onnx_outcomes["traps/constant-4-tb.onnx"].kind in {"refused", "over-memory"}


def test_a_right_case_is_timed_and_its_memory_is_taken(onnx_outcomes: dict[str, Outcome]) -> None:
    outcome = onnx_outcomes["right"]
    assert len(outcome.loads) == 2
    assert 2 <= len(outcome.samples_us) <= 2 * 16
    assert outcome.latency_us is not None
    assert 0 < outcome.latency_us.p50 <= outcome.latency_us.p99
    assert outcome.memory_peak_bytes is not None
    assert outcome.memory_bytes is not None
    assert outcome.memory_bytes < outcome.memory_peak_bytes


@pytest.fixture(scope="module")
def tflite_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    pytest.importorskip("ai_edge_litert", reason="the runtime ai-edge-litert is not installed")
    cases = tflite_traps.made(SHORT)
    cases.append(dataclasses.replace(cases[0], name="page", data=b"<html>Please log in</html>"))
    folder = tmp_path_factory.mktemp("tflite")
    outcomes = run(folder, cases, "ai-edge-litert")
    return {case.name: outcome for case, outcome in zip(cases, outcomes, strict=True)}


def test_a_model_that_kills_its_process_is_named_and_the_others_go_on(
    tflite_outcomes: dict[str, Outcome],
) -> None:
    outcome = tflite_outcomes["traps/calls-itself.tflite"]
    assert outcome.kind == "crashed"
    assert "killed by SIGSEGV" in outcome.detail
    assert tflite_outcomes["traps/endless-while.tflite"].kind == "hung"
    assert tflite_outcomes["page"].kind == "refused"


def test_another_version_than_the_one_asked_for_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match=r"is installed; 0\.1 is asked for"):
        run(tmp_path, [negated("m")], "onnxruntime", "0.1")


def test_a_runtime_that_is_missing_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="tflite-runtime cannot be loaded: ModuleNot"):
        run(tmp_path, [negated("m")], "tflite-runtime")


def test_a_runner_that_died_is_no_success(tmp_path: Path) -> None:
    cases = [negated("m")]
    jobs.write(tmp_path, cases, "onnxruntime", "")
    with pytest.raises(TargetUnavailableError, match="left no answers") as told:
        jobs.read(tmp_path, cases, "Illegal instruction")
    assert "its last lines:\nIllegal instruction" in str(told.value)


def test_missing_answers_are_no_success(tmp_path: Path) -> None:
    cases = [negated("m")]
    run(tmp_path, cases, "onnxruntime")
    with pytest.raises(TargetUnavailableError, match="1 of 2 cases were answered before"):
        jobs.read(tmp_path, [*cases, negated("n")], "")


def load(folder: Path, turn: int) -> None:
    """Write the line that the runner would write of a load."""
    line = {"case": 0, "state": "answered", "took_s": 4.0, "samples_us": [turn, 9.0]}
    line |= {"median_us": turn, "cpu_us": 2.0, "pace_us": 4.0}
    with (folder / "loads.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_a_runner_that_died_while_it_took_times_is_no_success(tmp_path: Path) -> None:
    cases = [negated("m")]
    run(tmp_path, cases, "onnxruntime")
    (tmp_path / "loads.jsonl").unlink()
    with pytest.raises(TargetUnavailableError, match="the runner left no times"):
        jobs.read(tmp_path, cases, "")
    load(tmp_path, 1)
    with pytest.raises(TargetUnavailableError, match="ended while it took times; its last lines"):
        jobs.read(tmp_path, cases, "OSError")


def test_the_times_of_all_loads_are_read_in_their_order(tmp_path: Path) -> None:
    cases = [negated("m")]
    run(tmp_path, cases, "onnxruntime")
    end = (tmp_path / "loads.jsonl").read_text()
    (tmp_path / "loads.jsonl").unlink()
    load(tmp_path, 1)
    load(tmp_path, 2)
    with (tmp_path / "loads.jsonl").open("a") as file:
        file.write(end)
    (outcome,) = jobs.read(tmp_path, cases, "")[1]
    assert outcome.loads == [Load(1, 2, 4), Load(2, 2, 4)]
    assert outcome.samples_us == [1, 9, 2, 9]
    assert outcome.latency_us is not None
    assert outcome.latency_us.p50 == 5.5


def test_a_model_that_fails_when_it_is_loaded_again_is_not_right(tmp_path: Path) -> None:
    cases = [negated("m")]
    run(tmp_path, cases, "onnxruntime")
    (tmp_path / "loads.jsonl").unlink()
    load(tmp_path, 1)
    with (tmp_path / "loads.jsonl").open("a") as file:
        file.write('{"case": 0, "state": "crashed", "took_s": 1, "text": "killed by SIGSEGV."}\n')
        file.write('{"state": "ended"}\n')
    (outcome,) = jobs.read(tmp_path, cases, "")[1]
    assert outcome.kind == "crashed"
    assert outcome.detail == "loaded again for its times (2): killed by SIGSEGV."
    assert (outcome.loads, outcome.latency_us) == ([], None)


@pytest.mark.parametrize(
    ("turns", "time_s", "left"),
    [
        # 4 s each: no case gets more than 10 s, but those that an interval needs.
        (2, 60.0, True),
        (5, 60.0, True),
        (6, 60.0, False),
        # Nor more than one answer may take.
        (2, 8.1, True),
        (2, 8.0, False),
    ],
)
def test_a_slow_model_gets_no_more_loads_than_an_interval_needs(
    tmp_path: Path, turns: int, time_s: float, left: bool
) -> None:
    case = {"time_s": time_s}
    (tmp_path / "answers.jsonl").write_text('{}\n{"state": "answered"}\n{"state": "refused"}\n')
    for turn in range(1, turns + 1):
        load(tmp_path, turn)
    job = {"cases": [case, case], "loads": 12}
    assert on_target._due(tmp_path, job, turns + 1) == [0] * left


def test_no_more_loads_are_made_than_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{}\n{"state": "answered"}\n')
    job = {"cases": [{"time_s": 60.0}], "loads": 3}
    assert on_target._due(tmp_path, job, 3) == [0]
    assert on_target._due(tmp_path, job, 4) == []


def test_arrays_with_pickles_in_them_are_not_read(tmp_path: Path) -> None:
    cases = [negated("m")]
    run(tmp_path, cases, "onnxruntime")
    np.savez(tmp_path / "0.out.npz", **{"output:y": np.array([{"a": 1}], object)})
    with pytest.raises(TargetUnavailableError, match="no arrays came back"):
        jobs.read(tmp_path, cases, "")


def test_the_runner_ends_with_whoever_started_it(tmp_path: Path) -> None:
    jobs.write(tmp_path, [trap("endless-loop", Limits(time_s=60.0))], "onnxruntime", "")
    start = (
        "import subprocess, sys, time; runner = subprocess.Popen(sys.argv[1:]);"
        " print(runner.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", start, sys.executable, "-B", jobs.SCRIPT, "."]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        wait(lambda: (tmp_path / "0.log").exists())
        starter.kill()
    wait(lambda: not alive(pid))


def wait(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]  # a function
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_seeded_inputs_do_not_depend_on_the_order_in_which_a_runtime_lists_them() -> None:
    ports = {"a": ([1, 3], "float32"), "b": ([2], "int8"), "c": ([1], "str"), "d": ([], "bool")}
    first = on_target._seeded(ports, 7)
    second = on_target._seeded(dict(reversed(ports.items())), 7)
    assert list(second) == ["d", "c", "b", "a"]
    for name, values in first.items():
        assert np.array_equal(values, second[name])
    assert [first[name].shape for name in "abcd"] == [(4, 1, 3), (4, 2), (4, 1), (4,)]
    assert first["a"].dtype == np.float32
    assert np.abs(first["a"]).max() <= 1
