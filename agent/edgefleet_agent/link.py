"""The connection to the hub's broker: MQTT 3.1.1 over mutual TLS, and nothing that relies on it.

Rules:

1. The link is up when the broker has *granted* every subscription; a SUBACK may refuse one.
2. Everything goes out at QoS 0: what must arrive is repeated by the outbox or asked for again.
3. A lost connection is tried again for ever, after a random part of a pause that doubles up to a
   minute, so that a fleet does not come back in one moment. Only a connection that has lasted
   `STEADY_S` makes the pause short again: a broker that takes connections and drops them is not
   run against. A refusal in the TLS handshake makes it long at once.
4. A packet that announces more than any message may have ends the connection before any of it is
   held. What is longer than its topic allows is dropped here; both are told about. The inbox is
   bounded, so a flood costs messages, never memory.
5. A broker that says nothing for `KEEPALIVE_S` is asked, and given up after as long again.
6. The dates of certificates are checked by a clock that can be right (`timekeeping`, rule 5). Where
   nobody knows whether it is, and a connection fails for dates alone, the next one leaves them out
   and is for asking the time only: nothing else is sent or read on it.
"""

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from edgefleet_agent.trusting.identity import Credential, Identity
from edgefleet_agent.trusting.timekeeping import Dates, is_of_dates, relax_dates
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import TooLargeError

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 60.0
# After a refusal in the TLS handshake: nothing changes there from one second to the next.
REFUSED_BACKOFF_S = 15.0
# The random part of a pause is never so small that tries follow each other without end.
MIN_WAIT_S = 0.1
STEADY_S = 60.0
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 15.0
# As `trust.MAX_ROLE_BYTES`; everything else is a message of the codec.
_MAX_META_BYTES = 5_000_000
# The longest message with its topic, which MQTT bounds at 64 KiB.
MAX_PACKET_BYTES = _MAX_META_BYTES + 65_535 + 4
# A TLS record; more never comes of one read.
_RECORD_BYTES = 16 * 1024


class Connected(Struct, frozen=True):
    """The link is up and every subscription granted.

    Attributes:
        renewed: with a renewed certificate, which may now take the place of the one before.
        asking: for the time only, see rule 6.
    """

    renewed: bool = False
    asking: bool = False


class Disconnected(Struct, frozen=True):
    """The link is down, and why."""

    reason: str


class CertificateRefused(Struct, frozen=True):
    """The broker has ended the TLS handshake with an alert, and which."""

    alert: str


class Message(Struct, frozen=True):
    """One message from the hub, untrusted."""

    topic: str
    payload: bytes


class Oversized(Struct, frozen=True):
    """A message that was dropped unread because of its length; its topic is empty if not read."""

    topic: str
    size_bytes: int


Inbound = Connected | Disconnected | CertificateRefused | Message | Oversized
Deliver = Callable[[Inbound], None]


class Link(Protocol):
    """What the engine needs of a connection; `testing.MemoryLink` is the other implementation."""

    def start(self, deliver: Deliver) -> None:
        """Connect in the background; call `deliver` from any thread."""

    def stop(self) -> None:
        """Disconnect and end all threads."""

    def is_alive(self) -> bool:
        """Tell whether it still tries to be connected."""

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send if connected; return whether it was handed to the network."""

    def listen(self, topic: str) -> None:
        """Receive one more topic, from now on and after every reconnect."""

    def unlisten(self, topic: str) -> None:
        """Undo `listen`."""

    def reconnect(self) -> None:
        """Connect anew, with the certificate that is the newest by then."""


def fits(topic: str, size_bytes: int) -> bool:
    """Tell whether a message on `topic` may have that length."""
    meta = topic.startswith(topics.FLEET_META_ALL[:-1])
    return size_bytes <= (_MAX_META_BYTES if meta else codec.MAX_MESSAGE_BYTES)


class PacketBound:
    """Follows the framing of MQTT packets in a stream and stops at one that is too long.

    paho would hold up to the 256 MiB that a packet may announce.

    Args:
        limit_bytes: that a packet may announce.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._body_bytes = 0  # of the packet under way, still to come
        self._length: int | None = None  # as far as read; None between two packets
        self._shift = 0

    def follow(self, data: bytes) -> None:
        """Look at the next bytes of the stream.

        Raises:
            TooLargeError: if a packet announces more than the limit.
        """
        at = 0
        while at < len(data):
            if self._body_bytes:
                skipped = min(self._body_bytes, len(data) - at)
                self._body_bytes -= skipped
                at += skipped
                continue
            byte = data[at]
            at += 1
            if self._length is None:  # the packet's type; its length follows
                self._length, self._shift = 0, 0
                continue
            self._length |= (byte & 0x7F) << self._shift
            self._shift += 7
            if self._length > self._limit_bytes:
                raise TooLargeError("MQTT packet", self._length, self._limit_bytes)
            if not byte & 0x80:
                self._body_bytes, self._length = self._length, None


