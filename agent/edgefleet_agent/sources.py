"""Rows from a file, replayed for ever: for demonstrations, and for boards without an application.

The file is looked at once a second. When it is replaced, the new rows are taken; if they cannot be
read, the error is logged once and the old rows go on (or the source waits, if there are none).
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_agent import tables
from edgefleet_agent.config import Source
from edgefleet_agent.errors import AgentError, NotServingError
from edgefleet_agent.inference.serving import Cell, Model
from edgefleet_agent.tables import Table
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.rows import Rows, row_count

log = logging.getLogger(__name__)

LOOK_S = 1.0
# A fault of the rows or the model would repeat with each row; one line in this time says it.
_COMPLAIN_S = 30.0

_Stamp = tuple[int, int, int]
_Row = NDArray[np.float64] | dict[str, Cell]


class _Replay(Struct, frozen=True):
    """The rows of one file, bound to the columns of one release."""

    manifest: str
    table: Table
    rows: list[_Row]


class ReplaySource:
    """Feeds a file's rows to a model, and their labels back."""

    def __init__(self, source: Source, model: Model) -> None:
        self._source = source
        self._path = Path(source.path)
        self._model = model
        self._stop = threading.Event()
        self._stamp: _Stamp | None = None
        self._table: Table | None = None
        self._complained_at: dict[str, float] = {}

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()

    def run(self) -> None:
        """Replay until `stop`."""
        replay: _Replay | None = None
        place = 0
        interval_s = 1.0 / self._source.rows_per_s
        due = look = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_S
                fresh = self._look(replay)
                if fresh is not replay:
                    # Another release goes on with the same rows where the last one was.
                    place = 0 if replay is None or fresh.table is not replay.table else place  # type: ignore[union-attr]  # a fresh one is never None
                    replay = fresh
            if replay is None:
                self._stop.wait(LOOK_S)
                continue
            self._feed(replay, place)
            place = (place + 1) % len(replay.rows)
            # Behind by more than a second (a suspended board): go on from now, do not catch up.
            due = max(due + interval_s, now - 1.0)
            if due > now:
                self._stop.wait(due - now)

    def _look(self, replay: _Replay | None) -> _Replay | None:
        """Return rows for the file as it is and the release that serves; the old if unchanged."""
        slot = self._model.slot
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                self._stamp = stamp  # a file that cannot be read is not read again until replaced
                self._table = tables.read(self._path, self._source.label_column)
                log.info("replaying %s", self._path)
        except (AgentError, OSError) as error:
            self._complain(str(error))
        if slot is None or self._table is None:
            return replay
        if replay and replay.table is self._table and replay.manifest == slot.manifest:
            return replay
        try:
            rows = tables.rows_for(self._table, self._model.signature)
        except (NotServingError, AgentError) as error:
            self._complain(str(error))
            return replay
        return _Replay(slot.manifest, self._table, list(_single_rows(rows)))

    def _feed(self, replay: _Replay, place: int) -> None:
        try:
            answer = self._model.predict(replay.rows[place])
        except (AgentError, ProtocolError) as error:
            self._complain(str(error))
            return
        if replay.table.labels:
            self._model.feedback(answer.id, replay.table.labels[place])

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained_at.get(text, -_COMPLAIN_S) >= _COMPLAIN_S:
            if len(self._complained_at) > 100:
                self._complained_at.clear()
            self._complained_at[text] = now
            log.error("source %s: %s", self._path, text)


def _single_rows(rows: Rows) -> Iterator[_Row]:
    if isinstance(rows, Mapping):
        columns = {name: np.asarray(cells, object).tolist() for name, cells in rows.items()}
        for index in range(row_count(rows)):
            yield {name: cells[index] for name, cells in columns.items()}
    else:
        yield from np.asarray(rows, np.float64)
