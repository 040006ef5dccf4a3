"""Deciding who may connect to the broker, and with which permissions.

The broker asks this service for every connection (NATS auth callout). Rules, in order:

1. The connection is MQTT and TLS has verified a certificate of the hub's authority.
2. The certificate's common name is the MQTT client id, so that nobody can throw another client off
   by taking its id.
3. `hub` is the hub's own link, and its certificate is the very one that this hub made.
4. Any other name is a device that is enrolled and not revoked, with the certificate that it was
   given last.

Whoever does not pass is refused. What cannot be read, or asked of the database, is a refusal.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from edgefleet_cloud.broker import tickets
from edgefleet_cloud.broker.tickets import Permissions, Question
from edgefleet_cloud.database.models import Device, DeviceState
from edgefleet_cloud.database.sessions import Database

HUB_CLIENT_ID = "hub"
SUBJECT = "$SYS.REQ.USER.AUTH"
CONNECT_TIMEOUT_S = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A connection that may not be; `reason` is for the log."""

    reason: str


def decide(question: Question, database: Database, hub_serial: str) -> Permissions | Refused:
    """Apply the module's rules to one connection.

    Args:
        question: who wants to connect.
        database: knows the devices.
        hub_serial: of the certificate of the hub's own link.
    """
    if not question.client_id or not question.common_name:
        return Refused("not an MQTT connection with a certificate of this hub's authority")
    if question.common_name != question.client_id:
        return Refused(
            f"client id {question.client_id[:64]!r} on the certificate of {question.common_name!r}"
        )
    if question.common_name == HUB_CLIENT_ID:
        if question.serial != hub_serial:
            return Refused("the certificate of the hub's link is not the one that this hub made")
        return tickets.of_hub()
    with database.read() as session:
        device = session.get(Device, question.common_name)
    if device is None or device.state != DeviceState.ENROLLED:
        state = "unknown" if device is None else device.state
        return Refused(f"device {question.common_name!r} is {state}, not enrolled")
    if device.certificate_serial != question.serial:
        return Refused(f"device {device.id!r} came with a certificate that has been replaced")
    return tickets.of_device(device.id)


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
        decide: Callable[[Question], Permissions | Refused],
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
        self._connected: dict[str, tuple[str, int]] = {}
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

    def connected(self) -> list[str]:
        """Return the devices that were let in by this service, the ones gone again included."""
        return list(self._connected)

    def disconnect(self, device_id: str) -> None:
        """Close the connection of a device, if it still has one.

        Raises:
            nats.errors.Error: if the broker does not answer.
        """
        held = self._connected.pop(device_id, None)
        if held is None:
            return
        server, connection = held
        # A request: the server ignores this subject on messages that give no reply address.
        # Its answer is not needed; the connection may be gone already.
        kick = self._client.request(
            f"$SYS.REQ.SERVER.{server}.KICK",
            msgspec.json.encode({"cid": connection}),
            timeout=CONNECT_TIMEOUT_S,
        )
        asyncio.run_coroutine_threadsafe(kick, self._loop).result()

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
        if question.common_name != HUB_CLIENT_ID:
            self._connected[question.common_name] = (question.server, question.connection)
        await message.respond(self._signer.admit(question, self._account, decision))
