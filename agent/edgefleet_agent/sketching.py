"""Counting what a model sees: a ring of rows, flushed 256 at a time into one window's sketch.

Rules:

1. The path of one row is a copy into the ring; everything else happens once in 256 rows, for all
   features together.
2. The counts are those of `protocol.sketch.count_rows`, bit for bit.
3. A window closes at `window_rows` rows (inferences that failed count towards that too) and is
   handed over as it is; packing and PSI are done by the thread that reports.
4. The ring is longer than a flush: the latest rows stay in it, so that a label that comes late
   still finds its row. A label for an older row is not counted.
"""

import random
import secrets
import threading
from array import array
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_agent.samples import SampleKeeper
from edgefleet_protocol import drift, sketch
from edgefleet_protocol.messages import Health, Samples, Slot, Window
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

FLUSH_ROWS = 256
LATENCY_BINS = 32
# Enough for labels that come a while after the prediction, where rows are small.
MAX_RECENT_ROWS = 16 * FLUSH_ROWS
# Moments take larger numbers for this one: their squares would overflow, and a hub refuses a window
# whose moments are not finite. Counts take them as they are.
_LARGEST = 1e100
# Prediction ids are a random number and a count, so an id of an earlier run finds no other row.
_COUNT_BITS = 40


class Totals(Struct):
    """Everything counted in one window."""

    start: float
    counts: NDArray[np.int64]
    moments: NDArray[np.float64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.int64]
    latency_us: NDArray[np.int64]
    rows: int = 0
    errors: int = 0
    labelled: int = 0
    correct: int = 0


