"""Which threads, which execution provider, which engine folder; with a double of ONNX Runtime.

No GPU is needed, and none was at hand: the double records how sessions are asked for.
"""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from edgefleet_agent import runtimes
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import InferenceError, ModelError
from edgefleet_agent.runtimes import engines, execution, onnx
from edgefleet_agent.runtimes.execution import CPU, CUDA, TENSORRT, How
from edgefleet_protocol.manifest import Signature, Tensor

MIB = 1024 * 1024
SIGNATURE = Signature(
    "score", [Tensor("x", "float32", [None, 2])], [Tensor("y", "float32", [None, 1])], "y"
)


class RecordingSession:
    """Stands in for `InferenceSession`: notes how it was made and called."""

    made: ClassVar[list[list[str]]] = []
    options: ClassVar[list[dict[str, dict[str, str]]]] = []
    failing: ClassVar[set[str]] = set()
    silently_missing: ClassVar[set[str]] = set()
    fallback: ClassVar[list[int]] = []

    def __init__(
        self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1
    ) -> None:
        named = {p if isinstance(p, str) else p[0]: {} if isinstance(p, str) else p[1]
                 for p in providers}  # fmt: skip
        self.made.append(list(named))
        self.options.append(named)
        self.fallback.append(enable_fallback)
        self.threads = options.intra_op_num_threads
        if next(iter(named)) in self.failing:
            raise RuntimeError(f"{next(iter(named))} has no device")
        self._providers = [name for name in named if name not in self.silently_missing]
        self.rows: list[int] = []

    def get_providers(self) -> list[str]:
        return self._providers

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["n", 2])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y", type="tensor(float)", shape=["n", 1])]

    def run(self, outputs: list[str], tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.rows.append(len(tensors["x"]))
        return [tensors["x"].sum(axis=1, keepdims=True) for _ in outputs]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[RecordingSession]:
    """ONNX Runtime as it is on a Jetson: all three providers, all of them working."""

    class Fresh(RecordingSession):
        made: ClassVar[list[list[str]]] = []
        options: ClassVar[list[dict[str, dict[str, str]]]] = []
        failing: ClassVar[set[str]] = set()
        silently_missing: ClassVar[set[str]] = set()
        fallback: ClassVar[list[int]] = []

    monkeypatch.setattr(onnx.ort, "InferenceSession", Fresh)
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    return Fresh


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"model")
    return path


def open_(file: Path, how: How, model: str = "d" * 64) -> Any:
    return runtimes.load("onnxruntime", file, SIGNATURE, how, model=model)


@pytest.mark.parametrize(
    ("configured", "board", "order"),
    [
        ([], "rpi4", [CPU]),
        ([], "generic-x86_64", [CPU]),
        ([], "jetson-nano", [TENSORRT, CUDA, CPU]),
        ([], "jetson-orin-nano", [TENSORRT, CUDA, CPU]),
        ([CPU], "jetson-nano", [CPU]),
        ([CUDA], "generic-x86_64", [CUDA, CPU]),
        ([CPU, "XnnpackExecutionProvider", CPU], "rpi5", ["XnnpackExecutionProvider", CPU]),
    ],
)
def test_the_configuration_comes_first_then_the_board_and_the_processor_last(
    configured: list[str], board: str, order: list[str]
) -> None:
    how = execution.choose(0, configured, board, "/store/engines")
    assert how.providers == order
    assert how.engines == ("/store/engines" if TENSORRT in order else "")
    assert how.uses_gpu is (order != [CPU])


@pytest.mark.parametrize(
    ("asked", "model_bytes", "cores", "threads"),
    [
        (0, 4 * MIB - 1, 8, 1),
        (0, 4 * MIB, 1, 1),
        (0, 4 * MIB, 2, 1),
        (0, 4 * MIB, 4, 2),
        (0, 400 * MIB, 64, 4),
        (3, 1, 4, 3),
        (1, 400 * MIB, 4, 1),
    ],
)
def test_threads_suit_the_model_and_leave_cores_to_others(
    asked: int, model_bytes: int, cores: int, threads: int
) -> None:
    assert execution.threads_for(asked, model_bytes, cores) == threads


def test_this_machine_has_an_answer_too() -> None:
    assert 1 <= execution.threads_for(0, 5 * MIB) <= 4


def test_the_first_provider_is_taken_with_the_others_behind_it(
    recorder: type[RecordingSession], file: Path
) -> None:
    session = open_(file, How(providers=[TENSORRT, CUDA, CPU]))
    assert session.provider == TENSORRT
    assert recorder.made == [[TENSORRT, CUDA, CPU]]
    assert recorder.fallback == [0]  # never ONNX Runtime's own, which skips CUDA


