"""A real broker of either kind for tests, with devices enrolled and a way to connect as anyone."""

import getpass
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Literal

import psutil
from paho.mqtt.enums import MQTTProtocolVersion

from edgefleet_cloud.broker import configuration, identities
from edgefleet_cloud.broker.chosen import Broker, open_broker
from edgefleet_cloud.broker.configuration import Place
from edgefleet_cloud.fleet.testing import TestDevice, enrol, open_services, until

Kind = Literal["embedded", "mosquitto"]
KINDS: tuple[Kind, ...] = ("embedded", "mosquitto")
PLUGIN_NAME = "mosquitto_dynamic_security.so"


def missing() -> str:
    """Return what keeps an external broker from being started here; empty if nothing does."""
    if shutil.which("mosquitto") is None or plugin() is None:
        return (
            "mosquitto with its dynamic security plugin is not installed:"
            " scripts/system_packages.sh installs it"
        )
    return ""


def plugin() -> Path | None:
    """Return Mosquitto's dynamic security plugin, if it is installed."""
    found = [*Path("/usr/lib").glob(f"*/{PLUGIN_NAME}"), *Path("/usr/lib").glob(PLUGIN_NAME)]
    return found[0] if found else None


class MosquittoProcess:
    """A Mosquitto with the files that `edgefleet broker config` has written.

    Args:
        folder: of the files.
        port: on which it listens.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All that it has written."""
        return (self.folder / "mosquitto.log").read_text()

    def adapt(self, *, replace: tuple[str, str] | None = None) -> None:
        """Make the files fit for a test.

        Args:
            replace: a text of the configuration, and what is to stand there instead: for a broker
                without one of its rules.
        """
        (self.folder / "data").mkdir(exist_ok=True)
        path = self.folder / configuration.CONFIGURATION
        text = path.read_text()
        if replace is not None:
            assert replace[0] in text
            text = text.replace(*replace)
        # Started by root, it would take another user's rights and could not read its files.
        path.write_text(f"user {getpass.getuser()}\nlog_dest stderr\nlog_type all\n{text}")

    def start(self) -> None:
        """Start it; return when it listens."""
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["mosquitto", "-c", str(self.folder / configuration.CONFIGURATION)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: self._ended() or _listens(self._port), "mosquitto listens")
        assert not self._ended(), self.log

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def reload(self) -> None:
        """Have it read its configuration and certificates again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


class Site:
    """A hub's services with a running broker of one kind.

    Args:
        home: an empty folder.
        kind: of the broker.
        migrated: an empty database to copy, see `open_services`.
    """

    def __init__(self, home: Path, kind: Kind, migrated: Path | None = None) -> None:
        self.home = home
        self.kind = kind
        self.services = open_services(home, migrated=migrated, broker=kind)
        self.devices = home / "devices"
        self.process = MosquittoProcess(home / "mosquitto", self.services.settings.mqtt_port)
        self.broker = self.open_broker()
        self._clients: list[TestDevice] = []

    def open_broker(self) -> Broker:
        """Return the hub's side of the broker, as at its start."""
        services = self.services
        return open_broker(services.settings, services.authority, services.database, services.clock)

    def start(self, *devices: str) -> None:
        """Enrol devices, and start the broker."""
        for device in devices:
            enrol(self.services, device, self.devices)
        identities.link(self.services.authority, self.home / "broker")
        if self.kind == "mosquitto":
            self.configure()
            self.process.start()
        self.broker.start()

    def configure(self, *, replace: tuple[str, str] | None = None) -> None:
        """Write the files of an external broker; see `MosquittoProcess.adapt`."""
        found = plugin()
        assert found is not None, missing()
        services, folder = self.services, self.process.folder
        configuration.write(
            services.settings,
            services.authority,
            services.database,
            services.clock(),
            folder,
            Place(folder, folder / "data", found, "127.0.0.1"),
        )
        self.process.adapt(replace=replace)

    def stop(self) -> None:
        """End everything."""
        self.close_clients()
        self.broker.stop()
        self.process.kill()
        self.services.database.close()

    def client(
        self,
        client_id: str,
        identity: str | None = None,
        *,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        clean_session: bool = True,
        will: tuple[str, bytes, bool] | None = None,
    ) -> TestDevice:
        """Return a client, not connected.

        Args:
            client_id: to ask for.
            identity: whose certificate to show: a device's, or `hub` for the link's; the client
                id's by default.
            version: of MQTT.
            clean_session: whether the broker is to forget an earlier session of this client.
            will: topic, payload, and whether to retain it.
        """
        shown = identity or client_id
        folder = self.home / "broker" if shown == "hub" else self.devices
        client = TestDevice(
            self.services, folder, client_id, shown, version=version, clean_session=clean_session
        )
        if will is not None:
            client.client.will_set(will[0], will[1], 1, will[2])
        self._clients.append(client)
        return client

    def connect(self, client_id: str, identity: str | None = None) -> TestDevice:
        """Return a client that has tried to connect."""
        return self.client(client_id, identity).connect()

    def keep_certificate(self, device: str, name: str) -> None:
        """Copy a device's key and certificate, as a thief does, to show it as `name`."""
        for suffix in (".pem", ".key"):
            shutil.copy(self.devices / f"{device}{suffix}", self.devices / f"{name}{suffix}")

    def close_clients(self) -> None:
        """Disconnect every client."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    @property
    def pid(self) -> int:
        """Of the broker's process."""
        if self.kind == "mosquitto":
            return self.process.pid
        return int((self.home / "broker" / "nats.pid").read_text())

    def is_alive(self) -> bool:
        """Tell whether the broker's process lives."""
        return psutil.pid_exists(self.pid)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
