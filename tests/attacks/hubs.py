"""A hub's API over TLS, as devices meet it, and one that only leads elsewhere."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import uvicorn

from edgefleet_agent.trusting import enrolment, identity
from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.fleet import enrolment as claims
from edgefleet_cloud.fleet.testing import until
from edgefleet_cloud.services import Services
from tests.attacks.brokers import Ours

HOST = "127.0.0.1"
MACHINE = enrolment.Machine("rpi4", {"onnxruntime": "1.20.0"}, 1 << 30)


def claim_of(services: Services, device: str) -> enrolment.Claim:
    """Return a new claim for a device."""
    with services.database.write() as session:
        token = claims.create_claim(
            session, device, {}, 3600.0, services.authority.fingerprint, services.clock()
        )
    return enrolment.parse_claim(token)


def save_identity(broker: Ours, store: Path, port: int) -> None:
    """Write the identity of the device `a` as its enrolment would, for a broker on some port."""
    identity.save(
        store,
        identity.Hub("a", HOST, port, f"https://{HOST}"),
        key=(broker.site.devices / "a.key").read_bytes(),
        certificate=(broker.site.devices / "a.pem").read_bytes(),
        ca=broker.site.services.authority.ca_pem,
        image_root=broker.site.services.images.root_1,
        director_root=broker.site.services.director.root_1,
    )


@contextmanager
def serving(services: Services) -> Iterator[str]:
    """Serve a hub's API with a certificate of its authority; give its URL."""
    pair = services.authority.issue_server("api", [HOST], services.settings.home / "api")
    config = uvicorn.Config(
        create_app(services),
        host=HOST,
        port=0,
        log_config=None,
        lifespan="off",
        access_log=False,
        ssl_certfile=pair.certificate,
        ssl_keyfile=pair.key,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the HTTPS server")
        yield f"https://{HOST}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def leading_to(url: str, services: Services) -> Iterator[str]:
    """Answer every request with a redirect; TLS is as `services` would have it; give the URL."""
    pair = services.authority.issue_server("lead", [HOST], services.settings.home / "lead")

    class Leader(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307)
            self.send_header("Location", url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = ThreadingHTTPServer((HOST, 0), Leader)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
