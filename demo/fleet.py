"""The demo's processes: one hub with its broker, and twelve agents.

Each is started as a person would start it, by its command. Everything is stopped at the end, by
SIGTERM first.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from edgefleet_cloud.cli.client import Client, Target, open_client
from edgefleet_cloud.cli.output import CliError

BIN = Path(sys.executable).parent
ROWS_PER_S = 100
STOP_S = 20.0

T = TypeVar("T")


class DemoError(Exception):
    """The demo did not reach what it set out to show."""


def wait_for(
    what: str, ask: Callable[[], T | None], *, timeout_s: float, every_s: float = 0.3
) -> T:
    """Return the first answer of `ask` that is not None.

    Raises:
        DemoError: if there is none in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(every_s)


class Process:
    """A command of ours in the background, its output in a log file."""

    def __init__(self, log: Path, arguments: list[str]) -> None:
        self._log: IO[bytes] = log.open("ab")
        self.log = log
        # One thread a process: twelve agents share two cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            arguments, stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )

    def check(self) -> None:
        """Raise if the process has ended by itself.

        Raises:
            DemoError: with the end of its log.
        """
        code = self._child.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise DemoError(f"{self.log.stem} ended with code {code}:\n{tail}")

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._child.poll() is None:
            self._child.terminate()

    def kill(self) -> None:
        """End the process with SIGKILL, as a power cut would."""
        self._child.kill()
        self._child.wait()
        self._log.close()

    def wait(self) -> None:
        """Wait for the end; kill the process if it takes too long."""
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()


@dataclass
class Hub:
    """A running hub and the client for its API."""

    process: Process
    client: Client
    home: Path
    api_port: int
    mqtt_port: int

    def stop(self) -> None:
        """Ask the hub to end, and wait for it."""
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        """End the hub with SIGKILL; its broker lives on."""
        self.client.close()
        self.process.kill()


def start_hub(folder: Path, ports: tuple[int, int] | None = None) -> Hub:
    """Run `edgefleet up` and wait until it answers.

    Args:
        folder: the hub's home is `hub` in it.
        ports: of the API and of the broker; free ones by default.
    """
    home = folder / "hub"
    api_port, mqtt_port = ports or _free_ports()
    process = Process(
        folder / "hub.log",
        [
            str(BIN / "edgefleet"),
            "up",
            "--home",
            str(home),
            "--api-port",
            str(api_port),
            "--mqtt-port",
            str(mqtt_port),
        ],
    )

    def answers() -> Client | None:
        process.check()
        if not (home / "client.json").exists():
            return None
        client = open_client(Target(home=home), {})
        try:
            client.get("/v1/health")
        except CliError:
            client.close()
            return None
        return client

    client = wait_for("the hub's start", answers, timeout_s=60)
    return Hub(process, client, home, api_port, mqtt_port)


class Camera:
    """One device of the demo: an agent process that replays a file of images."""

    def __init__(self, name: str, board: str, runtime: str, folder: Path, *, consent: bool) -> None:
        self.name = name
        self.runtime = runtime
        self.board = board
        self.store = folder / name
        self.store.mkdir(parents=True)
        self.rows = self.store / "rows.csv"
        self.process: Process | None = None
        (self.store / "agent.toml").write_text(
            f"store = {json.dumps(str(self.store))}\n"
            f"board = {json.dumps(board)}\n"
            f"runtimes = [{json.dumps(runtime)}]\n"
            "heartbeat_s = 5\n"
            "[source]\n"
            f"path = {json.dumps(str(self.rows))}\n"
            'model = "digits"\n'
            f"rows_per_s = {ROWS_PER_S}\n"
            'label_column = "digit"\n'
            "[samples]\n"
            f"consent = {json.dumps(consent)}\n",
            encoding="utf-8",
        )

    def enroll(self, hub_url: str, token: str) -> subprocess.Popen[bytes]:
        """Start `edgefleet-agent enroll` in the background."""
        return subprocess.Popen(
            [
                str(BIN / "edgefleet-agent"),
                "enroll",
                "--config",
                str(self.store / "agent.toml"),
                "--hub",
                hub_url,
                "--token",
                token,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def start(self) -> None:
        """Run the agent."""
        self.process = Process(
            self.store / "agent.log",
            [str(BIN / "edgefleet-agent"), "run", "--config", str(self.store / "agent.toml")],
        )


def enroll_all(hub: Hub, cameras: Iterable[Camera]) -> None:
    """Claim every camera at the hub and enrol it, four at a time.

    Raises:
        DemoError: if one of them is refused.
    """
    url = json.loads((hub.home / "client.json").read_text())["url"]
    waiting = list(cameras)
    while waiting:
        batch, waiting = waiting[:4], waiting[4:]
        children = []
        for camera in batch:
            claim = hub.client.post(
                "/v1/devices", {"device": camera.name, "labels": {"runtime": camera.runtime}}
            )
            children.append((camera, camera.enroll(url, claim["token"])))
        for camera, child in children:
            _, errors = child.communicate(timeout=60)
            if child.returncode:
                raise DemoError(f"{camera.name} could not enrol: {errors.decode()}")


def stop(hub: Hub | None, cameras: Iterable[Camera]) -> None:
    """Stop all agents, then the hub."""
    agents = [camera.process for camera in cameras if camera.process]
    for process in agents:
        process.terminate()
    for process in agents:
        process.wait()
    if hub:
        hub.stop()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])
