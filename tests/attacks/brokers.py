"""Real brokers to listen on and to attack: the hub's own, and the same server without its rules.

What needs no more than a broker with one rule taken away is in tests/trust/test_broker_policy.py,
for both kinds of broker.
"""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt

from edgefleet_cloud.broker.embedded import binary
from edgefleet_cloud.broker.testing import Site
from edgefleet_cloud.fleet.testing import TestDevice, free_port, until
from edgefleet_cloud.trust.identity.authority import Authority

HOST = "127.0.0.1"


class Line:
    """A wire that somebody listens on: a relay to a port, which keeps every byte of both ways.

    Attributes:
        port: to connect to instead.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._heard: list[bytes] = []
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def heard(self) -> bytes:
        """Everything that has passed."""
        return b"".join(self._heard)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self._to_port))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pass, args=(source, sink))
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while data := source.recv(65_536):
                self._heard.append(data)
                sink.sendall(data)

    def close(self) -> None:
        """Cut the wire."""
        for one in self._sockets:
            with contextlib.suppress(OSError):  # it may never have been connected
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


class Bare(TestDevice):
    """A client without a certificate, and without TLS unless it is told to use it."""

    def __init__(self, site: Site, client_id: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(site.services, site.devices, client_id, "a")
        usual, self.client = (
            self.client,
            mqtt.Client(
                mqtt.CallbackAPIVersion.VERSION2,
                client_id=client_id,
                protocol=mqtt.MQTTv311,
                reconnect_on_failure=False,
            ),
        )
        if context:
            self.client.tls_set_context(context)
        for name in ("on_connect", "on_subscribe", "on_disconnect", "on_message"):
            setattr(self.client, name, getattr(usual, name))


class Ours:
    """The embedded broker of a hub, with the devices `a` and `b`.

    Attributes:
        port: of MQTT.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.port = site.services.settings.mqtt_port
        self._clients: list[TestDevice] = []

    def client(self, client_id: str) -> TestDevice:
        """Return a client of this broker, not connected."""
        return self.site.client(client_id)

    def stranger(self) -> TestDevice:
        """Return a client without a certificate, not connected."""
        authority = self.site.services.authority.ca_pem.decode()
        return Bare(self.site, "nobody", ssl.create_default_context(cadata=authority))

    def connect(self, client_id: str, port: int | None = None) -> TestDevice:
        """Return a client that is connected.

        Args:
            client_id: and the name of its certificate.
            port: of a line to the broker.
        """
        return self.join(self.client(client_id), port)

    def join(self, client: TestDevice, port: int | None = None) -> TestDevice:
        """Connect a client, or have it refused; see its `accepted`."""
        client._port = port or self.port
        self._clients.append(client)
        # In TLS 1.3 the broker may close while the client still believes in its handshake.
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            client.connect()
        return client

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Say something as the hub; return when the broker has it."""
        hub = self.connect("hub")
        hub.client.publish(topic, payload, 1, retain).wait_for_publish(20)
        hub.close()

    @contextlib.contextmanager
    def tapped(self) -> Iterator[Line]:
        """Give a line to this broker on which somebody listens."""
        line = Line(self.port)
        try:
            yield line
        finally:
            self.hang_up()
            line.close()

    def hang_up(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def stop(self) -> None:
        """End the broker."""
        self.hang_up()
        self.site.stop()


class Unruled(Ours):
    """The same server for the same devices, without rules.

    With TLS it wants a certificate of the hub's authority, but asks nobody whether that one may
    connect, under which name, and what it may do. Without TLS it wants nothing.

    Args:
        site: whose devices are to be clients.
        folder: of its files, new.
        tls: whether it wants TLS.
        foreign: takes the place of the hub's authority; clients' certificates are not looked at.
    """

    def __init__(
        self, site: Site, folder: Path, *, tls: bool, foreign: Authority | None = None
    ) -> None:
        super().__init__(site)
        self.port = free_port()
        self._tls = tls
        folder.mkdir()
        encryption = ""
        if tls:
            authority = foreign or site.services.authority
            pair = authority.issue_server("unruled", [HOST], folder)
            (folder / "ca.pem").write_bytes(authority.ca_pem)
            verify = "false" if foreign else "true"
            encryption = (
                f'tls {{ cert_file: "{pair.certificate}", key_file: "{pair.key}",'
                f' ca_file: "{folder / "ca.pem"}", verify: {verify} }}'
            )
        config = folder / "nats.conf"
        config.write_text(
            f'listen: "{HOST}:-1"\nserver_name: unruled\nmax_payload: 8388608\n'
            f'jetstream {{ store_dir: "{folder / "jetstream"}" }}\n'
            f'mqtt {{ listen: "{HOST}:{self.port}"\n{encryption} }}\n',
            "utf-8",
        )
        self._process = subprocess.Popen(
            [str(binary()), "-c", str(config)], stderr=subprocess.DEVNULL
        )
        until(self._listens, "the broker")

    def client(self, client_id: str) -> TestDevice:
        """Return a client of this broker, not connected."""
        return super().client(client_id) if self._tls else Bare(self.site, client_id)

    def stranger(self) -> TestDevice:
        """Return a client without a certificate, not connected."""
        return super().stranger() if self._tls else Bare(self.site, "nobody")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def stop(self) -> None:
        """End the broker."""
        self.hang_up()
        self._process.terminate()
        self._process.wait()
