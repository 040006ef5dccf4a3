"""The trial: real child processes that pass, give wrong answers, crash, hang and eat memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet_agent import trial
from edgefleet_agent.testing import Bundle
from edgefleet_agent.trial import Request, Verdict
from edgefleet_protocol.manifest import unpack_file

Make = Callable[..., Bundle]
MIB = 1024 * 1024


@pytest.fixture
def request_for(tmp_path: Path, bundle: Make, models: Path) -> Callable[..., Request]:
    def make(name: str, *, timeout_s: float = 60.0, memory_bytes: int = 256 * MIB) -> Request:
        made = bundle(name)
        file = made.manifest.file("golden")
        (tmp_path / "manifest").write_bytes(made.data)
        (tmp_path / "golden").write_bytes(unpack_file(file, made.blobs[file.transfer.digest]))
        return Request(
            str(tmp_path / "manifest"),
            str(models / name),
            str(tmp_path / "golden"),
            timeout_s,
            memory_bytes,
        )

    return make


@pytest.mark.parametrize("name", ["classifier.onnx", "classifier.tflite"])
def test_a_right_model_passes_and_is_measured(
    request_for: Callable[..., Request], name: str
) -> None:
    verdict = trial.run(request_for(name))
    assert verdict.faults == []
    assert 0 < verdict.latency_us < 1e6
    assert verdict.memory_bytes > 0


def test_wrong_golden_answers_are_faults(request_for: Callable[..., Request]) -> None:
    verdict = trial.run(request_for("inverted.onnx"))
    assert len(verdict.faults) == 2
    assert verdict.faults[0].startswith("golden vectors: scores are off by up to ")
    assert "of the rows have the expected class" in verdict.faults[1]


def test_a_model_that_never_returns_is_stopped_at_its_time(
    request_for: Callable[..., Request],
) -> None:
    started = time.monotonic()
    assert trial.run(request_for("endless.onnx", timeout_s=2.0)) == Verdict(
        ["the trial did not end within 2 s"]
    )
    assert time.monotonic() - started < 10


def test_a_model_that_wants_all_memory_is_refused(request_for: Callable[..., Request]) -> None:
    (fault,) = trial.run(request_for("greedy.onnx")).faults
    assert any(word in fault for word in ("memory", "bad_alloc", "allocate", "Signal"))


def test_a_superseded_trial_is_stopped(request_for: Callable[..., Request]) -> None:
    verdict = trial.run(request_for("endless.onnx"), lambda: True)
    assert verdict == Verdict(["the trial was cancelled"])


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the model brought its runtime down (the trial ended by SIGSEGV)",
        ),
        ("raise SystemExit(7)", "the trial ended with code 7 and without an answer"),
        ("print('not a verdict')", "the trial ended with code 0 and without an answer"),
        ("x = bytearray(600 << 20)\nimport time; time.sleep(60)", "the trial used more than "),
    ],
    ids=["crash", "exit", "nonsense", "memory"],
)
def test_whatever_the_child_does_becomes_a_sentence(
    request_for: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    fault: str,
) -> None:
    real = trial.subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(trial.subprocess, "Popen", popen)
    (found,) = trial.run(request_for("classifier.onnx", memory_bytes=100 * MIB)).faults
    assert found.startswith(fault)


def test_a_file_that_is_no_model_is_a_fault(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    import msgspec

    (tmp_path / "broken").write_bytes(b"junk")
    request = msgspec.structs.replace(
        request_for("classifier.onnx"), model=str(tmp_path / "broken")
    )
    (fault,) = trial.run(request).faults
    assert fault.startswith("ONNX Runtime does not load the model: ")
