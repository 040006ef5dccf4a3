"""What a device is, and which variants of a model it can take. Decisions only.

Board figures are from the makers' product pages; memory is the smallest model sold.

A device reports each runtime under its own name: `onnxruntime`, `litert` (ai-edge-litert) and
`tflite-runtime`. The last two belong to one family, `litert`, but count their versions apart:
tflite-runtime 2.14 is older than LiteRT 1.0, so one is never compared with a version of the other.
"""

from collections.abc import Mapping

from msgspec import Struct

from edgefleet_protocol.manifest import Needs, Runtime

_MIB = 1024 * 1024


class Board(Struct, frozen=True):
    """A kind of board.

    Attributes:
        architecture: as `platform.machine()` names it.
        memory_bytes: of the smallest model sold.
    """

    name: str
    title: str
    architecture: str
    memory_bytes: int


BOARDS = {
    board.name: board
    for board in (
        Board("rpi-zero2w", "Raspberry Pi Zero 2 W", "aarch64", 512 * _MIB),
        Board("rpi3", "Raspberry Pi 3", "aarch64", 512 * _MIB),
        Board("rpi4", "Raspberry Pi 4", "aarch64", 1024 * _MIB),
        Board("rpi5", "Raspberry Pi 5", "aarch64", 1024 * _MIB),
        Board("jetson-nano", "Jetson Nano", "aarch64", 2048 * _MIB),
        Board("jetson-orin-nano", "Jetson Orin Nano", "aarch64", 4096 * _MIB),
        Board("generic-arm64", "64-bit ARM Linux", "aarch64", 512 * _MIB),
        Board("rpi-32bit", "Raspberry Pi with a 32-bit system", "armv7l", 512 * _MIB),
        Board("generic-x86_64", "64-bit x86 Linux", "x86_64", 512 * _MIB),
    )
}


class DeviceProfile(Struct, frozen=True):
    """What one device says of itself.

    Attributes:
        runtimes: name → version, as installed (`onnxruntime` → `1.31.1`).
        memory_bytes: of the machine.
    """

    board: str
    runtimes: dict[str, str]
    memory_bytes: int


# What serves models of the family `litert` where ai-edge-litert has no wheels.
TFLITE_RUNTIME = "tflite-runtime"
# Family → names under which devices report what serves its models, the preferred one first.
FAMILIES: dict[Runtime, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("litert", TFLITE_RUNTIME),
}

# A model may take this share of a device's memory; the rest is the application's.
MODEL_MEMORY_SHARE = 0.25


def misfits(needs: Needs, device: DeviceProfile) -> list[str]:
    """Return every reason why a variant cannot run on a device; empty if it can.

    Args:
        needs: of the variant.
        device: as last reported. An unreadable version is a misfit.
    """
    reasons = _runtime_misfits(needs, device.runtimes)
    if needs.boards and device.board not in needs.boards:
        reasons.append(f"made for {', '.join(needs.boards)}; the device is {device.board}")
    room = int(device.memory_bytes * MODEL_MEMORY_SHARE)
    if needs.memory_bytes > room:
        reasons.append(f"needs {needs.memory_bytes} bytes of memory; the device grants {room}")
    return reasons


def serves(family: Runtime, runtimes: Mapping[str, str]) -> bool:
    """Tell whether a device has a runtime of a family, of any version.

    Args:
        family: as manifests name it.
        runtimes: as the device reports them.
    """
    return any(name in runtimes for name in FAMILIES[family])


def _runtime_misfits(needs: Needs, runtimes: Mapping[str, str]) -> list[str]:
    """Return why no runtime of a device runs a variant; empty if one does."""
    accepted = {needs.runtime: needs.runtime_min, **needs.alternatives}
    too_old = []
    for name, lowest in accepted.items():
        version = runtimes.get(name)
        if version is None:
            continue
        required, held = _release(lowest), _release(version)
        if required is not None and held is not None and held >= required:
            return []
        too_old.append(f"needs {name} >= {lowest}; the device has {version}")
    if too_old:
        return too_old
    there = ", ".join(f"{name} {version}" for name, version in sorted(runtimes.items())) or "none"
    return [f"needs runtime {' or '.join(accepted)}; the device has {there}"]


def _release(version: str) -> tuple[int, ...] | None:
    """Read the numeric part of a version; None where there is none (never "new enough")."""
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts) or None
