"""A real agent process, killed with SIGKILL in the middle of a download and of a trial."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgefleet_agent.testing import Bundle, HubDouble, padded_onnx
from edgefleet_protocol import blocks

Make = Callable[..., Bundle]
BLOCKS = 40


def publish(folder: Path, hub: HubDouble, made: Bundle) -> None:
    """Write everything that the hub would send into files, for `sigkill_device.py`."""
    target = hub.release(made, 1)
    (folder / "blobs").mkdir(parents=True)
    for digest, data in hub.blobs.items():
        (folder / "blobs" / digest).write_bytes(data)
    (folder / "director.pem").write_bytes(hub.director._signer.private_bytes)
    messages = [[topic, data.hex()] for topic, data in hub.image_messages()]
    messages.append(["ef/1/d/cam-1/down/assignment", hub.assignment(target).hex()])
    (folder / "messages.json").write_text(json.dumps(messages), "utf-8")


def device(store: Path, folder: Path, *, slowly: bool) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("sigkill_device.py")),
            str(store),
            str(folder),
            "0.05" if slowly else "0",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_blocks_received_before_a_sigkill_are_not_fetched_again(
    tmp_path: Path, hub: HubDouble, bundle: Make, models: Path
) -> None:
    size_bytes = BLOCKS * blocks.BLOCK_BYTES
    made = bundle(data=padded_onnx((models / "classifier.onnx").read_bytes(), size_bytes))
    store = tmp_path / "store"
    hub.identity_into(store)
    publish(tmp_path / "hub", hub, made)
    with device(store, tmp_path / "hub", slowly=True) as first:
        for line in lines(first):
            if line.get("served", 0) >= BLOCKS // 2:
                break
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    with device(store, tmp_path / "hub", slowly=False) as second:
        result = next(line["result"] for line in lines(second) if "result" in line)
    assert second.returncode == 0
    assert result["outcome"] == "confirmed"
    # A quarter of the file lost at most: what was served and not yet written when it died.
    assert result["bytes_fetched"] < size_bytes * 3 // 4


def test_a_trial_does_not_outlive_its_agent_for_long_and_is_done_again(
    tmp_path: Path, hub: HubDouble, bundle: Make, models: Path
) -> None:
    store = tmp_path / "store"
    hub.identity_into(store)
    publish(tmp_path / "hub", hub, bundle("endless.onnx"))
    (store / "agent.toml").write_text("[budgets]\ntrial_timeout_s = 3\n", "utf-8")
    with device(store, tmp_path / "hub", slowly=False) as first:
        child = next(line["trial"] for line in lines(first) if line.get("trial"))
        first.send_signal(signal.SIGKILL)
    with device(store, tmp_path / "hub", slowly=False) as second:
        result = next(line["result"] for line in lines(second) if "result" in line)
    assert (result["outcome"], result["reason"]) == (
        "rejected",
        "the trial did not end within 3 s",
    )
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline, "the orphaned trial is still running"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has waited for is dead too.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text("ascii")
