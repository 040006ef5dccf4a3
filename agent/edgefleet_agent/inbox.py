"""The engine's queue: news from the agent's own threads, and messages from the network.

What the agent itself has to say is never dropped and is little. What the network sends is bounded
in bytes; over the bound it is dropped, because everything the hub says is said again when asked.
"""

import queue
import threading
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_NETWORK_BYTES = 32 * 1024 * 1024


class Inbox(Generic[T]):
    """A queue with one reader.

    Attributes:
        dropped: network messages dropped since start.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[T, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._network_bytes = 0
        self.dropped = 0

    def put(self, item: T, network_bytes: int = 0) -> None:
        """Add an item.

        Args:
            item: the news.
            network_bytes: length of a network message, 0 for the agent's own.
        """
        with self._lock:
            if network_bytes and self._network_bytes + network_bytes > MAX_NETWORK_BYTES:
                self.dropped += 1
                return
            self._network_bytes += network_bytes
        self._queue.put((item, network_bytes))

    def __bool__(self) -> bool:
        """Tell whether an item waits."""
        return not self._queue.empty()

    def get(self, timeout_s: float) -> T | None:
        """Return the next item, None if none comes in time."""
        try:
            item, network_bytes = self._queue.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if network_bytes:
            with self._lock:
                self._network_bytes -= network_bytes
        return item
