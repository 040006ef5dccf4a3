"""The running hub: everything opened, started, and closed again in order.

All that the hub knows is in its home folder, committed before it is acted on; `run` may be killed
at any instruction and called again. What was under way is found in the database: jobs of a hub
that is gone are queued again, unsigned assignments are signed, unpublished ones published.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvicorn

from edgefleet_cloud import __version__
from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.broker.chosen import Broker, open_broker
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, HubError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.jobs.runner import JobRunner
from edgefleet_cloud.monitoring import service as monitoring
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.registry import signatures
from edgefleet_cloud.retraining import service as retraining
from edgefleet_cloud.rollouts import awaited
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.scheduler import Part, Scheduler
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings, described
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.audit import attesting
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.audit.checkpoints import Checkpoints
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair
from edgefleet_cloud.trust.people import bootstrap
from edgefleet_cloud.trust.repositories import founding
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_cloud.trust.repositories.keys import Secrets
from edgefleet_cloud.trust.repositories.online import OnlineKeys
from edgefleet_cloud.trust.repositories.reminder import Reminder
from edgefleet_cloud.values import Json
from edgefleet_protocol.trust import Fleet

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
        woken, alarmed = threading.Event(), threading.Event()

        def wake() -> None:
            woken.set()
            alarmed.set()

        services = _open(settings, clock, wake)
        stack.callback(services.database.close)
        stack.enter_context(_recorded(services))
        broker = open_broker(settings, services.authority, services.database, clock)
        _start_broker(broker, settings)
        stack.callback(broker.stop)
        link = Link(services, lambda: broker.usable)
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
        bootstrap.ensure_admin(services.database, settings.home, clock())
        api = Api(services, listener)
        scheduler = Scheduler(_parts(services, jobs, link, api), settings.tick_s, woken)
        # By itself: who was shut out does not stay because something else takes its time.
        guard = Scheduler([Part("broker", broker.supervise)], settings.tick_s, alarmed)
        api.start()
        stack.callback(api.stop)
        for rounds in (scheduler, guard):
            rounds.start()
            stack.callback(rounds.stop)
        url = f"https://{_reachable(settings.api_host)}:{settings.api_port}"
        _write_client_files(settings.home, services.authority, url)
        yield Hub(services, scheduler, link, url, api.failed)


class Api:
    """The HTTPS server in a thread of its own, with a certificate from the hub's authority."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        self._services = services
        self._listener = listener
        self._pair = self._certificate()
        self._generation = services.authority.generation
        self._config = uvicorn.Config(
            create_app(services),
            ssl_certfile=self._pair.certificate,
            ssl_keyfile=self._pair.key,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(services.settings.trusted_proxies),
            forwarded_allow_ips=services.settings.trusted_proxies,
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
        """Take a new certificate when the present one is due, or its authority has been replaced.

        Connections made since then use it.
        """
        authority = self._services.authority
        due = self._pair.renew_at <= self._services.clock()
        if (due or self._generation != authority.generation) and self._config.ssl is not None:
            self._pair, self._generation = self._certificate(), authority.generation
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


def _open(settings: Settings, clock: Callable[[], float], wake: Callable[[], None]) -> Services:
    home = settings.home
    database = Database(settings.sqlalchemy_url)
    authority = Authority.open(home / "authority", clock)
    checkpoints = Checkpoints.open(database, home / "audit", clock)
    builder = SigningKey.open(home / "builder")
    if not founding.is_founded(home):
        _found(home, first_fleet(home, clock), clock())
    secrets = Secrets(os.environ)
    return Services(
        settings=settings,
        database=database,
        store=Store(home / "store"),
        authority=authority,
        images=ImageRepository.open(
            home / "images",
            clock,
            OnlineKeys.open(home / "images" / "keys", settings.online_keys, secrets),
        ),
        director=Director.open(
            home / "director",
            clock,
            OnlineKeys.open(home / "director" / "keys", settings.online_keys, secrets),
        ),
        audit=checkpoints,
        builder=builder,
        clock=clock,
        wake=wake,
    )


def first_fleet(home: Path, clock: Callable[[], float]) -> Json:
    """Return the first content of the fleet's signed field; makes the keys that it names."""
    fleet = Fleet(
        Authority.open(home / "authority", clock).authorities,
        [SigningKey.open(home / "audit").public_pem],
        [SigningKey.open(home / "builder").public_pem],
    )
    described: Json = msgspec.to_builtins(fleet)
    return described


def _found(home: Path, fleet: Json, now: float) -> None:
    """Make the first keys and roots, or put those in place that people have signed."""
    begun = founding.begun(home)
    if begun:
        founding.put_in_place(home, begun)
        return
    folder = founding.by_hub(home, fleet, now)
    logger.warning(
        "the offline keys of this fleet are in %s: move the folder to where the hub's machine"
        " cannot read it, and keep its PASSPHRASE elsewhere (docs/trust.md)",
        folder,
    )


@contextmanager
def _recorded(services: Services) -> Iterator[None]:
    """Write down that the hub runs, with which settings; sign the log when it ends."""
    database, clock, host = services.database, services.clock, services.settings.public_host
    after = described(services.settings) | {"version": __version__}
    with database.write() as session:
        audit.record(session, "hub.start", host, clock(), after=after)
        for key, name in ((services.audit.key, "audit"), (services.builder, "builder")):
            if not audit.knows(session, "key.create", key.keyid):
                audit.record(session, "key.create", key.keyid, clock(), after={"key": name})
    yield
    with database.write() as session:
        audit.record(session, "hub.stop", host, clock())
    services.audit.sign()


def _parts(services: Services, jobs: JobRunner, link: Link, api: Api) -> list[Part]:
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
            awaited.start(session, clock())
            rollouts.advance(session, clock())

    def keep_token() -> None:
        bootstrap.prolong(database, clock())

    def attest() -> None:
        attesting.attest_due(database, store, services.builder, clock())

    def images() -> None:
        with database.read() as session:
            entries = registry.image_entries(session, store)
        services.images.sync(entries)
        services.images.refresh()
        with database.read() as session:
            concerned = signatures.is_concerned(session, services.images)
        if concerned:
            with database.write() as session:
                assignments.order_signed(session, signatures.settle(session, services.images))

    reminder = Reminder(services.images, services.director, database, services.settings.home, clock)

    def sign() -> None:
        assignments.sign_due(database, store, services.director, services.settings, clock())

    return [
        Part("jobs", jobs.tick),
        Part("monitoring", evaluate),
        Part("retraining triggers", check),
        Part("retraining decisions", conclude),
        Part("rollouts", advance),
        Part("provenance", attest),
        Part("image repository", images),
        Part("assignments", sign),
        Part("link", link.publish_pending),
        Part("API certificate", api.renew),
        Part("admin token", keep_token),
        Part("audit", services.audit.tick),
        Part("trust", reminder.tick),
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


def _start_broker(broker: Broker, settings: Settings) -> None:
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


def _write_client_files(home: Path, authority: Authority, url: str) -> None:
    """Leave what the command line on this machine needs to find and trust this hub."""
    ca = home / "ca.pem"
    durable.write(ca, authority.ca_pem, mode=durable.PUBLIC)
    known = json.dumps({"url": url, "ca": str(ca)}) + "\n"
    durable.write(home / "client.json", known.encode(), mode=durable.PRIVATE)


def _reachable(host: str) -> str:
    """Return a host that a client on this machine can connect to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # read, not bound
