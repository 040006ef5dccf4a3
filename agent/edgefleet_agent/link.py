"""The connection to the hub's broker: MQTT 3.1.1 over mutual TLS, and nothing that relies on it.

Rules:

1. The link is up when the broker has *granted* every subscription; a SUBACK may refuse one.
2. Everything goes out at QoS 0: what must arrive is repeated by the outbox or asked for again.
3. A lost connection is tried again for ever, ever more slowly up to a minute, with jitter, so
   that a fleet does not come back in one moment.
4. What is longer than its topic allows is dropped here and told about; the inbox is bounded, so a
   flood costs messages, never memory.
"""

import logging
import random
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from edgefleet_agent.identity import Identity
from edgefleet_protocol import codec, topics

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 60.0
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 15.0
# As `trust.MAX_ROLE_BYTES`; everything else is a message of the codec.
_MAX_META_BYTES = 5_000_000


class Connected(Struct, frozen=True):
    """The link is up and every subscription granted."""


class Disconnected(Struct, frozen=True):
    """The link is down, and why."""

    reason: str


class Message(Struct, frozen=True):
    """One message from the hub, untrusted."""

    topic: str
    payload: bytes


class Oversized(Struct, frozen=True):
    """A message that was dropped unread because of its length."""

    topic: str
    size_bytes: int


Inbound = Connected | Disconnected | Message | Oversized
Deliver = Callable[[Inbound], None]


class Link(Protocol):
    """What the engine needs of a connection; `testing.MemoryLink` is the other implementation."""

    def start(self, deliver: Deliver) -> None:
        """Connect in the background; call `deliver` from any thread."""

    def stop(self) -> None:
        """Disconnect and end all threads."""

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send if connected; return whether it was handed to the network."""

    def listen(self, topic: str) -> None:
        """Receive one more topic, from now on and after every reconnect."""

    def unlisten(self, topic: str) -> None:
        """Undo `listen`."""


def fits(topic: str, size_bytes: int) -> bool:
    """Tell whether a message on `topic` may have that length."""
    meta = topic.startswith(topics.FLEET_META_ALL[:-1])
    return size_bytes <= (_MAX_META_BYTES if meta else codec.MAX_MESSAGE_BYTES)


class MqttLink:
    """The production link, over paho-mqtt."""

    def __init__(self, identity: Identity, *, jitter: Callable[[], float] = random.random) -> None:
        self._identity = identity
        self._jitter = jitter
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._deliver: Deliver = lambda _: None
        self._lock = threading.Lock()
        self._extra: set[str] = set()
        self._client: Client | None = None
        self._subscription: int | None = None
        self._up = False
        self._backoff_s = FIRST_BACKOFF_S

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

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._client = self._new_client()
                hub = self._identity.hub
                self._client.connect(hub.mqtt_host, hub.mqtt_port, keepalive=KEEPALIVE_S)
                if not self._stop.is_set():
                    self._client.loop_forever()
            except (OSError, ValueError) as error:
                # ValueError: paho's word for a host or port that cannot be used.
                log.warning("broker not reachable: %s", error)
            except Exception:
                # A defect in a callback must not end the only thread that reconnects.
                log.exception("link failed; connecting again")
            self._went_down("connection lost")
            wait_s = self._backoff_s * (0.5 + self._jitter())
            self._backoff_s = min(self._backoff_s * 2, LAST_BACKOFF_S)
            self._stop.wait(wait_s)

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
        context.load_cert_chain(str(self._identity.certificate), str(self._identity.key))
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: "Client", _data: Any, _flags: Any, code: Any, _: Any) -> None:
        if code.is_failure:
            log.error("the broker refused this device: %s", code)
            client.disconnect()
            return
        with self._lock:
            wanted = [topics.down_all(self._identity.hub.device), topics.FLEET_META_ALL]
            wanted += sorted(self._extra)
        _, self._subscription = client.subscribe([(topic, 0) for topic in wanted])

    def _on_subscribe(
        self, client: "Client", _data: Any, message_id: int, codes: list[Any], _: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            log.error("the broker refused a subscription: %s", ", ".join(map(str, codes)))
            client.disconnect()
        elif message_id == self._subscription and not self._up:
            self._up = True
            self._backoff_s = FIRST_BACKOFF_S
            log.info("connected")
            self._deliver(Connected())

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
            log.warning("disconnected: %s", reason)
            self._deliver(Disconnected(reason))
