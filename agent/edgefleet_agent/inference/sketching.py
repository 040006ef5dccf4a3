"""Counting what a model sees: a ring of rows, flushed 256 at a time into one window's sketch.

Rules:

1. The path of one row is a copy of its bytes; everything else happens once in 512 rows (fewer where
   rows are wide), for all features together.
2. The counts are those of `protocol.sketch.count_rows`, bit for bit.
3. A window closes at `window_rows` rows (inferences that failed count towards that too) and is
   handed over as it is; packing and PSI are done by the thread that reports.
4. Flushed rows go into a ring that is longer than a flush, so that a label that comes late still
   finds its row. A label for an older row is not counted.
"""

import random
import secrets
import threading
from collections.abc import Callable

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edgefleet_agent.inference.samples import Chosen, SampleKeeper
from edgefleet_protocol import drift, sketch
from edgefleet_protocol.messages import Health, Slot, Window
from edgefleet_protocol.sketch import (
    COLUMNS,
    INFINITE,
    MAX_BINS,
    MISSING,
    OVER,
    UNDER,
    Feature,
    ReferenceProfile,
)
from edgefleet_protocol.trust import SamplePolicy

FLUSH_ROWS = 512
LATENCY_BINS = 32
# Enough for labels that come a while after the prediction, where rows are small.
MAX_RECENT_ROWS = 4096
_MIN_FLUSH_ROWS = 16
# Moments take larger numbers for this one: their squares would overflow, and a hub refuses a window
# whose moments are not finite. Counts take them as they are.
_LARGEST = 1e100
# Prediction ids are a random number and a count, so an id of an earlier run finds no other row.
_COUNT_BITS = 40


# Column of the limits that finds the rows that are not NaN; before it, those below infinity.
_NOT_NAN = COLUMNS - 1
# Moments of flushes are merged so many at a time: one merge costs as much as a flush.
_MAX_PARTS = 64
# `sketch.moments_of` of one flush: its columns.
_Part = tuple[NDArray[np.float64], ...]
# The row's bytes, the index of its class, the confidence, and the latency in µs.
_Seen = tuple[bytes, int, float, float]


class Totals(Struct):
    """Everything counted in one window.

    Attributes:
        below: `(n_features, 68)`, the rows below each limit of `_limits`; `counts` is made of it.
        parts: moments of the latest flushes, not merged into `moments` yet.
    """

    start: float
    below: NDArray[np.int64]
    moments: NDArray[np.float64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.int64]
    latency_us: NDArray[np.int64]
    rows: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    parts: list[_Part] = field(default_factory=list)

    def merge_parts(self) -> None:
        """Merge the moments of the latest flushes into `moments` (Chan et al. 1983, many at once).

        With group sizes n_i, means m_i and sums of squared deviations S_i, the whole has the mean
        m = Σ n_i m_i / Σ n_i and the sum Σ S_i + Σ n_i (m_i - m)².
        """
        if not self.parts:
            return
        count, mean, m2, low, high = (np.stack(column) for column in zip(*self.parts, strict=True))
        self.parts.clear()
        n = count.sum(axis=0)
        middle = (count * mean).sum(axis=0) / np.maximum(n, 1)
        spread = m2.sum(axis=0) + (count * (mean - middle) ** 2).sum(axis=0)
        found = np.stack([n, middle, spread, low.min(axis=0), high.max(axis=0)], axis=1)
        self.moments = sketch.merge_moments(self.moments, found)


class ClosedWindow(Struct, frozen=True):
    """A window that is over, not packed yet."""

    slot: Slot
    reference: str
    profile: ReferenceProfile
    totals: Totals
    counts: NDArray[np.int64]
    end: float
    chosen: Chosen | None = None

    def pack(self, health: Health) -> Window:
        """Return the window as a message body, with PSI against the profile."""
        totals, features = self.totals, self.profile.features
        base = sketch.unpack_counts(self.profile.counts, features)
        return Window(
            model=self.slot.model,
            version=self.slot.version,
            release=self.slot.release,
            manifest=self.slot.manifest,
            reference=self.reference,
            start=totals.start,
            end=self.end,
            rows=totals.rows,
            counts=sketch.pack_counts(self.counts, features),
            moments=sketch.pack_moments(totals.moments),
            predictions=totals.predictions.tolist(),
            confidences=totals.confidences.tolist() if self.profile.classes else [],
            psi=[round(value, 5) for value in drift.psi(self.counts, base).tolist()],
            latency_us=np.trim_zeros(totals.latency_us, "b").tolist(),
            errors=totals.errors,
            labelled=totals.labelled,
            correct=totals.correct,
            health=health,
        )


