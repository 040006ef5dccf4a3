"""Accounts, tokens and sign-ins over HTTP.

Routes without a token: the three that give one. They are slowed down by address and by name.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from edgefleet_cloud.api.authentication import address_of
from edgefleet_cloud.api.context import Asker, Hub, RowId, allow, check
from edgefleet_cloud.database.models import Account, AccountKind
from edgefleet_cloud.errors import LimitedError
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import accounts, sessions, terminal, tokens
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.trust.people.sign_in import Gate
from edgefleet_cloud.trust.people.throttle import Subject

router = APIRouter(prefix="/v1", tags=["people"])
Roles = Annotated[
    list[str],
    Field(description="viewer, operator, owner, owner:MODEL, approver, admin, ci.", max_length=100),
]
Days = Annotated[float, Field(gt=0, le=tokens.MAX_LIFE_S / tokens.DAY_S)]


class SignInBody(BaseModel):
    """Name and password of a person."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=300)
    password: str = Field(max_length=300, json_schema_extra={"format": "password"})


class TokenAnswer(BaseModel):
    """A token, without the secret that proves it."""

    model_config = ConfigDict(from_attributes=True)
    id: int
    account: str
    name: str
    permissions: list[Permission] | None = Field(
        description="The most that it may do; null for all that its account may."
    )
    model: str = Field(description="The only model that it may change; empty for all.")
    created_at: float
    expires_at: float
    used_at: float | None = Field(description="To a quarter of an hour.")
    revoked_at: float | None


class NewTokenAnswer(TokenAnswer):
    """A new token."""

    token: str = Field(description="The secret. It is shown this once.")


class TerminalAnswer(BaseModel):
    """How a command line signs in through the web page."""

    secret: str = Field(description="With it the command line asks how it stands.")
    code: str = Field(description="What the person types on the page.")
    page: str = Field(description="Path of the page.")
    poll_s: float = Field(description="Ask no more often.")
    expires_at: float


class CollectBody(BaseModel):
    """A command line that asks how its sign-in stands."""

    model_config = ConfigDict(extra="forbid")
    secret: str = Field(max_length=200)


class CollectAnswer(BaseModel):
    """How the sign-in of a command line stands."""

    token: NewTokenAnswer | None = Field(description="null while nobody has answered yet.")


class MeAnswer(BaseModel):
    """Who asks."""

    account: str
    kind: AccountKind
    roles: list[str]
    permissions: list[Permission] = Field(description="With what was shown, a token's limits too.")
    model: str = Field(description="The only model that the token may change; empty for all.")


