"""Targets on this machine: exact runtime releases, on its own processor or on emulated ARM cores.

One interpreter is started for all cases of a target, and one for each turn in which times are
taken; each case is a fork of it (`on_target.py`).
"""

import contextlib
import os
import platform
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefleet_hardware import jobs, packages, sysroot
from edgefleet_hardware.cases import Arrays, Case
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.runtimes import Processor, Runtime
from edgefleet_hardware.targets import About

# Start of the emulator, the interpreter and the runtime.
_START_S = 120.0
_SAID_CHARACTERS = 20_000


@dataclass(frozen=True)
class LocalTarget:
    """A runtime release on a processor that this machine has or emulates.

    Attributes:
        loads: fresh loads of each case that times are taken from; none under emulation.
    """

    runtime: Runtime
    processor: Processor
    loads: int = 0

    @property
    def about(self) -> About:
        """What this target is."""
        return About(
            self.runtime.name,
            self.runtime.version,
            self.processor.name,
            self.processor.board,
            self.processor.is_emulated,
        )

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Run every case and judge it; outcomes in the order of the cases.

        Raises:
            TargetUnavailableError: no such release, no emulator, or the runner died.
        """
        return [outcome for outcome, _ in self.answer(cases)]

    def answer(self, cases: Sequence[Case]) -> list[tuple[Outcome, Arrays]]:
        """Run every case; return its outcome and the arrays that it gave.

        Raises:
            TargetUnavailableError: no such release, no emulator, or the runner died.
        """
        if not cases:
            return []
        wheels = packages.folder(self.runtime, self.processor.wheels)
        start = self._interpreter()
        with tempfile.TemporaryDirectory(prefix="edgefleet-compat-") as name:
            folder = Path(name)
            loads = 0 if self.processor.is_emulated else self.loads
            longest_s = jobs.write(folder, cases, self.runtime.name, self.runtime.version, loads)
            said = _run([*start, "-S", "-B", jobs.SCRIPT, "."], folder, wheels, longest_s)
            _, outcomes = jobs.read(folder, cases, said)
            return [
                (outcome, jobs.outputs(folder, number)) for number, outcome in enumerate(outcomes)
            ]

    def _interpreter(self) -> list[str]:
        if self.processor.is_emulated:
            return sysroot.command(self.processor)
        if platform.machine() != self.processor.wheels:
            raise TargetUnavailableError(
                f"{self.processor.name}: this machine is {platform.machine()}, and no emulator of"
                f" {self.processor.wheels} is used on it"
            )
        return [str(packages.interpreter())]


def _run(command: list[str], folder: Path, wheels: Path, longest_s: float) -> str:
    """Run the runner in its folder; return what it printed."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "PYTHONPATH": str(wheels),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be killed with it
        )
        try:
            process.wait(longest_s + _START_S)
        except subprocess.TimeoutExpired as error:
            raise TargetUnavailableError(
                f"the runner did not end within {longest_s + _START_S:g} s"
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return log.read().decode(errors="replace")[-_SAID_CHARACTERS:]
