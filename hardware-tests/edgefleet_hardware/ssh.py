"""Targets on real boards, reached with the system's own OpenSSH client.

`HOST` is whatever `ssh HOST` understands, so names, ports, keys and jump hosts stay where they
belong: in `~/.ssh/config`, or in the file given. Rules:

1. Nothing is asked (`BatchMode`), and an unknown host key is refused: a CI that is asked hangs.
2. The board needs Python 3.9 and numpy with the runtime, or pip and its index for an exact release,
   which is installed once into a virtual environment below `~/.cache/edgefleet` there.
3. Everything else is a folder that the board's `mktemp` makes, and that goes away at the end.
4. What the board sends is read as hostile: sizes are bounded, names are ours, nothing is unpickled.
5. A connection that breaks, a time limit, a board without the runtime: `TargetUnavailableError`.
6. Times of a board that slowed itself down in the run are dropped: they are no measure.
"""

import io
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from edgefleet_hardware import jobs, packages
from edgefleet_hardware.cases import Case
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.runtimes import Runtime
from edgefleet_hardware.targets import About

CONNECT_S, INSTALL_S, _SHORT_S, _START_S = 10, 1800.0, 60.0, 60.0
MAX_RETURN_BYTES = 512 << 20
MAX_SAID_BYTES = 1 << 20

# What is installed on the board, and what its figures depend on. Python 3.9, standard library.
_PROBE = """
import importlib.metadata, json, os, platform, sys
def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read(200).strip(" \\0\\n")
    except OSError:
        return ""
runtimes = {}
for name in ("onnxruntime", "ai-edge-litert", "tflite-runtime"):
    try:
        runtimes[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({
    "model": text("/proc/device-tree/model") or platform.node(),
    "machine": platform.machine(),
    "python": platform.python_version(),
    "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    "runtimes": runtimes,
}))
"""
# What the runner writes besides arrays.
_LINES = ("answers.jsonl", "loads.jsonl")
# The firmware of a Raspberry Pi says with bits 0 to 3 that it slows the cores down now; of 16 to 19
# that it did since the start, so the bits before and after tell what happened in between.
_THROTTLED = "vcgencmd get_throttled 2>/dev/null || true"


class Probed(Struct, frozen=True):
    """What a board says of itself.

    Attributes:
        model: of the board, or its host name.
        governor: of the clock; "" where the kernel names none.
        runtimes: distribution name → version, in the Python that was asked.
    """

    model: str
    machine: str
    python: str
    governor: str
    runtimes: dict[str, str]


@dataclass(frozen=True)
class Connection:
    """How a board is reached.

    Attributes:
        host: for `ssh`.
        config: of `ssh`, instead of the user's own; None for that.
        python: interpreter on the board.
    """

    host: str
    config: Path | None = None
    python: str = "python3"

    def run(self, command: str, stdin: bytes = b"", *, limit_s: float = _SHORT_S) -> bytes:
        """Run a command of the board's shell; return what it printed.

        Raises:
            TargetUnavailableError: no connection, an exit code, a time limit, or too much output.
        """
        words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
        words += ["-o", "StrictHostKeyChecking=yes", "-o", "ServerAliveInterval=15"]
        if self.config is not None:
            words += ["-F", str(self.config)]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*words, "--", self.host, command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
            )
            try:
                process.communicate(stdin, timeout=limit_s)
            except subprocess.TimeoutExpired:
                raise TargetUnavailableError(
                    f"{self.host}: no answer within {limit_s:g} s"
                ) from None
            finally:
                process.kill()
                process.wait()
            if process.returncode != 0:
                raise TargetUnavailableError(
                    f"{self.host}: {_purpose(process.returncode)}{_end(errors) or _end(out)}"
                )
            if out.seek(0, io.SEEK_END) > MAX_RETURN_BYTES:
                raise TargetUnavailableError(
                    f"{self.host}: sent {out.tell()} bytes; {MAX_RETURN_BYTES} are read"
                )
            out.seek(0)
            return out.read()

    def probe(self) -> Probed:
        """Ask what the board is and has.

        Raises:
            TargetUnavailableError: it cannot be reached, or has no such Python.
        """
        said = self.run(f"{shlex.quote(self.python)} -", _PROBE.encode())
        try:
            return msgspec.json.decode(said, type=Probed)
        except msgspec.DecodeError as error:
            raise TargetUnavailableError(f"{self.host}: its answer is not read: {error}") from error