class MqttLink:
    """The production link, over paho-mqtt.

    Args:
        identity: of this device.
        jitter: a random number from 0 to 1.
        monotonic: seconds that never go back.
        keepalive_s: see rule 5.
        dates: whether to check the dates of certificates, see rule 6.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        jitter: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        keepalive_s: int = KEEPALIVE_S,
        dates: Callable[[], Dates] = lambda: "check",
    ) -> None:
        self._identity = identity
        self._jitter = jitter
        self._monotonic = monotonic
        self._keepalive_s = keepalive_s
        self._dates = dates
        self._failed_for_dates = self._asking = False
        self._up_at = 0.0
        self._tls_refusal = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._deliver: Deliver = lambda _: None
        self._lock = threading.Lock()
        self._extra: set[str] = set()
        self._client: Client | None = None
        self._subscription: int | None = None
        self._up = False
        self._backoff_s = FIRST_BACKOFF_S
        self._credential: Credential | None = None
        self._tries = 0  # since a connection was granted

    def start(self, deliver: Deliver) -> None:
        """Connect in the background."""
        self._deliver = deliver
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect and end the thread."""
        self._stop.set()
        client = self._client
        if client is not None:
            client.disconnect()
        if self._thread is not None:
            self._thread.join(timeout=CONNECT_TIMEOUT_S)

    def is_alive(self) -> bool:
        """Tell whether the thread that connects lives."""
        return self._thread is not None and self._thread.is_alive()

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send at QoS 0 if connected."""
        client = self._client
        return self._up and client is not None and client.publish(topic, payload, qos=0).rc == 0

    def listen(self, topic: str) -> None:
        """Subscribe to one more topic."""
        with self._lock:
            self._extra.add(topic)
            if self._up and self._client is not None:
                self._client.subscribe(topic, qos=0)

    def unlisten(self, topic: str) -> None:
        """Drop that subscription."""
        with self._lock:
            self._extra.discard(topic)
            if self._up and self._client is not None:
                self._client.unsubscribe(topic)

    def reconnect(self) -> None:
        """Give up the present connection; the next one takes the newest certificate."""
        self._tries = 0
        if self._asking:
            self._backoff_s = FIRST_BACKOFF_S  # what made it long was the clock
        client = self._client
        if client is not None:
            client.disconnect()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._tls_refusal = ""
            try:
                self._client = self._new_client()
                hub = self._identity.hub
                self._client.connect(hub.mqtt_host, hub.mqtt_port, keepalive=self._keepalive_s)
                if not self._stop.is_set():
                    self._client.loop_forever()
            except ssl.SSLError as error:
                self._refused_by_tls(error)
                self._failed_for_dates = is_of_dates(error)
            except (OSError, ValueError) as error:
                # ValueError: paho's word for a host or port that cannot be used.
                log.warning("broker not reachable: %s", error)
            except Exception:
                # A defect in a callback must not end the only thread that reconnects.
                log.exception("link failed; connecting again")
            self._went_down("connection lost")
            self._stop.wait(self._pause_s())

    def _refused_by_tls(self, error: ssl.SSLError) -> None:
        self._tls_refusal = str(error)
        # An alert is the other side's word: it does not take our certificate.
        if "ALERT" in (error.reason or ""):
            self._deliver(CertificateRefused(str(error.reason)))

    def _pause_s(self) -> float:
        """Return how long to wait before the next try (rule 3)."""
        if self._tls_refusal:
            self._backoff_s = max(self._backoff_s, REFUSED_BACKOFF_S)
            log.error(
                "no secure connection to the broker: %s. If a certificate has expired or is not yet"
                " valid, look at this device's clock first; an expired certificate of its own is"
                " renewed by itself, one that was revoked is not. Trying again within %.0f s",
                self._tls_refusal,
                self._backoff_s,
            )
        wait_s = max(self._backoff_s * self._jitter(), MIN_WAIT_S)
        self._backoff_s = min(self._backoff_s * 2, LAST_BACKOFF_S)
        return wait_s

    def _new_client(self) -> "Client":
        # Imported here: paho takes 0.1 s of CPU, and `status` and `predict` never connect.
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._identity.hub.device,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        context = ssl.create_default_context(cafile=str(self._identity.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._choose_dates(context)
        # A renewed certificate is tried first, and the one before it in turn.
        held = self._identity.credentials()
        self._credential = held[self._tries % len(held)]
        self._tries += 1
        context.load_cert_chain(str(self._credential.certificate), str(self._credential.key))
        context.sslsocket_class = self._socket_class()
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _choose_dates(self, context: ssl.SSLContext) -> None:
        """Apply rule 6 to the next connection."""
        dates = self._dates()
        self._asking = dates == "try" and self._failed_for_dates
        self._failed_for_dates = False
        if self._asking:
            log.warning("certificates are out of date by this device's clock: asking the time")
        elif dates == "skip":
            log.warning("this device's clock is wrong: connecting without dates of certificates")
        if self._asking or dates == "skip":
            relax_dates(context)

    def _socket_class(self) -> type[ssl.SSLSocket]:
        """Return the class of one connection's socket: it bounds packets, and remembers alerts."""
        bound, link = PacketBound(MAX_PACKET_BYTES), self

        class BoundedSocket(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                try:
                    super().do_handshake(block)
                except BaseException:
                    self.close()  # paho leaves it to the garbage collector
                    raise

            def recv(self, buflen: int = _RECORD_BYTES, flags: int = 0) -> bytes:
                try:
                    data = super().recv(min(buflen, _RECORD_BYTES), flags)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise
                except ssl.SSLError as error:
                    # In TLS 1.3 the broker's verdict on our certificate comes after the handshake.
                    if not link._up:
                        link._refused_by_tls(error)
                    raise
                try:
                    bound.follow(data)
                except TooLargeError as error:
                    link._deliver(Oversized("", error.size))
                    raise ConnectionAbortedError(str(error)) from error
                return data

        return BoundedSocket

    def _on_connect(self, client: "Client", _data: Any, _flags: Any, code: Any, _: Any) -> None:
        if code.is_failure:
            log.error("the broker refused this device: %s", code)
            client.disconnect()
            return
        with self._lock:
            wanted = [topics.down_all(self._identity.hub.device), topics.FLEET_META_ALL]
            wanted += sorted(self._extra)
            if self._asking:
                wanted = [topics.down(self._identity.hub.device, "time")]
        _, self._subscription = client.subscribe([(topic, 0) for topic in wanted])

    def _on_subscribe(
        self, client: "Client", _data: Any, message_id: int, codes: list[Any], _: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            log.error("the broker refused a subscription: %s", ", ".join(map(str, codes)))
            client.disconnect()
        elif message_id == self._subscription and not self._up:
            self._up, self._up_at = True, self._monotonic()
            self._tries = 0
            log.info("connected")
            renewed = self._credential is not None and self._credential.renewed
            self._deliver(Connected(renewed and not self._asking, self._asking))

    def _on_disconnect(self, _client: "Client", _data: Any, _flags: Any, code: Any, _: Any) -> None:
        self._went_down(str(code))

    def _on_message(self, _client: "Client", _data: Any, message: "MQTTMessage") -> None:
        size_bytes = len(message.payload)
        if fits(message.topic, size_bytes):
            self._deliver(Message(message.topic, bytes(message.payload)))
        else:
            self._deliver(Oversized(message.topic, size_bytes))

    def _went_down(self, reason: str) -> None:
        if self._up:
            self._up = False
            if self._monotonic() - self._up_at >= STEADY_S:
                self._backoff_s = FIRST_BACKOFF_S
            log.warning("disconnected: %s", reason)
            self._deliver(Disconnected(reason))
