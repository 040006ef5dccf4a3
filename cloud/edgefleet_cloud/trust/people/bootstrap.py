"""The first account: `admin`, whose token lies in the hub's home.

Whoever can read `admin.token` is the hub's own user or root, who could read the database and the
keys too; so the token gives nothing away that was not theirs. It stands for a service: a shared
credential is nobody in particular, and cannot approve.
"""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account, AccountKind, ApiToken, RoleGrant
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import credentials, tokens
from edgefleet_cloud.trust.people.roles import Role

ADMIN = "admin"
MIN_TOKEN_LENGTH = 32


def ensure_admin(database: Database, home: Path, now: float) -> None:
    """Make the admin account and the token in `home`, where they are missing.

    A token that was revoked is replaced by a new one; removing the file and starting the hub again
    does the same.

    Raises:
        ConflictError: if the file holds no token.
    """
    path = home / tokens.HUB_TOKEN
    held = _read(path) if path.exists() else None
    with database.write() as session:
        if held is not None and _admit(session, held, now):
            return
        # The file first: one that no database knows is taken in at the next start, while a token
        # that is only in the database would be lost.
        secret = credentials.new_token()
        durable.write(path, secret.encode() + b"\n", mode=durable.PRIVATE)
        _admit(session, secret, now)


def admit(session: Session, secret: str, now: float) -> None:
    """Let `secret` stand for the admin account, in a write transaction; it ends in a year.

    Raises:
        ConflictError: if it was revoked.
    """
    if not _admit(session, secret, now):
        raise ConflictError("this token was revoked")


def prolong(database: Database, now: float) -> None:
    """Keep the hub's own token from ending while the hub runs."""
    with database.read() as session:
        due = [token.id for token in _own(session) if _is_due(token, now)]
    if due:
        with database.write() as session:
            for token_id in due:
                session.get_one(ApiToken, token_id).expires_at = now + tokens.MAX_LIFE_S


def _is_due(token: ApiToken, now: float) -> bool:
    return token.revoked_at is None and token.expires_at < now + tokens.MAX_LIFE_S / 2


def _admit(session: Session, secret: str, now: float) -> bool:
    if session.get(Account, ADMIN) is None:
        session.add(Account(name=ADMIN, kind=AccountKind.SERVICE, created_at=now))
        session.flush()
        session.add(RoleGrant(account=ADMIN, role=Role.ADMIN, model="", source="admin"))
        session.flush()
        record(session, "account.create", ADMIN, now, after={"roles": [Role.ADMIN.value]})
    digest = credentials.digest(secret)
    known = session.scalar(select(ApiToken).where(ApiToken.digest == digest))
    if known is not None and known.revoked_at is not None:
        return False
    if known is None:
        for other in _own(session):
            other.revoked_at = other.revoked_at or now
        known = ApiToken(digest=digest, account=ADMIN, name=tokens.HUB_TOKEN, created_at=now)
        known.expires_at = now + tokens.MAX_LIFE_S
        session.add(known)
        session.flush()
        record(session, "token.create", str(known.id), now, after=tokens.view(known))
    known.expires_at = now + tokens.MAX_LIFE_S
    return True


def _own(session: Session) -> list[ApiToken]:
    query = select(ApiToken).where(ApiToken.account == ADMIN, ApiToken.name == tokens.HUB_TOKEN)
    return list(session.scalars(query))


def _read(path: Path) -> str:
    token = path.read_text(encoding="ascii").strip()
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConflictError(
            f"{path} holds no token of {MIN_TOKEN_LENGTH} characters or more; remove it for a new"
            " one"
        )
    return token
