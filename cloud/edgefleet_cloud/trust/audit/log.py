"""The log of decisions in the database: who decided what, when, why, and what changed.

Rules:

1. An entry is written in the transaction of the decision itself: neither is there without the
   other.
2. Writers come one after another. SQLite's write transactions do so anyway; elsewhere a lock is
   held from the first entry of a transaction to its end.
3. Entries are never changed or removed; the database refuses it (`triggers`).
4. Nothing secret goes into an entry: whoever may read may read all of it.
"""

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import AuditEntry
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit import chain
from edgefleet_cloud.trust.audit.chain import Link
from edgefleet_cloud.values import Json

# Any number that no other advisory lock of this database uses.
_LOCK = 0x6564_6765_0000_0001


def record(
    session: Session,
    action: str,
    subject: str,
    now: float,
    *,
    before: Json | None = None,
    after: Json | None = None,
    reason: str = "",
) -> None:
    """Write down a decision of whoever acts now (`acting.now`).

    Args:
        session: in the write transaction of the decision.
        action: `noun.verb`, as `version.approve`.
        subject: what was decided on, as `digits 3`.
        now: Unix seconds.
        before: what of the subject was changed, as it was.
        after: as it is now.
        reason: as the actor gave it, or the rule that decided.

    Raises:
        RuntimeError: if the session is not in a write transaction: the entry would be lost.
    """
    connection = session.connection()
    if not connection.get_execution_options().get("edgefleet_write"):
        raise RuntimeError(f"{action} of {subject} is recorded outside a write transaction")
    if connection.dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    last = head(session)
    actor = acting.now()
    entry = chain.Entry(
        v=chain.VERSION,
        number=last.number + 1,
        at=now,
        actor=chain.text(actor.name, chain.MAX_NAME_LENGTH),
        kind=actor.kind,
        action=action,
        subject=chain.text(subject, chain.MAX_NAME_LENGTH),
        before=chain.value(before),
        after=chain.value(after),
        reason=chain.text(reason, chain.MAX_REASON_LENGTH),
    )
    line = chain.encode(entry)
    session.execute(
        insert(AuditEntry).values(
            number=entry.number,
            at=entry.at,
            actor=entry.actor,
            kind=entry.kind,
            action=entry.action,
            subject=entry.subject,
            line=line,
            digest=chain.follow(last.digest, chain.line_digest(line)),
        )
    )


def head(session: Session) -> Link:
    """Return the end of the chain."""
    query = select(AuditEntry.number, AuditEntry.digest).order_by(AuditEntry.number.desc()).limit(1)
    row = session.execute(query).first()
    return Link(0, chain.START) if row is None else Link(row.number, row.digest)


def link(session: Session, number: int) -> Link:
    """Return the place in the chain after an entry; 0 is its start.

    Raises:
        NotFoundError: if there is no such entry.
    """
    return Link(0, chain.START) if number == 0 else Link(number, get(session, number).digest)


def get(session: Session, number: int) -> AuditEntry:
    """Return one entry.

    Raises:
        NotFoundError: if there is none with this number.
    """
    row = session.get(AuditEntry, number)
    if row is None:
        raise NotFoundError("audit entry", number)
    return row


def knows(session: Session, action: str, subject: str) -> bool:
    """Tell whether this was ever done to this subject."""
    condition = (AuditEntry.action == action) & (AuditEntry.subject == subject)
    return bool(find(session, condition, below=None, limit=1))


def find(
    session: Session, condition: ColumnElement[bool], *, below: int | None, limit: int
) -> list[AuditEntry]:
    """Return entries, newest first.

    Args:
        session: for reading.
        condition: on `AuditEntry`.
        below: only entries with lower numbers, to go on where a list has ended.
        limit: the most.
    """
    query = select(AuditEntry).where(condition).order_by(AuditEntry.number.desc()).limit(limit)
    if below is not None:
        query = query.where(AuditEntry.number < below)
    return list(session.scalars(query))
