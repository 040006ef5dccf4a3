"""What an attacker does in the demo, with the powers of one who holds the broker and the store.

They have the hub's own broker certificate and may write into the artifact store. They do not have
the signing keys.
"""

import ssl
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from demo.fleet import DemoError, Hub
from edgefleet_protocol import topics

ANSWER_S = 20.0


class BrokerAttacker:
    """Reads and writes any topic of the fleet, as the hub's own link does."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def record_assignment(self, device: str) -> bytes:
        """Return the assignment that is retained for `device` now.

        Raises:
            DemoError: if the broker holds none.
        """
        arrived = threading.Event()
        kept: list[bytes] = []
        client = self._connect()

        def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
            kept.append(bytes(message.payload))
            arrived.set()

        client.on_message = on_message
        client.subscribe(topics.down(device, "assignment"))
        found = arrived.wait(ANSWER_S)
        self._leave(client)
        if not found:
            raise DemoError(f"the broker holds no assignment for {device}")
        return kept[0]

    def replay_assignment(self, device: str, payload: bytes) -> None:
        """Put an old assignment in the place of the present one.

        Raises:
            DemoError: if the broker does not take it.
        """
        client = self._connect()
        sent = client.publish(topics.down(device, "assignment"), payload, qos=1, retain=True)
        sent.wait_for_publish(ANSWER_S)
        self._leave(client)
        if not sent.is_published():
            raise DemoError("the broker did not take the replayed assignment")

    def _connect(self) -> mqtt.Client:
        connected = threading.Event()
        folder = self._hub.home
        # The broker lets nobody else use this name, so the hub's own link is thrown off for as
        # long as the attacker is there.
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="hub")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "broker" / "hub.pem", folder / "broker" / "hub.key")
        client.tls_set_context(context)
        client.on_connect = lambda *_: connected.set()
        client.connect("localhost", self._hub.mqtt_port)
        client.loop_start()
        if not connected.wait(ANSWER_S):
            raise DemoError("the attacker cannot connect to the broker")
        return client

    @staticmethod
    def _leave(client: mqtt.Client) -> None:
        client.disconnect()
        client.loop_stop()


def flip_a_byte(path: Path) -> bytes:
    """Change one bit in the middle of a stored file; return its former content."""
    former = path.read_bytes()
    changed = bytearray(former)
    changed[len(changed) // 2] ^= 0x01
    path.chmod(0o600)
    path.write_bytes(changed)
    return former
