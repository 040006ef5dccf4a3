"""Locking a name after failed sign-ins; kept in the database, so that a restart forgives nothing.

Rules:

1. From the fifth failure in a row on, the name waits: 30 s, then twice as long each time, at most a
   quarter of an hour. That leaves a guesser fewer than 100 tries a day, and an owner who mistyped
   a short wait.
2. A failure is counted before the password is looked at and taken back if it was right, so that
   guesses made at the same time are counted too.
3. Names without an account are counted and locked alike: a lock does not say that there is one.
4. A day without a failure, or a right password, forgets them.
"""

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Lockout
from edgefleet_cloud.trust.people import credentials

FREE_FAILURES = 4
FIRST_WAIT_S = 30.0
MAX_WAIT_S = 900.0
FORGET_S = 86_400.0


def wait_after(failures: int) -> float:
    """Return how long a name waits after so many failures in a row."""
    if failures <= FREE_FAILURES:
        return 0.0
    return float(min(FIRST_WAIT_S * 2 ** min(failures - FREE_FAILURES - 1, 10), MAX_WAIT_S))


def attempt(session: Session, name: str, now: float) -> float:
    """Count a try at this name as failed, unless it is locked.

    Args:
        session: in a write transaction.
        name: as typed.
        now: Unix seconds.

    Returns:
        Seconds to wait if the name is locked, 0 if the password may be looked at.
    """
    session.execute(delete(Lockout).where(Lockout.failed_at + FORGET_S <= now))
    held = session.get(Lockout, _key(name))
    if held is None:
        held = Lockout(name_digest=_key(name), failures=0, failed_at=now, locked_until=0.0)
        session.add(held)
    if held.locked_until > now:
        return held.locked_until - now
    held.failures += 1
    held.failed_at = now
    held.locked_until = now + wait_after(held.failures)
    session.flush()
    return 0.0


def touch(session: Session, name: str, now: float) -> None:
    """Write a name's last failure once more, in a write transaction."""
    session.execute(update(Lockout).where(Lockout.name_digest == _key(name)).values(failed_at=now))


def forget(session: Session, name: str) -> None:
    """Forget a name's failures, in a write transaction: its owner has signed in."""
    session.execute(delete(Lockout).where(Lockout.name_digest == _key(name)))


def _key(name: str) -> str:
    return credentials.digest(name.casefold())
