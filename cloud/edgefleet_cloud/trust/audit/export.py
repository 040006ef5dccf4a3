"""The log as a file that is checked without a hub (`verification`), version 1: JSON Lines.

    {"audit":1,"after":{"number":0,"digest":"00…"},"checkpoints":[100,157]}
    {"digest":"<after this entry>","entry":<line>}
    {"omitted":["<digest of a line>",…]}
    {"checkpoint":{"number":100,"digest":…,"at":…,"keyid":…,"signature":…}}

Rules:

1. The first line says after which entry the file begins, and which checkpoints it holds. The last
   of these is the last line, so a file that was cut says so itself.
2. In an entry's line, `<line>` stands byte for byte as it was hashed: from byte 85 of the line up
   to its last `}`.
3. An entry that was not asked for is replaced by the digest of its line, up to `BATCH` in one
   `omitted`. What comes before the first that was asked for is left out as a whole. So a part of
   the log can be handed out and is still held to the same signatures. (A digest hides what an entry
   says only from those who cannot guess it.)
4. Every line is the shortest JSON of its value, and ends in a line feed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, and_, func, select, true
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import AuditCheckpoint, AuditEntry
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.trust.audit import chain, checkpoints, log
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link

BATCH = 1000


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a file (rule 1)."""

    audit: int
    after: Link
    checkpoints: list[int]


class Omitted(Struct, frozen=True, forbid_unknown_fields=True):
    """Entries that were left out, by the digests of their lines (rule 3)."""

    omitted: list[chain.Digest]


class Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint's line."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Wanted:
    """Which entries are asked for; all of them by default.

    Attributes:
        since, until: Unix seconds; from `since` on, and before `until`.
        actor, action, subject: exactly so.
    """

    since: float | None = None
    until: float | None = None
    actor: str | None = None
    action: str | None = None
    subject: str | None = None

    def condition(self) -> ColumnElement[bool]:
        """Return the condition on `AuditEntry`."""
        conditions: list[ColumnElement[bool]] = [true()]
        if self.since is not None:
            conditions.append(AuditEntry.at >= self.since)
        if self.until is not None:
            conditions.append(AuditEntry.at < self.until)
        for name in ("actor", "action", "subject"):
            value = getattr(self, name)
            if value is not None:
                conditions.append(getattr(AuditEntry, name) == value)
        return and_(*conditions)


def entry_line(digest: str, line: str) -> str:
    """Return an entry's line of the file, without its line feed (rule 2)."""
    return f'{{"digest":"{digest}","entry":{line}}}'


def lines(session: Session, wanted: Wanted) -> Iterator[str]:
    """Give the file line by line, up to the newest checkpoint.

    Args:
        session: for reading; rolled back after each batch.
        wanted: which entries are given in full.

    Raises:
        NotFoundError: if nothing is signed yet.
    """
    last = checkpoints.newest(session)
    if last is None:
        raise NotFoundError("signed part of the log", "yet")
    first = session.scalar(select(func.min(AuditEntry.number)).where(wanted.condition()))
    begin = min(first or last.number, last.number)
    held = list(
        session.scalars(
            select(AuditCheckpoint)
            .where(AuditCheckpoint.number >= begin)
            .order_by(AuditCheckpoint.number)
        )
    )
    after = log.link(session, begin - 1)
    yield _line(Header(chain.VERSION, after, [row.number for row in held]))
    signed = {row.number: checkpoints.as_value(row) for row in held}
    yield from _body(_rows(session, wanted, begin, last.number), signed)


def _rows(session: Session, wanted: Wanted, begin: int, end: int) -> Iterator[Any]:
    """Give number, digest, line, and whether it is wanted, of every entry from begin to end."""
    columns = (AuditEntry.number, AuditEntry.digest, AuditEntry.line, wanted.condition())
    for start in range(begin, end + 1, BATCH):
        stop = min(start + BATCH - 1, end)
        query = select(*columns).where(AuditEntry.number.between(start, stop))
        rows = session.execute(query.order_by(AuditEntry.number)).all()
        # A slow reader must not hold a transaction open, and what is written never changes.
        session.rollback()
        yield from rows


def _body(rows: Iterator[Any], signed: dict[int, Checkpoint]) -> Iterator[str]:
    omitted: list[str] = []
    for number, digest, line, is_wanted in rows:
        if not is_wanted:
            omitted.append(chain.line_digest(line).hex())
        if omitted and (is_wanted or number in signed or len(omitted) == BATCH):
            yield _line(Omitted(omitted))
            omitted = []
        if is_wanted:
            yield entry_line(digest, line) + "\n"
        if number in signed:
            yield _line(Signed(signed[number]))


def _line(value: Struct) -> str:
    return msgspec.json.encode(value).decode() + "\n"
