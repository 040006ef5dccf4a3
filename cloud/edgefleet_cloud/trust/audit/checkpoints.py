"""Signatures under the head of the chain, so that cutting its end off or rewriting it is seen.

Rules:

1. The head is signed after `ENTRIES` entries or `INTERVAL_S` seconds, when the hub stops, and
   whenever the log is exported.
2. A checkpoint is stored in the database, and then written to `checkpoints.jsonl` in the folder,
   fsynced. Whoever keeps that file elsewhere, or asks the API for the newest one now and then, can
   tell a log that was cut or rewritten from the true one even if the hub's key was stolen later.
3. If the newest checkpoint of the file is not one of the database's chain (the database was
   restored from a backup, or changed), that itself becomes an entry.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import AuditCheckpoint, AuditEntry
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.audit import chain, log
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link
from edgefleet_cloud.trust.audit.keys import SigningKey

ENTRIES = 100
INTERVAL_S = 600.0
logger = logging.getLogger(__name__)


class Checkpoints:
    """Signs the log's head and gives the signatures out; open it with `Checkpoints.open`.

    Its methods may be called from any thread.

    Attributes:
        key: signs.
    """

    def __init__(
        self, database: Database, folder: Path, key: SigningKey, clock: Callable[[], float]
    ) -> None:
        self.key = key
        self._database = database
        self._path = folder / "checkpoints.jsonl"
        self._clock = clock
        # Two requests for an export, or one and the scheduler: the file keeps the order.
        self._signing = threading.Lock()

    @classmethod
    def open(cls, database: Database, folder: Path, clock: Callable[[], float]) -> "Checkpoints":
        """Open the key and the file in `folder`, and apply rule 3.

        Raises:
            DamagedError: if either cannot be read.
        """
        opened = cls(database, folder, SigningKey.open(folder), clock)
        opened._catch_up()
        return opened

    def tick(self) -> None:
        """Sign the head if that is due (rule 1)."""
        with self._database.read() as session:
            head, last = log.head(session), newest(session)
        behind = head.number - (last.number if last else 0)
        waited = self._clock() - (last.at if last else 0)
        if behind >= ENTRIES or (behind and waited >= INTERVAL_S):
            self.sign()

    def sign(self) -> Checkpoint | None:
        """Sign the head now; return its checkpoint, None while the log is empty."""
        with self._signing:
            return self._sign(int(self._clock()))

    def _sign(self, at: int) -> Checkpoint | None:
        with self._database.write() as session:
            head, last = log.head(session), newest(session)
            if last is not None and last.number == head.number:
                return last
            if head.number == 0:
                return None
            signature = self.key.signer.sign(chain.checkpoint_payload(head, at))
            made = Checkpoint(head.number, head.digest, at, self.key.keyid, signature.signature)
            session.execute(insert(AuditCheckpoint).values(msgspec.structs.asdict(made)))
        self._append([made])
        return made

    def _catch_up(self) -> None:
        """Bring the file up to the database after a crash between the two (rule 2), or rule 3."""
        written = self._last_written()
        with self._database.read() as session:
            missing = _after(session, written.number if written else 0)
            agrees = written is None or _holds(session, written)
            head = log.head(session)
        if agrees:
            self._append(missing)
            return
        assert written is not None
        logger.error(
            "the log of decisions is not the one that was signed: entry %d of it has another digest"
            " or is gone. Compare with a backup: edgefleet audit verify",
            written.number,
        )
        with self._database.write() as session:
            log.record(
                session,
                "audit.mismatch",
                self._path.name,
                self._clock(),
                before={"number": written.number, "digest": written.digest},
                after={"number": head.number, "digest": head.digest},
                reason="the database does not hold what was signed; was it restored?",
            )
        self.sign()

    def _last_written(self) -> Checkpoint | None:
        if not self._path.exists():
            durable.write(self._path, b"", mode=durable.PUBLIC)
        with self._path.open("r+b") as file:
            data = file.read()
            # A power cut may leave half a line, which nobody was told of.
            file.truncate(data.rfind(b"\n") + 1)
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if not lines:
            return None
        try:
            return msgspec.json.decode(lines[-1], type=Checkpoint)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedError(
                f"the last line of {self._path} is no checkpoint ({error}); move the file away and"
                " keep it"
            ) from error

    def _append(self, made: list[Checkpoint]) -> None:
        with self._path.open("ab") as file:
            file.writelines(msgspec.json.encode(item) + b"\n" for item in made)
            file.flush()
            os.fsync(file.fileno())


def newest(session: Session) -> Checkpoint | None:
    """Return the newest checkpoint."""
    query = select(AuditCheckpoint).order_by(AuditCheckpoint.number.desc()).limit(1)
    row = session.scalar(query)
    return None if row is None else as_value(row)


def as_value(row: AuditCheckpoint) -> Checkpoint:
    """Return a row as the value that is given out."""
    return Checkpoint(row.number, row.digest, row.at, row.keyid, row.signature)


def _after(session: Session, number: int) -> list[Checkpoint]:
    query = (
        select(AuditCheckpoint)
        .where(AuditCheckpoint.number > number)
        .order_by(AuditCheckpoint.number)
    )
    return [as_value(row) for row in session.scalars(query)]


def _holds(session: Session, link: Checkpoint | Link) -> bool:
    row = session.get(AuditEntry, link.number)
    return row is not None and row.digest == link.digest