class Recorder:
    """Counts the rows of one release of one model. Safe to call from several threads."""

    def __init__(
        self,
        slot: Slot,
        *,
        profile: ReferenceProfile,
        reference: str,
        classes: list[str],
        window_rows: int,
        recent_bytes: int,
        clock: Callable[[], float],
        on_window: Callable[[ClosedWindow], None],
        policy: SamplePolicy | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Make the ring.

        Args:
            slot: the release.
            profile: its reference profile.
            reference: digest of the profile.
            classes: labels in the order of the scores; empty if it is no classifier.
            window_rows: rows in a window.
            recent_bytes: memory for the ring.
            clock: Unix seconds.
            on_window: takes each closed window; called with the lock held, so it must only queue.
            policy: which samples to keep; None for none (no policy, or no consent).
            rng: for the samples.
        """
        self.slot = slot
        self._profile = profile
        self._reference = reference
        self._labels = classes
        position = {label: index for index, label in enumerate(profile.classes)}
        # Classes that the profile does not know are counted in one place past its end.
        self._positions = np.array([position.get(c, len(position)) for c in classes], np.int64)
        self._window_rows = window_rows
        self._clock = clock
        self._on_window = on_window
        self._rng = rng or random.Random()  # noqa: S311  # a sample, no secret
        self._keeper = self._new_keeper(policy)
        width = len(profile.features)
        fitting = recent_bytes // max(8 * width, 1)
        self._flush_rows = min(max(fitting // 2, _MIN_FLUSH_ROWS), FLUSH_ROWS)
        self._length = min(max(fitting, 2 * self._flush_rows), MAX_RECENT_ROWS)
        self._counter = _Counter(profile, self._flush_rows)
        self._ring = np.zeros((self._length, width))
        self._tops = np.zeros(self._length, np.int64)
        self._confidences = np.zeros(self._length)
        self._labelled = bytearray(self._length)
        self._pending: list[_Seen] = []
        self._first = secrets.randbits(62 - _COUNT_BITS) << _COUNT_BITS
        self._next = self._first
        self._flushed = self._first
        self._lock = threading.Lock()
        self._totals = self._fresh()
        self._turn_at = 0
        self._plan_turn()

    def add(self, row: NDArray[np.float64], top: int, confidence: float, latency_us: float) -> int:
        """Count one inference.

        Args:
            row: `(n_features,)` float64, categories as vocabulary indices; copied.
            top: index of the best class; for a model without classes, -1.
            confidence: its probability; for a model without classes, the value.
            latency_us: of the inference.

        Returns:
            An id for `label`.
        """
        seen = (row.tobytes(), top, confidence, latency_us)
        with self._lock:
            self._pending.append(seen)
            number = self._next
            self._next = after = number + 1
            if after == self._turn_at:
                self._turn()
        return number

    def fail(self, rows: int = 1) -> None:
        """Count inferences that raised or gave scores that are not finite."""
        with self._lock:
            self._totals.errors += rows
            self._turn()

    def label(self, prediction: int, label: str) -> bool:
        """Take the true label of an earlier row; return whether that row was still known."""
        with self._lock:
            # Places that the next flush may write over are not known any more.
            oldest = max(self._flushed + self._flush_rows - self._length, self._first)
            if not oldest <= prediction < self._next:
                return False
            place = (prediction - self._first) % self._length
            if self._labelled[place]:
                return True
            self._labelled[place] = 1
            row, top, confidence = self._recall(prediction, place)
            predicted = self._labels[top] if top >= 0 else repr(confidence)
            if top >= 0:
                self._totals.labelled += 1
                self._totals.correct += predicted == label
            if self._keeper:
                self._keeper.offer(row, label, predicted, confidence)
            return True

    def reorder(self, window_rows: int, policy: SamplePolicy | None) -> None:
        """Take other orders for the same release; a window that is too long now closes."""
        with self._lock:
            self._window_rows = window_rows
            self._keeper = self._new_keeper(policy)
            self._turn()

    def finish(self) -> None:
        """Close the window that is open, if it counted anything."""
        with self._lock:
            self._flush()
            if self._totals.rows or self._totals.errors:
                self._close()
            self._plan_turn()

    def _recall(self, number: int, place: int) -> tuple[NDArray[np.float64], int, float]:
        if number < self._flushed:
            return self._ring[place], int(self._tops[place]), float(self._confidences[place])
        data, top, confidence, _ = self._pending[number - self._flushed]
        return np.frombuffer(data), top, confidence

    def _new_keeper(self, policy: SamplePolicy | None) -> SampleKeeper | None:
        return SampleKeeper(policy, self._rng) if policy else None

    def _turn(self) -> None:
        """Flush; close the window if it is full; see when to come back."""
        self._flush()
        if self._totals.rows + self._totals.errors >= self._window_rows:
            self._close()
        self._plan_turn()

    def _plan_turn(self) -> None:
        left = self._window_rows - self._totals.rows - self._totals.errors
        self._turn_at = self._next + min(self._flush_rows, left)

    def _flush(self) -> None:
        count = len(self._pending)
        if count == 0:
            return
        data, *columns = zip(*self._pending, strict=True)
        self._pending.clear()
        rows = np.frombuffer(b"".join(data)).reshape(count, -1)
        tops = np.fromiter(columns[0], np.int64, count)
        confidences = np.fromiter(columns[1], np.float64, count)
        totals = self._totals
        self._counter.count(rows, totals)
        self._count_answers(tops, confidences, np.fromiter(columns[2], np.float64, count))
        totals.rows += count
        for place, part in self._places(count):
            self._ring[place], self._tops[place] = rows[part], tops[part]
            self._confidences[place] = confidences[part]
        self._flushed += count
        for place, _ in self._places(self._flush_rows):
            self._labelled[place] = bytes(place.stop - place.start)

    def _places(self, count: int) -> list[tuple[slice, slice]]:
        """Return where in the ring the next rows go, and which of them go there."""
        start = (self._flushed - self._first) % self._length
        whole = min(count, self._length - start)
        places = [(slice(start, start + whole), slice(whole))]
        if whole < count:
            places.append((slice(0, count - whole), slice(whole, count)))
        return places

    def _count_answers(
        self,
        tops: NDArray[np.int64],
        confidences: NDArray[np.float64],
        latencies: NDArray[np.float64],
    ) -> None:
        totals = self._totals
        bins = np.clip(np.frexp(latencies)[1] - 1, 0, LATENCY_BINS - 1)
        totals.latency_us += np.bincount(bins, minlength=LATENCY_BINS)
        if self._labels:
            known = len(self._profile.classes)
            classes = np.bincount(self._positions[tops], minlength=known + 1)
            totals.predictions += classes[:known]
            confident = sketch.confidence_bin(confidences)
            totals.confidences += np.bincount(confident, minlength=sketch.CONFIDENCE_BINS)

    def _close(self) -> None:
        totals = self._totals
        totals.merge_parts()
        chosen = self._keeper.take() if self._keeper else None
        counts = self._counter.counts(totals)
        self._on_window(
            ClosedWindow(
                self.slot, self._reference, self._profile, totals, counts, self._clock(), chosen
            )
        )
        self._totals = self._fresh()

    def _fresh(self) -> Totals:
        return Totals(
            start=self._clock(),
            below=np.zeros((len(self._profile.features), COLUMNS), np.int64),
            moments=self._counter.nothing.copy(),
            predictions=np.zeros(len(self._profile.classes) if self._labels else 0, np.int64),
            confidences=np.zeros(sketch.CONFIDENCE_BINS, np.int64),
            latency_us=np.zeros(LATENCY_BINS, np.int64),
        )


class _Counter:
    """`sketch.count_rows` and `sketch.moments_of` for some hundred rows, for all features at once.

    Each column is sorted and the limits of the bins are looked up in it: 68 look-ups instead of one
    for each row. What lies between two limits follows from the sums, once a window.
    """

    def __init__(self, profile: ReferenceProfile, max_rows: int) -> None:
        features = profile.features
        # Taken once: the C library gives larger arrays back at once, and fresh pages cost more than
        # the counting itself.
        self._values = np.empty((len(features), max_rows))
        self._centred = np.empty((len(features), max_rows))
        self.nothing = sketch.moments_of(np.zeros((0, len(features))))
        self._limits = [_limits(feature) for feature in features]
        self._categorical = np.array([f.kind == "categorical" for f in features], bool)

    def count(self, rows: NDArray[np.float64], totals: Totals) -> None:
        """Add rows `(n, n_features)` to the counts and moments of a window."""
        values = self._values[:, : len(rows)]
        values[:] = rows.T
        values.sort(axis=1)  # -inf first, then numbers, +inf, NaN last
        below = np.array(
            [row.searchsorted(limits) for row, limits in zip(values, self._limits, strict=True)]
        ).reshape(-1, COLUMNS)
        totals.below += below
        low, high = values[:, 0], values[:, -1]
        if (low >= -_LARGEST).all() and (high <= _LARGEST).all():
            centred = self._centred[:, : len(rows)]
            totals.parts.append(_moments(values, low.copy(), high.copy(), centred))
        else:
            totals.parts.append(_moments_with_gaps(values, below))
        if len(totals.parts) == _MAX_PARTS:
            totals.merge_parts()

    def counts(self, totals: Totals) -> sketch.Counts:
        """Return the counts of a window, `(n_features, 68)`."""
        below = totals.below
        counts = np.empty_like(below)
        counts[:, UNDER : OVER + 1] = np.diff(below[:, :_NOT_NAN], axis=1)
        counts[:, MISSING] = totals.rows - below[:, _NOT_NAN]
        counts[:, INFINITE] = below[:, 0] + below[:, _NOT_NAN] - below[:, _NOT_NAN - 1]
        # What is below the first category is unknown, like what is above the last.
        unknown = np.where(self._categorical, counts[:, UNDER], 0)
        counts[:, UNDER] -= unknown
        counts[:, OVER] += unknown
        return counts


def _limits(feature: Feature) -> NDArray[np.float64]:
    """Return 68 limits: the smallest number, the 65 of the bins, infinity, and NaN.

    Bin i holds what is below limit i + 1 and not below limit i; limits beyond a feature's bins
    repeat the last. `searchsorted` finds at NaN, which sorts last, the rows that are not NaN.
    """
    smallest = np.nextafter(-np.inf, 0.0)
    if feature.kind == "categorical":
        limits = np.arange(feature.bins + 1, dtype=np.float64)
    elif feature.edges:
        limits = np.array(feature.edges)
        limits[-1] = np.nextafter(limits[-1], np.inf)  # the last edge belongs to the last bin
    else:
        limits = np.array([smallest])  # every number is above: over range
    padded = np.pad(limits, (0, MAX_BINS + 1 - len(limits)), mode="edge")
    return np.concatenate([[smallest], padded, [np.inf, np.nan]])


def _moments(
    values: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    centred: NDArray[np.float64],
) -> _Part:
    """Return the moments of finite values.

    Args:
        values: `(n_features, n)`.
        low: the smallest of each feature, `(n_features,)`.
        high: the largest.
        centred: room for the deviations, shaped as `values`.
    """
    count = values.shape[1]
    mean = values.sum(axis=1) / count
    np.subtract(values, mean[:, None], out=centred)
    m2 = np.einsum("ij,ij->i", centred, centred)
    return np.full(len(mean), float(count)), mean, m2, low, high


def _moments_with_gaps(values: NDArray[np.float64], below: NDArray[np.int64]) -> _Part:
    """Return the moments of the finite ones among sorted values `(n_features, n)`."""
    first, end = below[:, 0, None], below[:, _NOT_NAN - 1, None]
    index = np.arange(values.shape[1])
    finite = (index >= first) & (index < end)
    held = np.where(finite, np.clip(values, -_LARGEST, _LARGEST), 0.0)
    count = (end - first)[:, 0].astype(np.float64)
    mean = held.sum(axis=1) / np.maximum(count, 1)
    centred = np.where(finite, held - mean[:, None], 0.0)
    low = np.where(finite, held, np.inf).min(axis=1)
    high = np.where(finite, held, -np.inf).max(axis=1)
    return count, mean, np.einsum("ij,ij->i", centred, centred), low, high
