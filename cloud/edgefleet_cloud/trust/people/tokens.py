"""API tokens: made, shown once, used, revoked.

Rules:

1. A token ends: after 90 days unless said otherwise, after a year at most.
2. It may have fewer permissions than its account, and be for one model only; never more.
3. Disabling the account, or revoking the token, ends it with the next request.
4. A token of an account that the OpenID Connect provider vouches for also rests when the provider
   has not done so for `PRESENCE_S`: whoever left there does not stay here by a token.
"""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account, AccountKind, ApiToken, RoleGrant
from edgefleet_cloud.errors import DeniedError, InvalidError, NotFoundError, UnknownCallerError
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import credentials
from edgefleet_cloud.trust.people.callers import Caller, Grant
from edgefleet_cloud.trust.people.roles import Permission, Role
from edgefleet_cloud.values import Json

DAY_S = 86_400.0
DEFAULT_LIFE_S = 90 * DAY_S
MAX_LIFE_S = 365 * DAY_S
PRESENCE_S = 30 * DAY_S
# Each noted use is a write; to the quarter of an hour is enough to see which tokens lie unused.
USED_STEP_S = 900.0
MAX_NAME_LENGTH = 64
# The one in the hub's own home has this name; no other has.
HUB_TOKEN = "admin.token"  # noqa: S105  # a name, no secret
# Of one account at a time, so that a broken script cannot fill the table.
MAX_TOKENS = 100


