"""All downloads of a device: who may ask for how much, and what arrives for whom.

Rules:

1. One window of unanswered blocks is shared by all. Primaries come first: while one of them is
   being fetched, no challenger asks.
2. The byte budget is shared likewise, and counts every block that came for a download, wanted or
   not, once.
3. Waiting, for the budget or for a primary, is no stall; the reason is told.
"""

from collections.abc import Iterator

from msgspec import Struct

from edgefleet_agent.downloading.allowance import Allowance
from edgefleet_agent.downloading.fetching import WINDOW, Fetch
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.messages import Block, BlockRequest

_WAITS_FOR_PRIMARIES = "waits until no serving model is being fetched"


class Arrival(Struct, frozen=True):
    """What a block meant for one lane.

    Attributes:
        complaint: why it was dropped; empty if it was taken.
        error: what ends the attempt.
    """

    key: str
    complaint: str = ""
    error: RefusedError | MalformedError | OSError | None = None


class Downloads:
    """The downloads under way, by lane. Used by the engine's thread."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._fetches: dict[str, Fetch] = {}
        self._challengers: set[str] = set()
        self.connected = False

    def get(self, key: str) -> Fetch | None:
        """Return the download of a lane."""
        return self._fetches.get(key)

    def add(self, key: str, fetch: Fetch, *, challenger: bool) -> None:
        """Take in a download."""
        self._fetches[key] = fetch
        if challenger:
            self._challengers.add(key)

    def drop(self, key: str) -> None:
        """Let go of the download of a lane, if there is one."""
        fetch = self._fetches.pop(key, None)
        self._challengers.discard(key)
        if fetch:
            fetch.close()

    def close(self) -> None:
        """Let go of everything, and write down what the budget has left."""
        for key in list(self._fetches):
            self.drop(key)
        self._allowance.close()

    def reconnected(self, now: float) -> None:
        """Ask again for what the old connection had been asked for."""
        self.connected = True
        self._allowance.reconnected()
        for fetch in self._fetches.values():
            fetch.reconnected(now)

    def requests(self, now: float) -> Iterator[BlockRequest]:
        """Yield what to ask the hub for now."""
        if not self.connected:
            return
        asking = [fetch for key, fetch in self._fetches.items() if not self._must_wait(key)]
        left = self._allowance.left() if asking else None
        window = max(WINDOW // max(len(asking), 1), 1)
        for fetch in asking:
            others = sum(other.asked_bytes for other in asking if other is not fetch)
            request = fetch.request(now, window, None if left is None else max(left - others, 0))
            if request:
                yield request

    def next_at(self) -> float | None:
        """Return when `requests` may have something new to say, monotonic seconds."""
        if not self.connected:
            return None
        times = (f.next_at() for key, f in self._fetches.items() if not self._must_wait(key))
        return min((at for at in times if at is not None), default=None)

    def receive(self, block: Block, now: float) -> list[Arrival]:
        """Give a block to every download that misses it; return what came of it."""
        arrivals = []
        came = False
        for key, fetch in list(self._fetches.items()):
            before = fetch.fetched_bytes
            try:
                complaint = fetch.receive(block, now)
            except (RefusedError, MalformedError, OSError) as error:
                arrivals.append(Arrival(key, error=error))
                came = True
                continue
            if fetch.fetched_bytes != before:
                came = True
                arrivals.append(Arrival(key, complaint or ""))
        if came:
            self._allowance.take(len(block.payload))
        return arrivals

    def waits(self, key: str) -> str:
        """Say what a download waits for, empty if for nothing but its blocks."""
        fetch = self._fetches.get(key)
        if fetch is None or not self.connected:
            return ""
        if self._must_wait(key):
            return _WAITS_FOR_PRIMARIES
        return self._allowance.reason() if fetch.waiting else ""

    @property
    def wanted_blobs(self) -> set[str]:
        """Digests of the blobs that are being fetched now."""
        return {
            fetch.digest
            for key, fetch in self._fetches.items()
            if fetch.digest and not fetch.waiting and not self._must_wait(key)
        }

    def for_blob(self, digest: str) -> list[tuple[str, Fetch]]:
        """Return the downloads that miss a blob now."""
        return [(key, fetch) for key, fetch in self._fetches.items() if fetch.digest == digest]

    def _must_wait(self, key: str) -> bool:
        return key in self._challengers and any(
            other not in self._challengers and not fetch.waiting
            for other, fetch in self._fetches.items()
        )
