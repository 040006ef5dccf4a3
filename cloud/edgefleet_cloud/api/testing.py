"""The whole API on a real HTTP server, for tests of the API and of the command line."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.fleet.testing import until
from edgefleet_cloud.services import Services

TOKEN = "test-" + "t" * 40


@contextmanager
def served(services: Services) -> Iterator[httpx.Client]:
    """Serve the API on a free port of loopback; give a client with the operator token."""
    config = uvicorn.Config(
        create_app(services, TOKEN), port=0, log_config=None, lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the HTTP server")
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        base = f"http://127.0.0.1:{port}"
        # The first table of a process imports pandas, which takes seconds on a busy machine.
        with httpx.Client(base_url=base, headers=headers, timeout=60.0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
