"""What stands before every page: who looks at it, and whether a form comes from this very page.

Rules:

1. Pages are for people in a browser: only a web session counts, no token.
2. A form is taken only if the browser says that it comes from this hub (`Sec-Fetch-Site`, else
   `Origin`), and, once somebody is signed in, only with their session's CSRF token.
3. What goes wrong is a page, too, with the status that the API would give.
"""

import hmac
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from edgefleet_cloud.api import errors
from edgefleet_cloud.api.authentication import Shown
from edgefleet_cloud.errors import DeniedError, HubError
from edgefleet_cloud.trust.people.callers import Caller
from edgefleet_cloud.web.render import page

_OWN_PATH = re.compile(r"/[a-z0-9][a-z0-9/-]{0,150}")


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors made into pages."""
        handle = super().get_route_handler()

        async def handling(request: Request) -> Response:
            try:
                return await handle(request)
            except HubError as error:
                answer = errors.known(error)
                values = {"text": str(error)}
                failed = page("error", request.state.shown, values, answer.status_code)
                failed.headers.update(
                    {k: v for k, v in answer.headers.items() if k == "retry-after"}
                )
                return failed
            except RequestValidationError:
                values = {"text": "a field of the form is missing or too long"}
                return page("error", request.state.shown, values, 422)

        return handling


def shown(request: Request) -> Shown:
    """Return what the request shows of its sender; a token shows nobody here."""
    held: Shown = request.state.shown
    return held if held.csrf else Shown()


def visitor(request: Request) -> Caller:
    """Return who is signed in; anyone else is led to the sign-in."""
    caller = shown(request).caller
    if caller is None:
        raise HTTPException(303, headers={"Location": f"/sign-in?next={request.url.path}"})
    return caller


async def form(request: Request) -> None:
    """Refuse a form that does not come from this hub's own page.

    Raises:
        DeniedError: saying what is wrong with it.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = (
        site == "same-origin"
        if site is not None
        else origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    )
    if not own:
        raise DeniedError("this form was sent from another page; open this hub and try there")
    held = shown(request)
    if held.caller is not None:
        given = (await request.form()).get("csrf", "")
        if not isinstance(given, str) or not hmac.compare_digest(
            given.encode(), held.csrf.encode()
        ):
            raise DeniedError("this form is of an older session; go back, reload, and try again")


def own_path(text: str) -> str:
    """Return a path of this hub to go on to; anything else becomes the start page."""
    return text if _OWN_PATH.fullmatch(text) else "/"


Visitor = Annotated[Caller, Depends(visitor)]
Viewer = Annotated[Shown, Depends(shown)]
FORM = [Depends(form)]
