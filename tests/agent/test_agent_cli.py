"""The command line: what a person sees, and the exit codes that a script uses."""

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet_agent import cli, files
from edgefleet_agent.config import Config
from edgefleet_agent.errors import StoreError
from edgefleet_agent.operating import health, logs, offline
from edgefleet_agent.testing import Bundle, HubDouble, Rig
from edgefleet_agent.updating import byhand
from edgefleet_protocol.messages import Refusal

Make = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def store(rig: Callable[..., Rig], hub: HubDouble, bundle: Make) -> Path:
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle(acknowledge=False)
    return device.store


def rows(tmp_path: Path, text: str = "a,b,c,d\n1,0,0,0\n0,1,0,0\n") -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    return path


def test_predict_answers_with_the_release_of_the_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "colours", "--input", str(rows(tmp_path)), "--store", str(store)]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found] == ["red", "green"]
    assert [row["release"] for row in found] == [1, 1]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "row  label  score",
        f"1    red    {found[0]['score']:.4f}",
        f"2    green  {found[1]['score']:.4f}",
    ]


@pytest.mark.parametrize(
    ("model", "text", "complaint"),
    [
        ("shapes", "a,b,c,d\n1,0,0,0\n", "serves no model 'shapes'"),
        ("colours", "a,b\n1,2\n", "lacks the columns c, d that the model takes"),
        ("colours", "a,b,c,d\n1,0,x,0\n", "column 'c' must hold numbers, not 'x'"),
    ],
)
def test_predict_says_what_is_wrong(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    text: str,
    complaint: str,
) -> None:
    path = rows(tmp_path, text)
    assert cli.main(["predict", model, "--input", str(path), "--store", str(store)]) == 1
    assert complaint in capsys.readouterr().err


