"""One MQTT connection of the hub to an external broker, used step by step.

For what asks and waits for the answer: administering the broker, and trying what it lets through.
What carries devices' messages is `link`.
"""

import ssl
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgefleet_cloud.broker.errors import BrokerError
from edgefleet_cloud.trust.identity.authority import KeyPair

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 5.0

Message = tuple[str, bytes]


class ClosingSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Connection:
    """A connection, from `connect` to `close`; MQTT 3.1.1 over TLS, without a session.

    Args:
        host: of the broker; its certificate must name it.
        port: of the broker.
        ca_pem: authorities that its certificate may be of.
        pair: certificate to show.
        client_id: to ask for.
        will: topic and payload of a last will.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ca_pem: bytes,
        pair: KeyPair,
        client_id: str,
        will: Message | None = None,
    ) -> None:
        self._address = (host, port)
        self._changed = threading.Condition()
        self._received: list[Message] = []
        self._answered: set[int] = set()
        self._accepted: bool | None = None
        self._refused = ""
        self._closed = False
        self._context = ssl.create_default_context(cadata=ca_pem.decode())
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._context.sslsocket_class = ClosingSocket
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.tls_set_context(self._context)
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        if will is not None:
            self._client.will_set(*will)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_answer
        self._client.on_publish = self._on_answer
        self._client.on_message = self._on_message

    def connect(self) -> "Connection":
        """Connect; return when the broker has accepted.

        Raises:
            BrokerError: if it cannot be reached, or does not accept.
        """
        host, port = self._address
        try:
            self._client.connect(host, port, KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise BrokerError(f"the broker at {host}:{port} cannot be reached: {error}") from error
        self._client.loop_start()
        self._await(lambda: self._accepted is not None)
        if not self._accepted:
            self.close()
            raise BrokerError(
                f"the broker at {host}:{port} does not accept the connection:"
                f" {self._refused or 'it was closed'}"
            )
        return self

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._closed

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 0; return when the broker has answered, whatever it said."""
        _, number = self._client.subscribe([(filter_, 0) for filter_ in filters])
        self._await(lambda: number in self._answered)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1; return when the broker has acknowledged or closed the connection."""
        info = self._client.publish(topic, payload, 1, retain)
        self._await(lambda: info.mid in self._answered)

    def received(self) -> list[Message]:
        """Return (topic, payload) of what has come, oldest first."""
        with self._changed:
            return list(self._received)

    def take(self, condition: Callable[[Message], bool], timeout_s: float) -> Message | None:
        """Remove and return the first message that fits; None if none comes within `timeout_s`."""

        def index() -> int | None:
            return next((i for i, one in enumerate(self._received) if condition(one)), None)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or index() is not None, timeout_s)
            found = index()
            return None if found is None else self._received.pop(found)

    def await_closed(self, timeout_s: float) -> bool:
        """Wait for the end of the connection; return whether it came within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)

    def expires_at(self) -> float:
        """Return when the broker's certificate ends, Unix seconds."""
        held = self._client.socket()
        certificate = held.getpeercert() if isinstance(held, ssl.SSLSocket) else None
        if not certificate:
            raise BrokerError("the connection to the broker is gone")
        return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _await(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or condition(), CONNECT_TIMEOUT_S)

    def _note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _on_connect(self, _c: Any, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        def note() -> None:
            self._accepted = not code.is_failure
            self._refused = str(code) if code.is_failure else ""

        self._note(note)

    def _on_disconnect(self, _c: Any, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        def note() -> None:
            self._closed = True
            self._refused = self._refused or str(code)

        self._note(note)

    def _on_answer(self, _c: Any, _d: Any, number: int, _codes: Any, _p: Any) -> None:
        self._note(lambda: self._answered.add(number))

    def _on_message(self, _c: Any, _d: Any, message: mqtt.MQTTMessage) -> None:
        self._note(lambda: self._received.append((message.topic, bytes(message.payload))))
