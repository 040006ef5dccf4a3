"""The log: what a line looks like, what is never in it, and a disk that cannot take it."""

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgefleet_agent.config import Logs
from edgefleet_agent.operating import logs
from edgefleet_agent.testing import Clock

TOKEN = f"ef1.cam-01.{'s' * 43}.{'a' * 64}"
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"
log = logging.getLogger("edgefleet_agent.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, agent = logging.getLogger(), logging.getLogger("edgefleet_agent")
    handlers, levels = root.handlers[:], (root.level, agent.level)
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    agent.setLevel(levels[1])


def test_text_is_one_line_a_message_and_traceback_lines_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(Logs())
    log.info("hello %s", "device")
    logging.getLogger("other").info("not ours")
    log.warning("forged\n2026-01-01T00:00:00Z INFO    line\x1b[2J")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second, third, *traceback = capsys.readouterr().err.splitlines()
    assert first.endswith("Z INFO    hello device")
    assert second.endswith("WARNING forged\\x0a2026-01-01T00:00:00Z INFO    line\\x1b[2J")
    assert third.endswith("ERROR   failed")
    assert traceback[-1] == "ValueError: why"


def test_json_has_the_agreed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Logs(json=True), device="cam-1")
    log.info("hello %s", "device", extra={"model": "colours"})
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("at")).tzinfo == UTC
    assert first == {
        "level": "info",
        "logger": "edgefleet_agent.test",
        "message": "hello device",
        "device": "cam-1",
        "model": "colours",
    }
    assert second["traceback"].endswith("ValueError: why")


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("secret", [TOKEN, KEY, f"x{KEY[:60]}"])
def test_secrets_never_reach_a_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, as_json: bool, secret: str
) -> None:
    logs.set_up(Logs(json=as_json), tmp_path)
    log.error("claim %s refused", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("failed")
    written = (tmp_path / "logs/agent.log").read_text() + capsys.readouterr().err
    assert "[secret]" in written
    assert "s" * 43 not in written
    assert "MHcCAQEE" not in written


def test_the_device_of_a_claim_stays_readable() -> None:
    assert logs.without_secrets(f"claim {TOKEN} refused") == "claim ef1.cam-01.[secret] refused"


def test_the_file_is_rotated_within_its_bound_and_read_in_order(tmp_path: Path) -> None:
    logs.set_up(Logs(max_bytes=500, keep=2), tmp_path)
    for number in range(60):
        log.info("message %d", number)
    found = logs.files(tmp_path)
    assert [path.name for path in found] == ["agent.log.2", "agent.log.1", "agent.log"]
    assert all(path.stat().st_size <= 500 for path in found)
    lines = logs.read(tmp_path, lines=15)
    assert [line.rpartition(" ")[2] for line in lines] == [str(n) for n in range(45, 60)]
    assert (tmp_path / "logs/agent.log").stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_no_file_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    logs.set_up(Logs(max_bytes=0), tmp_path)
    log.info("hello")
    assert logs.files(tmp_path) == []
    assert logs.read(tmp_path, lines=5) == []


def test_since_leaves_out_what_is_older_and_keeps_tracebacks_whole(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "agent.log").write_text(
        "2026-01-01T00:00:00Z ERROR   old\n  of the old traceback\n"
        "2026-01-01T00:00:10Z ERROR   at the edge\n  its traceback\n"
        '{"at":"2026-01-01T00:00:11.123+00:00","level":"info"}\n'
    )
    since = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC).timestamp()
    assert [line[-13:] for line in logs.read(tmp_path, lines=9, since=since)] == [
        "  at the edge",
        "its traceback"[-13:],
        '"level":"info"}'[-13:],
    ]


def test_a_disk_that_cannot_take_the_file_is_told_of_once_and_tried_again(tmp_path: Path) -> None:
    told: list[str] = []
    monotonic = Clock(0.0)
    handler = logs.StoreFile(tmp_path, Logs(), complain=told.append, monotonic=monotonic)
    # A folder of that name can be opened by nobody, whoever runs the test.
    blocked = tmp_path / "logs" / "agent.log"
    blocked.mkdir(parents=True)
    record = logging.LogRecord("edgefleet_agent", logging.INFO, "", 0, "hello", (), None)
    handler.emit(record)
    handler.emit(record)
    monotonic.now = logs.RETRY_S
    handler.emit(record)
    assert len(told) == 1
    assert "cannot be written: " in told[0]
    blocked.rmdir()
    monotonic.now = 2 * logs.RETRY_S - 0.1
    handler.emit(record)
    assert not blocked.exists()
    monotonic.now = 2 * logs.RETRY_S
    handler.emit(record)
    handler.close()
    assert blocked.read_text() == "hello\n"
    assert told[1:] == [f"log file {blocked} is written again"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full of Linux")
def test_a_full_disk_does_not_fail_the_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/agent.log").symlink_to("/dev/full")
    logs.set_up(Logs(), tmp_path)
    log.info("one")
    log.info("two")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["INFO", "WARNING", "INFO"]
    assert "No space left on device" in lines[1]


def test_following_shows_new_lines_over_a_rotation(tmp_path: Path) -> None:
    logs.set_up(Logs(max_bytes=200, keep=1), tmp_path)
    log.info("before")
    steps = iter(
        [
            lambda: log.info("one"),
            lambda: log.info("two, long enough to rotate %s", "x" * 80),
            lambda: log.info("three"),
            lambda: None,
        ]
    )

    def wait() -> bool:
        step = next(steps, None)
        if step is None:
            return False
        step()
        return True

    seen = [line.split("    ")[1][:5] for line in logs.follow(tmp_path, wait)]
    assert seen == ["one", "two, ", "three"]
