"""The trial: real child processes that pass, give wrong answers, crash, hang and eat memory."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefleet_agent.testing import Bundle
from edgefleet_agent.updating import trial, trial_child
from edgefleet_agent.updating.trial import Request, Verdict
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


Children = Callable[[str], None]


@pytest.fixture
def child_is(monkeypatch: pytest.MonkeyPatch) -> Children:
    """Have some other Python code run in the place of the trial's child."""
    real = subprocess.Popen

    def use(code: str) -> None:
        def popen(command: list[str], **options: Any) -> Any:
            return real([command[0], "-c", code], **options)

        monkeypatch.setattr(trial.subprocess, "Popen", popen)

    return use


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the model brought its runtime down (the trial ended by SIGSEGV)",
        ),
        (
            "import os; os.abort()",
            "the model brought its runtime down (the trial ended by SIGABRT)",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)",
            "the model brought its runtime down (the trial ended by signal ",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the system ended the trial (SIGKILL), as it does when memory runs out",
        ),
        (
            "import signal; signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()",
            "the trial did not end in time",
        ),
        ("raise SystemExit(7)", "the trial ended with code 7 and without an answer"),
        ("print('not a verdict')", "the trial ended with code 0 and without an answer"),
        ("x = bytearray(600 << 20)\nimport time; time.sleep(60)", "the trial used more than "),
        (
            "import sys\nwhile True: sys.stdout.write('flood' * 1000)",
            "the trial answered with more than 65536 bytes",
        ),
        ("import sys; sys.stdin.close()", "the trial ended with code 0 and without an answer"),
    ],
    ids=[
        "segfault",
        "abort",
        "unnamed-signal",
        "out-of-memory",
        "alarm",
        "exit",
        "nonsense",
        "memory",
        "flood",
        "deaf",
    ],
)
def test_whatever_the_child_does_becomes_a_sentence(
    request_for: Callable[..., Request], child_is: Children, code: str, fault: str
) -> None:
    child_is(code)
    (found,) = trial.run(request_for("classifier.onnx", memory_bytes=100 * MIB)).faults
    assert found.startswith(fault)


def test_a_child_that_closes_its_output_and_stays_is_stopped_in_time(
    request_for: Callable[..., Request], child_is: Children
) -> None:
    child_is("import os, time; os.close(1); time.sleep(60)")
    verdict = trial.run(request_for("classifier.onnx", timeout_s=0.5))
    assert verdict == Verdict(["the trial did not end within 0.5 s"])


