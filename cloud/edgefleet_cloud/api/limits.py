"""What a request may cost, and what every answer says, as plain ASGI layers.

Only who may make versions may send a large body: FastAPI reads a body before a route asks who sent
it, so without this anyone could fill the disk. Bytes are counted as they arrive; a declared length
only ends a hopeless request sooner.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgefleet_cloud.api.authentication import Shown, address_of
from edgefleet_cloud.api.errors import answer
from edgefleet_cloud.trust.people.roles import Permission
from edgefleet_cloud.trust.people.throttle import Subject, Throttle

# A JSON body of the API, an enrolment with its CSR included, stays far below this.
SMALL_BODY_BYTES = 1 << 20
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Strict-Transport-Security": "max-age=31536000",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": (
        "camera=(), geolocation=(), microphone=(), payment=(), publickey-credentials-get=(), usb=()"
    ),
}
# What devices ask for without a token; see `Subject.ENROLMENT`.
ENROLMENT_PATHS = frozenset({"/v1/enrol", "/v1/enrol/serial", "/v1/renew", "/v1/renew/challenge"})


class BodyLimit:
    """Ends a request with 413 when its body is over the caller's limit.

    Args:
        app: the next layer.
        limit_bytes: for uploads of who may make versions; all else may have `SMALL_BODY_BYTES`.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit_for(headers, scope["state"]["shown"])
        text = f"the request is over {limit} bytes, the most allowed here"
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            await answer(413, text, {"Connection": "close"})(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise HTTPException(413, text)
            return message

        await self._app(scope, counted, send)

    def _limit_for(self, headers: Headers, shown: Shown) -> int:
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        caller = shown.caller if shown.csrf_passed else None
        if upload and caller is not None and Permission.MAKE in caller.permissions:
            return self._limit_bytes
        return SMALL_BODY_BYTES


class EnrolmentLimit:
    """Answers 429 to an address from which too many enrolments have failed.

    Args:
        app: the next layer.
        throttle: counts the failures.
    """

    def __init__(self, app: ASGIApp, throttle: Throttle) -> None:
        self._app = app
        self._throttle = throttle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] not in ENROLMENT_PATHS:
            await self._app(scope, receive, send)
            return
        address = address_of(HTTPConnection(scope))
        wait_s = self._throttle.wait_s(Subject.ENROLMENT, address)
        if wait_s:
            text = f"too many failed enrolments from {address}; wait {wait_s} s"
            await answer(429, text, {"Retry-After": str(wait_s)})(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self._throttle.failed(Subject.ENROLMENT, address)
            await send(message)

        await self._app(scope, receive, sending)


class SecurityHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sending)
