"""What a request may cost, and what every answer says, as plain ASGI layers.

Only the operator may send a large body: FastAPI reads a body before it asks who sent it, so
without this anyone could fill the disk. Bytes are counted as they arrive; a declared length only
ends a hopeless request sooner.
"""

import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgefleet_cloud.api.errors import answer

# A JSON body of the API, an enrolment with its CSR included, stays far below this.
SMALL_BODY_BYTES = 1 << 20
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class BodyLimit:
    """Ends a request with 413 when its body is over the caller's limit.

    Args:
        app: the next layer.
        token: of the operator.
        limit_bytes: for the operator's uploads; everything else may have `SMALL_BODY_BYTES`.
    """

    def __init__(self, app: ASGIApp, token: str, limit_bytes: int) -> None:
        self._app = app
        self._credentials = f"Bearer {token}".encode()
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit_for(headers)
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

    def _limit_for(self, headers: Headers) -> int:
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        credentials = headers.get("authorization", "").encode()
        if upload and hmac.compare_digest(credentials, self._credentials):
            return self._limit_bytes
        return SMALL_BODY_BYTES


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
