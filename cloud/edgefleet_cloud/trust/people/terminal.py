"""Signing a command line in through the web page (in the manner of RFC 8628).

The command line shows a short code and asks again and again; a person who is signed in on the web
page, by password or by the OpenID Connect provider, types the code there and allows it. It works
over SSH and without a browser on the machine, and the command line never sees a password. Rules:

1. The code is short-lived, works once, and is worth nothing by itself: the token goes to whoever
   holds the long secret of the request.
2. The page shows where the request came from: whoever was talked into typing a stranger's code
   can see it.
3. What comes out is a token of that person that ends after 12 hours.
"""

import secrets as randomness

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import ApiToken, TerminalSignIn
from edgefleet_cloud.errors import DeniedError, LimitedError, NotFoundError
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import credentials, tokens
from edgefleet_cloud.trust.people.callers import Caller

LIFE_S = 600.0
POLL_S = 2.0
TOKEN_LIFE_S = 12 * 3600.0
# Without vowels and look-alikes; 8 of them are 20^8 = 25 thousand million.
_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
MAX_WAITING = 1000


def begin(session: Session, origin: str, now: float) -> tuple[TerminalSignIn, str]:
    """Let a command line ask; return the request and its secret.

    Args:
        session: in a write transaction.
        origin: where it comes from, for the person to see.
        now: Unix seconds.

    Raises:
        LimitedError: if too many wait already.
    """
    session.execute(delete(TerminalSignIn).where(TerminalSignIn.expires_at <= now))
    waiting = session.scalar(select(func.count()).select_from(TerminalSignIn)) or 0
    if waiting >= MAX_WAITING:
        raise LimitedError("too many command lines wait to be signed in", LIFE_S)
    letters = "".join(randomness.choice(_ALPHABET) for _ in range(8))
    secret = credentials.new_secret()
    asked = TerminalSignIn(
        device_digest=credentials.digest(secret),
        user_code=f"{letters[:4]}-{letters[4:]}",
        origin=origin[:120],
        state="waiting",
        expires_at=now + LIFE_S,
    )
    session.add(asked)
    session.flush()
    return asked, secret


def find(session: Session, user_code: str, now: float) -> TerminalSignIn:
    """Return the request that shows this code.

    Raises:
        NotFoundError: if there is none that still waits.
    """
    letters = "".join(letter for letter in user_code.upper() if letter.isalpha())
    code = f"{letters[:4]}-{letters[4:8]}"
    asked = session.scalar(select(TerminalSignIn).where(TerminalSignIn.user_code == code))
    if asked is None or asked.expires_at <= now or asked.state != "waiting":
        raise NotFoundError("command line that waits with the code", user_code[:16])
    return asked


def decide(
    session: Session, user_code: str, caller: Caller, *, allowed: bool, now: float
) -> TerminalSignIn:
    """Allow or refuse a request, as the person on the web page.

    Raises:
        NotFoundError: if there is none that still waits.
    """
    asked = find(session, user_code, now)
    asked.state = "allowed" if allowed else "refused"
    asked.account = caller.name if allowed else None
    session.flush()
    action = "terminal.allow" if allowed else "terminal.refuse"
    record(session, action, caller.name, now, after={"origin": asked.origin})
    return asked


def is_answered(session: Session, secret: str, now: float) -> bool:
    """Return whether the person has answered.

    Raises:
        NotFoundError: if there is no such request, or it is over.
    """
    return _held(session, secret, now).state != "waiting"


def collect(session: Session, secret: str, now: float) -> tuple[ApiToken, str]:
    """Return the token of an answered request, in a write transaction; it is collected once.

    Raises:
        NotFoundError: if there is no such request, or it is over.
        DeniedError: if it was refused.
    """
    asked = _held(session, secret, now)
    if asked.account is None:
        raise DeniedError("the sign-in was refused on the web page")
    session.expunge(asked)
    used = TerminalSignIn.device_digest == asked.device_digest
    # Of two that come at once, one finds the row.
    if not session.execute(
        delete(TerminalSignIn).where(used).returning(TerminalSignIn.state)
    ).all():
        raise NotFoundError("sign-in of a command line", "with this secret; begin again")
    name = f"login from {asked.origin}"[: tokens.MAX_NAME_LENGTH]
    with acting.acting(tokens.caller_of(session, asked.account).actor):
        return tokens.issue(session, asked.account, name, now, life_s=TOKEN_LIFE_S)


def _held(session: Session, secret: str, now: float) -> TerminalSignIn:
    asked = session.get(TerminalSignIn, credentials.digest(secret))
    if asked is None or asked.expires_at <= now:
        raise NotFoundError("sign-in of a command line", "with this secret; begin again")
    return asked