def test_a_provider_that_cannot_be_made_is_logged_and_the_next_is_taken(
    recorder: type[RecordingSession], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.failing = {TENSORRT, CUDA}
    with caplog.at_level(logging.WARNING):
        session = open_(file, How(providers=[TENSORRT, CUDA, CPU]))
    assert session.provider == CPU
    assert recorder.made == [[TENSORRT, CUDA, CPU], [CUDA, CPU], [CPU]]
    assert [record.message for record in caplog.records] == [
        f"{name} cannot run the model, so the next is taken: {name} has no device"
        for name in (TENSORRT, CUDA)
    ]


def test_a_provider_that_drops_out_in_silence_is_seen(
    recorder: type[RecordingSession], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.silently_missing = {CUDA}
    with caplog.at_level(logging.WARNING):
        assert open_(file, How(providers=[CUDA, CPU])).provider == CPU
    assert f"{CUDA} is not usable here; the model runs on {CPU}" in caplog.text


def test_a_provider_that_is_not_installed_is_never_asked_for(
    recorder: type[RecordingSession],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: [CPU])
    with caplog.at_level(logging.WARNING):
        open_(file, How(providers=[TENSORRT, CPU]))
    assert recorder.made == [[CPU]]
    assert f"this build of ONNX Runtime has no {TENSORRT}; it has {CPU}" in caplog.text


def test_a_model_that_not_even_the_processor_runs_is_refused(
    recorder: type[RecordingSession], file: Path
) -> None:
    recorder.failing = {CPU}
    with pytest.raises(ModelError, match=f"{CPU} has no device"):
        open_(file, How(providers=[CPU]))


def test_tensorrt_keeps_engines_and_timings_in_the_folder_of_the_model(
    recorder: type[RecordingSession], file: Path, tmp_path: Path
) -> None:
    how = How(providers=[TENSORRT, CPU], engines=str(tmp_path / "engines"))
    open_(file, how, "a" * 64)
    (options,) = recorder.options
    (folder,) = (tmp_path / "engines" / ("a" * 64)).iterdir()
    assert options == {
        TENSORRT: {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        },
        CPU: {},
    }


def test_with_an_engine_no_call_is_larger_than_those_of_the_trial(
    recorder: type[RecordingSession], file: Path
) -> None:
    session = open_(file, How(providers=[TENSORRT, CPU]))
    rows = np.arange(2.0 * 150, dtype=np.float32).reshape(150, 2)
    np.testing.assert_array_equal(session.run({"x": rows}), rows.sum(axis=1, keepdims=True))
    assert session._session.rows == [64, 1, 64, 64, 22]  # the first two when it was opened
    session._session.rows.clear()
    session.run({"x": rows[:64]})
    assert session._session.rows == [64]
    session._session.rows.clear()
    processor = open_(file, How())
    processor.run({"x": rows})
    assert processor._session.rows == [150]


def test_an_engine_that_cannot_be_built_refuses_the_model_and_says_so(
    recorder: type[RecordingSession], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise RuntimeError("no tactic")

    monkeypatch.setattr(recorder, "run", run)
    with pytest.raises(ModelError, match=r"TensorRT cannot build its engine: .*no tactic"):
        open_(file, How(providers=[TENSORRT, CPU]))


def test_the_folder_of_an_engine_is_another_for_anything_it_depends_on(tmp_path: Path) -> None:
    first = engines.folder_for(tmp_path, "m", "ort 1", "driver 1")
    (first / "built.engine").write_bytes(b"engine")
    assert engines.folder_for(tmp_path, "m", "ort 1", "driver 1") == first
    assert (first / "built.engine").exists()
    other_model = engines.folder_for(tmp_path, "n", "ort 1", "driver 1")
    assert other_model.parent != first.parent
    for runtime, machine in (("ort 2", "driver 1"), ("ort 1", "driver 2")):
        made = engines.folder_for(tmp_path, "m", runtime, machine)
        assert made != first
        assert not first.exists()  # never used again
        assert list(made.iterdir()) == []
    assert other_model.exists()


def test_machine_facts_are_those_that_there_are(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version 540.4", "utf-8")
    assert engines.machine_facts([driver, tmp_path / "absent"]).startswith("NVRM version 540.4")
    assert engines.machine_facts([tmp_path / "absent"]) == ""


def test_a_closed_session_says_so(recorder: type[RecordingSession], file: Path) -> None:
    session = open_(file, How())
    session.close()
    with pytest.raises(InferenceError, match="the session is closed"):
        session.run({"x": np.zeros((1, 2), np.float32)})


def test_engines_go_with_their_model_file(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.prepare()
    for model in ("a" * 64, "b" * 64):
        (engines.folder_for(slots.engines, model, "ort", "gpu") / "built.engine").write_bytes(b"e")
    (tmp_path / "files" / ("a" * 64)).write_bytes(b"model that nobody needs")
    slots.collect([], keep_leftovers=False)
    assert [path.name for path in slots.engines.iterdir()] == ["b" * 64]