def test_status_shows_models_and_waiting_reports(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--store", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["reports_waiting"]) == ("cam-1", 1)
    assert found["models"] == [
        {
            "model": "colours",
            "lane": "primary",
            "version": "v1",
            "release": 1,
            "variant": "onnxruntime-test",
            "runtime": "onnxruntime",
            "previous_release": None,
            "attempt": 1,
            "step": "confirmed",
            "reason": "",
        }
    ]
    (store / health.CONTACT).unlink()  # its clock stood years ago; "never" does not age
    assert cli.main(["status", "--store", str(store)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "device cam-1, hub https://localhost; the agent does not run",
        "last heard from the hub: never; reports waiting: 1",
        "link unmetered, no limit",
        "certificate: cannot be read; see edgefleet-agent doctor",
        "model    lane     version  release  variant           runtime      attempt  step",
        "colours  primary  v1       1        onnxruntime-test  onnxruntime  1        confirmed",
    ]


def test_status_of_a_running_agent_shows_contact_and_what_is_left_of_the_budget(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    health.HealthMeter(store, time.time).hub_time(time.time())
    (store / "agent.toml").write_text('[network]\nlink = "metered"\n')
    with files.locked(store):
        assert cli.main(["status", "--store", str(store)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("; the agent runs")
    assert out[1] == "last heard from the hub: 0 s ago; reports waiting: 1"
    assert out[2] == "link metered, 64.0 MiB left for downloads"


@pytest.mark.parametrize("command", [["run"], ["status"]])
def test_a_device_that_is_not_enrolled_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, "--store", str(tmp_path)]) == 1
    assert "run: edgefleet-agent enroll --hub URL --token CLAIM" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_used_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("heartbeats = 5", "utf-8")
    assert cli.main(["run", "--config", str(path)]) == 2
    assert f"configuration from {path} cannot be used" in capsys.readouterr().err


def test_two_agents_do_not_share_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.locked(store):
        assert cli.main(["run", "--store", str(store)]) == 1
    assert "is in use by another agent" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for others: run it as root")
@pytest.mark.parametrize("command", [["run"], ["rollback", "colours"]])
def test_root_leaves_no_files_in_somebody_else_s_store(
    store: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    os.chown(store, 65_534, 65_534)
    assert cli.main([*command, "--store", str(store)]) == 2
    assert "run this as nobody: sudo -u 'nobody'" in capsys.readouterr().err


def test_a_health_check_fails_while_no_agent_runs(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["status", "--running", "--store", str(store)]
    assert cli.main(command) == 1
    with files.locked(store):
        assert cli.main(command) == 0


def test_a_service_says_that_it_is_ready_feeds_the_watchdog_and_stops_on_sigterm(
    store: Path,
) -> None:
    address = f"@ef-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + address[1:])
        systemd.settimeout(60.0)
        environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
        command = [sys.executable, "-m", "edgefleet_agent.cli", "run", "--store", str(store)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as agent:
            try:
                assert systemd.recv(999) == b"READY=1\nSTATUS=1 models serve"
                assert systemd.recv(999) == b"WATCHDOG=1\nSTATUS=1 models serve"
                assert systemd.recv(999) == b"WATCHDOG=1\nSTATUS=1 models serve"
                assert cli.main(["status", "--running", "--store", str(store)]) == 0
                agent.terminate()
                while (said := systemd.recv(999)).startswith(b"WATCHDOG"):
                    pass
                assert said == b"STOPPING=1\nSTATUS=stopping"
                _, errors = agent.communicate(timeout=60.0)
            finally:
                agent.kill()
    assert agent.returncode == 0
    assert "INFO    stopping\n" in errors.decode()
    kept = logs.read(store, lines=99)
    assert any(line.endswith("starts") for line in kept)
    assert any(line.endswith("stopping") for line in kept)


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["dance"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


# -- going back -------------------------------------------------------------------------------


@pytest.fixture
def second(rig: Callable[..., Rig], hub: HubDouble, bundle: Make) -> Rig:
    """A device that has confirmed release 1, then 2."""
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    hub.send_all(device.link, hub.release(bundle(version="v2"), 2))
    device.settle()
    return device


def test_rollback_without_an_agent_is_done_here_and_told_to_the_hub(
    rig: Callable[..., Rig],
    second: Rig,
    hub: HubDouble,
    bundle: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    second.close()
    command = ["rollback", "colours", "--reason", "wrong colours", "--store", str(second.store)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "colours went back from release 2 to 1\n"
    (lane,) = offline.status(Config(store=str(second.store)))["models"]
    assert (lane["release"], lane["reason"]) == (1, "went back from release 2 on this device")
    again = rig()
    again.settle()
    assert [slot.release for slot in again.state.serving] == [1]
    (refusal,) = hub.bodies(Refusal)
    assert (refusal.what, refusal.reason) == ("release", "rolled-back-here")
    assert refusal.text.endswith(": wrong colours")
    # What was ordered is not begun again by itself, and nothing older than release 2 ever is.
    hub.send_all(again.link, hub.release(bundle(version="v2"), 2))
    again.settle()
    assert [slot.release for slot in again.state.serving] == [1]
    assert cli.main(["rollback", "colours", "--store", str(second.store)]) == 1
    assert "no release before this one to go back to" in capsys.readouterr().err


def test_rollback_of_a_running_agent_is_asked_for_and_done_by_it(
    second: Rig, hub: HubDouble
) -> None:
    config = Config(store=str(second.store))
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            second.engine.step(0.01)

    thread = threading.Thread(target=run)
    with files.locked(second.store):
        thread.start()
        try:
            told = offline.roll_back(config, "colours", "by hand")
        finally:
            stop.set()
            thread.join()
    assert told == "colours went back from release 2 to 1"
    assert not list((second.store / "rollback").iterdir())
    second.settle()
    assert [slot.release for slot in second.state.serving] == [1]
    assert [refusal.reason for refusal in hub.bodies(Refusal)] == ["rolled-back-here"]


def test_a_request_that_was_carried_out_already_changes_nothing(
    second: Rig, hub: HubDouble
) -> None:
    path = byhand.ask(second.store, byhand.Request("colours", 1, "found again after a kill"))
    second.engine.step(0.0)
    assert not path.exists()
    second.later(60.0)
    assert [slot.release for slot in second.state.serving] == [2]


def test_a_request_that_cannot_be_read_is_removed(
    second: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    path = byhand.ask(second.store, byhand.Request("colours", 2, "x"))
    path.write_bytes(b"{")
    second.engine.step(0.0)
    assert not path.exists()
    assert "cannot be read and was removed" in caplog.text


def test_an_agent_that_does_not_answer_is_not_asked_for_ever(second: Rig) -> None:
    with (
        files.locked(second.store),
        pytest.raises(StoreError, match=r"did not go back within 0\.2 s"),
    ):
        offline.roll_back(Config(store=str(second.store)), "colours", "by hand", timeout_s=0.2)
    assert not list((second.store / "rollback").iterdir())


def test_rollback_without_a_release_before_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rollback", "colours", "--store", str(store)]) == 1
    assert "no release before this one to go back to" in capsys.readouterr().err
    assert cli.main(["rollback", "shapes", "--store", str(store)]) == 1
    assert "has no model 'shapes'" in capsys.readouterr().err


# -- logs and doctor --------------------------------------------------------------------------


def test_logs_shows_the_newest_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "agent.log").write_text("2026-01-01T00:00:00Z one\n2026-01-02T00:00:00Z two\n")
    command = ["logs", "--store", str(tmp_path)]
    assert cli.main([*command, "--lines", "1"]) == 0
    assert capsys.readouterr().out == "2026-01-02T00:00:00Z two\n"
    assert cli.main([*command, "--since", "2026-01-01T00:00:00+00:00"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main([*command, "--since", "10m"]) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--since", "yesterday"])
    assert caught.value.code == 2
    assert "expected for example 10m" in capsys.readouterr().err


def test_logs_says_where_to_look_when_no_file_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["logs", "--store", str(tmp_path)]) == 0
    assert f"no log yet in {tmp_path}/logs" in capsys.readouterr().err
    (tmp_path / "agent.toml").write_text("[logs]\nmax_bytes = 0\n")
    assert cli.main(["logs", "--store", str(tmp_path)]) == 0
    assert "journalctl -u edgefleet-agent" in capsys.readouterr().err


def test_doctor_prints_findings_with_remedies_and_fails_on_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--store", str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "ok      configuration: defaults, no agent.toml"
    assert out[1] == f"error   store: {tmp_path}/none does not exist"
    assert out[2].startswith("        → enrol this device")
    assert cli.main(["doctor", "--store", str(tmp_path / "none"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [finding["severity"] for finding in found][:2] == ["ok", "error"]
