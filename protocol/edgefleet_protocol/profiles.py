"""What a device is, and which variants of a model it can take. Decisions only.

Board figures are from the makers' product pages; memory is the smallest model sold.
"""

from msgspec import Struct

from edgefleet_protocol.manifest import Needs

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
        Board("rpi3", "Raspberry Pi 3", "aarch64", 1024 * _MIB),
        Board("rpi4", "Raspberry Pi 4", "aarch64", 1024 * _MIB),
        Board("rpi5", "Raspberry Pi 5", "aarch64", 1024 * _MIB),
        Board("jetson-nano", "Jetson Nano", "aarch64", 2048 * _MIB),
        Board("jetson-orin-nano", "Jetson Orin Nano", "aarch64", 4096 * _MIB),
        Board("generic-arm64", "64-bit ARM Linux", "aarch64", 512 * _MIB),
        Board("generic-x86_64", "64-bit x86 Linux", "x86_64", 512 * _MIB),
    )
}


class DeviceProfile(Struct, frozen=True):
    """What one device says of itself.

    Attributes:
        runtimes: family → version, as installed (`onnxruntime` → `1.31.1`).
        memory_bytes: of the machine.
    """

    board: str
    runtimes: dict[str, str]
    memory_bytes: int


# A model may take this share of a device's memory; the rest is the application's.
MODEL_MEMORY_SHARE = 0.25


def misfits(needs: Needs, device: DeviceProfile) -> list[str]:
    """Return every reason why a variant cannot run on a device; empty if it can.

    Args:
        needs: of the variant.
        device: as last reported. An unreadable version is a misfit.
    """
    reasons = []
    version = device.runtimes.get(needs.runtime)
    if version is None:
        held = ", ".join(sorted(device.runtimes)) or "none"
        reasons.append(f"needs runtime {needs.runtime}; the device has {held}")
    else:
        lowest, held_version = _release(needs.runtime_min), _release(version)
        if lowest is None or held_version is None or held_version < lowest:
            reasons.append(
                f"needs {needs.runtime} >= {needs.runtime_min}; the device has {version}"
            )
    if needs.boards and device.board not in needs.boards:
        reasons.append(f"made for {', '.join(needs.boards)}; the device is {device.board}")
    room = int(device.memory_bytes * MODEL_MEMORY_SHARE)
    if needs.memory_bytes > room:
        reasons.append(f"needs {needs.memory_bytes} bytes of memory; the device grants {room}")
    return reasons


def _release(version: str) -> tuple[int, ...] | None:
    """Read the numeric part of a version; None where there is none (never "new enough")."""
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts) or None
