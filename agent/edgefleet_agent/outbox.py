"""Reports that wait until the hub has them: a SQLite table that survives everything but its disk.

Rules:

1. A report is on disk before it is sent, and stays until the *hub* acknowledges it by number.
2. Numbers only ever grow; with the random name of the store they name a report for ever, so the
   hub can count each once however often it arrives.
3. Over the size limit, windows go first, oldest first; then samples, then refusals, oldest first.
   Results are never dropped.
4. What is not acknowledged is sent again after 5 s, then ever more slowly up to a minute.
"""

import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgefleet_agent.errors import StoreError
from edgefleet_protocol.messages import Refusal, Report, Result, Samples, Window

NAME = "outbox.sqlite"
FIRST_RESEND_S = 5.0
LAST_RESEND_S = 60.0
# Sent and not acknowledged at one time; a window report is 1 to 3 kB.
MAX_UNACKNOWLEDGED = 32

Body = Window | Samples | Result | Refusal
_KINDS: dict[type[Body], str] = {
    Window: "window",
    Samples: "samples",
    Result: "result",
    Refusal: "refusal",
}
_DROP_ORDER = ("window", "samples", "refusal")
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
        dropped: reports dropped by rule 3 since start.
    """

    def __init__(self, folder: Path, device: str, max_bytes: int) -> None:
        """Open the outbox, or begin a new one under a new name if it is damaged.

        Raises:
            StoreError: if it cannot be opened or written.
        """
        self._device = device
        self._max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Body)
        self._due: dict[int, tuple[float, float]] = {}
        self.dropped = 0
        self.damaged: str = ""
        path = folder / NAME
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"outbox {path} cannot be opened: {error}") from error
            # A damaged file must not stop the device; its name marks it for whoever looks.
            self.damaged = f"outbox was damaged ({error}); begun anew, the old one kept aside"
            for old in folder.glob(f"{NAME}*"):
                old.replace(old.with_name(f"damaged-{old.name}"))
            self._open(path)

    def put(self, body: Body, now: float) -> None:
        """Store one report.

        Args:
            body: of the report.
            now: Unix seconds.

        Raises:
            StoreError: if it cannot be written.
        """
        data = self._encoder.encode(body)
        try:
            with self._database:
                self._database.execute(
                    "INSERT INTO report (kind, at, body) VALUES (?, ?, ?)",
                    (_KINDS[type(body)], now, data),
                )
                self._bytes += len(data)
                self._shrink()
        except sqlite3.Error as error:
            raise StoreError(f"report cannot be stored: {error}") from error

    def due(self, now: float) -> list[Report]:
        """Return what to send now, oldest first, and expect its acknowledgement.

        Args:
            now: monotonic seconds.
        """
        room = MAX_UNACKNOWLEDGED - len(self._due)
        if room > 0:
            newest = max(self._due, default=0)
            rows = self._database.execute(
                "SELECT number FROM report WHERE number > ? ORDER BY number LIMIT ?",
                (newest, room),
            )
            self._due.update({number: (now, FIRST_RESEND_S) for (number,) in rows})
        reports = []
        for number, (at, wait_s) in sorted(self._due.items()):
            if at > now:
                continue
            report = self._read(number)
            if report is None:  # dropped by rule 3 meanwhile
                del self._due[number]
                continue
            self._due[number] = (now + wait_s, min(wait_s * 2, LAST_RESEND_S))
            reports.append(report)
        return reports

    def next_at(self) -> float | None:
        """Return when `due` will have something to send again, monotonic seconds."""
        return min((at for at, _ in self._due.values()), default=None)

    def reconnected(self) -> None:
        """Make everything due at once: what was sent before may be lost."""
        self._due.clear()

    def acknowledge(self, store: str, numbers: Iterable[int]) -> int:
        """Delete reports that the hub has; return how many were there.

        Acknowledgements for another store are left alone: this one's numbers began anew.
        """
        if store != self.store:
            return 0
        gone = 0
        try:
            with self._database:
                for number in numbers:
                    row = self._database.execute(
                        "DELETE FROM report WHERE number = ? RETURNING length(body)", (number,)
                    ).fetchone()
                    self._due.pop(number, None)
                    if row:
                        self._bytes -= row[0]
                        gone += 1
        except sqlite3.Error as error:
            raise StoreError(f"acknowledged reports cannot be deleted: {error}") from error
        return gone

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM report").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _open(self, path: Path) -> None:
        database = sqlite3.connect(path, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # A result that the hub never learns of stalls a rollout, so each commit is durable.
            database.execute("PRAGMA synchronous = FULL")
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

    def _read(self, number: int) -> Report | None:
        row = self._database.execute(
            "SELECT at, body FROM report WHERE number = ?", (number,)
        ).fetchone()
        if row is None:
            return None
        return Report(self._device, self.store, number, row[0], self._decoder.decode(row[1]))

    def _shrink(self) -> None:
        for kind in _DROP_ORDER:
            while self._bytes > self._max_bytes:
                row = self._database.execute(
                    "DELETE FROM report WHERE number = (SELECT min(number) FROM report"
                    " WHERE kind = ?) RETURNING length(body)",
                    (kind,),
                ).fetchone()
                if row is None:
                    break
                self._bytes -= row[0]
                self.dropped += 1
