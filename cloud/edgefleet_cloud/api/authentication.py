"""Who sends a request, found out once, before anything else looks at it: a plain ASGI layer.

Rules:

1. A bearer token, or else the cookie of a web session, names an account. What is shown and is not
   valid is as good as nothing: open routes still answer, all others say why not (401).
2. The account acts (`trust.acting`) in all that the request does, in threads too.
3. A cookie alone changes nothing, for browsers send it along with the forms of foreign pages: an
   unsafe method needs the session's CSRF token in `X-CSRF-Token`, or in the form of a page (`web`).
4. After too many wrong credentials from one address, further wrong ones are answered 429. Right
   ones always pass, so that nobody is locked out by a neighbour.
"""

import hmac
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from edgefleet_cloud.api.errors import answer, busy
from edgefleet_cloud.errors import UnknownCallerError
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.people import sessions, tokens
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.throttle import Subject, Throttle

# `__Host-`: browsers take it only over HTTPS, for this very host, and from no subdomain.
SESSION_COOKIE = "__Host-edgefleet"
CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_CREDENTIAL_LENGTH = 200


@dataclass(frozen=True)
class Shown:
    """What a request showed.

    Attributes:
        caller: who it is, None for nobody.
        problem: why what was shown does not count; "" if nothing was shown.
        csrf: the CSRF token of the web session, "" without one.
        csrf_passed: whether the request cannot come from a foreign page.
    """

    caller: Caller | None = None
    problem: str = ""
    csrf: str = ""
    csrf_passed: bool = True


class Authentication:
    """Puts `Shown` into the request's state as `shown`, and lets the account act.

    Args:
        app: the next layer.
        throttle: counts wrong credentials.
    """

    def __init__(self, app: ASGIApp, throttle: Throttle) -> None:
        self._app = app
        self._throttle = throttle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        services: Services = scope["app"].state.services
        try:
            shown = await run_in_threadpool(look, request, scope["method"], services)
        except OperationalError as error:
            await busy(error)(scope, receive, send)
            return
        address = address_of(request)
        if shown.problem:
            wait_s = self._throttle.wait_s(Subject.TOKEN, address)
            self._throttle.failed(Subject.TOKEN, address)
            if wait_s:
                text = f"too many wrong credentials from {address}; wait {wait_s} s"
                await answer(429, text, {"Retry-After": str(wait_s)})(scope, receive, send)
                return
        scope.setdefault("state", {})["shown"] = shown
        if shown.caller is None:
            await self._app(scope, receive, send)
            return
        with acting.acting(shown.caller.actor):
            await self._app(scope, receive, send)


def look(request: HTTPConnection, method: str, services: Services) -> Shown:
    """Return what a request shows of its sender."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    secret, cookie = credentials.strip(), request.cookies.get(SESSION_COOKIE, "")
    try:
        if scheme:
            if scheme.lower() != "bearer" or not 0 < len(secret) <= MAX_CREDENTIAL_LENGTH:
                raise UnknownCallerError("expected `Authorization: Bearer <token>`")
            return Shown(_by_token(services, secret))
        if cookie:
            csrf = sessions.csrf_token(cookie[:MAX_CREDENTIAL_LENGTH])
            given = request.headers.get(CSRF_HEADER, "")
            passed = method in SAFE_METHODS or hmac.compare_digest(given.encode(), csrf.encode())
            return Shown(_by_session(services, cookie), csrf=csrf, csrf_passed=passed)
    except UnknownCallerError as error:
        return Shown(problem=str(error))
    return Shown()


def address_of(request: HTTPConnection) -> str:
    """Return the address that a request comes from."""
    return request.client.host if request.client else "unknown"


def _by_token(services: Services, secret: str) -> Caller:
    now = services.clock()
    with services.database.read() as session:
        caller, token = tokens.authenticate(session, secret, now)
    if tokens.wants_noting(token, now):
        with services.database.write() as session:
            tokens.note_use(session, token.id, now)
    return caller


def _by_session(services: Services, secret: str) -> Caller:
    now = services.clock()
    with services.database.read() as session:
        caller, held = sessions.authenticate(session, secret[:MAX_CREDENTIAL_LENGTH], now)
    if sessions.wants_noting(held, now):
        with services.database.write() as session:
            sessions.note_use(session, held.digest, now)
    return caller
