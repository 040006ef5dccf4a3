"""Models on local MQTT topics: rows come in on one topic, answers go out on another.

For sensor pipelines that speak MQTT already: the broker is on this machine or in its network, and
has nothing to do with the hub's. What the messages mean is in `answering`. Rules:

1. QoS 0 throughout, and retained messages are left alone: an answer is of use now or not at all,
   and a row must not be counted again at each reconnect.
2. A lost broker is tried again for ever, ever more slowly up to a minute, with jitter. Nothing that
   happens to it touches the rest of the agent.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefleet_agent.answering import MAX_MESSAGE_BYTES, Answerer, Message, Models, Waiting
from edgefleet_agent.config import LocalBroker
from edgefleet_agent.errors import ConfigError

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 60.0
CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 30
STOP_TIMEOUT_S = 10.0


class Pipeline:
    """The connection to the local broker and the thread that answers; start and stop it once."""

    def __init__(
        self,
        broker: LocalBroker,
        models: Models,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Read the password.

        Raises:
            ConfigError: if its file cannot be read.
        """
        self._broker = broker
        self._password = _password(broker)
        self._jitter = jitter
        self._waiting = Waiting()
        self._answerer = Answerer(broker.topics, models, self._publish, clock=clock)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._up = False
        self._threads: list[threading.Thread] = []

    @property
    def is_connected(self) -> bool:
        """Whether the broker has granted the subscriptions."""
        return self._up

    @property
    def dropped(self) -> int:
        """Messages that were not answered because newer ones came."""
        return self._waiting.dropped

    def start(self) -> None:
        """Connect in the background."""
        for name, target in (
            ("pipeline", self._connect_for_ever),
            ("answerer", lambda: self._answerer.run(self._waiting)),
        ):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Disconnect and end both threads."""
        with self._lock:
            self._stop.set()
            client = self._client
        if client is not None:
            client.disconnect()
        self._waiting.close()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)

    def _publish(self, topic: str, payload: bytes) -> None:
        client = self._client
        if self._up and client is not None:
            client.publish(topic, payload, qos=0)

    def _connect_for_ever(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stop.is_set():
            was_up = self._connect_once()
            backoff_s = FIRST_BACKOFF_S if was_up else min(backoff_s * 2, LAST_BACKOFF_S)
            self._stop.wait(backoff_s * (0.5 + self._jitter()))

    def _connect_once(self) -> bool:
        """Hold one connection until it is lost; return whether it came up."""
        broker = self._broker
        try:
            client = self._new_client()
            with self._lock:
                if self._stop.is_set():
                    return False
                self._client = client
            client.connect(broker.host, broker.port, keepalive=KEEPALIVE_S)
            if not self._stop.is_set():
                client.loop_forever()
        except (OSError, ValueError) as error:
            # ValueError: paho's word for a host or port that cannot be used.
            log.warning("local broker %s:%d not reachable: %s", broker.host, broker.port, error)
        except Exception:
            # A defect in a callback must not end the only thread that reconnects.
            log.exception("the connection to the local broker failed; connecting again")
        was_up, self._up = self._up, False
        if was_up and not self._stop.is_set():
            log.warning("lost the local broker %s:%d", broker.host, broker.port)
        return was_up

    def _new_client(self) -> "Client":
        # Imported here: paho takes 0.1 s of CPU, and few agents have a local broker.
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311, reconnect_on_failure=False
        )
        if self._broker.username is not None:
            client.username_pw_set(self._broker.username, self._password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: "Client", _data: Any, _flags: Any, code: Any, _: Any) -> None:
        if code.is_failure:
            log.error("the local broker refused the agent: %s", code)
            client.disconnect()
            return
        client.subscribe([(topic.input, 0) for topic in self._broker.topics])

    def _on_subscribe(
        self, client: "Client", _data: Any, _id: int, codes: list[Any], _: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            log.error("the local broker refused a subscription: %s", ", ".join(map(str, codes)))
            client.disconnect()
            return
        self._up = True
        log.info("answering %d topics of the local broker", len(self._broker.topics))

    def _on_message(self, _client: "Client", _data: Any, message: "MQTTMessage") -> None:
        if not message.retain:
            # One byte over the limit is enough to refuse it.
            payload = bytes(message.payload[: MAX_MESSAGE_BYTES + 1])
            self._waiting.put(Message(message.topic, payload))


def _password(broker: LocalBroker) -> str | None:
    if broker.password_file is None:
        return None
    try:
        return Path(broker.password_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"broker.password_file cannot be read: {error}") from error
