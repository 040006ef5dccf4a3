import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from edgefleet_converters import answers, child, sources
from edgefleet_converters.child import ChildLimits
from edgefleet_converters.errors import (
    BadInputError,
    ChildCrashedError,
    ChildError,
    ChildMemoryError,
    ChildTimeoutError,
)
from edgefleet_converters.sources import ModelFile

HOLDS_THE_INTERPRETER = (re.match, "(a*)*b", "a" * 60)  # native code that never lets go


def test_what_the_function_returns_comes_back_as_declared() -> None:
    assert child.run("adding", operator.add, 2, 3, returns=int) == 5


def test_settings_of_a_hub_are_not_in_the_childs_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEFLEET_OIDC_CLIENT_SECRET", "hush")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert child.run("looking", os.getenv, "EDGEFLEET_OIDC_CLIENT_SECRET", "", returns=str) == ""
    assert child.run("looking", os.getenv, "CUDA_VISIBLE_DEVICES", "", returns=str) == "0"


def test_a_struct_comes_back_as_a_struct(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"abc")
    found = child.run("looking", sources.recognise, path, returns=ModelFile)
    assert found == ModelFile(str(path), "pickle", 3)


def test_arrays_come_back_with_type_and_shape() -> None:
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = child.run("adding", operator.add, given, given, returns=NDArray[np.float32])
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, given * 2)


def test_an_answer_of_another_type_is_refused() -> None:
    with pytest.raises(ChildError, match="the answer is no bytes"):
        child.run("adding", operator.add, 2, 3, returns=bytes)


def test_a_typed_error_keeps_its_type_and_text() -> None:
    with pytest.raises(BadInputError, match="data row 2"):
        child.run(
            "checking", answers.check_labels, np.array([1.0, np.nan]), "label", returns=type(None)
        )


def test_any_other_error_brings_its_traceback() -> None:
    with pytest.raises(ChildError, match="ZeroDivisionError: division by zero") as caught:
        child.run("dividing", operator.truediv, 1, 0, returns=float)
    assert "Traceback" in str(caught.value)


def test_a_crash_is_told_with_its_signal() -> None:
    with pytest.raises(ChildCrashedError, match="breaking: the process was killed by SIGABRT"):
        child.run("breaking", os.abort, returns=type(None))


def test_leaving_without_an_answer_is_a_crash() -> None:
    with pytest.raises(ChildCrashedError, match="left with code 7"):
        child.run("leaving", os._exit, 7, returns=type(None))


def test_the_last_lines_of_a_crash_are_told() -> None:
    code = "import os; os.write(2, b'the reason\\n'); os.abort()"
    with pytest.raises(ChildCrashedError, match="the reason"):
        child.run("breaking", exec, code, returns=type(None))


def test_a_hang_in_native_code_is_stopped_at_the_limit() -> None:
    with pytest.raises(ChildTimeoutError, match="matching: no answer within 1 s"):
        child.run("matching", *HOLDS_THE_INTERPRETER, returns=bool, limits=ChildLimits(time_s=1))


def test_too_much_memory_is_stopped_at_the_limit() -> None:
    code = "import time; block = b'x' * (400 << 20); time.sleep(60)"
    limits = ChildLimits(memory_bytes=200 << 20)
    with pytest.raises(ChildMemoryError, match="200 MiB are allowed"):
        child.run("hoarding", exec, code, returns=type(None), limits=limits)


def test_progress_reaches_the_caller_in_order() -> None:
    code = (
        "from edgefleet_converters.child import report\n"
        "report(0.25, 'first')\nreport(0.5, 'é' * 1000)"
    )
    seen: list[tuple[float, str]] = []
    child.run("telling", exec, code, returns=type(None), progress=lambda f, t: seen.append((f, t)))
    assert seen[0] == (0.25, "first")
    assert seen[1][0] == 0.5
    assert set(seen[1][1]) == {"é"}


def test_a_caller_cancels_by_raising() -> None:
    class StoppedError(Exception):
        pass

    def stop(fraction: float, text: str) -> None:
        raise StoppedError

    code = (
        "from edgefleet_converters.child import report\nreport(0, '')\nimport time; time.sleep(60)"
    )
    others = set(psutil.Process().children())
    before = time.monotonic()
    with pytest.raises(StoppedError):
        child.run("waiting", exec, code, returns=type(None), progress=stop)
    assert time.monotonic() - before < 30
    assert set(psutil.Process().children()) <= others


def test_children_have_the_hash_seed_that_makes_exports_equal() -> None:
    assert child.run("reading", os.getenv, "PYTHONHASHSEED", returns=str) == "0"


def test_a_child_dies_with_its_parent_even_inside_native_code() -> None:
    code = (
        "import re\nfrom edgefleet_converters import child\n"
        f"child.run('matching', re.match, *{HOLDS_THE_INTERPRETER[1:]!r}, returns=bool)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        watched = psutil.Process(parent.pid)
        worker = _wait_for(lambda: next(iter(watched.children()), None))
        # The work has begun once the child has used the processor for longer than it starts up.
        _wait_for(lambda: worker.cpu_times().user > 1.0)
        parent.send_signal(signal.SIGKILL)
    _wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_descriptors_do_not_leak() -> None:
    before = psutil.Process().num_fds()
    child.run("adding", operator.add, 2, 3, returns=int)
    with pytest.raises(ChildCrashedError):
        child.run("breaking", os.abort, returns=type(None))
    assert psutil.Process().num_fds() == before


def _wait_for(condition):  # type: ignore[no-untyped-def]  # any kind of truth
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen within 30 s")