def issue(
    session: Session,
    account: str,
    name: str,
    now: float,
    *,
    life_s: float = DEFAULT_LIFE_S,
    permissions: Iterable[Permission] | None = None,
    model: str = "",
) -> tuple[ApiToken, str]:
    """Make a token for an account.

    Args:
        session: in a write transaction.
        account: whose it is.
        name: what it is for, in its owner's words.
        now: Unix seconds.
        life_s: until it ends.
        permissions: the most that it may do; None for all that the account may, now and later.
        model: the only one that it may change; "" for all.

    Returns:
        The row, and the secret, which is nowhere kept.

    Raises:
        InvalidError: if the name, the life or a permission is not one that it can have.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable() or name == HUB_TOKEN:
        raise InvalidError(
            f"a token's name has 1 to {MAX_NAME_LENGTH} printable characters, and is not"
            f" {HUB_TOKEN}"
        )
    if not 0 < life_s <= MAX_LIFE_S:
        raise InvalidError(
            f"a token lives for at most {MAX_LIFE_S / DAY_S:.0f} days; {life_s / DAY_S:.1f} asked"
        )
    held = caller_of(session, account).permissions
    wanted = None if permissions is None else frozenset(permissions)
    if wanted is not None and not (wanted and wanted <= held):
        missing = ", ".join(sorted(wanted - held)) or "nothing asked for"
        raise InvalidError(f"{account} has no such permission to give to a token: {missing}")
    if sum(1 for token in list_tokens(session, account) if _is_open(token, now)) >= MAX_TOKENS:
        raise InvalidError(f"{account} has {MAX_TOKENS} tokens; revoke one first")
    secret = credentials.new_token()
    token = ApiToken(
        digest=credentials.digest(secret),
        account=account,
        name=name,
        permissions=None if wanted is None else sorted(wanted),
        model=model,
        created_at=now,
        expires_at=now + life_s,
    )
    session.add(token)
    session.flush()
    record(session, "token.create", str(token.id), now, after=view(token))
    return token, secret


def view(token: ApiToken) -> Json:
    """Return a token as it may be shown: everything but what proves it."""
    fields = ("id", "account", "name", "permissions", "model", "created_at", "expires_at",
              "used_at", "revoked_at")  # fmt: skip
    return {name: getattr(token, name) for name in fields}


def authenticate(session: Session, secret: str, now: float) -> tuple[Caller, ApiToken]:
    """Return whose token this is.

    Raises:
        UnknownCallerError: if it is unknown, or stands for nobody any more.
    """
    token = session.scalar(select(ApiToken).where(ApiToken.digest == credentials.digest(secret)))
    if token is None:
        raise UnknownCallerError("this token is not known here; `edgefleet login` gets one")
    if token.revoked_at is not None:
        raise UnknownCallerError(f"token {token.id} was revoked; `edgefleet login` gets another")
    if token.expires_at <= now:
        raise UnknownCallerError(f"token {token.id} has expired; `edgefleet login` gets another")
    account = session.get_one(Account, token.account)
    if account.disabled_at is not None:
        raise UnknownCallerError(f"the account of token {token.id} is disabled")
    if account.issuer is not None and (account.confirmed_at or 0.0) + PRESENCE_S <= now:
        raise UnknownCallerError(
            f"{account.name} has not signed in for {PRESENCE_S / DAY_S:.0f} days; do so, and the"
            " token works again"
        )
    scope = None if token.permissions is None else frozenset(map(Permission, token.permissions))
    held = caller_of(session, account.name)
    return Caller(held.name, held.kind, held.grants, scope, token.model, token.id), token


def wants_noting(token: ApiToken, now: float) -> bool:
    """Return whether this use of a token is to be noted (`note_use`)."""
    return token.used_at is None or token.used_at + USED_STEP_S <= now


def note_use(session: Session, token_id: int, now: float) -> None:
    """Note when a token was last used, in a write transaction."""
    session.get_one(ApiToken, token_id).used_at = now


def caller_of(session: Session, account: str, *, web_session: str = "") -> Caller:
    """Return an account as a caller with all that it may.

    Args:
        session: for reading.
        account: its name.
        web_session: digest of the session that was shown, if one was.

    Raises:
        NotFoundError: if there is no such account.
    """
    row = session.get(Account, account)
    if row is None:
        raise NotFoundError("account", account)
    query = select(RoleGrant).where(RoleGrant.account == account).order_by(RoleGrant.role)
    grants = tuple(Grant(Role(grant.role), grant.model) for grant in session.scalars(query))
    return Caller(row.name, AccountKind(row.kind), grants, session=web_session)


def list_tokens(session: Session, account: str | None = None) -> list[ApiToken]:
    """Return tokens, newest first: of one account, or of all."""
    query = select(ApiToken).order_by(ApiToken.id.desc())
    if account is not None:
        query = query.where(ApiToken.account == account)
    return list(session.scalars(query))


def revoke(session: Session, token_id: int, caller: Caller, now: float) -> ApiToken:
    """End a token at once: one's own, or as an admin any.

    Raises:
        NotFoundError: if there is none, or it is another's and the caller is no admin.
    """
    token = session.get(ApiToken, token_id)
    if token is None or (token.account != caller.name and not caller.may(Permission.ADMINISTER)):
        raise NotFoundError("token", token_id)
    if token.revoked_at is None:
        token.revoked_at = now
        session.flush()
        record(session, "token.revoke", str(token.id), now, after={"name": token.name})
    return token


def revoke_all(session: Session, account: str, now: float) -> int:
    """End all tokens of an account; return how many were open."""
    tokens = [token for token in list_tokens(session, account) if _is_open(token, now)]
    for token in tokens:
        token.revoked_at = now
    session.flush()
    return len(tokens)


def check_may_give(caller: Caller, permissions: frozenset[Permission] | None, model: str) -> None:
    """Refuse to make a token that may more than the token it is asked with.

    Raises:
        DeniedError: naming what is too much.
    """
    if caller.scope is not None and (permissions is None or not permissions <= caller.scope):
        raise DeniedError("a token cannot make another that may more than itself")
    if caller.model and caller.model != model:
        raise DeniedError(f"this token is for {caller.model} only, and so is what it makes")


def check_is_service(session: Session, account: str) -> None:
    """Refuse to make a token for another person: it would act in their name.

    Raises:
        NotFoundError: if there is no such account.
        DeniedError: if it is a person's.
    """
    if caller_of(session, account).kind != AccountKind.SERVICE:
        raise DeniedError(f"{account} is a person, who makes tokens alone")


def _is_open(token: ApiToken, now: float) -> bool:
    return token.revoked_at is None and token.expires_at > now
