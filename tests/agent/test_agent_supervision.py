"""Talking to systemd over a real socket, and the watchdog of an engine that hangs."""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet_agent.operating.supervision import Supervisor, Watchdog
from edgefleet_agent.testing import Clock, HubDouble, Rig

DEADLINE_S = 20.0


class Systemd:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(DEADLINE_S)
        self.environment = {"NOTIFY_SOCKET": address}

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().split("\n")

    def is_quiet(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(DEADLINE_S)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = str(tmp_path / "n") if request.param == "path" else f"@ef-{secrets.token_hex(8)}"
    made = Systemd(name)
    yield made
    made.close()


def test_ready_and_stopping_are_told(systemd: Systemd) -> None:
    supervisor = Supervisor(systemd.environment)
    supervisor.ready("1 model serves")
    supervisor.stopping()
    assert systemd.heard() == ["READY=1", "STATUS=1 model serves"]
    assert systemd.heard() == ["STOPPING=1", "STATUS=stopping"]


def test_without_a_supervisor_nothing_happens() -> None:
    supervisor = Supervisor({})
    supervisor.ready("all is well")
    watchdog = Watchdog(supervisor, link_alive=lambda: True, status=str)
    watchdog.start()
    watchdog.stop()
    assert supervisor.watchdog_s is None


def test_a_supervisor_that_is_gone_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    supervisor.tell("WATCHDOG=1")
    supervisor.tell("WATCHDOG=1")
    assert len(caplog.records) == 1
    assert "cannot be told anything" in caplog.text


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("120000000", None, 120.0),
        # Its number would be in the test's name, which is the same in every process.
        pytest.param("120000000", str(os.getpid()), 120.0, id="of-this-process"),
        ("120000000", "1", None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_fed_where_this_process_is_meant(
    usec: str, pid: str | None, expected: float | None
) -> None:
    environment = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": usec}
    if pid is not None:
        environment["WATCHDOG_PID"] = pid
    assert Supervisor(environment).watchdog_s == expected


@pytest.mark.parametrize(
    ("still_s", "link", "complaint"),
    [
        (60.0, True, ""),
        (60.5, True, "the engine has not turned for 60 s"),
        (0.0, False, "the thread of the link has ended"),
    ],
)
def test_silence_begins_just_after_the_limit_or_with_the_link(
    tmp_path: Path, still_s: float, link: bool, complaint: str
) -> None:
    systemd = Systemd(str(tmp_path / "n"))
    monotonic = Clock(100.0)
    watchdog = Watchdog(
        Supervisor(systemd.environment),
        link_alive=lambda: link,
        status=lambda: "fine",
        turn_limit_s=60.0,
        monotonic=monotonic,
    )
    monotonic.now += still_s
    assert watchdog.complaint() == complaint
    watchdog.look()
    if complaint:
        assert systemd.heard() == [f"STATUS={complaint}"]
        watchdog.look()  # told once
        assert systemd.is_quiet()
        watchdog.alive()
    else:
        assert systemd.heard() == ["WATCHDOG=1", "STATUS=fine"]
    systemd.close()


def test_an_engine_that_hangs_is_no_longer_vouched_for(
    rig: Callable[..., Rig], hub: HubDouble, tmp_path: Path
) -> None:
    systemd = Systemd(str(tmp_path / "n"))
    environment = {**systemd.environment, "WATCHDOG_USEC": "60000"}
    monotonic = Clock(100.0)
    watchdog = Watchdog(
        Supervisor(environment),
        link_alive=lambda: True,
        status=lambda: "fine",
        turn_limit_s=60.0,
        monotonic=monotonic,
    )
    device = rig(alive=watchdog.alive)
    hanging, let_go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hanging.set()
        let_go.wait(DEADLINE_S)

    engine = threading.Thread(target=device.engine.run, daemon=True)
    watchdog.start()
    engine.start()
    try:
        assert systemd.heard() == ["WATCHDOG=1", "STATUS=fine"]
        device.engine.attempts.tick = hang  # type: ignore[method-assign]  # the defect under test
        device.link.disconnect()
        assert hanging.wait(DEADLINE_S)
        monotonic.now += 61.0
        while (said := systemd.heard()) == ["WATCHDOG=1", "STATUS=fine"]:
            pass
        assert said == ["STATUS=the engine has not turned for 61 s"]
    finally:
        del device.engine.attempts.tick
        let_go.set()
        watchdog.stop()
        device.engine.stop()
        engine.join(DEADLINE_S)
        systemd.close()
    assert not engine.is_alive()
