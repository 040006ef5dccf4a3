"""Hub, broker and agent killed with SIGKILL in the middle of their work: the fleet converges.

The tests follow one another on one fleet: each ships the next version through the next disaster.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from demo.fleet import BIN, wait_for
from tests.system.processes import Fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def ship_in_background(fleet: Fleet, iris: tuple[Path, Path]) -> None:
    done = fleet.ship(*iris, "--no-wait")
    assert done.returncode == 0, done.stderr


def test_a_model_reaches_the_device_and_answers(fleet: Fleet, iris: tuple[Path, Path]) -> None:
    done = fleet.ship(*iris)
    assert done.returncode == 0, done.stderr
    assert fleet.serving() == "1"
    answers = subprocess.run(
        [
            BIN / "edgefleet-agent",
            "predict",
            "iris",
            "--input",
            iris[1],
            "--store",
            fleet.device.store,
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert answers.returncode == 0, answers.stderr
    assert '"label": "0"' in answers.stdout


def test_the_hub_killed_with_a_job_running_finishes_it_after_its_restart(
    fleet: Fleet, iris: tuple[Path, Path]
) -> None:
    ship_in_background(fleet, iris)
    wait_for(
        "the job's start",
        lambda: fleet.hub.client.get("/v1/jobs", state="running") or None,
        timeout_s=60,
    )
    fleet.hub.kill()
    fleet.restart_hub()
    fleet.wait_serving("2")


def test_the_broker_killed_comes_back_and_the_device_with_it(
    fleet: Fleet, iris: tuple[Path, Path]
) -> None:
    pid = int((fleet.hub.home / "broker" / "nats.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    ship_in_background(fleet, iris)
    fleet.wait_serving("3")
    assert int((fleet.hub.home / "broker" / "nats.pid").read_text()) != pid


def test_the_agent_killed_in_an_update_finishes_it_after_its_restart(
    fleet: Fleet, iris: tuple[Path, Path]
) -> None:
    ship_in_background(fleet, iris)

    def under_way() -> bool | None:
        attempts = fleet.hub.client.get("/v1/devices/gate-1")["attempts"]
        newest = attempts[0] if attempts else {"release": 0}
        return True if newest["release"] == 4 else None

    wait_for("the update's start", under_way, timeout_s=60, every_s=0.02)
    fleet.device.kill()
    fleet.device.start()
    fleet.wait_serving("4")


def test_everything_killed_at_once_comes_back_as_it_was(fleet: Fleet) -> None:
    pid = int((fleet.hub.home / "broker" / "nats.pid").read_text())
    fleet.hub.kill()
    fleet.device.kill()
    os.kill(pid, signal.SIGKILL)
    fleet.restart_hub()
    fleet.device.start()
    fleet.wait_serving("4")
    assert fleet.cli("devices", "list").returncode == 0
