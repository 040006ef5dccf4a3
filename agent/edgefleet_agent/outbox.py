"""Reports that wait until the hub has them: a SQLite table that survives everything but its disk.

Rules:

1. A report is on disk before it is sent, and stays until the *hub* acknowledges it by number.
2. Numbers only ever grow; with the random name of the store they name a report for ever, so the
   hub can count each once however often it arrives.
3. Over the size limit, windows go first, oldest first; then samples, signed statements and
   refusals, oldest first. Results are never dropped.
4. What is not acknowledged is sent again after 5 s, then ever more slowly up to a minute; each
   time somewhat earlier than that, at random.
5. A disk that cannot be written loses nothing at once. A result is refused (`StoreError`): the
   attempt stays unreported, and brings it again. Anything else waits in memory, at most
   `MAX_UNWRITTEN_BYTES` of it, the oldest dropped first, and is written when that works again.
6. A damaged database is set aside, and a new one begun under a new name.
"""

import logging
import random
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edgefleet_agent.errors import StoreError
from edgefleet_protocol.messages import Attested, Refusal, Report, Result, Samples, Window

log = logging.getLogger(__name__)

NAME = "outbox.sqlite"
FIRST_RESEND_S = 5.0
LAST_RESEND_S = 60.0
# Sent and not acknowledged at one time; a window report is 1 to 3 kB.
MAX_UNACKNOWLEDGED = 32
MAX_UNWRITTEN_BYTES = 1024 * 1024
# Between two tries to write what waits in memory.
WRITE_AGAIN_S = 30.0
# The log of changes is taken into the database at this size, and kept no longer than that.
_WAL_BYTES = 1024 * 1024
# SQLite would keep 2 MiB of pages; reports are read once, in order.
_CACHE_KIB = 128