def test_what_the_child_started_goes_with_it(
    request_for: Callable[..., Request], child_is: Children, tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    # The grandchild holds the pipe open, and outlives its parent.
    child_is(
        "import os, time\n"
        "if os.fork() == 0:\n"
        f"    open({str(note)!r} + '~', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(note)!r} + '~', {str(note)!r})\n"
        "    time.sleep(60)\n"
        f"while not os.path.exists({str(note)!r}): time.sleep(0.01)\n"
    )
    started = time.monotonic()
    (fault,) = trial.run(request_for("classifier.onnx")).faults
    assert fault == "the trial ended with code 0 and without an answer"
    assert time.monotonic() - started < 20
    until(lambda: not is_running(int(note.read_text())))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Have the kernel hold the child back, as it does for one that waits in a driver."""
    held: list[int] = []
    monkeypatch.setattr(trial, "_KILL_WAIT_S", 0.1)
    monkeypatch.setattr(trial.os, "killpg", lambda pid, _: held.append(pid))
    yield held
    monkeypatch.undo()
    for pid in held:
        os.killpg(pid, signal.SIGKILL)
    for child in trial._left_behind:
        child.wait(20)
    trial._left_behind.clear()


def test_a_child_that_the_kernel_holds_is_left_behind_and_said(
    request_for: Callable[..., Request], child_is: Children, unkillable: list[int]
) -> None:
    child_is("import time; time.sleep(60)")
    (fault,) = trial.run(request_for("classifier.onnx", timeout_s=0.2)).faults
    (pid,) = unkillable
    assert fault == (
        "the trial did not end within 0.2 s;"
        f" its process {pid} cannot be ended and stays behind in the kernel"
    )
    assert [child.pid for child in trial._left_behind] == [pid]


def test_a_child_left_behind_is_collected_once_it_ends(
    request_for: Callable[..., Request],
    child_is: Children,
    unkillable: list[int],
) -> None:
    child_is("import time; time.sleep(60)")
    trial.run(request_for("classifier.onnx", timeout_s=0.2))
    (child,) = trial._left_behind
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child_is("print('next')")
    trial.run(request_for("classifier.onnx"))
    assert child.returncode == -signal.SIGKILL
    assert trial._left_behind == []
    unkillable.clear()


LIMITS = """
import json, os, resource, sys
from edgefleet_agent.updating import trial_child
from edgefleet_agent.updating.trial import Request
before = os.nice(0)
trial_child._limit_process(Request("", "", "", 60.0, 1))
names = ("CORE", "FSIZE", "NOFILE", "NPROC")
limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}
score = open("/proc/self/oom_score_adj").read().strip()
print(json.dumps([limits, os.nice(0) - before, score, "onnxruntime" in sys.modules]))
"""


def test_the_child_binds_its_own_hands() -> None:
    said = subprocess.run(
        [sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True
    )
    limits, nicer, score, runtime = json.loads(said.stdout)
    assert limits["CORE"] == [0, 0]
    assert limits["FSIZE"] == [16 * MIB, 16 * MIB]
    assert limits["NOFILE"][1] <= 1024
    assert limits["NPROC"][1] <= 4096
    assert nicer > 0 or os.nice(0) > 9  # 19 is the end
    assert score == "1000"
    assert not runtime  # no runtime is imported before the limits hold


ORPHAN = """
import subprocess, sys, time
code = '''
import time
from edgefleet_agent.updating import trial_child
from edgefleet_agent.updating.trial import Request
trial_child._limit_process(Request("", "", "", 60.0, 1))
print("ready", flush=True)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_the_child_dies_with_its_agent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    until(lambda: not is_running(pid))


def with_needs(request: Request, tmp_path: Path, **needs: int) -> Request:
    """Return the request with other budgets in its manifest."""
    held = json.loads(Path(request.manifest).read_bytes())
    held["needs"].update(needs)
    (tmp_path / "other").write_text(json.dumps(held), "utf-8")
    return msgspec.structs.replace(request, manifest=str(tmp_path / "other"))


def test_a_model_over_its_budgets_is_refused_with_both_figures(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    request = with_needs(
        request_for("classifier.onnx"), tmp_path, max_latency_us=1, max_memory_bytes=1
    )
    verdict = trial.run(request)
    time_, memory = verdict.faults
    assert time_ == (
        f"one row takes {verdict.latency_us:.0f} us on this device; the manifest's budget is 1 us"
    )
    assert memory == (
        f"the model adds {verdict.memory_bytes} bytes of memory on this device;"
        " the manifest's budget is 1 bytes"
    )


def test_a_model_within_its_budgets_passes(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    request = with_needs(
        request_for("classifier.onnx"),
        tmp_path,
        max_latency_us=1_000_000,
        max_memory_bytes=200 * MIB,
    )
    verdict = trial.run(request)
    assert verdict.faults == []
    assert verdict.provider == "CPUExecutionProvider"


def test_budgets_hold_exactly(bundle: Make) -> None:
    made = bundle().manifest
    needs = msgspec.structs.replace(made.needs, max_latency_us=100, max_memory_bytes=1000)
    bound = msgspec.structs.replace(made, needs=needs)
    assert trial_child.budget_faults(bound, 100.0, 1000, 1000) == []
    assert len(trial_child.budget_faults(bound, 100.1, 1000, 1000)) == 1
    assert len(trial_child.budget_faults(bound, 100.0, 1001, 1001)) == 1
    assert len(trial_child.budget_faults(bound, 100.1, 1001, 1000)) == 3
    (fault,) = trial_child.budget_faults(made, 1e9, 1001, 1000)
    assert fault.endswith("the device's configuration grants 1000 bytes")


class Calls:
    """Calls of given lengths on a clock of their own, microseconds."""

    def __init__(self, *lengths_us: float) -> None:
        self.lengths = itertools.chain(lengths_us, itertools.repeat(lengths_us[-1]))
        self.count, self.now = 0, 0.0

    def __call__(self) -> float:
        taken = next(self.lengths)
        self.count, self.now = self.count + 1, self.now + taken / 1e6
        return taken


def best(calls: Calls, budget_us: float = 0, allowed_s: float = 30.0) -> float:
    return trial_child.best_median(calls, budget_us, allowed_s, lambda: calls.now)


def test_a_busy_board_does_not_refuse_a_good_model() -> None:
    busy = [900.0] * 21 * 3
    calls = Calls(*busy, 80.0)
    assert best(calls, budget_us=100) == 80.0
    assert calls.count == 21 * 4  # and no round after the good one


def test_a_slow_model_stays_slow_however_often_it_is_asked() -> None:
    calls = Calls(150.0)
    assert best(calls, budget_us=100) == 150.0
    assert calls.count == 21 * 5


def test_the_median_leaves_single_stalls_out() -> None:
    assert best(Calls(*[9e4] * 10, *[70.0] * 11)) == 70.0
    assert best(Calls(*[9e4] * 11, *[70.0] * 10)) == 9e4


def test_without_a_budget_there_is_one_round() -> None:
    calls = Calls(150.0)
    best(calls)
    assert calls.count == 21


def test_timing_a_very_slow_model_takes_its_share_of_time_only() -> None:
    calls = Calls(2e6)
    assert best(calls, budget_us=100, allowed_s=30.0) == 2e6
    assert calls.count == 15
    calls = Calls(60e6)
    assert best(calls, budget_us=100, allowed_s=30.0) == 60e6
    assert calls.count == 3


def test_a_disk_that_cannot_be_read_is_no_fault_of_the_candidate(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    request = msgspec.structs.replace(request_for("classifier.onnx"), manifest=str(tmp_path))
    with pytest.raises(OSError, match=r"the trial could not be made: .*Is a directory"):
        trial.run(request)


def test_golden_vectors_that_are_none_are_a_fault(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    request = msgspec.structs.replace(
        request_for("classifier.onnx"), golden=str(tmp_path / "empty")
    )
    (fault,) = trial.run(request).faults
    assert fault.startswith("not golden vectors")


def test_a_file_that_is_no_model_is_a_fault(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    (tmp_path / "broken").write_bytes(b"junk")
    request = msgspec.structs.replace(
        request_for("classifier.onnx"), model=str(tmp_path / "broken")
    )
    (fault,) = trial.run(request).faults
    assert fault.startswith("ONNX Runtime does not load the model: it is no ONNX model, or ")
