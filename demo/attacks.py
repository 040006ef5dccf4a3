"""What an attacker does in the demo: one who holds the broker, the store, and a camera's own key.

They have the hub's own broker certificate and may write into the artifact store; on a camera of
their own they can read what the hub sends it. They do not have the signing keys.
"""

import ssl
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from demo.fleet import Camera, DemoError, Hub
from edgefleet_protocol import topics

ANSWER_S = 20.0


class BrokerAttacker:
    """Says to a camera what the hub's own link could, and hears what that camera hears."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def record_assignment(self, camera: Camera) -> bytes:
        """Return the assignment that is retained for a camera now.

        The hub's link may not read it, so the camera's own key is used; its agent is thrown off
        for that moment.

        Raises:
            DemoError: if the broker holds none.
        """
        arrived = threading.Event()
        kept: list[bytes] = []
        keys = camera.store / "identity"
        client = self._connect(camera.name, keys / "device.pem", keys / "device.key")

        def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
            kept.append(bytes(message.payload))
            arrived.set()

        client.on_message = on_message
        client.subscribe(topics.down(camera.name, "assignment"))
        found = arrived.wait(ANSWER_S)
        self._leave(client)
        if not found:
            raise DemoError(f"the broker holds no assignment for {camera.name}")
        return kept[0]

    def replay_assignment(self, device: str, payload: bytes) -> None:
        """Put an old assignment in the place of the present one.

        Raises:
            DemoError: if the broker does not take it.
        """
        # The broker lets nobody else use this name, so the hub's own link is thrown off for as
        # long as the attacker is there.
        keys = self._hub.home / "broker"
        client = self._connect("hub", keys / "hub.pem", keys / "hub.key")
        sent = client.publish(topics.down(device, "assignment"), payload, qos=1, retain=True)
        sent.wait_for_publish(ANSWER_S)
        self._leave(client)
        if not sent.is_published():
            raise DemoError("the broker did not take the replayed assignment")

    def _connect(self, name: str, certificate: Path, key: Path) -> mqtt.Client:
        connected = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
        context = ssl.create_default_context(cafile=str(self._hub.home / "ca.pem"))
        context.load_cert_chain(certificate, key)
        client.tls_set_context(context)

        def on_connect(
            _client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _more: object
        ) -> None:
            if not reason.is_failure:
                connected.set()

        client.on_connect = on_connect
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
