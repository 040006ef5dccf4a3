"""The whole loop through an external Mosquitto: hub, broker and agent as real processes."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.fleet import BIN, start_hub, wait_for
from edgefleet_cloud.broker.testing import MosquittoProcess, missing, plugin
from edgefleet_cloud.fleet.testing import free_port
from tests.system.conftest import iris  # noqa: F401  # a fixture is found by its name
from tests.system.processes import DEVICE, Device, Fleet

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


class MosquittoFleet(Fleet):
    """A fleet whose broker was set up by hand, step by step as docs/brokers.md says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = (free_port(), free_port())
        home, files = folder / "hub", folder / "mosquitto"
        home.mkdir()
        (home / "hub.toml").write_text(
            f'broker = "mosquitto"\nmqtt_host = "127.0.0.1"\nmqtt_port = {ports[1]}\n'
        )
        options = ["--plugin", str(plugin()), "--listen", "127.0.0.1"]
        subprocess.run(
            [BIN / "edgefleet", "broker", "config", files, "--home", home, *options],
            check=True,
            capture_output=True,
        )
        self.broker = MosquittoProcess(files, ports[1])
        self.broker.adapt()
        self.broker.start()
        self.hub = start_hub(folder, ports)
        self.device = Device(self.hub, folder)
        self.device.start()

    def stop(self) -> None:
        super().stop()
        self.broker.kill()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MosquittoFleet]:
    running = MosquittoFleet(tmp_path_factory.mktemp("fleet"))
    yield running
    running.stop()


def test_an_update_is_delivered_confirmed_and_reported(fleet, iris):  # noqa: F811  # the fixture
    done = fleet.ship(*iris)
    assert done.returncode == 0, done.stderr
    assert fleet.serving() == "1"


def test_the_broker_killed_and_emptied_costs_nothing_but_time(fleet, iris):  # noqa: F811  # the fixture
    fleet.broker.kill()
    for kept in (fleet.broker.folder / "data").iterdir():
        kept.unlink()
    done = fleet.ship(*iris, "--no-wait")
    assert done.returncode == 0, done.stderr
    fleet.broker.start()
    fleet.wait_serving("2")


def test_revocation_closes_the_agents_connection_at_once(fleet, record_property):
    client = fleet.hub.client
    serial = client.get(f"/v1/devices/{DEVICE}")["certificate_serial"]
    gone = f"Client serialNumber={serial},CN={DEVICE} disconnected"
    before = fleet.broker.log.count(gone)
    client.post(f"/v1/devices/{DEVICE}/revoke", {})
    # From here on it is the hub's own doing: neither the agent nor another request ends it.
    began = time.monotonic()
    wait_for(
        "the connection's end",
        lambda: fleet.broker.log.count(gone) > before or None,
        timeout_s=10,
        every_s=0.005,
    )
    record_property("revoked_to_closed_ms", round((time.monotonic() - began) * 1000))
    kept = json.loads((fleet.broker.folder / "dynamic-security.json").read_text())
    assert DEVICE not in json.dumps(kept)