Body = Window | Samples | Result | Refusal | Attested
_KINDS: dict[type[Body], str] = {
    Window: "window",
    Samples: "samples",
    Result: "result",
    Refusal: "refusal",
    Attested: "attested",
}
_DROP_ORDER = ("window", "samples", "attested", "refusal")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS store (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS report (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    at REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS report_kind ON report (kind, number);
"""


class Outbox:
    """The outbox of one device. Used by one thread.

    Attributes:
        store: random name of this store.
        dropped: reports dropped by rules 3 and 5 since start.
        damaged: what was wrong with a database that was set aside; empty if none was.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        max_bytes: int,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Open the outbox, or begin a new one if it is damaged.

        Where the disk lets it do neither, it is opened when that works again (rule 5).

        Args:
            folder: of the store.
            device: that reports.
            max_bytes: of reports; see rule 3.
            jitter: a random number from 0 to 1.

        """
        self._device = device
        self._max_bytes = max_bytes
        self._jitter = jitter
        self._path = folder / NAME
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Body)
        self._due: dict[int, tuple[float, float]] = {}
        self._unwritten: deque[tuple[str, float, bytes]] = deque()
        self._write_at = 0.0
        self._database: sqlite3.Connection | None = None
        self._bytes = 0
        self.store = ""
        self.dropped = 0
        self.damaged = ""
        try:
            try:
                self._open()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                self._begin_anew(error)
        except (sqlite3.Error, OSError) as error:
            log.error("outbox %s: %s; it is opened when it can be", self._path, error)

    def put(self, body: Body, now: float) -> None:
        """Store one report.

        Args:
            body: of the report.
            now: Unix seconds.

        Raises:
            StoreError: if a result cannot be written; give it again later (rule 5).
        """
        entry = (_KINDS[type(body)], now, self._encoder.encode(body))
        try:
            self._write([*self._unwritten, entry])
            self._unwritten.clear()
        except StoreError as error:
            if isinstance(body, Result):
                raise
            if not self._unwritten:
                log.error("%s; waiting in memory until it can be", error)
            self._unwritten.append(entry)
            while sum(len(data) for _, _, data in self._unwritten) > MAX_UNWRITTEN_BYTES:
                self._unwritten.popleft()
                self.dropped += 1

    def due(self, now: float) -> list[Report]:
        """Return what to send now, oldest first, and expect its acknowledgement.

        Args:
            now: monotonic seconds.

        Raises:
            StoreError: if the database cannot be read.
        """
        if self._database is None and now < self._write_at:
            return []
        if (self._unwritten or self._database is None) and now >= self._write_at:
            self._write_at = now + WRITE_AGAIN_S
            with suppress(StoreError):  # told about by `put`
                self._write(list(self._unwritten))
                self._unwritten.clear()
            if self._database is None:
                return []
        with self._told("reports cannot be read"):
            return self._take_due(now)

    def next_at(self) -> float | None:
        """Return when `due` will have something to send again, monotonic seconds."""
        return min((at for at, _ in self._due.values()), default=None)

    def reconnected(self) -> None:
        """Make everything due at once: what was sent before may be lost."""
        self._due.clear()

    def acknowledge(self, store: str, numbers: Iterable[int]) -> int:
        """Delete reports that the hub has; return how many were there.

        Acknowledgements for another store are left alone: this one's numbers began anew.

        Raises:
            StoreError: if they cannot be deleted; they are sent again, and acknowledged again.
        """
        if store != self.store:
            return 0
        gone = freed = 0
        acknowledged = list(numbers)
        with self._told("acknowledged reports cannot be deleted"), self._opened() as database:
            for number in acknowledged:
                row = database.execute(
                    "DELETE FROM report WHERE number = ? RETURNING length(body)", (number,)
                ).fetchone()
                if row:
                    freed += row[0]
                    gone += 1
        self._bytes -= freed
        for number in acknowledged:
            self._due.pop(number, None)
        return gone

    def __len__(self) -> int:
        with self._told("reports cannot be counted"):
            (count,) = self._opened().execute("SELECT count(*) FROM report").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()

    def _opened(self) -> sqlite3.Connection:
        """Return the database; open it first if that was not possible before."""
        if self._database is None:
            self._open()
        assert self._database is not None  # _open() has raised otherwise
        return self._database

    def _open(self) -> None:
        database = sqlite3.connect(self._path, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            # A result that the hub never learns of stalls a rollout, so each commit is durable.
            database.execute("PRAGMA synchronous = FULL")
            (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
            database.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // page_bytes}")
            database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            database.executescript(_SCHEMA)
            row = database.execute("SELECT name FROM store").fetchone()
            if row is None:
                row = (secrets.token_hex(8),)
                with database:
                    database.execute("INSERT INTO store (name) VALUES (?)", row)
            (size,) = database.execute(
                "SELECT coalesce(sum(length(body)), 0) FROM report"
            ).fetchone()
        except sqlite3.Error:
            database.close()
            raise
        self._database, self.store, self._bytes = database, str(row[0]), int(size)

    def _begin_anew(self, error: sqlite3.Error) -> None:
        # A damaged file must not stop the device; its name marks it for whoever looks.
        self.damaged = f"outbox was damaged ({error}); begun anew, the old one kept aside"
        for old in self._path.parent.glob(f"{NAME}*"):
            old.replace(old.with_name(f"damaged-{old.name}"))
        self._due.clear()
        self._open()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn errors of the database into the agent's own; begin anew if it is damaged."""
        try:
            yield
        except sqlite3.Error as error:
            if _is_damage(error):
                self.close()
                self._database = None
                try:
                    self._begin_anew(error)
                except (sqlite3.Error, OSError) as second:
                    raise StoreError(f"{what}, and no new outbox can be begun: {second}") from error
                self.put(Refusal("outbox", "damaged", self.damaged), time.time())
            raise StoreError(f"{what}: {error}") from error

    def _write(self, entries: list[tuple[str, float, bytes]]) -> None:
        """Write reports and make room for them, all or nothing."""
        with self._told("report cannot be stored"):
            with self._opened() as database:
                database.executemany(
                    "INSERT INTO report (kind, at, body) VALUES (?, ?, ?)",
                    [(kind, at, data) for kind, at, data in entries],
                )
                held = self._bytes + sum(len(data) for _, _, data in entries)
                dropped, held = self._shrink(held)
            self._bytes = held
            self.dropped += dropped

    def _shrink(self, held: int) -> tuple[int, int]:
        """Drop by rule 3 what is over the limit; return how many, and the bytes that are left."""
        dropped = 0
        for kind in _DROP_ORDER:
            while held > self._max_bytes:
                row = (
                    self._opened()
                    .execute(
                        "DELETE FROM report WHERE number = (SELECT min(number) FROM report"
                        " WHERE kind = ?) RETURNING length(body)",
                        (kind,),
                    )
                    .fetchone()
                )
                if row is None:
                    break
                held -= row[0]
                dropped += 1
        return dropped, held

    def _take_due(self, now: float) -> list[Report]:
        room = MAX_UNACKNOWLEDGED - len(self._due)
        if room > 0:
            newest = max(self._due, default=0)
            rows = self._opened().execute(
                "SELECT number FROM report WHERE number > ? ORDER BY number LIMIT ?",
                (newest, room),
            )
            self._due.update({number: (now, FIRST_RESEND_S) for (number,) in rows})
        reports = []
        for number, (at, wait_s) in sorted(self._due.items()):
            if at > now:
                continue
            report = self._read(number)
            if report is None:  # dropped meanwhile, or not readable
                del self._due[number]
                continue
            again = now + wait_s * (0.5 + self._jitter() / 2)
            self._due[number] = (again, min(wait_s * 2, LAST_RESEND_S))
            reports.append(report)
        return reports

    def _read(self, number: int) -> Report | None:
        row = (
            self._opened()
            .execute("SELECT at, body FROM report WHERE number = ?", (number,))
            .fetchone()
        )
        if row is None:
            return None
        try:
            body = self._decoder.decode(row[1])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.exception("report %d cannot be read and is dropped", number)
            with self._opened() as database:
                database.execute("DELETE FROM report WHERE number = ?", (number,))
            self._bytes -= len(row[1])
            self.dropped += 1
            return None
        return Report(self._device, self.store, number, row[0], body)


def _is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged file from one that is locked, full or read-only."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # not on errors of the module
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
