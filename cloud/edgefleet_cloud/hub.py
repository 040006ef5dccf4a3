"""The running hub: everything opened, started, and closed again in order.

All that the hub knows is in its home folder, committed before it is acted on; `run` may be killed
at any instruction and called again. What was under way is found in the database: jobs of a hub
that is gone are queued again, unsigned assignments are signed, unpublished ones published.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, HubError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.monitoring import service as monitoring
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.retraining import service as retraining
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.scheduler import Part, Scheduler
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.images import ImageRepository

API_START_TIMEOUT_S = 20.0
# Requests under way get so long to end when the hub stops.
GRACE_S = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hub:
    """A hub that answers.

    Attributes:
        url: of the API, as clients on this machine reach it.
        failed: set when the API ended by itself.
    """

    services: Services
    scheduler: Scheduler
    link: Link
    url: str
    failed: threading.Event


@contextmanager
def running(settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Hub]:
    """Give a running hub; it is stopped in order at the end.

    Raises:
        ConflictError: if another hub uses the home, or a port is in use.
        HubError: if a part does not start.
    """
    with ExitStack() as stack:
        stack.enter_context(_lock(settings.home))
        listener = stack.enter_context(_listen(settings.api_host, settings.api_port))
        woken = threading.Event()
        services = _open(settings, clock, woken)
        stack.callback(services.database.close)
        broker = EmbeddedBroker(
            settings, services.authority, settings.home / "broker", services.database, clock
        )
        _start_broker(broker, settings)
        stack.callback(broker.stop)
        link = Link(services)
        link.start()
        stack.callback(link.stop)
        jobs = JobRunner(
            services.database,
            services.store,
            settings.home / "jobs",
            limit=settings.job_workers,
            clock=clock,
        )
        stack.callback(jobs.close)
        api = Api(services, listener, _operator_token(settings.home))
        scheduler = Scheduler(_parts(services, jobs, link, broker, api), settings.tick_s, woken)
        api.start()
        stack.callback(api.stop)
        scheduler.start()
        stack.callback(scheduler.stop)
        url = f"https://{_reachable(settings.api_host)}:{settings.api_port}"
        _write_client_files(settings.home, services.authority, url)
        yield Hub(services, scheduler, link, url, api.failed)


class Api:
    """The HTTPS server in a thread of its own, with a certificate from the hub's authority."""

    def __init__(self, services: Services, listener: socket.socket, token: str) -> None:
        self._services = services
        self._listener = listener
        self._pair = self._certificate()
        self._config = uvicorn.Config(
            create_app(services, token),
            ssl_certfile=self._pair.certificate,
            ssl_keyfile=self._pair.key,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._stopping = False
        self.failed = threading.Event()

    def start(self) -> None:
        """Start; return when it answers.

        Raises:
            HubError: if it does not come up.
        """
        self._thread.start()
        deadline = time.monotonic() + API_START_TIMEOUT_S
        while not self._server.started:
            if self.failed.wait(0.01) or time.monotonic() > deadline:
                raise HubError("the HTTPS API did not start; the log has the details")

    def stop(self) -> None:
        """Let requests under way end, then stop."""
        self._stopping = True
        self._server.should_exit = True
        self._thread.join()

    def renew(self) -> None:
        """Take a new certificate when the present one is due; connections made since use it."""
        if self._pair.renew_at <= self._services.clock() and self._config.ssl is not None:
            self._pair = self._certificate()
            self._config.ssl.load_cert_chain(self._pair.certificate, self._pair.key)
            logger.info("the API has a new certificate")

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except Exception:
            logger.exception("the HTTPS API failed")
        if not self._stopping:
            self.failed.set()

    def _certificate(self) -> KeyPair:
        settings = self._services.settings
        hosts = [settings.public_host, _reachable(settings.api_host), "localhost", "127.0.0.1"]
        return self._services.authority.issue_server("api", hosts, settings.home / "api")


def _open(settings: Settings, clock: Callable[[], float], woken: threading.Event) -> Services:
    home = settings.home
    return Services(
        settings=settings,
        database=Database(settings.sqlalchemy_url),
        store=Store(home / "store"),
        authority=Authority.open(home / "authority", clock),
        images=ImageRepository.open(home / "images", clock),
        director=Director.open(home / "director", clock),
        clock=clock,
        wake=woken.set,
    )


def _parts(
    services: Services, jobs: JobRunner, link: Link, broker: EmbeddedBroker, api: Api
) -> list[Part]:
    """Return what every round does, each step on what the ones before it have committed."""
    database, store, clock = services.database, services.store, services.clock

    def evaluate() -> None:
        with database.write() as session:
            monitoring.evaluate(session, store, clock())

    def check() -> None:
        with database.write() as session:
            retraining.check(session, store, clock())

    def conclude() -> None:
        with database.write() as session:
            retraining.conclude(session, clock())

    def advance() -> None:
        with database.write() as session:
            rollouts.advance(session, clock())

    def images() -> None:
        with database.read() as session:
            entries = registry.image_entries(session, store)
        services.images.sync(entries)
        services.images.refresh()

    def sign() -> None:
        assignments.sign_due(database, store, services.director, services.settings, clock())

    return [
        Part("jobs", jobs.tick),
        Part("monitoring", evaluate),
        Part("retraining triggers", check),
        Part("retraining decisions", conclude),
        Part("rollouts", advance),
        Part("image repository", images),
        Part("assignments", sign),
        Part("link", link.publish_pending),
        Part("broker", broker.supervise),
        Part("API certificate", api.renew),
    ]


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the home folder, so that two hubs never share one; the kernel lets go if we die."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "hub.lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConflictError(f"another hub (pid {holder}) uses {home}; stop it first") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # A port in TIME_WAIT from the hub that ran before is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise _port_in_use("API", host, port, error) from error
        yield listener


def _start_broker(broker: EmbeddedBroker, settings: Settings) -> None:
    try:
        broker.start()
    except HubError as error:
        if "address already in use" in str(error).lower():
            raise _port_in_use("broker", settings.mqtt_host, settings.mqtt_port, error) from error
        raise


def _port_in_use(what: str, host: str, port: int, error: Exception) -> ConflictError:
    option = {"API": "--api-port", "broker": "--mqtt-port"}[what]
    reason = error.strerror if isinstance(error, OSError) else "address already in use"
    return ConflictError(
        f"the {what} cannot listen on {host}:{port}: {reason}. Stop what uses it, or give another"
        f" port with {option}"
    )


def _operator_token(home: Path) -> str:
    """Return the operator token, made at the first start."""
    path = home / "admin.token"
    if not path.exists():
        durable.write(path, secrets.token_urlsafe(32).encode() + b"\n", mode=durable.PRIVATE)
    token = path.read_text(encoding="ascii").strip()
    if len(token) < 32:
        raise ConflictError(
            f"{path} holds no token of 32 characters or more; remove it for a new one"
        )
    return token


def _write_client_files(home: Path, authority: Authority, url: str) -> None:
    """Leave what the command line on this machine needs to find and trust this hub."""
    ca = home / "ca.pem"
    durable.write(ca, authority.ca_pem, mode=durable.PUBLIC)
    known = json.dumps({"url": url, "ca": str(ca)}) + "\n"
    durable.write(home / "client.json", known.encode(), mode=durable.PRIVATE)


def _reachable(host: str) -> str:
    """Return a host that a client on this machine can connect to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # read, not bound
