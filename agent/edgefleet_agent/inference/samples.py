"""Labelled rows that leave the device, where the signed policy asks and the owner consents.

Rules:

1. Without consent in the configuration nothing is even kept. Only rows with a known label count,
   and only rows of named columns: of models that take tensors no sample leaves.
2. A window gives at most what the policy says. Strategies: `reservoir` is a uniform sample (Vitter
   1985, algorithm R); `uncertain` keeps the rows with the lowest top-class probability.
3. In any 24 hours a model gives at most `per_day` rows, over restarts too: what is given is counted
   in `samples.json` before it is queued. Where that file is damaged the day counts as used up.
4. `redact` sees every row before it is packed. What it gives back is sent; a row for which it gives
   None, raises, or gives something that does not fit is never sent.
"""

import heapq
import importlib
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_agent import files
from edgefleet_agent.errors import ConfigError, StoreError
from edgefleet_agent.inference.prediction import Cell
from edgefleet_protocol.messages import Samples, Slot
from edgefleet_protocol.sketch import Feature
from edgefleet_protocol.trust import SamplePolicy

log = logging.getLogger(__name__)

Row = Mapping[str, Cell]
Redact = Callable[[Row], Row | None]

QUOTA_NAME = "samples.json"
DAY_S = 86_400
# Given rows are counted per ten minutes, so that a day is a short list; the last ten minutes of a
# day count whole, so never too little is counted.
_BUCKET_S = 600
# Windows whose rows are being redacted; more than that means that the function hangs.
MAX_WINDOWS_AT_ONCE = 4
# Of rows in one message, so that it stays far below the limits of the wire.
_MESSAGE_BYTES = 256 * 1024
_MAX_TEXT = 200
# Model, number of the ten minutes since 1970, rows; and the name that stands for every model.
_Count = tuple[str, int, int]
_EVERY = ""
_USED_UP = 10**9


class Sample(Struct, frozen=True):
    """One chosen row, `(n_columns,)`, categories as vocabulary indices."""

    row: NDArray[np.float32]
    label: str
    predicted: str


class Chosen(Struct, frozen=True):
    """The samples of one window, as they are on the device."""

    policy: SamplePolicy
    samples: list[Sample]


class SampleKeeper:
    """The samples of the open window of one model."""

    def __init__(self, policy: SamplePolicy, rng: random.Random) -> None:
        self.policy = policy
        self._rng = rng
        self._seen = 0
        self._held: list[tuple[float, int, Sample]] = []

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
            if len(self._held) < limit:
                heapq.heappush(self._held, item)
            elif item > self._held[0]:
                heapq.heapreplace(self._held, item)
            return
        if len(self._held) < limit:
            self._held.append(self._item(0.0, row, label, predicted))
            return
        place = self._rng.randrange(self._seen)
        if place < limit:
            self._held[place] = self._item(0.0, row, label, predicted)

    def take(self) -> Chosen | None:
        """Return the window's samples if there are any, and begin the next window.

        They are in an order in which the first ones are the ones to keep, should there be no room
        for all: the least confident, or shuffled.
        """
        held, self._held, self._seen = self._held, [], 0
        if self.policy.strategy == "uncertain":
            held.sort(reverse=True)
        else:
            self._rng.shuffle(held)
        return Chosen(self.policy, [sample for *_, sample in held]) if held else None

    def _item(
        self, rank: float, row: NDArray[np.float64], label: str, predicted: str
    ) -> tuple[float, int, Sample]:
        sample = Sample(row.astype(np.float32), label[:_MAX_TEXT], predicted[:_MAX_TEXT])
        # The count breaks ties of rank, so that samples are never compared.
        return rank, self._seen, sample


