"""Writing what an external Mosquitto needs to serve a fleet of this hub (Mosquitto 2.0 or newer).

The folder then holds the broker's configuration, its certificate and key, the authorities that it
accepts, and the first contents of its dynamic security plugin, every enrolled device included:
the plugin takes in thousands at once from a file, but one at a time over MQTT. Written anew after
a year (the certificate), after the authority was rotated, or when the hub's mark was lost.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from edgefleet_cloud.broker import dynsec, mosquitto
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.identity.authority import Authority

CONFIGURATION, PLUGIN_FILE = "mosquitto.conf", "dynamic-security.json"
# Largest packet of the wire protocol, with room; see `edgefleet_protocol.blocks`.
MAX_PACKET_BYTES = 8 * 1024 * 1024
# For one client that does not read: what is beyond is dropped, and asked for again.
MAX_QUEUED_MESSAGES, MAX_QUEUED_BYTES = 1000, 32 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where things are on the broker's machine.

    Attributes:
        folder: of the files written here.
        state: of what the broker writes: retained messages and sessions.
        plugin: the dynamic security plugin.
        listen: address to listen on.
    """

    folder: Path
    state: Path
    plugin: Path
    listen: str = "0.0.0.0"  # noqa: S104  # a broker is there to be reached; TLS is required


def write(
    settings: Settings, authority: Authority, database: Database, now: float, to: Path, place: Place
) -> list[Path]:
    """Write the files; return them.

    Args:
        settings: of the hub; name the broker's host and port.
        authority: makes the broker's certificate.
        database: knows the devices.
        now: Unix seconds.
        to: folder to write to.
        place: where its content will be.

    Raises:
        InvalidError: if a path cannot stand in a configuration of Mosquitto.
    """
    text = configuration(settings, place)
    hosts = [settings.devices_mqtt_host, settings.mqtt_host, "localhost"]
    pair = authority.issue_server("broker", hosts, to)
    ca = to / "ca.pem"
    durable.write(ca, authority.ca_pem, mode=durable.PUBLIC)
    with database.read() as session:
        valid = certificates.valid_serials(session, now)
    contents = mosquitto.wanted(valid, settings.home / "broker")
    plugin_file = to / PLUGIN_FILE
    encoded = json.dumps(dynsec.document(contents), indent=1).encode()
    durable.write(plugin_file, encoded, mode=durable.PRIVATE)
    conf = to / CONFIGURATION
    durable.write(conf, text.encode(), mode=durable.PUBLIC)
    return [conf, plugin_file, ca, pair.certificate, pair.key]


def configuration(settings: Settings, place: Place) -> str:
    """Return the text of `mosquitto.conf`.

    Raises:
        InvalidError: if a path or address cannot stand in it.
    """
    for value in (place.folder, place.state, place.plugin, place.listen):
        if not str(value).isprintable() or " " in str(value):
            raise InvalidError(
                f"{str(value)[:200]!r} cannot stand in a configuration of Mosquitto:"
                " expected a path or an address without spaces"
            )
    return f"""\
# Written by `edgefleet broker config`; for Mosquitto 2.0 or newer.

# Who may connect, and what they may do, is known to the plugin alone, which the hub administers.
per_listener_settings false
allow_anonymous false
plugin {place.plugin}
plugin_opt_config_file {place.folder / PLUGIN_FILE}

# Retained messages must survive the broker: written within a second of each change.
persistence true
persistence_location {place.state}/
autosave_on_changes true
autosave_interval 1
persistent_client_expiration 1d

# One client cannot fill the broker's memory.
max_packet_size {MAX_PACKET_BYTES}
max_queued_messages {MAX_QUEUED_MESSAGES}
max_queued_bytes {MAX_QUEUED_BYTES}
set_tcp_nodelay true

listener {settings.mqtt_port} {place.listen}
cafile {place.folder / "ca.pem"}
certfile {place.folder / "broker.pem"}
keyfile {place.folder / "broker.key"}
# The lowest version that is accepted.
tls_version tlsv1.2
require_certificate true
# The whole subject: it holds the device's name and the number of this one certificate.
use_subject_as_username true
# So that nobody throws another client off by its id.
use_username_as_clientid true
"""
