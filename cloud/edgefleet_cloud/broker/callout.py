"""Deciding who may connect to the embedded broker, and which connections may stay.

The broker asks this service for every connection (NATS auth callout). Rules, in order:

1. The connection is MQTT and TLS has verified a certificate of the hub's authority.
2. The certificate's common name is the MQTT client id, so that nobody can throw another client off
   by taking its id.
3. `hub` is the hub's own link, and its certificate is the very one that this hub made.
4. Any other name is a device that is enrolled and not revoked, with a certificate that it was
   given and that was not replaced (`trust.identity.certificates`).

Whoever does not pass is refused. What cannot be read, or asked of the database, is a refusal.
A connection is closed as soon as it would not be let in any more. Which connections there are, the
server is asked for: at the start, because another callout may have let them in, and every minute.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Struct, field
from nats.aio.client import Client
from nats.aio.msg import Msg

from edgefleet_cloud.broker import policy, tickets
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_cloud.broker.tickets import Question
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.identity import certificates

SUBJECT = "$SYS.REQ.USER.AUTH"
CONNECT_TIMEOUT_S = 5
# Between two looks at the server's own list of connections.
LOOK_S = 60.0
# A connection that was let in so recently may not be on the server's list yet.
SETTLING_S = 10.0
CONNECTIONS_AT_ONCE = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A connection that may not be; `reason` is for the log."""

    reason: str


@dataclass(frozen=True)
class Held:
    """A device's connection.

    Attributes:
        admitted_at: monotonic seconds.
    """

    device: str
    serial: str
    admitted_at: float


class _Connection(Struct):
    cid: int
    authorized_user: str = ""


class _Connections(Struct):
    server_id: str
    total: int = 0
    connections: list[_Connection] = field(default_factory=list)


class _ConnectionsAnswer(Struct):
    data: _Connections


def decide(
    question: Question, database: Database, hub_serial: Callable[[], str], now: float
) -> Allowed | Refused:
    """Apply the module's rules to one connection.

    Args:
        question: who wants to connect.
        database: knows the devices.
        hub_serial: returns that of the certificate of the hub's own link.
        now: Unix seconds.
    """
    if not question.client_id or not question.common_name:
        return Refused("not an MQTT connection with a certificate of this hub's authority")
    if question.common_name != question.client_id:
        return Refused(
            f"client id {question.client_id[:64]!r} on the certificate of {question.common_name!r}"
        )
    if question.common_name == policy.HUB:
        if question.serial != hub_serial():
            return Refused("the certificate of the hub's link is not the one that this hub made")
        return policy.of_link()
    with database.write() as session:
        reason = certificates.admit(session, question.common_name, question.serial, now)
    return Refused(reason) if reason else policy.of_device(question.common_name)


def unwanted(held: Mapping[int, Held], valid: Mapping[str, set[str]]) -> list[int]:
    """Return the connections that would not be let in any more.

    Args:
        held: connection number → whose it is.
        valid: enrolled device → serials of the certificates with which it may be connected.
    """
    return [number for number, one in held.items() if one.serial not in valid.get(one.device, ())]