class ClosedWindow(Struct, frozen=True):
    """A window that is over, not packed yet."""

    slot: Slot
    reference: str
    profile: ReferenceProfile
    totals: Totals
    end: float
    samples: list[Samples]

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
            counts=sketch.pack_counts(totals.counts, features),
            moments=sketch.pack_moments(totals.moments),
            predictions=totals.predictions.tolist(),
            confidences=totals.confidences.tolist() if self.profile.classes else [],
            psi=[round(value, 5) for value in drift.psi(totals.counts, base).tolist()],
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
        self._counter = _Counter(profile)
        self._rng = rng or random.Random()  # noqa: S311  # a sample, no secret
        self._keeper = self._new_keeper(policy)
        width = len(profile.features)
        fitting = recent_bytes // max(8 * width, 1) // FLUSH_ROWS * FLUSH_ROWS
        self._length = min(max(fitting, 2 * FLUSH_ROWS), MAX_RECENT_ROWS)
        self._ring = np.zeros((self._length, width))
        # Setting one element of these costs a fifth of setting one of a NumPy array, and NumPy
        # reads them in place.
        self._tops = array("q", bytes(8 * self._length))
        self._confidences = array("d", bytes(8 * self._length))
        self._latencies = array("d", bytes(8 * self._length))
        self._labelled = bytearray(self._length)
        self._next = 0
        self._flushed = 0
        self._answered = 0
        self._first_id = secrets.randbits(62 - _COUNT_BITS) << _COUNT_BITS
        self._lock = threading.Lock()
        self._totals = self._fresh()
        self._turn_at = 0
        self._plan_turn()

    def add(self, row: NDArray[np.float64], top: int, confidence: float, latency_us: float) -> int:
        """Count one inference.

        Args:
            row: `(n_features,)`, categories as vocabulary indices.
            top: index of the best class; for a model without classes, -1.
            confidence: its probability; for a model without classes, the value.
            latency_us: of the inference.

        Returns:
            An id for `label`.
        """
        with self._lock:
            number = self._next
            place = number % self._length
            self._ring[place] = row
            self._tops[place] = top
            self._confidences[place] = confidence
            self._latencies[place] = latency_us
            self._next = after = number + 1
            if after == self._turn_at:
                self._turn()
            return self._first_id + number

    def fail(self, rows: int = 1) -> None:
        """Count inferences that raised or gave scores that are not finite."""
        with self._lock:
            self._totals.errors += rows
            self._turn()

    def label(self, prediction: int, label: str) -> bool:
        """Take the true label of an earlier row; return whether that row was still known."""
        with self._lock:
            number = prediction - self._first_id
            # The segment that is being written over is not known any more.
            oldest = self._next // FLUSH_ROWS * FLUSH_ROWS + FLUSH_ROWS - self._length
            if not max(oldest, 0) <= number < self._next:
                return False
            place = number % self._length
            if self._labelled[place]:
                return True
            self._labelled[place] = 1
            top, confidence = self._tops[place], self._confidences[place]
            predicted = self._labels[top] if top >= 0 else repr(confidence)
            if top >= 0:
                self._totals.labelled += 1
                self._totals.correct += predicted == label
            if self._keeper:
                self._keeper.offer(self._ring[place], label, predicted, confidence)
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

    def _new_keeper(self, policy: SamplePolicy | None) -> SampleKeeper | None:
        columns = [feature.name for feature in self._profile.features]
        return SampleKeeper(policy, columns, self._rng) if policy else None

    def _turn(self) -> None:
        """Flush; close the window if it is full; see when to come back."""
        self._flush()
        if self._totals.rows + self._totals.errors >= self._window_rows:
            self._close()
        self._plan_turn()

    def _plan_turn(self) -> None:
        # At each multiple of 256 rows at the latest, so that a flush never wraps around.
        left = self._window_rows - self._totals.rows - self._totals.errors
        self._turn_at = min(self._next // FLUSH_ROWS * FLUSH_ROWS + FLUSH_ROWS, self._next + left)

    def _flush(self) -> None:
        start, count = self._flushed % self._length, self._next - self._flushed
        if count == 0:
            return
        part = slice(start, start + count)
        totals = self._totals
        self._counter.count(self._ring[part], totals)
        totals.rows += count
        self._flushed = self._next
        if self._next % self._length == 0:
            self._count_answers()
        if self._next % FLUSH_ROWS == 0:
            ahead = self._next % self._length
            self._labelled[ahead : ahead + FLUSH_ROWS] = bytes(FLUSH_ROWS)

    def _count_answers(self) -> None:
        """Count latencies, classes and confidences: once a window or once around the ring."""
        start, count = self._answered % self._length, self._next - self._answered
        if count == 0:
            return
        part = slice(start, start + count)
        totals = self._totals
        exponents = np.frexp(np.frombuffer(self._latencies)[part])[1]
        bins = np.clip(exponents - 1, 0, LATENCY_BINS - 1)
        totals.latency_us += np.bincount(bins, minlength=LATENCY_BINS)
        if self._labels:
            classes = self._positions[np.frombuffer(self._tops, np.int64)[part]]
            known = len(self._profile.classes)
            totals.predictions += np.bincount(classes, minlength=known + 1)[:known]
            confident = sketch.confidence_bin(np.frombuffer(self._confidences)[part])
            totals.confidences += np.bincount(confident, minlength=sketch.CONFIDENCE_BINS)
        self._answered = self._next

    def _close(self) -> None:
        self._count_answers()
        end = self._clock()
        samples = self._keeper.take(self.slot) if self._keeper else []
        self._on_window(
            ClosedWindow(self.slot, self._reference, self._profile, self._totals, end, samples)
        )
        self._totals = self._fresh()

    def _fresh(self) -> Totals:
        features = len(self._profile.features)
        return Totals(
            start=self._clock(),
            counts=np.zeros((features, COLUMNS), np.int64),
            moments=sketch.moments_of(np.zeros((0, features))),
            predictions=np.zeros(len(self._profile.classes) if self._labels else 0, np.int64),
            confidences=np.zeros(sketch.CONFIDENCE_BINS, np.int64),
            latency_us=np.zeros(LATENCY_BINS, np.int64),
        )


class _Counter:
    """`sketch.count_rows` and `sketch.moments_of` for some hundred rows, for all features at once.

    Each column is sorted and the edges are looked up in it: 65 look-ups instead of one for each
    row, and the smallest and largest values come with it.
    """

    def __init__(self, profile: ReferenceProfile) -> None:
        features = profile.features
        # Bin i holds what is below limit i + 1 and not below limit i; the rest repeats the last.
        limits = np.array([_limits(feature) for feature in features])
        self._limits = limits.reshape(-1, MAX_BINS + 1)
        self._categorical = np.array([f.kind == "categorical" for f in features], bool)
        self._has_categorical = bool(self._categorical.any())
        self._below = np.zeros((len(features), MAX_BINS + 1), np.int64)

    def count(self, rows: NDArray[np.float64], totals: Totals) -> None:
        """Add rows `(n, n_features)` to the counts and moments of a window."""
        values = np.sort(rows.T, axis=1)  # -inf first, then numbers, +inf, NaN last
        below = self._below
        for row, limits, found in zip(values, self._limits, below, strict=True):
            found[:] = row.searchsorted(limits)
        ends = values[:, [0, -1]]
        under, over = below[:, 0], len(rows) - below[:, -1]
        counts = totals.counts
        if (np.abs(ends) <= _LARGEST).all():
            _add_moments(totals.moments, values, ends)
        else:
            missing = np.isnan(values).sum(axis=1)
            high, low = np.isposinf(values).sum(axis=1), np.isneginf(values).sum(axis=1)
            under, over = under - low, over - missing - high
            counts[:, MISSING] += missing
            counts[:, INFINITE] += low + high
            bounded = np.where(np.isinf(rows), rows, np.clip(rows, -_LARGEST, _LARGEST))
            totals.moments = sketch.merge_moments(totals.moments, sketch.moments_of(bounded))
        if self._has_categorical:
            # What is below the first category is unknown, like what is above the last.
            over = over + np.where(self._categorical, under, 0)
            under = np.where(self._categorical, 0, under)
        counts[:, UNDER] += under
        counts[:, 1 : MAX_BINS + 1] += below[:, 1:] - below[:, :-1]
        counts[:, OVER] += over


def _limits(feature: Feature) -> NDArray[np.float64]:
    """Return the 65 limits of a feature's bins, of which each but the first is exclusive."""
    if feature.kind == "categorical":
        limits = np.arange(feature.bins + 1, dtype=np.float64)
    elif feature.edges:
        limits = np.array(feature.edges)
        limits[-1] = np.nextafter(limits[-1], np.inf)  # the last edge belongs to the last bin
    else:
        limits = np.array([np.nextafter(-np.inf, 0.0)])  # every number is above: over range
    return np.pad(limits, (0, MAX_BINS + 1 - len(limits)), mode="edge")


def _add_moments(
    moments: NDArray[np.float64], values: NDArray[np.float64], ends: NDArray[np.float64]
) -> None:
    """Merge the moments of finite values, in place (Chan et al. 1983).

    Args:
        moments: `(n_features, 5)`, as `sketch.moments_of` gives them.
        values: `(n_features, n)`.
        ends: `(n_features, 2)`, the smallest and the largest of each.
    """
    count = values.shape[1]
    mean = np.add.reduce(values, axis=1) / count
    centred = values - mean[:, None]
    m2 = np.einsum("ij,ij->i", centred, centred)
    before = moments[:, 0]
    share = count / (before + count)
    delta = mean - moments[:, 1]
    moments[:, 1] += delta * share
    moments[:, 2] += m2 + delta * delta * before * share
    moments[:, 0] += count
    np.minimum(moments[:, 3], ends[:, 0], out=moments[:, 3])
    np.maximum(moments[:, 4], ends[:, 1], out=moments[:, 4])
