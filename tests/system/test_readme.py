"""The README's way by hand, run as it stands there, in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# The ports that `edgefleet up` takes by default are used as they are: the README does so too.
TIMEOUT_S = 180


def block() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- by hand: .*? -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found, "the README has no block that is marked as the way by hand"
    return found.group(1)


@pytest.mark.system
@pytest.mark.timeout(TIMEOUT_S + 60)
def test_the_way_by_hand_ends_with_a_device_that_answers(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(BIN.parent)
    script = f"set -eu\n{block()}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{BIN}:{os.environ['PATH']}"}
    # Its own session, so that the hub and the agent that it leaves running can be stopped.
    with (tmp_path / "output").open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = shell.wait(TIMEOUT_S)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
    text = (tmp_path / "output").read_text(errors="replace")
    assert code == 0, text[-4000:]
    assert "gate-1" in text