class Callout:
    """Answers the broker's questions on a thread of its own, over one NATS connection.

    A lost connection is not mended here: `alive` turns false and the broker's supervisor starts a
    new one, because a restarted broker has a new address anyway.

    Args:
        url: of the broker's client port, with the service's user and password.
        signer: holds the key that the broker's configuration names.
        account: in which MQTT clients are placed.
        decide: the rules above, bound to their database.
    """

    def __init__(
        self,
        url: str,
        signer: tickets.Signer,
        account: str,
        decide: Callable[[Question], Allowed | Refused],
    ) -> None:
        self._url = url
        self._signer = signer
        self._account = account
        self._decide = decide
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="broker-callout", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._held: dict[int, Held] = {}
        self._server = ""
        self._looked_at = 0.0
        self._client = Client()

    def start(self) -> None:
        """Connect; return when questions are answered.

        Raises:
            ConnectionError: if the broker cannot be reached.
        """
        self._thread.start()
        if not self._ready.wait(CONNECT_TIMEOUT_S * 2) or self._failure is not None:
            raise ConnectionError(f"auth callout could not connect: {self._failure}")

    @property
    def alive(self) -> bool:
        """Whether questions are being answered."""
        return self._thread.is_alive() and bool(self._client.is_connected)

    def stop(self) -> None:
        """Disconnect and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def held(self) -> dict[int, Held]:
        """Return the connections of devices, some of which may be gone again.

        Raises:
            nats.errors.Error: if the broker does not answer.
        """
        if time.monotonic() - self._looked_at >= LOOK_S:
            asyncio.run_coroutine_threadsafe(self._look(), self._loop).result()
        return dict(self._held)

    def disconnect(self, number: int) -> None:
        """Close a connection, if it is still there.

        Raises:
            nats.errors.Error: if the broker does not answer.
        """
        # A request: the server ignores this subject on messages that give no reply address.
        # Its answer is not needed; the connection may be gone already.
        kick = self._ask(f"{self._server}.KICK", {"cid": number})
        asyncio.run_coroutine_threadsafe(kick, self._loop).result()
        self._held.pop(number, None)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._failure = error
            _log.exception("auth callout failed; the broker refuses connections until it is back")
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        await self._client.connect(
            self._url,
            allow_reconnect=False,
            connect_timeout=CONNECT_TIMEOUT_S,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
        )
        await self._client.subscribe(SUBJECT, cb=self._answer)
        await self._client.flush()
        await self._look()
        self._ready.set()
        await self._stop.wait()
        await self._client.close()

    async def _on_error(self, error: Exception) -> None:
        _log.warning("auth callout: %s", error)

    async def _on_closed(self) -> None:
        self._stop.set()

    async def _answer(self, message: Msg) -> None:
        try:
            question = tickets.read(message.data)
        except ValueError:
            # Without a readable question there is nobody to answer; the broker times out.
            _log.exception("auth callout: refused a connection")
            return
        try:
            decision = self._decide(question)
        except Exception as error:
            _log.exception("auth callout: refused %r", question.client_id)
            decision = Refused(f"the hub could not decide: {error}")
        if isinstance(decision, Refused):
            _log.warning("broker connection refused: %s", decision.reason)
            await message.respond(self._signer.refuse(question, decision.reason))
            return
        if question.common_name != policy.HUB:
            self._held[question.connection] = Held(
                question.common_name, question.serial, time.monotonic()
            )
        await message.respond(self._signer.admit(question, self._account, decision))

    async def _look(self) -> None:
        """Bring `held` into line with the server's own list of its connections."""
        self._looked_at = time.monotonic()
        listed: dict[int, Held] = {}
        offset, total = 0, 1
        while offset < total:
            page_wanted = {"auth": True, "limit": CONNECTIONS_AT_ONCE, "offset": offset}
            answer = await self._ask("PING.CONNZ", page_wanted)
            page = msgspec.json.decode(answer, type=_ConnectionsAnswer).data
            self._server = page.server_id
            for connection in page.connections:
                name, _, serial = connection.authorized_user.partition("/")
                if serial and name != policy.HUB:
                    listed[connection.cid] = Held(name, serial, self._looked_at)
            offset, total = offset + CONNECTIONS_AT_ONCE, page.total
        for number, one in list(self._held.items()):
            if number not in listed and one.admitted_at < self._looked_at - SETTLING_S:
                del self._held[number]
        for number, one in listed.items():
            self._held.setdefault(number, one)

    async def _ask(self, what: str, body: Mapping[str, object]) -> bytes:
        subject = f"$SYS.REQ.SERVER.{what}"
        answer = await self._client.request(
            subject, msgspec.json.encode(body), timeout=CONNECT_TIMEOUT_S
        )
        return bytes(answer.data)
