"""Signing in through the OpenID Connect provider, and what its groups make of an account.

Rules:

1. What the provider sends back counts once, soon, and in the browser that began: `state` is
   deleted before anything else is done with it, and belongs to a cookie.
2. An account is its issuer and subject. A name that is taken already stays who it is; the newcomer
   gets a name of their own.
3. The groups of each sign-in decide the roles (`oidc_roles`); who is in no such group is not let
   in and loses the roles that groups gave.
"""

import re
from collections.abc import Callable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Account, AccountKind, ProviderSignIn
from edgefleet_cloud.errors import DeniedError, UnknownCallerError
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.people import accounts, credentials, sessions, tokens
from edgefleet_cloud.trust.people.callers import Caller, Grant
from edgefleet_cloud.trust.people.id_tokens import Identity
from edgefleet_cloud.trust.people.provider import Begun, Provider
from edgefleet_protocol.identifiers import digest_of

LIFE_S = 600.0
_UNFIT = re.compile(r"[^a-z0-9._-]+")


def open_provider(settings: Settings, clock: Callable[[], float]) -> Provider | None:
    """Return the provider that the settings name, None if they name none.

    Raises:
        InvalidError: if a setting of it cannot be used.
    """
    if not settings.oidc_issuer:
        return None
    for texts in settings.oidc_roles.values():
        for text in texts:
            accounts.read_grant(text)
    return Provider(settings, clock)


def begin(session: Session, begun: Begun, next_path: str, now: float) -> str:
    """Note that a browser is sent to the provider; return the secret for its cookie.

    Args:
        session: in a write transaction.
        begun: from `Provider.begin`.
        next_path: where to go on afterwards.
        now: Unix seconds.
    """
    session.execute(delete(ProviderSignIn).where(ProviderSignIn.expires_at <= now))
    secret = credentials.new_secret()
    session.add(
        ProviderSignIn(
            state_digest=credentials.digest(begun.state),
            browser_digest=credentials.digest(secret),
            nonce=begun.nonce,
            verifier=begun.verifier,
            next=next_path,
            expires_at=now + LIFE_S,
        )
    )
    return secret


def take(session: Session, state: str, browser: str, now: float) -> ProviderSignIn:
    """Return the sign-in that comes back, and forget it, in a transaction of its own.

    Raises:
        UnknownCallerError: if it is unknown, was used, has expired, or began in another browser.
    """
    held = session.get(ProviderSignIn, credentials.digest(state))
    if held is None or held.expires_at <= now:
        raise UnknownCallerError("this sign-in is over; begin again")
    if held.browser_digest != credentials.digest(browser):
        raise UnknownCallerError("this sign-in began in another browser; begin again")
    session.expunge(held)
    used = ProviderSignIn.state_digest == held.state_digest
    # Of two that come at once, one finds the row.
    if session.execute(delete(ProviderSignIn).where(used).returning(ProviderSignIn.next)).all():
        return held
    raise UnknownCallerError("this sign-in is over; begin again")


def finish(
    services: Services, provider: Provider, held: ProviderSignIn, code: str, issuer: str | None
) -> Caller:
    """Return who has signed in, with the roles that the provider's groups give.

    Raises:
        UnknownCallerError: if the provider's answer is not believed.
        DeniedError: if they are in no group that has a role, or the account is disabled.
        ProviderError: if the provider does not answer.
    """
    identity = provider.finish(code, issuer, held.nonce, held.verifier)
    grants = roles_of(identity, services.settings.oidc_roles)
    now = services.clock()
    with services.database.write() as session:
        account = _account(session, identity)
        if account is not None:
            accounts.set_provider_roles(session, account.name, grants, now)
        if grants and account is None:
            account = _make(session, identity, grants, now)
        if grants and account is not None:
            account.confirmed_at = now
        refused = not grants or account is None or account.disabled_at is not None
        if refused and account is not None:
            sessions.end_all(session, account.name)
        caller = None if refused or account is None else tokens.caller_of(session, account.name)
    if caller is None:
        raise DeniedError(
            "you are known to the provider, but nobody has let you in here; ask an admin which"
            " group you need"
        )
    return caller


def roles_of(identity: Identity, mapping: dict[str, list[str]]) -> frozenset[Grant]:
    """Return the roles that somebody's groups give."""
    return frozenset(
        accounts.read_grant(text) for group in identity.groups for text in mapping.get(group, [])
    )


def name_for(identity: Identity, taken: bool) -> str:
    """Return what an account is called: as the provider says, made fit; apart if it is taken."""
    wished = _UNFIT.sub("-", identity.name.split("@")[0].lower()).strip("-._")[:40]
    if wished and not taken and wished not in accounts.RESERVED:
        return wished
    mark = digest_of(f"{identity.issuer} {identity.subject}".encode())[:8]
    return f"{wished or 'person'}-{mark}"


def _account(session: Session, identity: Identity) -> Account | None:
    return session.scalar(
        select(Account).where(
            Account.issuer == identity.issuer, Account.subject == identity.subject
        )
    )


def _make(session: Session, identity: Identity, grants: frozenset[Grant], now: float) -> Account:
    name = name_for(identity, taken=False)
    if session.get(Account, name) is not None:
        name = name_for(identity, taken=True)
    account = accounts.create(session, name, AccountKind.PERSON, [], now)
    account.issuer, account.subject = identity.issuer, identity.subject
    accounts.set_provider_roles(session, name, grants, now)
    return account
