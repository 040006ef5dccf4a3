"""A hub with its broker and a device agent, all as real processes, started by their commands."""

import json
import subprocess
from pathlib import Path

from demo.fleet import BIN, Hub, Process, start_hub, wait_for

DEVICE = "gate-1"
MODEL = "iris"


class Device:
    """One enrolled device whose agent can be started, stopped and killed."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.store = folder / DEVICE
        self._process: Process | None = None
        token = hub.client.post("/v1/devices", {"device": DEVICE, "labels": {}})["token"]
        done = enroll(hub, token, self.store)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        self._process = Process(
            self.store.parent / f"{DEVICE}.log",
            [str(BIN / "edgefleet-agent"), "run", "--store", str(self.store)],
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def enroll(hub: Hub, token: str, store: Path) -> subprocess.CompletedProcess[str]:
    url = json.loads((hub.home / "client.json").read_text())["url"]
    return subprocess.run(
        [BIN / "edgefleet-agent", "enroll", "--hub", url, "--token", token, "--store", store],
        capture_output=True,
        text=True,
    )


class Fleet:
    """The hub and its one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = start_hub(folder)
        self.device = Device(self.hub, folder)
        self.device.start()

    def restart_hub(self) -> None:
        self.hub = start_hub(self.folder, (self.hub.api_port, self.hub.mqtt_port))

    def cli(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "edgefleet", "--home", self.hub.home, *arguments],
            capture_output=True,
            text=True,
        )

    def ship(self, model: Path, sample: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return self.cli(
            "ship", model, "--sample", sample, "--label", "target", "--to", "all", *more
        )

    def serving(self) -> str | None:
        """Return the version that the device serves, as the hub knows it."""
        for model in self.hub.client.get(f"/v1/devices/{DEVICE}")["models"]:
            if model["model"] == MODEL and model["in_sync"]:
                return str(model["reported"]["version"])
        return None

    def wait_serving(self, version: str) -> None:
        wait_for(
            f"version {version} on {DEVICE}",
            lambda: True if self.serving() == version else None,
            timeout_s=120,
        )

    def stop(self) -> None:
        self.device.stop()
        self.hub.stop()
