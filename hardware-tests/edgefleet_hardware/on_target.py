"""Run models on a target and write down what happened: the one file that is copied there.

It needs Python 3.9 or newer, numpy and the runtime, nothing else, and is started as

    python3 on_target.py FOLDER

`FOLDER/job.json` (see `jobs.py`) lists the cases. Answers go to `FOLDER/answers.jsonl`, a line for
each case in the order of the job, after one about the target, arrays to `FOLDER/N.out.npz`, and
times to `FOLDER/loads.jsonl`, a line for each load of a case. It judges nothing but digests. Rules:

1. A file whose SHA-256 differs from the expected one is refused and never opened, as on a device.
2. Each case runs in a forked child of its own: the interpreter and the runtime start once, yet a
   model may kill its process, never return, or take all memory.
3. The parent kills the child at its limit of time or of resident memory. It watches that itself:
   user-mode emulation does not carry limits of memory to the host's kernel.
4. Each answer is written, and flushed, before the next case starts.
5. It ends with whoever started it: a CI job that is cancelled leaves nothing running.
6. Inputs that the job does not give are made here from a seed, the same on every machine and numpy.
7. Times are taken after all answers, in turns: each turn loads every case that answered once, in a
   child of an interpreter that was started for this turn. So no two loads of a case share where
   their memory lies, they are spread over the whole run, and those of one turn are neighbours.
8. Beside each block of calls a fixed piece of work is timed: at what pace the processor runs.
9. What takes long gets fewer calls in each load, not fewer loads, down to one; beyond `_LONG_S` it
   gets no more loads than an interval needs, and none after as much time as one answer may take.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

# Who started this process; it has another parent once that has ended.
_STARTER = os.getppid()
_POLL_S = 0.01
_LAST_CHARACTERS = 600
# Of one load: runs that do not count, then blocks of calls, and how many times of calls are kept.
_WARM_UP_RUNS, _WARM_UP_S = 5, 0.02
_LOAD_S, _BLOCK_S = 0.1, 0.002
_SAMPLES = 16
# What all loads of a case may take before it gets no more than the least that give an interval.
_LONG_S, _LEAST_LOADS = 10.0, 6
# Long against the resolution of clocks, and it fits into the smallest first-level cache.
_PACE_BYTES, _PACE_RUNS = bytes(16384), 4
_SEEDED_CALLS = 4
# ONNX Runtime's names of the types of inputs that can be made up.
_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}


class OnnxModel:
    """A model in ONNX Runtime, one thread."""

    def __init__(self, path: Path) -> None:
        """Load the file at `path`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def inputs(self) -> dict[str, tuple[list[int], str]]:
        """Return name → (shape, dtype); a size that is not fixed is 1."""
        return {
            put.name: (
                [size if isinstance(size, int) and size > 0 else 1 for size in put.shape],
                _ONNX_DTYPES[put.type],
            )
            for put in self._session.get_inputs()
        }

    def fixed_rows(self) -> int | None:
        """Return for how many rows the model was built; None for any number."""
        sizes = [put.shape[0] for put in self._session.get_inputs() if put.shape]
        return max((size for size in sizes if isinstance(size, int)), default=None)

    def run(self, tensors: dict[str, Any], meant: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Return output name → array; outputs that are no tensors are left out.

        Args:
            tensors: input name → array.
            meant: nothing here: the edges of ONNX models are what they say.
        """
        values = self._session.run(self._outputs, tensors)
        return {
            name: value
            for name, value in zip(self._outputs, values)  # noqa: B905  # `strict` came with 3.10
            if isinstance(value, (np.ndarray, np.generic))  # no sequence, map or optional
        }


class TfliteModel:
    """A model in LiteRT or tflite-runtime, one thread."""

    def __init__(self, path: Path) -> None:
        """Load the file at `path`."""
        self._interpreter: Any = _interpreter_class()(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._shapes: dict[int, tuple[int, ...]] = {}

    def inputs(self) -> dict[str, tuple[list[int], str]]:
        """Return name → (shape, dtype)."""
        return {
            put["name"]: ([int(size) or 1 for size in put["shape"]], np.dtype(put["dtype"]).name)
            for put in self._interpreter.get_input_details()
        }

    def fixed_rows(self) -> int | None:
        """Return for how many rows the model was built; None for any number."""
        rows = {_rows(put) for put in self._interpreter.get_input_details()}
        return None if -1 in rows else max(rows, default=1)

    def run(self, tensors: dict[str, Any], meant: bool = False) -> dict[str, Any]:
        """Return output name → array.

        Args:
            tensors: input name → array, by the names of tensors or of a signature.
            meant: whether the arrays hold the numbers that quantized integers stand for.
        """
        signature, inputs, outputs = self._bound(set(tensors))
        given = {
            name: _quantized(values, inputs[name]) if meant else values
            for name, values in tensors.items()
        }
        if signature is not None:
            values = signature(**given)
        else:
            self._invoke({inputs[name]["index"]: values for name, values in given.items()})
            values = {
                name: self._interpreter.get_tensor(put["index"]) for name, put in outputs.items()
            }
        return {
            name: _dequantized(np.asarray(value), outputs[name]) if meant else np.asarray(value)
            for name, value in values.items()
        }

    def _bound(self, names: set[str]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Return the signature that has inputs of these names (None: the graph), and its ports."""
        inputs = {put["name"]: put for put in self._interpreter.get_input_details()}
        outputs = {put["name"]: put for put in self._interpreter.get_output_details()}
        if set(inputs) == names:
            return None, inputs, outputs
        for key in self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner(key)
            if set(runner.get_input_details()) == names:
                return runner, runner.get_input_details(), runner.get_output_details()
        raise ValueError(f"the model takes {sorted(inputs)}; given are {sorted(names)}")

    def _invoke(self, given: dict[int, Any]) -> None:
        shapes = {place: values.shape for place, values in given.items()}
        if shapes != self._shapes:
            puts = self._interpreter.get_input_details()
            # Resizing throws away the memory plan and what is prepacked: only where it must be.
            if any(tuple(put["shape"]) != shapes[put["index"]] for put in puts):
                for place, shape in shapes.items():
                    self._interpreter.resize_tensor_input(place, shape)
                self._interpreter.allocate_tensors()
            self._shapes = shapes
        for place, values in given.items():
            self._interpreter.set_tensor(place, values)
        self._interpreter.invoke()


def _rows(put: dict[str, Any]) -> int:
    sizes = put["shape_signature"] if len(put["shape_signature"]) else put["shape"]
    return int(sizes[0]) if len(sizes) else 1


def _quantized(values: Any, put: dict[str, Any]) -> Any:
    """Return the integers that stand for floats; out of range: the nearest, NaN: 0."""
    scale, zero_point = put["quantization"]
    dtype = np.dtype(put["dtype"])
    if not scale or dtype.kind not in "iu" or values.dtype.kind != "f":
        return values
    limits = np.iinfo(dtype)
    steps = np.rint(values.astype(np.float32) / scale) + zero_point
    return np.clip(np.nan_to_num(steps), limits.min, limits.max).astype(dtype)


def _dequantized(values: Any, put: dict[str, Any]) -> Any:
    scale, zero_point = put["quantization"]
    if not scale or values.dtype.kind not in "iu":
        return values
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


# What a child does with a case: (folder, model file, case, its number) → a line of the answers.
Work = Callable[[Path, Path, dict[str, Any], int], dict[str, Any]]


def main(folder: Path, turn: int = 0) -> int:
    """Run the job in `folder`; return the exit code: 0 done, 3 if the runtime is not as asked.

    Args:
        folder: of the job.
        turn: 0 for the answers, then the number of the turn in which times are taken.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if turn == 0:
        code = _answer_all(folder, job)
        if code:
            return code
    else:
        _about(job["runtime"])  # imports it, for all children
        for number in _due(folder, job, turn)[:: 1 if turn % 2 else -1]:
            _take_times(folder, job, number)
    if _due(folder, job, turn + 1):
        _start_anew(folder, turn + 1)
    with (folder / "loads.jsonl").open("a", encoding="utf-8") as loads:
        _write(loads, {"state": "ended"})
    return 0


def _answer_all(folder: Path, job: dict[str, Any]) -> int:
    """Answer every case once; return the exit code."""
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as answers:
        about = _about(job["runtime"])
        found, wanted = about["version"], job["version"]
        if not about["error"] and wanted and found != wanted:
            about["error"] = f"{job['runtime']} {found} is installed; {wanted} is asked for"
        _write(answers, about)
        if about["error"]:
            return 3
        for number, case in enumerate(job["cases"]):
            _write(answers, _try(folder, number, case, _answer))
    return 0


def _due(folder: Path, job: dict[str, Any], turn: int) -> list[int]:
    """Return the numbers of the cases that are loaded in a turn."""
    if turn > job["loads"]:
        return []
    answers = _lines(folder / "answers.jsonl")[1:]
    due = {number for number, answer in enumerate(answers) if answer["state"] == "answered"}
    took_s = dict.fromkeys(due, 0.0)
    for load in _lines(folder / "loads.jsonl"):
        took_s[load["case"]] += load["took_s"]
        if load["state"] != "answered":
            due.discard(load["case"])
    return sorted(
        number
        for number in due
        if took_s[number] < (_LONG_S if turn > _LEAST_LOADS else math.inf)
        and took_s[number] < job["cases"][number]["time_s"]
    )


def _take_times(folder: Path, job: dict[str, Any], number: int) -> None:
    """Load a case once more, and add a line for it."""
    begin = time.monotonic()
    found = _try(folder, number, job["cases"][number], _time)
    with (folder / "loads.jsonl").open("a", encoding="utf-8") as loads:
        _write(loads, {**found, "case": number, "took_s": time.monotonic() - begin})


def _start_anew(folder: Path, turn: int) -> None:
    """Become an interpreter that has just been started, with the same parent and environment."""
    flags = ["-S"] * sys.flags.no_site + ["-B"] * sys.flags.dont_write_bytecode
    words = [sys.executable, *flags, __file__, str(folder), str(turn), str(_STARTER)]
    os.execv(sys.executable, words)  # noqa: S606  # itself, without a shell


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: IO[str], value: dict[str, Any]) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _about(runtime: str) -> dict[str, Any]:
    """Return what this target is; `error` says why the runtime cannot be used."""
    about = {
        "runtime": runtime,
        "version": "",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "temperature_c": _temperature_c(),
        "error": "",
    }
    try:
        if runtime == "onnxruntime":
            import onnxruntime

            about["version"] = onnxruntime.__version__
        else:
            _interpreter_class(runtime)
            about["version"] = importlib.metadata.version(runtime)
    except Exception as error:
        about["error"] = f"{runtime} cannot be loaded: {type(error).__name__}: {error}"
    return about


_loaded_class: Any = None


def _interpreter_class(runtime: str = "") -> Any:
    """Import the interpreter of the TFLite runtime that the job names, and keep it."""
    global _loaded_class  # the children find what their parent has imported
    if _loaded_class is None:
        if runtime == "tflite-runtime":
            from tflite_runtime.interpreter import Interpreter
        else:
            from ai_edge_litert.interpreter import Interpreter
        _loaded_class = Interpreter
    return _loaded_class


def _try(folder: Path, number: int, case: dict[str, Any], work: Work) -> dict[str, Any]:
    """Run one case in a child; return what the work says of it, or why it says nothing."""
    path = folder / case["model"]
    if case["digest"]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != case["digest"]:
            text = f"digest {digest[:16]}; {case['digest'][:16]} is expected: damaged or another"
            return {"state": "refused", "text": text}
    sys.stdout.flush()
    said = folder / f"{number}.json"
    said.unlink(missing_ok=True)  # of the turn before
    pid = os.fork()
    if pid == 0:
        _be_child(folder, path, case, number, work)
    status, broken, peak = _watch(pid, case["time_s"], case["memory_bytes"])
    if broken == "alone":
        sys.exit(4)
    if broken == "hung":
        text = f"no answer within {case['time_s']:g} s"
        return {"state": broken, "text": text, "memory_peak_bytes": peak}
    if broken:
        text = f"took more than {case['memory_bytes'] >> 20} MiB of memory"
        return {"state": broken, "text": text, "memory_peak_bytes": peak}
    last = _tail(folder / f"{number}.log")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"state": "crashed", "text": f"killed by {name}. {last}".strip()}
    try:
        answer: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        code = os.WEXITSTATUS(status)
        return {"state": "crashed", "text": f"left with code {code}. {last}".strip()}
    return answer


def _watch(pid: int, time_s: float, memory_bytes: int) -> tuple[int, str, int]:
    """Wait for the child; return its status, why it was stopped, and its peak of memory."""
    deadline = time.monotonic() + time_s
    peak = 0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, "", peak
        peak = max(peak, _resident_bytes(pid))
        broken = "over-memory" if peak > memory_bytes else ""
        if time.monotonic() > deadline:
            broken = "hung"
        if os.getppid() != _STARTER:
            broken = "alone"
        if broken:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1], broken, peak
        time.sleep(_POLL_S)


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0  # it has just ended; the caller sees that next
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tail(log: Path) -> str:
    """Return the last words of a child: what runtimes print before they abort."""
    if not log.exists():
        return ""
    return " ".join(log.read_text(encoding="utf-8", errors="replace")[-_LAST_CHARACTERS:].split())


def _be_child(folder: Path, path: Path, case: dict[str, Any], number: int, work: Work) -> None:
    """Load and run the model, write what came out, and leave without any clean-up."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        answer = work(folder, path, case, number)
    except MemoryError as error:
        answer = {"state": "over-memory", "text": f"MemoryError: {error}"}
    except Exception as error:
        text = " ".join(str(error).split())[:_LAST_CHARACTERS]
        answer = {"state": "refused", "text": f"{type(error).__name__}: {text}"}
    except BaseException:
        traceback.print_exc()
        os._exit(4)
    (folder / f"{number}.json").write_text(json.dumps(answer), encoding="utf-8")
    # Runtimes may hang or crash in their destructors; the answer is written.
    os._exit(0)


def _answer(folder: Path, path: Path, case: dict[str, Any], number: int) -> dict[str, Any]:
    before = _resident_bytes(os.getpid())
    model = _load(path, case)
    calls = _calls(folder, model, case)
    outputs: dict[str, list[Any]] = {}
    count = len(next(iter(calls.values()))) if calls else 1
    for index in range(count):
        # Of a model that takes a single number, a call is an array without dimensions.
        one = {key: np.asarray(values[index]) for key, values in calls.items()}
        answers = _in_pieces(model, one) if case["meant"] else model.run(one)
        for name, value in answers.items():
            outputs.setdefault(name, []).append(np.asarray(value))
    arrays = {f"output:{name}": _kept(np.stack(values)) for name, values in outputs.items()}
    np.savez(folder / f"{number}.out.npz", **arrays)
    return {
        "state": "answered",
        "calls": count,
        "memory_bytes": max(0, _resident_bytes(os.getpid()) - before),
        "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "temperature_c": _temperature_c(),
    }


def _load(path: Path, case: dict[str, Any]) -> OnnxModel | TfliteModel:
    return OnnxModel(path) if case["format"] == "onnx" else TfliteModel(path)


def _calls(folder: Path, model: OnnxModel | TfliteModel, case: dict[str, Any]) -> dict[str, Any]:
    """Return input name → `(calls, …)`."""
    if not case["inputs"]:
        return _seeded(model.inputs(), case["seed"])
    with np.load(folder / case["inputs"], allow_pickle=False) as file:
        return {name[len("input:") :]: _given(file[name]) for name in file.files}


def _time(folder: Path, path: Path, case: dict[str, Any], number: int) -> dict[str, Any]:  # noqa: ARG001  # as `_answer`
    """Load a model and time its first call; of a bundle's golden vectors: its first row."""
    model = _load(path, case)
    one = {name: np.asarray(values[0]) for name, values in _calls(folder, model, case).items()}
    if not case["meant"]:
        return _timed(lambda: model.run(one))
    row = {name: values[:1] for name, values in one.items()}
    return _timed(lambda: _in_pieces(model, row))


def _in_pieces(model: OnnxModel | TfliteModel, tensors: dict[str, Any]) -> dict[str, Any]:
    """Run rows through a model that may take a fixed number; the last piece is filled up."""
    rows = len(next(iter(tensors.values())))
    size = model.fixed_rows()
    if size is None or size == rows:
        return model.run(tensors, meant=True)
    parts: dict[str, list[Any]] = {}
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        piece = model.run({name: values[index] for name, values in tensors.items()}, meant=True)
        for name, values in piece.items():
            parts.setdefault(name, []).append(values[: rows - start])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _given(values: Any) -> Any:
    """Return text as the objects that runtimes take; files hold it in numpy's own type."""
    return values.astype(object) if values.dtype.kind == "U" else values


def _kept(values: Any) -> Any:
    return values.astype(str) if values.dtype.kind in "OS" else values


def _seeded(inputs: dict[str, tuple[list[int], str]], seed: int) -> dict[str, Any]:
    """Return input name → values `(calls, …)`: reals in [-1, 1), integers small and not negative.

    The stream depends on the name, not on the order in which a runtime lists inputs. RandomState's
    stream is frozen (NEP 19), so every numpy makes the same values.
    """
    made: dict[str, Any] = {}
    for name, (shape, dtype) in inputs.items():
        random = np.random.RandomState((seed + zlib.crc32(name.encode())) % 2**32)
        size = [_SEEDED_CALLS, *shape]
        if dtype in ("float16", "float32", "float64"):
            made[name] = (random.random_sample(size) * 2 - 1).astype(dtype)
        elif dtype == "bool":
            made[name] = random.randint(0, 2, size).astype(bool)
        elif dtype in ("int8", "uint8"):
            low = -128 if dtype == "int8" else 0
            made[name] = random.randint(low, low + 256, size).astype(dtype)
        elif dtype in ("str", "object", "bytes"):
            made[name] = np.array(["a", "hello world"])[random.randint(0, 2, size)].astype(object)
        else:
            made[name] = random.randint(0, 8, size).astype(dtype)
    return made


def _timed(call: Callable[[], object]) -> dict[str, Any]:
    """Return what a call takes in µs: on the clock, in processor time, and the pace meanwhile.

    On the clock it is the median of single calls, else the lower quartile of blocks. `samples_us`
    are times of single calls, evenly out of all, in the order in which they were taken.
    """
    begin = time.perf_counter()
    for _ in range(_WARM_UP_RUNS):
        call()
        if time.perf_counter() - begin > _WARM_UP_S:
            break
    clock, cpu, pace = [], [], []
    begin = time.perf_counter()
    while time.perf_counter() - begin < _LOAD_S:
        times, each_us = _block(call)
        clock += times
        cpu.append(each_us)
        pace.append(_pace_us())
    step = max(1, len(clock) // _SAMPLES)
    return {
        "state": "answered",
        "median_us": _quantile(clock, 0.5),
        # What others do to the caches, and switching to them, only ever adds.
        "cpu_us": _quantile(cpu, 0.25),
        "pace_us": _quantile(pace, 0.25),
        "samples_us": [round(value, 2) for value in clock[::step][:_SAMPLES]],
    }


def _block(call: Callable[[], object]) -> tuple[list[float], float]:
    """Call for a while, at least once; return the times of calls, and processor time of one, µs."""
    times = []
    cpu_ns = time.process_time_ns()
    begin = end = time.perf_counter()
    while end - begin < _BLOCK_S:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        times.append((end - start) * 1e6)
    return times, (time.process_time_ns() - cpu_ns) / 1e3 / len(times)


def _pace_us() -> float:
    """Return the processor time in µs of a fixed piece of work that does not leave the cache."""
    start_ns = time.process_time_ns()
    for _ in range(_PACE_RUNS):
        hashlib.sha256(_PACE_BYTES).digest()
    return (time.process_time_ns() - start_ns) / 1e3 / _PACE_RUNS


def _quantile(values: list[float], share: float) -> float:
    return round(float(np.quantile(values, share)), 3)


def _temperature_c() -> float | None:
    """Return the hottest thermal zone in °C; None where the kernel names none."""
    found = []
    for sensor in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(sensor.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue  # a zone whose sensor is switched off cannot be read
    return max(found, default=None)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        _STARTER = int(sys.argv[3])
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
