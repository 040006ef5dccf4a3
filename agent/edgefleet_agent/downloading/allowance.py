"""The byte budget of downloads: how much may still come over this class of link, in any 24 hours.

    allowance.json   bytes of each quarter of an hour, by class of link

Rules:

1. A byte counts from its arrival until 24 hours after the end of its quarter of an hour, so no 24
   hours ever see more than the budget.
2. What is on disk runs ahead of what has arrived, by at most `ahead_bytes`: a device that is killed
   may lose that much of its allowance, and never gains any. `close` writes the exact figure.
3. Entries keep their age when the clock is set while the agent runs. Entries that a restart finds
   in the future count as made now. So a board that wakes up in 1970 gains nothing by it.
4. Unknown is never "unmetered": until the system has answered, and while a present NetworkManager
   does not answer, the link is metered. A file that cannot be read is a budget spent just now.
5. A file that cannot be written is told about once; the count goes on in memory.
"""

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from edgefleet_agent import files
from edgefleet_agent.config import Network
from edgefleet_agent.errors import ConfigError
from edgefleet_protocol.blocks import BLOCK_BYTES

log = logging.getLogger(__name__)

LinkClass = Literal["metered", "unmetered"]
NAME = "allowance.json"
DAY_S = 86_400.0
QUARTER_S = 900.0
# How long an answer of the system about its link holds.
ASK_AGAIN_S = 300.0
# A clock that moved by more than this against the monotonic one was set.
CLOCK_SET_S = 60.0
_NETWORK_MANAGER = Path("/run/NetworkManager")
_QUESTION = [
    *("busctl", "--system", "--timeout=3", "get-property", "org.freedesktop.NetworkManager"),
    *("/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered"),
]
# NMMetered of NetworkManager's D-Bus interface: 0 unknown, 1 yes, 2 no, 3 guess yes, 4 guess no.
# It is 0 where NetworkManager runs and the way out is not one of its connections.
_ANSWERS: dict[str, LinkClass] = {
    "u 0": "unmetered",
    "u 1": "metered",
    "u 2": "unmetered",
    "u 3": "metered",
    "u 4": "unmetered",
}


class _Spent(Struct):
    """Bytes that arrived within a quarter of an hour that began at `start` (Unix seconds)."""

    start: float
    count_bytes: int


class _Kept(Struct):
    metered: list[_Spent] = msgspec.field(default_factory=list)
    unmetered: list[_Spent] = msgspec.field(default_factory=list)
    format: int = 1