@dataclass(frozen=True)
class SshTarget:
    """One runtime on one board.

    Attributes:
        python: interpreter on the board that has the runtime.
        loads: fresh loads of each case that times are taken from.
    """

    connection: Connection
    about: About
    python: str
    loads: int = 0
    probed: Probed | None = field(default=None, compare=False)

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Run every case on the board and judge it; outcomes in the order of the cases.

        Raises:
            TargetUnavailableError: nothing could be tried.
        """
        if not cases:
            return []
        with tempfile.TemporaryDirectory(prefix="edgefleet-ssh-") as name:
            folder = Path(name)
            about = self.about
            longest_s = jobs.write(folder, cases, about.runtime, about.version, self.loads)
            there = self.connection.run("mktemp -d").decode().strip()
            try:
                said, slowed = self._run_there(folder, there, longest_s)
            finally:
                self.connection.run(f"rm -rf -- {shlex.quote(there)}")
            _, outcomes = jobs.read(folder, cases, said)
            return [_without_times(outcome) for outcome in outcomes] if slowed else outcomes

    def _run_there(self, folder: Path, there: str, longest_s: float) -> tuple[str, bool]:
        """Copy the job, run it, copy its answers back; return what was said, and if it slowed."""
        place = shlex.quote(there)
        self.connection.run(f"tar -xf - -C {place}", _packed(folder), limit_s=INSTALL_S)
        before = self.connection.run(_THROTTLED)
        # The exit code is the runner's; what it could not do stands in its answers.
        said = self.connection.run(
            f"cd {place} && {{ {shlex.quote(self.python)} -B {jobs.SCRIPT} . 2>&1 || true; }}"
            f" | tail -c {MAX_SAID_BYTES}",
            limit_s=longest_s + _START_S,
        )
        after = self.connection.run(_THROTTLED)
        back = self.connection.run(
            f"cd {place} && tar -cf - $(ls | grep -E '^(answers|loads)\\.jsonl$|\\.out\\.npz$')",
            limit_s=INSTALL_S,
        )
        _unpack(back, folder, self.connection.host)
        return said.decode(errors="replace"), _slowed(before, after)


def targets(
    connection: Connection, runtimes: Sequence[Runtime], board: str = "", loads: int = 0
) -> list[SshTarget]:
    """Return the targets of a board: the releases asked for, or every runtime that it has.

    Args:
        connection: to the board.
        runtimes: exact releases, installed there where they are missing; empty for what is there.
        board: profile for the static check; "" for none.
        loads: fresh loads of each case that times are taken from.

    Raises:
        TargetUnavailableError: it cannot be reached, or has no runtime.
    """
    probed = connection.probe()
    processor = probed.model + (f", {probed.governor}" if probed.governor else "")
    if not runtimes:
        found = [Runtime(name, version) for name, version in probed.runtimes.items()]  # type: ignore[arg-type]  # the probe asks for these names
        if not found:
            raise TargetUnavailableError(
                f"{connection.host}: its {connection.python} ({probed.python}) has no runtime;"
                " install one there, name another with --python, or name a release with --runtime"
            )
        runtimes = found
    return [
        SshTarget(
            connection,
            About(runtime.name, runtime.version, processor, board),
            _python_with(connection, probed, runtime),
            loads,
            probed,
        )
        for runtime in runtimes
    ]


def _python_with(connection: Connection, probed: Probed, runtime: Runtime) -> str:
    """Return the interpreter on the board that has a release; install that where it is missing."""
    if probed.runtimes.get(runtime.name) == runtime.version:
        return connection.python
    name = f"{runtime.name}-{runtime.version}-py{probed.python.rsplit('.', 1)[0]}"
    home = connection.run('printf %s "$HOME"').decode()
    folder = f"{home}/.cache/edgefleet/boards/{name}"
    place, python = shlex.quote(folder), shlex.quote(connection.python)
    wanted = " ".join(shlex.quote(item) for item in packages.requirements(runtime))
    # Complete only once its mark is there, however an earlier attempt ended.
    connection.run(
        f"test -e {place}/complete || {{ rm -rf {place} && {python} -m venv {place} &&"
        f" {place}/bin/python -m pip install --quiet --only-binary :all: {wanted} &&"
        f" touch {place}/complete; }}",
        limit_s=INSTALL_S,
    )
    return f"{folder}/bin/python"


def _packed(folder: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return data.getvalue()


def _unpack(data: bytes, folder: Path, host: str) -> None:
    """Write the plain files of an archive into a folder, under names that the runner gives."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = member.name
                known = name in _LINES or name.removesuffix(".out.npz").isdecimal()
                stream = archive.extractfile(member) if known and member.isreg() else None
                if stream is None:
                    raise TargetUnavailableError(f"{host}: sent {name!r}, which nobody asked for")
                (folder / name).write_bytes(stream.read())
    except tarfile.TarError as error:
        raise TargetUnavailableError(f"{host}: what came back is not whole: {error}") from error


def _slowed(before: bytes, after: bytes) -> bool:
    """Tell from the firmware's words whether the board slowed itself down in between."""
    was, now = (_bits(text) for text in (before, after))
    return bool(now & 0xF) or bool((now & ~was) >> 16)


def _bits(said: bytes) -> int:
    value = said.decode(errors="replace").strip().partition("=")[2]
    try:
        return int(value, 16)
    except ValueError:
        return 0  # no Raspberry Pi


def _without_times(outcome: Outcome) -> Outcome:
    detail = "; ".join(filter(None, [outcome.detail, "the board slowed itself down: not timed"]))
    return msgspec.structs.replace(outcome, detail=detail, latency_us=None, samples_us=[], loads=[])


def _purpose(code: int) -> str:
    # 255 is ssh's own failure, anything else the command's.
    return "cannot be reached: " if code == 255 else f"a command ended with code {code}: "


def _end(file: IO[bytes]) -> str:
    file.seek(0)
    return " ".join(file.read(MAX_SAID_BYTES).decode(errors="replace").split())[-500:]