class AccountBody(BaseModel):
    """An account to make."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="Lower-case letters, digits, '.', '_', '-'.", max_length=80)
    kind: AccountKind = AccountKind.PERSON
    roles: Roles = Field(default_factory=list)
    password: str | None = Field(
        None, max_length=300, json_schema_extra={"format": "password"}, description="Of a person."
    )


class RolesBody(BaseModel):
    """The roles that an admin gives to an account, in place of those before."""

    model_config = ConfigDict(extra="forbid")
    roles: Roles


class PasswordBody(BaseModel):
    """A new password."""

    model_config = ConfigDict(extra="forbid")
    password: str = Field(max_length=300, json_schema_extra={"format": "password"})


class ReasonBody(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=500)


class AccountAnswer(BaseModel):
    """An account."""

    name: str
    kind: AccountKind
    roles: list[str]
    signs_in: str = Field(description="password, provider, or token only.")
    disabled_at: float | None
    created_at: float


class TokenBody(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="What it is for.", max_length=100)
    account: str | None = Field(None, description="One's own; an admin names a service, too.")
    days: Days = tokens.DEFAULT_LIFE_S / tokens.DAY_S
    permissions: list[Permission] | None = Field(
        None, description="The most that it may do; all that the account may by default."
    )
    model: str = Field("", description="The only model that it may change.", max_length=64)


@router.post("/login")
def sign_in(hub: Hub, request: Request, body: SignInBody) -> NewTokenAnswer:
    """Get a token for 12 hours with name and password; no token is needed for this."""
    now = hub.clock()
    gate = Gate(hub.database, request.app.state.throttle)
    caller = gate.with_password(body.name, body.password, address_of(request), now)
    with hub.database.write() as session, acting.acting(caller.actor):
        name = f"login from {address_of(request)}"
        made = tokens.issue(session, caller.name, name, now, life_s=terminal.TOKEN_LIFE_S)
    return _new_token(*made)


@router.post("/login/terminal", status_code=201)
def begin_terminal_sign_in(hub: Hub, request: Request) -> TerminalAnswer:
    """Begin to sign a command line in through the web page; no token is needed for this."""
    address = address_of(request)
    throttle = request.app.state.throttle
    wait_s = throttle.wait_s(Subject.TERMINAL, address)
    if wait_s:
        raise LimitedError("too many command lines from this address", wait_s)
    throttle.failed(Subject.TERMINAL, address)
    with hub.database.write() as session:
        asked, secret = terminal.begin(session, address, hub.clock())
    return TerminalAnswer(
        secret=secret,
        code=asked.user_code,
        page="/terminal",
        poll_s=terminal.POLL_S,
        expires_at=asked.expires_at,
    )


@router.post("/login/terminal/token")
def collect_terminal_token(hub: Hub, body: CollectBody) -> CollectAnswer:
    """Get the token once the person has allowed it; no token is needed for this."""
    with hub.database.read() as session:
        if not terminal.is_answered(session, body.secret, hub.clock()):
            return CollectAnswer(token=None)
    with hub.database.write() as session:
        made = terminal.collect(session, body.secret, hub.clock())
    return CollectAnswer(token=_new_token(*made))


@router.get("/me", dependencies=allow())
def show_me(hub: Hub, asker: Asker) -> MeAnswer:
    """Show who asks and what they may."""
    with hub.database.read() as session:
        return MeAnswer(
            account=asker.name,
            kind=asker.kind,
            roles=accounts.roles(session, asker.name),
            permissions=sorted(asker.permissions),
            model=asker.model,
        )


@router.post("/logout", status_code=204, dependencies=allow())
def sign_out(hub: Hub, asker: Asker) -> Response:
    """End the token or the session that this request shows."""
    with hub.database.write() as session:
        if asker.session:
            sessions.end(session, asker.session)
            record(session, "session.end", asker.name, hub.clock())
        else:
            tokens.revoke(session, asker.token, asker, hub.clock())
    return Response(status_code=204)


@router.get("/accounts", dependencies=allow(Permission.ADMINISTER))
def list_accounts(hub: Hub) -> list[AccountAnswer]:
    """List all accounts by name."""
    with hub.database.read() as session:
        return [_account(session, row) for row in accounts.listing(session)]


@router.post("/accounts", status_code=201, dependencies=allow(Permission.ADMINISTER))
def create_account(hub: Hub, body: AccountBody) -> AccountAnswer:
    """Make an account. Its name is never given again."""
    grants = [accounts.read_grant(text) for text in body.roles]
    with hub.database.write() as session:
        row = accounts.create(
            session, body.name, body.kind, grants, hub.clock(), password=body.password
        )
        return _account(session, row)


@router.put("/accounts/{account}/roles", dependencies=allow(Permission.ADMINISTER))
def set_account_roles(hub: Hub, account: str, body: RolesBody) -> AccountAnswer:
    """Replace the roles of an account."""
    grants = [accounts.read_grant(text) for text in body.roles]
    with hub.database.write() as session:
        return _account(session, accounts.set_roles(session, account, grants, hub.clock()))


@router.post("/accounts/{account}/password", dependencies=allow())
def set_account_password(hub: Hub, asker: Asker, account: str, body: PasswordBody) -> AccountAnswer:
    """Give oneself, or as an admin anybody, a new password; web sessions end."""
    if asker.name != account or asker.scope is not None:
        check(asker, Permission.ADMINISTER)
    with hub.database.write() as session:
        row = accounts.set_password(session, account, body.password, hub.clock())
        return _account(session, row)


@router.post("/accounts/{account}/disable", dependencies=allow(Permission.ADMINISTER))
def disable_account(hub: Hub, account: str, body: ReasonBody) -> AccountAnswer:
    """Shut an account out; its sessions and tokens end at once."""
    with hub.database.write() as session:
        return _account(session, accounts.disable(session, account, body.reason, hub.clock()))


@router.post("/accounts/{account}/enable", dependencies=allow(Permission.ADMINISTER))
def enable_account(hub: Hub, account: str, body: ReasonBody) -> AccountAnswer:
    """Let an account in again; its former tokens stay revoked."""
    with hub.database.write() as session:
        return _account(session, accounts.enable(session, account, body.reason, hub.clock()))


@router.get("/tokens", dependencies=allow())
def list_tokens(
    hub: Hub,
    asker: Asker,
    everyone: Annotated[bool, Query(description="All accounts' tokens, for an admin.")] = False,
) -> list[TokenAnswer]:
    """List one's own tokens, newest first."""
    if everyone:
        check(asker, Permission.ADMINISTER)
    with hub.database.read() as session:
        rows = tokens.list_tokens(session, None if everyone else asker.name)
        return [TokenAnswer.model_validate(row) for row in rows]


@router.post("/tokens", status_code=201, dependencies=allow())
def create_token(hub: Hub, asker: Asker, body: TokenBody) -> NewTokenAnswer:
    """Make a token for oneself, or as an admin for a service."""
    account = body.account or asker.name
    wanted = None if body.permissions is None else frozenset(body.permissions)
    if account == asker.name:
        tokens.check_may_give(asker, wanted, body.model)
    else:
        check(asker, Permission.ADMINISTER)
    with hub.database.write() as session:
        if account != asker.name:
            tokens.check_is_service(session, account)
        made = tokens.issue(
            session,
            account,
            body.name,
            hub.clock(),
            life_s=body.days * tokens.DAY_S,
            permissions=wanted,
            model=body.model,
        )
    return _new_token(*made)


@router.post("/tokens/{token_id}/revoke", dependencies=allow())
def revoke_token(hub: Hub, asker: Asker, token_id: RowId) -> TokenAnswer:
    """End one's own token, or as an admin any, at once."""
    with hub.database.write() as session:
        row = tokens.revoke(session, token_id, asker, hub.clock())
        return TokenAnswer.model_validate(row)


def _new_token(row: Any, secret: str) -> NewTokenAnswer:
    return NewTokenAnswer(**tokens.view(row), token=secret)


def _account(session: Session, row: Account) -> AccountAnswer:
    way = "provider" if row.issuer else "password" if row.password else "token only"
    return AccountAnswer(
        name=row.name,
        kind=AccountKind(row.kind),
        roles=accounts.roles(session, row.name),
        signs_in=way,
        disabled_at=row.disabled_at,
        created_at=row.created_at,
    )
