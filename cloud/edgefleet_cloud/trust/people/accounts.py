"""Accounts: made, given roles, disabled.

Rules:

1. There is always an account that may administer the whole fleet and is not disabled.
2. Who an account is never changes: a name is not given again, and an account is disabled, not
   deleted, so that the log of decisions keeps its meaning.
3. Whatever makes an account weaker (disabled, fewer roles, a new password) ends its web sessions;
   disabling ends its tokens too.
4. Only the role `owner` can be for one model.
"""

import re
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account, AccountKind, RoleGrant
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.trust.acting import HUB, Actor
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import passwords, sessions, tokens
from edgefleet_cloud.trust.people.callers import Grant
from edgefleet_cloud.trust.people.roles import Role
from edgefleet_cloud.values import Json
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.identifiers import model_name

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# Who acts without an account must not be mistaken for one.
RESERVED = frozenset({"hub", "unknown", "operator"})


def create(
    session: Session,
    name: str,
    kind: AccountKind,
    grants: Collection[Grant],
    now: float,
    *,
    password: str | None = None,
) -> Account:
    """Make an account.

    Args:
        session: in a write transaction.
        name: lower-case letters, digits, `.`, `_`, `-`.
        kind: person or service; a service has no password.
        grants: its roles.
        now: Unix seconds.
        password: None for one that is set later, or never.

    Raises:
        InvalidError: if name, password or a role is not one that it can have.
        ConflictError: if the name was given before.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise InvalidError(
            f"{name[:80]!r} is no account name: 1 to 63 lower-case letters, digits, '.', '_', '-'"
        )
    if session.get(Account, name) is not None:
        raise ConflictError(f"there is an account {name} already; a name is given once")
    if kind == AccountKind.SERVICE and password is not None:
        raise InvalidError("a service has no password; give it a token")
    if password is not None:
        passwords.check(password, name)
    account = Account(name=name, kind=kind, created_at=now)
    account.password = passwords.hashed(password) if password is not None else None
    session.add(account)
    session.flush()
    _set_grants(session, name, grants, "admin")
    after = {"kind": kind.value, "roles": roles(session, name)}
    record(session, "account.create", name, now, after=after)
    return account


def set_roles(session: Session, name: str, grants: Collection[Grant], now: float) -> Account:
    """Replace the roles that an admin gave to an account; those of the provider's groups stay.

    Raises:
        NotFoundError: if there is no such account.
        InvalidError: if a role cannot be given so.
        ConflictError: if nobody could administer any more.
    """
    account = get(session, name)
    before = roles(session, name)
    _set_grants(session, name, grants, "admin")
    _keep_an_admin(session)
    sessions.end_all(session, name)
    after = roles(session, name)
    record(session, "account.roles", name, now, before={"roles": before}, after={"roles": after})
    return account


def set_provider_roles(session: Session, name: str, grants: Collection[Grant], now: float) -> None:
    """Replace the roles that the provider's groups give to an account (`oidc`)."""
    before = roles(session, name)
    _set_grants(session, name, grants, "provider")
    after = roles(session, name)
    if before != after:
        said = {"before": {"roles": before}, "after": {"roles": after}}
        record(session, "account.roles", name, now, **said, reason="groups at the provider")


def set_password(session: Session, name: str, password: str, now: float) -> Account:
    """Give an account a new password; its web sessions end.

    Raises:
        NotFoundError: if there is no such account.
        InvalidError: if the password is too easy, or the account can have none.
    """
    account = get(session, name)
    if account.kind != AccountKind.PERSON or account.issuer is not None:
        raise InvalidError(f"{name} signs in without a password of this hub")
    passwords.check(password, name)
    account.password = passwords.hashed(password)
    sessions.end_all(session, name)
    record(session, "account.password", name, now)
    return account


def disable(session: Session, name: str, reason: str, now: float) -> Account:
    """Shut an account out; its sessions and tokens end at once.

    Raises:
        NotFoundError: if there is no such account.
        ConflictError: if nobody could administer any more.
    """
    account = get(session, name)
    if account.disabled_at is None:
        account.disabled_at = now
        session.flush()
        _keep_an_admin(session)
        ended = sessions.end_all(session, name)
        revoked = tokens.revoke_all(session, name, now)
        after: Json = {"disabled": True, "sessions_ended": ended, "tokens_revoked": revoked}
        record(session, "account.disable", name, now, after=after, reason=reason)
    return account


def enable(session: Session, name: str, reason: str, now: float) -> Account:
    """Let an account in again; its former tokens stay revoked.

    Raises:
        NotFoundError: if there is no such account.
    """
    account = get(session, name)
    if account.disabled_at is not None:
        account.disabled_at = None
        session.flush()
        record(session, "account.enable", name, now, after={"disabled": False}, reason=reason)
    return account


def get(session: Session, name: str) -> Account:
    """Return one account.

    Raises:
        NotFoundError: if there is none of this name.
    """
    account = session.get(Account, name)
    if account is None:
        raise NotFoundError("account", name)
    return account


def actor(session: Session, name: str) -> Actor:
    """Return the account of this name as one who acts; the hub itself if there is none."""
    account = session.get(Account, name)
    if account is None:
        return HUB
    return Actor(name, "person" if account.kind == AccountKind.PERSON else "service")


def listing(session: Session) -> list[Account]:
    """Return all accounts by name."""
    return list(session.scalars(select(Account).order_by(Account.name)))


def roles(session: Session, name: str) -> list[str]:
    """Return an account's roles as people write them: `viewer`, `owner:digits`."""
    query = select(RoleGrant).where(RoleGrant.account == name)
    return sorted(write_grant(Grant(Role(row.role), row.model)) for row in session.scalars(query))


def read_grant(text: str) -> Grant:
    """Return a role from `viewer` or `owner:MODEL`.

    Raises:
        InvalidError: if it is no role, or cannot be for one model.
    """
    name, _, model = text.partition(":")
    try:
        role = Role(name)
        if model:
            model_name(model)
    except ValueError as error:
        known = ", ".join(role.value for role in Role)
        raise InvalidError(f"{text[:80]!r} is no role; expected one of {known}") from error
    except MalformedError as error:
        raise InvalidError(str(error)) from error
    if model and role is not Role.OWNER:
        raise InvalidError(f"{text[:80]!r}: only the role owner can be for one model")
    return Grant(role, model)


def write_grant(grant: Grant) -> str:
    """Return a role as `read_grant` reads it."""
    return f"{grant.role}:{grant.model}" if grant.model else grant.role.value


def _set_grants(session: Session, name: str, grants: Collection[Grant], source: str) -> None:
    held = {
        Grant(Role(row.role), row.model): row
        for row in session.scalars(select(RoleGrant).where(RoleGrant.account == name))
    }
    for grant, row in held.items():
        if row.source == source and grant not in grants:
            session.delete(row)
    for grant in set(grants) - set(held):
        session.add(RoleGrant(account=name, role=grant.role, model=grant.model, source=source))
    session.flush()


def _keep_an_admin(session: Session) -> None:
    left = session.scalar(
        select(Account.name)
        .join(RoleGrant, RoleGrant.account == Account.name)
        .where(RoleGrant.role == Role.ADMIN, Account.disabled_at.is_(None))
        .limit(1)
    )
    if left is None:
        raise ConflictError("nobody could administer this hub any more; make another admin first")
