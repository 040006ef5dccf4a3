"""Jobs: cases as files for `on_target.py`, and its answers read back. Format version 2.

A job is a folder that can be copied anywhere: `on_target.py`, `job.json`, for each case `N.onnx` or
`N.tflite` and, where it gives inputs, `N.in.npz`. Rules:

1. What comes back was written where foreign models ran: lines are decoded as `Answer`, arrays
   without pickle, and only of sizes that the case can have.
2. Fewer answers than cases means that the runner itself died: the first case without an answer
   crashed it, and nothing is known of the others, so the whole job is `TargetUnavailableError`;
   likewise if it died while it took times.
3. A case that answered once, and not when it was loaded again for its times, is not right: its
   answer becomes what happened then, and it has no times.
"""

import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from edgefleet_hardware import on_target
from edgefleet_hardware.cases import Arrays, Case
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.loads import Load
from edgefleet_hardware.outcomes import Answer, Outcome, State, judge
from edgefleet_hardware.runtimes import RuntimeName

SCRIPT = "on_target.py"
VERSION = 2
MAX_OUTPUT_BYTES = 512 << 20
# Start of an interpreter and the runtime on a slow board, once for each turn of loads.
_START_S = 20.0
# `savez` takes names as arguments, some of which it keeps for itself.
_INPUT, _OUTPUT = "input:", "output:"


Time = Annotated[float, Meta(gt=0)]


class Host(Struct, frozen=True):
    """What the runner says of where it ran: the first line of its answers."""

    runtime: str
    version: str
    machine: str
    python: str
    numpy: str
    temperature_c: float | None = None
    error: str = ""


class _Loaded(Struct):
    """A line of `loads.jsonl`: one more load of a case that answered; the last one only ends it."""

    state: State | Literal["ended"]
    case: int = -1
    took_s: float = 0.0
    text: str = ""
    median_us: Time | None = None
    cpu_us: Time | None = None
    pace_us: Time | None = None
    samples_us: list[float] = field(default_factory=list)


def write(
    folder: Path, cases: Sequence[Case], runtime: RuntimeName, version: str, loads: int = 0
) -> float:
    """Write a job.

    Args:
        folder: is there and empty.
        cases: to run, in this order.
        runtime: distribution name.
        version: that must be installed there; "" for any.
        loads: fresh loads of each case that times are taken from; 0 for no times.

    Returns:
        The longest time in s that the job can take.
    """
    (folder / SCRIPT).write_bytes(Path(on_target.__file__).read_bytes())
    listed = []
    for number, case in enumerate(cases):
        (folder / f"{number}.{case.format}").write_bytes(case.data)
        if case.inputs:
            named = {_INPUT + name: values for name, values in case.inputs.items()}
            np.savez(folder / f"{number}.in.npz", **named)  # type: ignore[arg-type]  # arrays
        listed.append(
            {
                "model": f"{number}.{case.format}",
                "format": case.format,
                "digest": case.digest,
                "inputs": f"{number}.in.npz" if case.inputs else "",
                "seed": case.seed,
                "meant": case.meant,
                "time_s": case.limits.time_s,
                "memory_bytes": case.limits.memory_bytes,
            }
        )
    job = {
        "format": VERSION,
        "runtime": runtime,
        "version": version,
        "loads": loads,
        "cases": listed,
    }
    (folder / "job.json").write_text(json.dumps(job, indent=1), encoding="utf-8")
    # One answer; as much again for its loads, the last of which may begin at the end of that.
    each = 3 if loads else 1
    return sum(each * case.limits.time_s for case in cases) + loads * _START_S


def read(folder: Path, cases: Sequence[Case], said: str) -> tuple[Host, list[Outcome]]:
    """Read the answers to a job and judge them.

    Args:
        folder: of the job.
        cases: as they were written.
        said: what the runner printed, for error texts.

    Raises:
        TargetUnavailableError: the runtime could not be loaded, or the runner died.
    """
    host, answers = _answers(folder, said)
    if host.error:
        raise TargetUnavailableError(host.error)
    if len(answers) != len(cases):
        raise TargetUnavailableError(
            f"{len(answers)} of {len(cases)} cases were answered before the runner ended"
            f"{_last(said)}"
        )
    answers = _timed(answers, _loaded(folder, said))
    return host, [
        judge(case, answer, _outputs(folder / f"{number}.out.npz", answer))
        for number, (case, answer) in enumerate(zip(cases, answers, strict=True))
    ]


def outputs(folder: Path, number: int) -> Arrays:
    """Return the arrays that a case of a job gave; empty if it gave none.

    Args:
        folder: of the job.
        number: of the case.
    """
    path = folder / f"{number}.out.npz"
    return _arrays(path) if path.exists() else {}


def _answers(folder: Path, said: str) -> tuple[Host, list[Answer]]:
    try:
        lines = (folder / "answers.jsonl").read_bytes().splitlines()
        host = msgspec.json.decode(lines[0], type=Host)
        return host, [msgspec.json.decode(line, type=Answer) for line in lines[1:]]
    except (OSError, IndexError, msgspec.DecodeError) as error:
        raise TargetUnavailableError(f"the runner left no answers: {error}{_last(said)}") from error


def _loaded(folder: Path, said: str) -> list[_Loaded]:
    try:
        lines = (folder / "loads.jsonl").read_bytes().splitlines()
        *found, end = [msgspec.json.decode(line, type=_Loaded) for line in lines]
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise TargetUnavailableError(f"the runner left no times: {error}{_last(said)}") from error
    if end.state != "ended":
        raise TargetUnavailableError(f"the runner ended while it took times{_last(said)}")
    return found


def _timed(answers: Sequence[Answer], loaded: Iterable[_Loaded]) -> list[Answer]:
    """Return the answers with the times of their loads."""
    groups = {
        number: list(lines)
        for number, lines in itertools.groupby(
            sorted(loaded, key=lambda line: line.case), key=lambda line: line.case
        )
    }
    return [_with_times(answer, groups.get(number, [])) for number, answer in enumerate(answers)]


def _with_times(answer: Answer, lines: Sequence[_Loaded]) -> Answer:
    loads = []
    for turn, line in enumerate(lines, 1):
        if line.median_us is None or line.cpu_us is None or line.pace_us is None:
            text = f"loaded again for its times ({turn}): {line.text}"
            return msgspec.structs.replace(answer, state=line.state, text=text)
        loads.append(Load(line.median_us, line.cpu_us, line.pace_us))
    samples_us = [time for line in lines for time in line.samples_us]
    return msgspec.structs.replace(answer, loads=loads, samples_us=samples_us)


def _last(said: str) -> str:
    lines = said.strip().splitlines()[-5:]
    return "; its last lines:\n" + "\n".join(lines) if lines else ""


def _outputs(path: Path, answer: Answer) -> Arrays:
    return _arrays(path) if answer.state == "answered" else {}


def _arrays(path: Path) -> Arrays:
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_OUTPUT_BYTES:
            raise TargetUnavailableError(
                f"{path.name}: {size} bytes of output; {MAX_OUTPUT_BYTES} are read"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name.removeprefix(_OUTPUT): file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TargetUnavailableError(f"{path.name}: no arrays came back: {error}") from error
