"""The server as an ASGI application: which request means what, and how much of it is taken.

Rules:

1. Nobody can reach it through a browser from elsewhere: on TCP the Host header, and everywhere the
   Origin header if there is one, must name this machine. There is no CORS.
2. Health and metadata are answered on the event loop, models run on worker threads, so a slow
   model never stops a health check.
3. At most `MAX_REQUESTS` requests with `HELD_BODIES` times the largest body are held at once; what
   comes beyond is told 503 at once, instead of waiting for memory that is not there.
4. A body must come within `BODY_TIMEOUT_S`, or its place goes to another.
5. Every error is the protocol's `{"error": …}`. One that is no fault of the request is logged.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from edgefleet_agent.errors import InferenceError, NotServingError
from edgefleet_agent.server import encodings, replies, requests
from edgefleet_agent.server.address import is_local_name
from edgefleet_agent.server.admission import Place, Room
from edgefleet_agent.server.refusal import RequestError, shown
from edgefleet_agent.server.replies import HEAD_BYTES_HEADER, Reply
from edgefleet_agent.server.workers import Workers
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.messages import Slot

if TYPE_CHECKING:
    from edgefleet_agent.inference.serving import Model

log = logging.getLogger(__name__)

MAX_REQUESTS = 64
HELD_BODIES = 4
BODY_TIMEOUT_S = 30.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Models(Protocol):
    """What the server needs of an agent."""

    def models(self) -> list[str]:
        """Return the names of the models that have a serving release."""

    def model(self, name: str) -> "Model":
        """Return a model by name."""


class _Feedback(Struct, frozen=True, forbid_unknown_fields=True):
    prediction_id: int
    label: Annotated[str, Meta(max_length=200)] | int | float | bool


class Application:
    """The ASGI application.

    Args:
        models: that answer.
        workers: that run them.
        max_request_bytes: of a body, packed or not.
        any_host: take any Host header, as on a Unix socket, which no browser reaches.
        body_timeout_s: within which a body must come.
    """

    def __init__(
        self,
        models: Models,
        workers: Workers,
        *,
        max_request_bytes: int,
        any_host: bool = False,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._models = models
        self._workers = workers
        self._max_bytes = max_request_bytes
        self._any_host = any_host
        self._body_timeout_s = body_timeout_s
        self._room = Room(MAX_REQUESTS, max_request_bytes, HELD_BODIES * max_request_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        headers = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}
        try:
            self._require_local(headers)
            reply = await self._answer(scope["method"], scope["path"], headers, receive)
        except Exception as error:
            reply = _failure(error)
        await _send(send, reply)

    def _require_local(self, headers: dict[str, str]) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and not is_local_name(host):
            raise RequestError(f"Host {shown(host)} is not a name of this machine", 403)
        if origin is not None and not is_local_name(origin.rpartition("://")[2]):
            raise RequestError(f"pages of {shown(origin)} may not use this server", 403)

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], receive: Receive
    ) -> Reply:
        match path.strip("/").split("/"):
            case ["v2"]:
                _require_method(method, "GET")
                return replies.server_metadata()
            case ["v2", "health", "live"]:
                _require_method(method, "GET")
                return replies.json_reply({"live": True})
            case ["v2", "health", "ready"]:
                _require_method(method, "GET")
                ready = bool(self._models.models())
                return replies.json_reply({"ready": ready}, 200 if ready else 503)
            case ["v2", "models", name, "versions", version, *action]:
                return await self._answer_model(method, name, version, action, headers, receive)
            case ["v2", "models", name, *action]:
                return await self._answer_model(method, name, None, action, headers, receive)
        raise RequestError(f"there is nothing at {shown(path)}", 404)

    async def _answer_model(
        self,
        method: str,
        name: str,
        version: str | None,
        action: list[str],
        headers: dict[str, str],
        receive: Receive,
    ) -> Reply:
        match action:
            case []:
                _require_method(method, "GET")
                model, slot = self._serving(name, version)
                return replies.model_metadata(slot, model.signature)
            case ["ready"]:
                _require_method(method, "GET")
                self._serving(name, version)
                return replies.json_reply({"name": name, "ready": True})
            case ["infer"]:
                _require_method(method, "POST")
                return await self._with_body(
                    headers, receive, lambda body: self._infer(name, version, headers, body)
                )
            case ["feedback"]:
                _require_method(method, "POST")
                return await self._with_body(
                    headers, receive, lambda body: self._feedback(name, version, body)
                )
        raise RequestError(f"a model has nothing at {shown('/'.join(action))}", 404)

    async def _with_body(
        self, headers: dict[str, str], receive: Receive, answer: Callable[[bytes], Reply]
    ) -> Reply:
        """Read the body and answer it on a worker, as far as there is room for it."""

        def work() -> Reply:
            plain = encodings.unpack(body, headers.get("content-encoding", ""), self._max_bytes)
            return _packed(answer(plain), headers.get("accept-encoding", ""))

        with self._room.place() as place:
            try:
                async with asyncio.timeout(self._body_timeout_s):
                    body = await self._body(headers, receive, place)
            except TimeoutError:
                text = f"the body did not come within {self._body_timeout_s:g} s"
                raise RequestError(text, 408) from None
            return await self._workers.run(work)

    async def _body(self, headers: dict[str, str], receive: Receive, place: Place) -> bytes:
        # The HTTP parser has checked that it is a number, and lets no more than that through.
        self._room.require_allowed(int(headers.get("content-length", "0")))
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client went away in the middle of the body")
            part: bytes = message.get("body", b"")
            place.grow(len(part))
            parts.append(part)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _infer(self, name: str, version: str | None, headers: dict[str, str], body: bytes) -> Reply:
        model, slot = self._serving(name, version)
        head_bytes = _head_bytes(headers)
        try:
            request = requests.parse(body, head_bytes, model.signature)
            inference = model.infer(request.tensors, list(request.outputs))
        except (RequestError, MalformedError):
            if model.slot in (slot, None):
                raise
            # Another release, perhaps with other inputs, took over meanwhile: it decides.
            return self._infer(name, version, headers, body)
        if version is not None and str(inference.release) != version:
            # A challenger answers for the release that was asked for; a successor does not.
            self._serving(name, version)
        return replies.infer_reply(request, inference)

    def _feedback(self, name: str, version: str | None, body: bytes) -> Reply:
        model, _ = self._serving(name, version)
        try:
            given = _feedback_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(
                f'the body is not {{"prediction_id": NUMBER, "label": VALUE}}: {error}'
            ) from error
        return replies.json_reply({"known": model.feedback(given.prediction_id, given.label)})

    def _serving(self, name: str, version: str | None) -> tuple["Model", Slot]:
        """Return a model and the release of it that serves."""
        serving = self._models.models()
        # Asked for by name only if it serves: an agent makes a place for any name.
        model = self._models.model(name) if name in serving else None
        slot = model.slot if model else None
        if model is None or slot is None:
            names = ", ".join(serving) or "none"
            raise RequestError(
                f"this device serves no model {shown(name)}; it serves: {names}", 404
            )
        if version is not None and version != str(slot.release):
            raise RequestError(
                f"model {name} has no version {shown(version)} here; {slot.release} serves", 404
            )
        return model, slot


def _require_method(method: str, wanted: str) -> None:
    if method != wanted:
        raise RequestError(f"{shown(method)} is not offered here; use {wanted}", 405)


def _head_bytes(headers: dict[str, str]) -> int | None:
    text = headers.get(HEAD_BYTES_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise RequestError(f"Inference-Header-Content-Length is {shown(text)}; expected a length")
    return int(text)


def _packed(reply: Reply, accepted: str) -> Reply:
    encoding = encodings.choose(accepted)
    if encoding is None or len(reply.body) < encodings.MIN_PACKED_BYTES:
        return reply
    headers = {**reply.headers, "content-encoding": encoding}
    return Reply(reply.status, encodings.pack(reply.body, encoding), headers)


def _failure(error: Exception) -> Reply:
    """Return the reply that tells of an error."""
    if isinstance(error, RequestError):
        return replies.error_reply(str(error), error.status)
    if isinstance(error, MalformedError):
        return replies.error_reply(str(error), 400)
    if isinstance(error, NotServingError):
        return replies.error_reply(str(error), 404)
    if isinstance(error, InferenceError):
        return replies.error_reply(str(error), 500)
    log.error("a request failed by a defect of the server", exc_info=error)
    return replies.error_reply("the server failed; its log says why", 500)


async def _send(send: Send, reply: Reply) -> None:
    headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
    headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


_feedback_decoder = msgspec.json.Decoder(_Feedback)
