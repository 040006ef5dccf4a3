"""Web sessions: a browser that is signed in, by a random secret in a cookie.

Rules:

1. A session begins with a new secret at each sign-in, so that nobody can plant one beforehand.
2. It ends when idle for an hour, 12 hours after the sign-in however busy, at sign-out, and with its
   account.
3. Its CSRF token is derived from the secret, one-way: pages may show it, the cookie stays unseen.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account, WebSession
from edgefleet_cloud.errors import UnknownCallerError
from edgefleet_cloud.trust.people import credentials, tokens
from edgefleet_cloud.trust.people.callers import Caller

IDLE_S = 3600.0
LIFE_S = 12 * 3600.0
# How exactly it is known when a session was last used: each time is a write.
SEEN_STEP_S = 60.0
_CSRF = "edgefleet csrf 1 "


def begin(session: Session, account: str, now: float) -> str:
    """Sign a browser in, in a write transaction; return the secret for its cookie."""
    secret = credentials.new_secret()
    session.execute(delete(WebSession).where(WebSession.expires_at <= now))
    session.add(
        WebSession(
            digest=credentials.digest(secret),
            account=account,
            created_at=now,
            seen_at=now,
            expires_at=now + LIFE_S,
        )
    )
    session.flush()
    return secret


def authenticate(session: Session, secret: str, now: float) -> tuple[Caller, WebSession]:
    """Return whose session this is.

    Raises:
        UnknownCallerError: if it is unknown or over.
    """
    held = session.get(WebSession, credentials.digest(secret))
    if held is None or held.expires_at <= now or held.seen_at + IDLE_S <= now:
        raise UnknownCallerError("this session is over; sign in again")
    account = session.get_one(Account, held.account)
    if account.disabled_at is not None:
        raise UnknownCallerError("this account is disabled")
    return tokens.caller_of(session, held.account, web_session=held.digest), held


def wants_noting(held: WebSession, now: float) -> bool:
    """Return whether this request is to be noted (`note_use`)."""
    return held.seen_at + SEEN_STEP_S <= now


def note_use(session: Session, digest: str, now: float) -> None:
    """Note that a session is in use, in a write transaction."""
    held = session.get(WebSession, digest)
    if held is not None:  # it may have been signed out meanwhile
        held.seen_at = now


def csrf_token(secret: str) -> str:
    """Return what a form of this session carries."""
    return credentials.digest(_CSRF + secret)


def end(session: Session, digest: str) -> None:
    """Sign a browser out, in a write transaction."""
    session.execute(delete(WebSession).where(WebSession.digest == digest))


def end_all(session: Session, account: str) -> int:
    """Sign an account out everywhere; return of how many browsers."""
    held = session.scalars(select(WebSession).where(WebSession.account == account)).all()
    for row in held:
        session.delete(row)
    session.flush()
    return len(held)
