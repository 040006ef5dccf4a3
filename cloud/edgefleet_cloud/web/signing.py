"""The pages to sign in and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from edgefleet_cloud.api.authentication import SESSION_COOKIE, address_of
from edgefleet_cloud.api.context import Hub
from edgefleet_cloud.errors import (
    DeniedError,
    LimitedError,
    NotFoundError,
    UnknownCallerError,
)
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.audit.log import record
from edgefleet_cloud.trust.people import provider_sign_in, sessions
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.trust.people.provider import Provider
from edgefleet_cloud.trust.people.sign_in import Gate
from edgefleet_cloud.trust.people.throttle import Subject
from edgefleet_cloud.web.guard import FORM, PageRoute, Viewer, Visitor, own_path
from edgefleet_cloud.web.render import HEADERS, page, style

router = APIRouter(route_class=PageRoute, include_in_schema=False)
FLOW_COOKIE = "__Host-edgefleet-sign-in"
Typed = Annotated[str, Form(max_length=300)]


@router.get("/")
def start() -> Response:
    """Lead to the first page."""
    return RedirectResponse("/approvals", 303)


@router.get("/style.css")
def stylesheet() -> Response:
    """Give the style sheet."""
    return Response(style(), media_type="text/css", headers=HEADERS)


@router.get("/sign-in")
def show_sign_in(
    hub: Hub, viewer: Viewer, next_path: Annotated[str, Query(alias="next")] = "/"
) -> Response:
    """Show the form to sign in."""
    values = {"problem": "", "next": own_path(next_path), "provider": _label(hub)}
    return page("sign_in", viewer, values)


@router.post("/sign-in", dependencies=FORM)
def sign_in(
    hub: Hub,
    request: Request,
    viewer: Viewer,
    name: Typed,
    password: Typed,
    next_path: Annotated[str, Form(alias="next")] = "/",
) -> Response:
    """Sign a browser in with name and password."""
    gate = Gate(hub.database, request.app.state.throttle)
    try:
        caller = gate.with_password(name, password, address_of(request), hub.clock())
    except (UnknownCallerError, LimitedError) as error:
        values = {"problem": str(error), "next": own_path(next_path), "provider": _label(hub)}
        failed = page("sign_in", viewer, values, 429 if isinstance(error, LimitedError) else 401)
        if isinstance(error, LimitedError):
            failed.headers["Retry-After"] = str(error.wait_s)
        return failed
    return begin_session(hub, caller, own_path(next_path), former=viewer.caller)


@router.get("/sign-in/provider")
def go_to_provider(
    hub: Hub, request: Request, next_path: Annotated[str, Query(alias="next")] = "/"
) -> Response:
    """Send the browser to the OpenID Connect provider."""
    _slow_down(request)
    begun = _provider(request).begin()
    with hub.database.write() as session:
        secret = provider_sign_in.begin(session, begun, own_path(next_path), hub.clock())
    answer = RedirectResponse(begun.url, 303)
    # Lax: the browser comes back from another site.
    answer.set_cookie(
        FLOW_COOKIE, secret, max_age=int(provider_sign_in.LIFE_S), path="/", secure=True,
        httponly=True, samesite="lax",
    )  # fmt: skip
    return answer


@router.get("/sign-in/provider/back")
def come_back(
    hub: Hub,
    request: Request,
    viewer: Viewer,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str, Query(max_length=4096)] = "",
    iss: Annotated[str | None, Query(max_length=300)] = None,
    error: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Take what the provider says of the person, and sign the browser in."""
    _slow_down(request)
    try:
        with hub.database.write() as session:
            browser = request.cookies.get(FLOW_COOKIE, "")
            held = provider_sign_in.take(session, state, browser, hub.clock())
        if error or not code:
            raise UnknownCallerError(f"the provider refused the sign-in: {error or 'no code'}")
        caller = provider_sign_in.finish(hub, _provider(request), held, code, iss)
    except DeniedError:
        request.app.state.throttle.failed(Subject.PASSWORD, address_of(request))
        raise
    answer = begin_session(hub, caller, held.next, former=viewer.caller)
    answer.delete_cookie(FLOW_COOKIE, path="/", secure=True, httponly=True)
    return answer


@router.post("/sign-out", dependencies=FORM)
def sign_out(hub: Hub, visitor: Visitor) -> Response:
    """End the session of this browser."""
    with hub.database.write() as session:
        sessions.end(session, visitor.session)
        record(session, "session.end", visitor.name, hub.clock())
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True)
    return answer


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.provider
    if provider is None:
        raise NotFoundError("OpenID Connect provider", "of this hub")
    return provider


def _label(hub: Services) -> str:
    return hub.settings.oidc_label if hub.settings.oidc_issuer else ""


def _slow_down(request: Request) -> None:
    wait_s = request.app.state.throttle.wait_s(Subject.PASSWORD, address_of(request))
    if wait_s:
        raise LimitedError("too many failed sign-ins from this address", wait_s)


def begin_session(hub: Services, caller: Caller, next_path: str, former: Caller | None) -> Response:
    """Return the way on for somebody who has just signed in, with a new session.

    Args:
        hub: of the running hub.
        caller: who has shown who they are.
        next_path: where to go on.
        former: whose session the browser held until now; it ends.
    """
    now = hub.clock()
    with hub.database.write() as session, acting.acting(caller.actor):
        if former is not None:
            sessions.end(session, former.session)
        secret = sessions.begin(session, caller.name, now)
        record(session, "session.begin", caller.name, now)
    answer = RedirectResponse(next_path, 303)
    answer.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=int(sessions.LIFE_S),
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )
    return answer
