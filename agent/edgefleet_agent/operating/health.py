"""How the board is, as the kernel tells it; None where this board cannot tell it.

Read straight from `/proc` and `/sys`: a sensor library costs 1 MiB and 11 ms for the same numbers.
Rules:

1. Whatever is missing, vanishes while it is read or holds nonsense gives None for its own figure
   and leaves the others alone.
2. `throttled` is sticky: it tells whether the board slowed itself down at any time that the kernel
   or this process knows of, because a window lasts longer than a dip of the supply.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from edgefleet_agent import files
from edgefleet_protocol.messages import Health

CONTACT = "contact.json"
# The time of the last contact is only for people; each write wears the card.
CONTACT_EVERY_S = 600.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Real sensors of boards lie within this; a missing probe reads as 0 or far below.
_SANE_C = (-40.0, 150.0)
# Firmware of a Raspberry Pi, hexadecimal: bits 0-3 now, 16-19 since boot: under-voltage, frequency
# capped, throttled, soft temperature limit (raspberrypi.com, "get_throttled").
_PI_FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"
_PI_BITS = 0xF000F


class Contact(Struct, frozen=True):
    """When the hub was heard last.

    Attributes:
        at: by the device's clock, Unix seconds.
        offset_s: the device's clock minus the hub's then.
    """

    at: float
    offset_s: float


class HealthMeter:
    """Reads the figures for one agent. CPU use is since the reading before."""

    def __init__(
        self,
        store: Path,
        clock: Callable[[], float],
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        """Take the first reading.

        Args:
            store: of the agent; the free space is that of its file system.
            clock: Unix seconds.
            proc: where `/proc` is mounted.
            sys: where `/sys` is mounted.
        """
        self._store = store
        self._clock = clock
        self._proc, self._sys = proc, sys
        self._cpu = _cpu_ticks(proc)
        self._throttled: bool | None = None
        self._offset_s: float | None = None
        self._written_at: float | None = None

    def hub_time(self, at: float) -> None:
        """Hear what time it is at the hub, Unix seconds, in a message that has just come."""
        now = self._clock()
        self._offset_s = now - at
        if self._written_at is not None and 0 <= now - self._written_at < CONTACT_EVERY_S:
            return
        self._written_at = now
        try:
            files.replace(self._store / CONTACT, msgspec.json.encode(Contact(now, now - at)))
        except OSError:
            # A full or read-only store is found, and told, by whoever must write to it.
            return

    def read(self, reports_dropped: int = 0) -> Health:
        """Return the health of the board now.

        Args:
            reports_dropped: by the outbox since the agent started.
        """
        before, self._cpu = self._cpu, _cpu_ticks(self._proc)
        throttled = throttled_now(self._sys)
        if throttled is not None:
            self._throttled = throttled or bool(self._throttled)
        memory = _memory(self._proc)
        return Health(
            cpu_percent=_cpu_percent(before, self._cpu),
            memory_bytes=resident_bytes(proc=self._proc),
            temperature_c=hottest_c(self._sys),
            disk_free_bytes=_disk_free_bytes(self._store),
            uptime_s=_uptime_s(self._proc),
            memory_free_bytes=memory.get("MemAvailable"),
            throttled=self._throttled,
            clock_offset_s=self._offset_s,
            reports_dropped=reports_dropped,
        )


def last_contact(store: Path) -> Contact | None:
    """Return when the hub was heard last (to within `CONTACT_EVERY_S`), None if never."""
    try:
        return msgspec.json.decode((store / CONTACT).read_bytes(), type=Contact)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def total_memory_bytes(proc: Path = Path("/proc")) -> int:
    """Return the memory of the machine; 0 where the kernel does not tell, which fits no model."""
    return _memory(proc).get("MemTotal", 0)


def free_memory_bytes(proc: Path = Path("/proc")) -> int | None:
    """Return what the machine could still give to processes."""
    return _memory(proc).get("MemAvailable")


def resident_bytes(pid: int | None = None, *, proc: Path = Path("/proc")) -> int | None:
    """Return the resident memory of a process (None: of this one), None if there is none."""
    fields = _read(proc / str(pid or "self") / "statm").split()
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 and fields[1].isdigit() else None


def hottest_c(sys: Path = Path("/sys")) -> float | None:
    """Return the temperature of the hottest sensor of the board, in degrees Celsius."""
    places = [
        *(sys / "class/thermal").glob("thermal_zone*/temp"),
        *(sys / "class/hwmon").glob("hwmon*/temp*_input"),
    ]
    degrees = [value / 1000.0 for value in map(_number, places) if value]
    return max((value for value in degrees if _SANE_C[0] < value < _SANE_C[1]), default=None)


def throttled_now(sys: Path = Path("/sys")) -> bool | None:
    """Tell whether the board slows itself down, or has since boot where its kernel counts that.

    Asked in this order: the firmware of a Raspberry Pi; its supply monitor on kernels without that
    file; the counters of x86; the kernel's cooling by clock frequency (Jetson and other boards).
    """
    firmware = _read(sys / _PI_FIRMWARE).strip()
    if firmware:
        try:
            return bool(int(firmware, 16) & _PI_BITS)
        except ValueError:
            return None
    answers = list(_signs_of_throttling(sys))
    return any(answers) if answers else None


def _signs_of_throttling(sys: Path) -> Iterator[bool]:
    for monitor in (sys / "class/hwmon").glob("hwmon*"):
        if _read(monitor / "name").strip() == "rpi_volt":
            alarm = _number(monitor / "in0_lcrit_alarm")
            if alarm is not None:
                yield alarm > 0
    for counter in (sys / "devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count"):
        count = _number(counter)
        if count is not None:
            yield count > 0
    for device in (sys / "class/thermal").glob("cooling_device*"):
        # A fan that turns is no throttling; a capped clock is.
        kind = _read(device / "type").strip()
        state = _number(device / "cur_state")
        if state is not None and ("cpufreq" in kind or kind == "Processor"):
            yield state > 0


def _cpu_ticks(proc: Path) -> tuple[int, int] | None:
    """Return ticks of all cores since boot: busy, and all. Steal and guest time count as in top."""
    fields = _read(proc / "stat").partition("\n")[0].split()
    if len(fields) < 6 or fields[0] != "cpu" or not all(field.isdigit() for field in fields[1:]):
        return None
    user, nice, system, idle, waiting, *rest = map(int, fields[1:])
    total = user + nice + system + idle + waiting + sum(rest[:3])
    return total - idle - waiting, total


def _cpu_percent(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round(100.0 * max(after[0] - before[0], 0) / (after[1] - before[1]), 1)


def _memory(proc: Path) -> dict[str, int]:
    """Return the lines of meminfo in bytes."""
    found = {}
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def _uptime_s(proc: Path) -> float | None:
    words = _read(proc / "uptime").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None


def _disk_free_bytes(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _number(path: Path) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: Path) -> str:
    """Return the content of a file of the kernel, empty if it cannot be read (rule 1)."""
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return ""
