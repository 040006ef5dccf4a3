"""The whole API on a real HTTP server, for tests of the API and of the command line."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.fleet.testing import until
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.people import bootstrap

TOKEN = "test-" + "t" * 40


@contextmanager
def served(services: Services, *, tls: bool = False, port: int = 0) -> Iterator[httpx.Client]:
    """Serve the API on loopback; give a client with the admin's token.

    Args:
        services: behind it.
        tls: over HTTPS, as `localhost`; else over plain HTTP, which is quicker to set up.
        port: 0 for a free one.
    """
    with services.database.write() as session:
        bootstrap.admit(session, TOKEN, services.clock())
    folder = services.settings.home / "api"
    pair = services.authority.issue_server("api", ["localhost"], folder) if tls else None
    config = uvicorn.Config(
        create_app(services),
        host="localhost" if tls else "127.0.0.1",
        port=port,
        ssl_certfile=pair.certificate if pair else None,
        ssl_keyfile=pair.key if pair else None,
        log_config=None,
        lifespan="off",
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the HTTP server")
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        base = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        verify = ssl.create_default_context(cadata=services.authority.ca_pem.decode())
        # The first table of a process imports pandas, which takes seconds on a busy machine.
        with httpx.Client(base_url=base, headers=headers, timeout=60.0, verify=verify) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
