"""`edgefleet up` as a real process: starts, answers, stops, and comes back after kill -9."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from edgefleet_cloud import hub as hub_module
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.fleet.testing import free_port, until
from edgefleet_cloud.trust.people import bootstrap

START_S = 90.0


@dataclass
class Processes:
    """Hubs in one home, ended with the test."""

    home: Path
    api_port: int = field(default_factory=free_port)
    mqtt_port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def up(self, **ports: int) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Start a hub; return it with what it announces, or {} if it ended first."""
        with (self.home.parent / "up.log").open("a") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-c", "from edgefleet_cloud.cli import app; app()",
                    "up", "--home", str(self.home), "--json",
                    "--api-port", str(ports.get("api", self.api_port)),
                    "--mqtt-port", str(ports.get("mqtt", self.mqtt_port)),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )  # fmt: skip
        self.started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        return process, json.loads(line) if line else {}

    @property
    def log(self) -> str:
        """What all hubs of the test have written."""
        return (self.home.parent / "up.log").read_text()

    def health(self) -> httpx.Response:
        """Ask the hub over TLS, trusting only its own CA."""
        import ssl

        context = ssl.create_default_context(cafile=self.home / "ca.pem")
        with httpx.Client(verify=context, timeout=20.0) as client:
            return client.get(f"https://localhost:{self.api_port}/v1/health")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    held = Processes(tmp_path / "home")
    held.home.mkdir()
    yield held
    for process in held.started:
        children = []
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        with process:  # waits, and closes its pipe
            pass
    pid = held.home / "broker" / "nats.pid"
    if pid.exists() and psutil.pid_exists(int(pid.read_text())):
        psutil.Process(int(pid.read_text())).kill()


@pytest.mark.system
def test_a_hub_starts_answers_survives_kill_9_and_stops_cleanly(processes: Processes) -> None:
    first, announced = processes.up()
    assert announced["api"] == f"https://127.0.0.1:{processes.api_port}"
    assert processes.health().json()["status"] == "ok"
    token = (processes.home / "admin.token").read_text()
    for name in ("admin.token", "client.json"):
        assert stat.S_IMODE((processes.home / name).stat().st_mode) == 0o600
    assert json.loads((processes.home / "client.json").read_text())["ca"] == announced["ca"]

    # A second hub in the same home is refused while the first one runs.
    second, nothing = processes.up(api=free_port(), mqtt=free_port())
    assert (second.wait(30), nothing) == (2, {})
    assert f"another hub (pid {first.pid}) uses" in processes.log

    # Killed: the broker is left behind, and the next hub takes over all the same.
    first.send_signal(signal.SIGKILL)
    first.wait()
    again, announced = processes.up()
    assert announced["pid"] == again.pid
    assert processes.health().status_code == 200
    assert (processes.home / "admin.token").read_text() == token
    children = psutil.Process(again.pid).children(recursive=True)
    assert any("nats-server" in child.name() for child in children)

    again.send_signal(signal.SIGTERM)
    assert again.wait(30) == 0
    until(lambda: not any(child.is_running() for child in children), "the hub's children to end")


def test_a_port_in_use_is_named_with_the_option_to_change_it(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                ConflictError, match=f"API cannot listen on 127.0.0.1:{port}.*--api-port"
            ),
            hub_module._listen("127.0.0.1", port),
        ):
            pass


def test_a_home_is_free_again_after_its_hub(tmp_path: Path) -> None:
    with (
        hub_module._lock(tmp_path),
        pytest.raises(ConflictError, match=rf"another hub \(pid {os.getpid()}\)"),
        hub_module._lock(tmp_path),
    ):
        pass
    with hub_module._lock(tmp_path):
        assert (tmp_path / "hub.lock").read_text() == str(os.getpid())


def test_a_damaged_token_stops_the_start(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    bootstrap.ensure_admin(database, tmp_path, 0.0)
    token = (tmp_path / "admin.token").read_text()
    bootstrap.ensure_admin(database, tmp_path, 1.0)
    assert (tmp_path / "admin.token").read_text() == token
    (tmp_path / "admin.token").write_text("x" * 31)
    with pytest.raises(ConflictError, match="holds no token of 32 characters"):
        bootstrap.ensure_admin(database, tmp_path, 2.0)
    database.close()