def link_class(
    run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run,
    network_manager: Path = _NETWORK_MANAGER,
) -> LinkClass:
    """Ask the system for the class of its link; may take some seconds.

    Args:
        run: as `subprocess.run`.
        network_manager: folder that is there while NetworkManager runs.
    """
    if not network_manager.is_dir():
        return "unmetered"  # nobody on this machine knows better; the configuration may
    try:
        done = run(_QUESTION, capture_output=True, text=True, timeout=5.0, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = str(error)
    else:
        answer = done.stdout.strip() or done.stderr.strip()
    if answer not in _ANSWERS:
        log.warning(
            "NetworkManager does not say whether the link is metered (%s): taken as metered;"
            ' set [network] link = "unmetered" if it is not',
            answer[:200],
        )
    return _ANSWERS.get(answer, "metered")


class Allowance:
    """The budget of one device. Used by one thread.

    Args:
        folder: of the store.
        network: what the configuration says.
        link_class: asks the system; called beside the caller's thread.
        clock: Unix seconds.
        monotonic: seconds that never go back.
        start: runs a piece of work beside the caller's thread.

    Raises:
        ConfigError: if a budget is too small for a single block.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        link_class: Callable[[], LinkClass],
        clock: Callable[[], float],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._budgets: dict[LinkClass, int] = {
            "metered": network.metered_bytes_per_day,
            "unmetered": network.unmetered_bytes_per_day,
        }
        for name, budget in self._budgets.items():
            if 0 < budget < BLOCK_BYTES:
                raise ConfigError(
                    f"[network] {name}_bytes_per_day is {budget}; nothing could ever be fetched:"
                    f" at least one block of {BLOCK_BYTES} bytes, or 0 for no limit"
                )
        self._path = folder / NAME
        self._network = network
        self._ask = link_class
        self._clock = clock
        self._monotonic = monotonic
        self._start = start or _on_a_thread
        self._answer: LinkClass | None = None
        self._asking = threading.Lock()
        self._ask_at = monotonic()
        self._ahead = dict.fromkeys(self._budgets, 0)
        self._complained = False
        self._offset = clock() - monotonic()
        self._spent = self._load()

    @property
    def link_class(self) -> LinkClass:
        """The class of the link as far as it is known now (rule 4)."""
        if self._network.link != "auto":
            return self._network.link
        if self._monotonic() >= self._ask_at and self._asking.acquire(blocking=False):
            self._ask_at = self._monotonic() + ASK_AGAIN_S
            self._start(self._refresh)
        return self._answer or "metered"

    def reconnected(self) -> None:
        """Ask the system anew: this connection may go over another link."""
        self._answer, self._ask_at = None, self._monotonic()

    def take(self, count_bytes: int) -> None:
        """Count bytes that have arrived."""
        link = self.link_class
        if not self._budgets[link]:
            return
        now = self._now()
        spent = self._spent[link]
        start = now - now % QUARTER_S
        if not spent or spent[-1].start < start:
            spent.append(_Spent(start, 0))
        spent[-1].count_bytes += count_bytes
        self._ahead[link] -= count_bytes
        if self._ahead[link] < 0:
            self._ahead[link] = self.ahead_bytes(link)
            self._save()

    def left(self) -> int | None:
        """Return how many bytes may come now over this link, None for no limit."""
        link = self.link_class
        budget = self._budgets[link]
        if not budget:
            return None
        now = self._now()
        return max(budget - sum(s.count_bytes for s in self._counting(link, now)), 0)

    def waits_until(self) -> float | None:
        """Return the Unix time at which there is room for a block again, None if there is now."""
        link = self.link_class
        left = self.left()
        if left is None or left >= BLOCK_BYTES:
            return None
        for spent in self._counting(link, self._now()):
            left += spent.count_bytes
            if left >= BLOCK_BYTES:
                return spent.start + QUARTER_S + DAY_S
        return None  # not reached: the budget itself is at least a block

    def reason(self) -> str:
        """Say what is waited for, in the words of a state message; empty if there is room."""
        until = self.waits_until()
        if until is None:
            return ""
        return f"waits for its byte budget until {datetime.fromtimestamp(until, UTC):%H:%M} UTC"

    def ahead_bytes(self, link: LinkClass) -> int:
        """Return how far the file may run ahead of what has arrived (rule 2)."""
        return max(BLOCK_BYTES, min(1024 * 1024, self._budgets[link] // 16))

    def close(self) -> None:
        """Write the exact figure."""
        if any(self._spent.values()):
            self._ahead = dict.fromkeys(self._budgets, 0)
            self._save()

    def _refresh(self) -> None:
        try:
            self._answer = self._ask()
        finally:
            self._asking.release()

    def _now(self) -> float:
        """Return the time; move the entries along if the clock was set (rule 3)."""
        now = self._clock()
        offset = now - self._monotonic()
        if abs(offset - self._offset) > CLOCK_SET_S:
            moved = offset - self._offset
            for spent in (*self._spent["metered"], *self._spent["unmetered"]):
                spent.start += moved
        self._offset = offset
        return now

    def _counting(self, link: LinkClass, now: float) -> list[_Spent]:
        """Forget what is older than a day; return the rest, oldest first."""
        self._spent[link] = [s for s in self._spent[link] if now < s.start + QUARTER_S + DAY_S]
        return self._spent[link]

    def _load(self) -> dict[LinkClass, list[_Spent]]:
        now = self._clock()
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            kept = _Kept()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("%s cannot be read (%s): budgets count as spent", self._path, error)
            kept = _Kept(
                [_Spent(now, self._budgets["metered"])], [_Spent(now, self._budgets["unmetered"])]
            )
        for spent in (*kept.metered, *kept.unmetered):
            spent.start = min(spent.start, now)
        return {"metered": kept.metered, "unmetered": kept.unmetered}

    def _save(self) -> None:
        now = self._now()
        kept = {
            link: [_Spent(s.start, s.count_bytes) for s in self._counting(link, now)]
            for link in self._budgets
        }
        for link, spent in kept.items():
            if spent:
                spent[-1].count_bytes += max(self._ahead[link], 0)
        data = msgspec.json.encode(_Kept(kept["metered"], kept["unmetered"]))
        try:
            files.replace(self._path, data)
        except OSError as error:
            if not self._complained:
                log.error("%s cannot be written (%s); counting in memory", self._path, error)
            self._complained = True
        else:
            self._complained = False


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="link-class", daemon=True).start()