class DailyQuota:
    """How many rows of each model were given in the last 24 hours. Safe for several threads."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        """Use the counter of a store.

        Args:
            folder: of the store.
            clock: Unix seconds.
        """
        self._path = folder / QUOTA_NAME
        self._clock = clock
        self._lock = threading.Lock()

    def take(self, model: str, wanted: int, per_day: int) -> int:
        """Count rows as given; return how many of the wanted ones may be.

        Raises:
            StoreError: if the counter cannot be written; nothing may be given then.
        """
        with self._lock:
            bucket = int(self._clock() // _BUCKET_S)
            counts = self._recent(bucket)
            given = sum(rows for name, _, rows in counts if name in (model, _EVERY))
            allowed = max(min(wanted, per_day - given), 0)
            if allowed:
                self._write([*counts, (model, bucket, allowed)])
            return allowed

    def _recent(self, bucket: int) -> list[_Count]:
        counts, complaint = files.read_kept(
            self._path, lambda data: msgspec.json.decode(data, type=list[_Count])
        )
        if complaint:
            # Rule 3. The new file says so for a day, and then all is well again.
            log.error("%s; no samples are sent for a day", complaint)
            counts = [(_EVERY, bucket, _USED_UP)]
            self._write(counts)
        # A clock that was ahead left counts in the future: they last for a day from now.
        merged: dict[tuple[str, int], int] = {}
        for name, at, rows in counts or []:
            if bucket - at <= DAY_S // _BUCKET_S:
                key = name, min(at, bucket)
                merged[key] = merged.get(key, 0) + rows
        return [(name, at, rows) for (name, at), rows in merged.items()]

    def _write(self, counts: list[_Count]) -> None:
        try:
            files.write_kept(self._path, msgspec.json.encode(counts))
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error


class SampleDesk:
    """Where chosen rows become messages: redaction, quota, packing. Safe for several threads.

    Attributes:
        dropped: rows that were not sent because redaction failed or hung, since start.
    """

    def __init__(
        self,
        quota: DailyQuota,
        redact: Redact | None,
        *,
        start: Callable[[Callable[[], None]], None],
        deliver: Callable[[Samples], None],
    ) -> None:
        """Open the desk.

        Args:
            quota: of this device.
            redact: the owner's function.
            start: runs work beside, for the owner's function takes as long as it does.
            deliver: queues a message.
        """
        self._quota = quota
        self._redact = redact
        self._start = start
        self._deliver = deliver
        self._changed = threading.Condition()
        self._busy = 0
        self.dropped = 0

    def take(self, slot: Slot, features: Sequence[Feature], chosen: Chosen) -> None:
        """Take the chosen rows of one window; those that may leave are delivered."""
        with self._changed:
            if self._busy >= MAX_WINDOWS_AT_ONCE:
                self.dropped += len(chosen.samples)
                log.error("redaction of samples does not end; %d rows dropped", self.dropped)
                return
            self._busy += 1
        self._start(lambda: self._work(slot, features, chosen))

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is being worked on; return whether it came to that."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy == 0, timeout_s)

    def _work(self, slot: Slot, features: Sequence[Feature], chosen: Chosen) -> None:
        try:
            passed = [s for s in (self._redacted(features, s) for s in chosen.samples) if s]
            if chosen.policy.per_day and passed:
                allowed = self._quota.take(slot.model, len(passed), chosen.policy.per_day)
                passed = passed[:allowed]
            for message in _messages(slot, features, chosen.policy, passed):
                self._deliver(message)
        except StoreError as error:
            log.error("samples are not sent: %s", error)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _redacted(self, features: Sequence[Feature], sample: Sample) -> Sample | None:
        if self._redact is None:
            return sample
        given = _cells(features, sample.row)
        try:
            kept = self._redact(dict(given))
            row = None if kept is None else _row(features, sample.row, given, kept)
        except Exception as error:
            # Whatever the owner's function raises: a row that was not redacted is not sent.
            self._drop(f"redaction raised {error!r}")
            return None
        return None if row is None else Sample(row, sample.label, sample.predicted)

    def _drop(self, why: str) -> None:
        with self._changed:
            self.dropped += 1
            first = self.dropped == 1
        log.log(logging.ERROR if first else logging.DEBUG, "a sample was dropped: %s", why)


def load_redaction(name: str | None) -> Redact | None:
    """Import the function that a configuration names `module:function`.

    Raises:
        ConfigError: if there is no such function.
    """
    if name is None:
        return None
    module, separator, function = name.partition(":")
    if not (module and separator and function):
        raise ConfigError(f"samples.redact is {name!r}; expected `module:function`")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        # A module may raise anything while it is imported.
        raise ConfigError(f"samples.redact: {name!r} cannot be imported: {error!r}") from error
    if not callable(found):
        raise ConfigError(f"samples.redact: {name!r} is {type(found).__name__}, not a function")
    return cast(Redact, found)


def _cells(features: Sequence[Feature], row: NDArray[np.float32]) -> dict[str, Cell]:
    """Return column → value: categories as text, None for what is missing or not known."""
    cells: dict[str, Cell] = {}
    for feature, value in zip(features, row.tolist(), strict=True):
        if feature.kind == "categorical":
            index = int(value) if np.isfinite(value) else -1
            known = 0 <= index < len(feature.vocabulary)
            cells[feature.name] = feature.vocabulary[index] if known else None
        else:
            cells[feature.name] = None if np.isnan(value) else value
    return cells


def _row(
    features: Sequence[Feature], row: NDArray[np.float32], given: Row, kept: Row
) -> NDArray[np.float32]:
    """Return the row with what redaction has changed; columns that it left out are missing.

    Raises:
        ValueError: if there are other columns than before, or text in a column of numbers.
    """
    unknown = set(kept) - set(given)
    if unknown:
        raise ValueError(f"unknown columns {sorted(map(str, unknown))[:8]}")
    numbers = []
    for feature, before in zip(features, row.tolist(), strict=True):
        value = kept.get(feature.name)
        if feature.name in kept and value == given[feature.name]:
            numbers.append(before)
        elif value is None:
            numbers.append(float("nan"))
        elif feature.kind == "categorical":
            known = {text: float(index) for index, text in enumerate(feature.vocabulary)}
            numbers.append(known.get(str(value), -1.0))
        else:
            numbers.append(float(value))
    return np.array(numbers, np.float32)


def _messages(
    slot: Slot, features: Sequence[Feature], policy: SamplePolicy, samples: list[Sample]
) -> list[Samples]:
    columns = [feature.name for feature in features]
    size = max(_MESSAGE_BYTES // max(4 * len(columns), 1), 1)
    return [
        Samples(
            slot.model,
            slot.version,
            slot.release,
            policy.purpose,
            columns,
            b"".join(sample.row.astype("<f4").tobytes() for sample in piece),
            [sample.label for sample in piece],
            [sample.predicted for sample in piece],
        )
        for piece in (samples[start : start + size] for start in range(0, len(samples), size))
    ]
