"""How the board is: what `psutil` can tell, None where this board cannot tell it."""

import time
from pathlib import Path

import psutil

from edgefleet_protocol.messages import Health


class HealthMeter:
    """Reads the figures for one agent. CPU use is since the reading before."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._process = psutil.Process()
        psutil.cpu_percent(interval=None)  # the first reading is meaningless

    def read(self) -> Health:
        """Return the health of the board now."""
        return Health(
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_bytes=self._process.memory_info().rss,
            temperature_c=_hottest(),
            disk_free_bytes=psutil.disk_usage(str(self._store)).free,
            uptime_s=max(time.time() - psutil.boot_time(), 0.0),
        )


def total_memory_bytes() -> int:
    """Return the memory of the machine."""
    return int(psutil.virtual_memory().total)


def _hottest() -> float | None:
    # Missing on systems without sensors, and in some containers.
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    values = [sensor.current for group in read().values() for sensor in group if sensor.current]
    return float(max(values)) if values else None
