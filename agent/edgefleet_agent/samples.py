"""Choosing labelled rows to send, where the signed policy asks for them and the owner consents.

Rules: without consent in the configuration nothing is even kept; only rows with a known label
count; a window gives at most what the policy says. Strategies: `reservoir` is a uniform sample
(Vitter 1985, algorithm R); `uncertain` keeps the rows with the lowest top-class probability.
"""

import heapq
import random

import numpy as np
from numpy.typing import NDArray

from edgefleet_protocol.messages import Samples, Slot
from edgefleet_protocol.trust import SamplePolicy

# Of rows in one message, so that it stays far below the limits of the wire.
_MESSAGE_BYTES = 256 * 1024
_MAX_TEXT = 200

_Row = tuple[float, int, NDArray[np.float32], str, str]


class SampleKeeper:
    """The samples of the open window of one model."""

    def __init__(self, policy: SamplePolicy, columns: list[str], rng: random.Random) -> None:
        self.policy = policy
        self._columns = columns
        self._rng = rng
        self._seen = 0
        self._rows: list[_Row] = []

    def offer(
        self, row: NDArray[np.float64], label: str, predicted: str, confidence: float
    ) -> None:
        """Consider one labelled row, `(n_columns,)`; it is copied if it is taken."""
        limit = self.policy.per_window
        if limit == 0:
            return
        self._seen += 1
        if self.policy.strategy == "uncertain":
            # A heap with the most confident row on top, the first to give way.
            item = self._item(-confidence, row, label, predicted)
            if len(self._rows) < limit:
                heapq.heappush(self._rows, item)
            elif item > self._rows[0]:
                heapq.heapreplace(self._rows, item)
            return
        if len(self._rows) < limit:
            self._rows.append(self._item(0.0, row, label, predicted))
            return
        place = self._rng.randrange(self._seen)
        if place < limit:
            self._rows[place] = self._item(0.0, row, label, predicted)

    def take(self, slot: Slot) -> list[Samples]:
        """Return the window's samples as messages, and begin the next window."""
        rows, self._rows, self._seen = self._rows, [], 0
        size = max(_MESSAGE_BYTES // max(4 * len(self._columns), 1), 1)
        return [
            Samples(
                slot.model,
                slot.version,
                slot.release,
                self.policy.purpose,
                self._columns,
                b"".join(row.astype("<f4").tobytes() for _, _, row, _, _ in piece),
                [label for *_, label, _ in piece],
                [predicted for *_, predicted in piece],
            )
            for piece in (rows[start : start + size] for start in range(0, len(rows), size))
        ]

    def _item(self, rank: float, row: NDArray[np.float64], label: str, predicted: str) -> _Row:
        # The count breaks ties of rank, so that arrays are never compared.
        return rank, self._seen, row.astype(np.float32), label[:_MAX_TEXT], predicted[:_MAX_TEXT]
