"""Planning which blocks are sent, to whom, and when. Decisions only: no socket, clock or store.

Rules:

1. What a device asks for is sent to it at once, while few others want the same file.
2. A file that three devices asked for within the last second is in demand: requests for it wait up
   to 50 ms for each other. If three devices then wait, every block that any of them asked for is
   broadcast once; else each device gets its own.
3. At most 16 blocks are planned for a device at a time, whatever it asks for; it asks again for
   the rest. So a device that asks for everything delays nobody else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

# Devices ask for at most so many blocks before they have got them (their credit).
MAX_BLOCKS_AT_ONCE = 16
BROADCAST_FROM_DEVICES = 3
COALESCE_S = 0.05
DEMAND_S = 1.0


@dataclass(frozen=True)
class Send:
    """Blocks to send.

    Attributes:
        device: to it alone; None for a broadcast.
        indices: ascending.
    """

    digest: str
    device: str | None
    indices: tuple[int, ...]


@dataclass
class _Waiting:
    """Requests for one file that have not been served.

    Attributes:
        since: when the first of them came.
        wanted: device → blocks.
    """

    since: float
    wanted: dict[str, set[int]] = field(default_factory=dict)


class BlockPlanner:
    """The requests that wait, and how much each file is in demand."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._asked: dict[str, dict[str, float]] = {}
        self._planned: dict[str, int] = {}

    def ask(self, device: str, digest: str, indices: Iterable[int], now: float) -> None:
        """Note that `device` wants blocks of a file.

        Args:
            device: who asks.
            digest: of the file, known to be one that may be served.
            indices: ascending; what is over the device's share is left out.
            now: monotonic time.
        """
        room = MAX_BLOCKS_AT_ONCE - self._planned.get(device, 0)
        waiting = self._waiting.get(digest)
        held = waiting.wanted.get(device, set()) if waiting else set()
        new = set(islice((index for index in indices if index not in held), max(room, 0)))
        self._asked.setdefault(digest, {})[device] = now
        if not new:
            return
        if waiting is None:
            waiting = self._waiting[digest] = _Waiting(now)
        waiting.wanted.setdefault(device, set()).update(new)
        self._planned[device] = self._planned.get(device, 0) + len(new)

    def due(self, now: float) -> list[Send]:
        """Take out what is to be sent now, first come first served.

        Args:
            now: monotonic time.
        """
        self._forget(now)
        ready = [digest for digest in self._waiting if self._due_at(digest) <= now]
        sends: list[Send] = []
        for digest in sorted(ready, key=lambda name: self._waiting[name].since):
            waiting = self._waiting.pop(digest)
            for device, blocks in waiting.wanted.items():
                self._planned[device] -= len(blocks)
                if not self._planned[device]:
                    del self._planned[device]
            sends += _sends(digest, waiting.wanted)
        return sends

    def next_due(self) -> float | None:
        """Return the monotonic time at which `due` has something; None while nothing waits."""
        return min(map(self._due_at, self._waiting), default=None)

    def _due_at(self, digest: str) -> float:
        in_demand = len(self._asked.get(digest, ())) >= BROADCAST_FROM_DEVICES
        return self._waiting[digest].since + (COALESCE_S if in_demand else 0.0)

    def _forget(self, now: float) -> None:
        for digest, devices in list(self._asked.items()):
            recent = {device: at for device, at in devices.items() if at > now - DEMAND_S}
            if recent:
                self._asked[digest] = recent
            else:
                del self._asked[digest]


def _sends(digest: str, wanted: dict[str, set[int]]) -> list[Send]:
    if len(wanted) >= BROADCAST_FROM_DEVICES:
        return [Send(digest, None, tuple(sorted(set().union(*wanted.values()))))]
    return [Send(digest, device, tuple(sorted(blocks))) for device, blocks in wanted.items()]
