"""Targets: where cases are run. A contract; `local.py` and `ssh.py` keep it."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from edgefleet_hardware.cases import Case
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.runtimes import RuntimeName


class About(Struct, frozen=True, order=True):
    """What a target is, in the words of reports.

    Attributes:
        runtime: distribution name of the runtime.
        version: of the runtime.
        processor: `x86-64`, qemu's name of a core, or what a board says.
        board: profile name for the static check; "" where none fits.
        is_emulated: whether an emulator computed; times then say nothing.
    """

    runtime: RuntimeName
    version: str
    processor: str
    board: str = ""
    is_emulated: bool = False

    def __str__(self) -> str:
        return f"{self.runtime}=={self.version} on {self.processor}"


class Target(Protocol):
    """Somewhere a runtime is installed."""

    @property
    def about(self) -> About:
        """What this target is."""

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Run every case in a process of its own and judge it; outcomes in the order of the cases.

        Raises:
            TargetUnavailableError: nothing could be tried.
        """
