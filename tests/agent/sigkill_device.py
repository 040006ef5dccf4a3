"""A device process for `test_agent_sigkill.py`: the real agent, fed from files instead of a broker.

    python sigkill_device.py STORE FOLDER SECONDS_PER_BLOCK

Prints one JSON object a line: blocks served so far, the process id of a running trial, the result.
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from edgefleet_agent import config
from edgefleet_agent.agent import Agent
from edgefleet_agent.testing import HubDouble, MemoryLink
from edgefleet_protocol.messages import Result


def say(**fields: object) -> None:
    """Print one line."""
    print(json.dumps(fields), flush=True)


def runs_a_trial(child: psutil.Process) -> bool:
    """Tell the child of a trial from the one that judges signed metadata."""
    try:
        return any("trial_child" in part for part in child.cmdline())
    except psutil.NoSuchProcess:
        return False


class SlowHub(HubDouble):
    """Serves blocks one by one, and tells how many."""

    served = 0
    pause_s = 0.0

    def block(self, digest: str, index: int) -> bytes:
        """Wait, then serve."""
        time.sleep(self.pause_s)
        self.served += 1
        say(served=self.served)
        return super().block(digest, index)


def main(store: str, folder: str, pause_s: str) -> None:
    """Run the agent until its first result."""
    hub, link = SlowHub(), MemoryLink()
    hub.pause_s = float(pause_s)
    key = load_pem_private_key((Path(folder) / "director.pem").read_bytes(), None)
    hub.director._signer = CryptoSigner(key)  # the agent asks the time before it believes anything
    hub.blobs = {path.name: path.read_bytes() for path in (Path(folder) / "blobs").iterdir()}
    settings = config.load(environment={}, overrides={"store": store, "board": "generic-x86_64"})
    agent = Agent(settings, link=link)
    agent.start()
    link.connect()
    for topic, data in json.loads((Path(folder) / "messages.json").read_text("utf-8")):
        link.send(topic, bytes.fromhex(data))
    waiting = threading.Event()
    trial = None
    while not hub.bodies(Result):
        hub.answer(link)
        trials = [child for child in psutil.Process().children() if runs_a_trial(child)]
        if trials and trial is None:
            trial = trials[0].pid
            say(trial=trial)
        waiting.wait(0.01)
    result = hub.bodies(Result)[0]
    agent.stop()
    say(
        result={
            "outcome": str(result.outcome),
            "reason": result.reason,
            "bytes_fetched": result.bytes_fetched,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
