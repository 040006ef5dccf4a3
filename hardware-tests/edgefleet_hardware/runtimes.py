"""Runtimes and processors by name: what a model is run in, and on what. Values only."""

import platform
from typing import Literal, get_args

from msgspec import Struct

from edgefleet_hardware.errors import BadUseError, TargetUnavailableError

RuntimeName = Literal["onnxruntime", "ai-edge-litert", "tflite-runtime"]
Format = Literal["onnx", "tflite"]
FORMATS: dict[RuntimeName, Format] = {
    "onnxruntime": "onnx",
    "ai-edge-litert": "tflite",
    "tflite-runtime": "tflite",
}
# The newest releases that were tried; they tell what a model without golden vectors should answer.
NEWEST = {"onnx": "onnxruntime==1.31.1", "tflite": "ai-edge-litert==2.3.0"}


class Runtime(Struct, frozen=True, order=True):
    """One release of one runtime, by the name of its distribution (`onnxruntime==1.18.1`)."""

    name: RuntimeName
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def format(self) -> Format:
        """What kind of file it loads."""
        return FORMATS[self.name]

    @classmethod
    def parse(cls, text: str) -> "Runtime":
        """Read `NAME==VERSION`.

        Raises:
            BadUseError: another form, or a runtime that is not known.
        """
        name, equals, version = text.partition("==")
        known = get_args(RuntimeName)
        if name not in known or not equals or not version[:1].isdigit():
            raise BadUseError(
                f"runtime {text!r}: expected NAME==VERSION, NAME one of {', '.join(known)}"
            )
        return cls(name, version)  # type: ignore[arg-type]  # it is one of the known names


class Processor(Struct, frozen=True):
    """A processor that models are run on.

    Attributes:
        name: `x86-64` or `arm64` for a machine's own, else qemu's name of the core.
        board: profile of a board that has it, for the static check.
        part: "CPU part" as the kernel prints it for this core (ARM, Main ID Register).
        features: as the kernel prints them. Runtimes choose their code by these and by the
            auxiliary vector, which qemu derives from the core's name.
        wheels: architecture in the names of wheels.
    """

    name: str
    board: str
    part: str = ""
    features: str = ""
    wheels: str = "aarch64"

    @property
    def is_emulated(self) -> bool:
        """Whether qemu computes; times then say nothing."""
        return bool(self.part)


_A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_A76 = f"{_A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PROCESSORS = {
    processor.name: processor
    for processor in (
        Processor("x86-64", "generic-x86_64", wheels="x86_64"),
        Processor("arm64", "generic-arm64"),
        Processor("cortex-a53", "rpi-zero2w", "0xd03", _A53),
        Processor("cortex-a72", "rpi4", "0xd08", _A53),
        Processor("cortex-a76", "rpi5", "0xd0b", _A76),
    )
}


def own() -> Processor:
    """Return this machine's own processor.

    Raises:
        TargetUnavailableError: there are no profiles for machines of its kind.
    """
    machine = platform.machine()
    for each in PROCESSORS.values():
        if not each.is_emulated and each.wheels == machine:
            return each
    raise TargetUnavailableError(f"this machine is {machine}; models are run on x86_64 and aarch64")


def processor(name: str) -> Processor:
    """Return a processor by its name.

    Raises:
        BadUseError: there is none of that name.
    """
    try:
        return PROCESSORS[name]
    except KeyError:
        known = ", ".join(PROCESSORS)
        raise BadUseError(f"processor {name!r}: expected one of {known}") from None
