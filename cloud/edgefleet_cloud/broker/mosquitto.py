"""An external Mosquitto as the fleet's broker, administered over MQTT (docs/brokers.md).

Rules:

1. The hub administers the broker's dynamic security plugin over a connection of its own, and may
   run on another machine. What is on record in the database and what the plugin knows are compared
   whole at each connect; after that, changes are sent as they come.
2. A broker is not used before `selftest` has found nothing that it should not let through: the hub
   does not start with one that leaks, and after each loss of the connection it is tried again
   before the link may come back.
3. A retained marker tells whether the broker kept what this hub has published. If it is gone, or
   another hub's, everything is published again.
4. A certificate of the broker that is about to end is said so, while there is time.
"""

import itertools
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from edgefleet_cloud.broker import dynsec, identities, policy, selftest
from edgefleet_cloud.broker.backoff import Backoff
from edgefleet_cloud.broker.connection import Connection, Message
from edgefleet_cloud.broker.dynsec import Command, Contents
from edgefleet_cloud.broker.errors import BrokerError, LeakError
from edgefleet_cloud.database.models import Incident
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair

# Each command rewrites the plugin's file: 0.15 s at 10,000 devices, 15 ms at 1,000.
COMMANDS_AT_ONCE = 10
# What lets devices in is spread over the rounds of the scheduler; what shuts out is not.
ROUND_S = 0.25
LISTED_AT_ONCE = 500
ANSWER_TIMEOUT_S = 15.0
MARKER_TIMEOUT_S = 5.0
# At the hub's start the broker may be starting too.
START_TIMEOUT_S = 20.0
EXPIRY_WARNING_S = 30 * 86_400.0
LEAK = "broker-leaks"
CONTROL_ID = "hub-control"

_log = logging.getLogger(__name__)


class MosquittoBroker:
    """The hub's side of an external Mosquitto.

    Attributes:
        usable: whether the link may use the broker (rule 2).

    Args:
        settings: where it is.
        authority: its certificate, and those of hub and devices, are of it.
        folder: of the hub's own certificates for it.
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
        self._control: Connection | None = None
        self._known = Contents()
        # The fleet that `_known` is in line with; None while it is not.
        self._valid: dict[str, set[str]] | None = None
        self._numbers = itertools.count(1)
        self._backoff = Backoff()
        self.usable = False

    def start(self) -> None:
        """Connect, and bring the broker into line; return when it may be used.

        Raises:
            BrokerError: if it cannot be reached, or lets through what it should not.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._open()
            except BrokerError as error:
                if isinstance(error, LeakError) or time.monotonic() > end:
                    raise
                _log.warning("%s; trying again", error)
                time.sleep(0.5)
            else:
                return

    def supervise(self) -> None:
        """Bring the broker into line: called at every tick of the scheduler.

        Connects again if the connection is lost, lets new certificates in, and takes away those
        that are revoked, replaced or expired, whose connections the broker then closes.
        """
        if self._control is None or self._control.closed:
            self._drop()
            if self._backoff.may_start(time.monotonic()):
                self._backoff.started(time.monotonic())
                _log.warning("the control connection to the broker is lost; connecting again")
                self._open()
            return
        try:
            self._follow(self._control)
        except BrokerError:
            self._drop()
            raise

    def stop(self) -> None:
        """Disconnect; the broker and its clients stay as they are."""
        self._drop()

    def _open(self) -> None:
        """Do all that a new connection needs, by the module's rules."""
        pair = identities.control(self._authority, self._folder)
        control = self._connection(pair, CONTROL_ID, None).connect()
        try:
            control.subscribe(dynsec.RESPONSES, policy.MARKER)
            self._known = self._find(control)
            self._valid = None
            self._follow(control)
            self._try(control)
            self._mind_marker(control)
            self._mind_expiry(control)
        except BaseException:
            control.close()
            raise
        self._control, self.usable = control, True

    def _drop(self) -> None:
        self.usable = False
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def _connection(self, pair: KeyPair, client_id: str, will: Message | None) -> Connection:
        host, port = self._settings.mqtt_host, self._settings.mqtt_port
        return Connection(host, port, self._authority.ca_pem, pair, client_id, will)

    # --- rule 1: what the plugin knows ----------------------------------------------------------

    def _follow(self, control: Connection) -> None:
        """Bring the plugin into line with the database, or nearer to it."""
        with self._database.read() as session:
            valid = certificates.valid_serials(session, self._clock())
        if valid != self._valid:
            self._valid = None
            if self._apply(control, wanted(valid, self._folder)):
                self._valid = valid

    def _find(self, control: Connection) -> Contents:
        defaults = self._ask(control, [{"command": "getDefaultACLAccess"}])[0]
        groups = self._list(control, "listGroups", "groups")
        return Contents(
            roles=dict(map(dynsec.read_role, self._list(control, "listRoles", "roles"))),
            clients=dict(map(dynsec.read_client, self._list(control, "listClients", "clients"))),
            defaults=dynsec.read_defaults(defaults["acls"]),
            groups={str(group["groupname"]) for group in groups},
        )

    def _list(self, control: Connection, command: str, key: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        while True:
            page = {"command": command, "verbose": True, "count": LISTED_AT_ONCE}
            answer = self._ask(control, [page | {"offset": len(listed)}])[0]
            listed += answer[key]
            if not answer[key] or len(listed) >= int(answer["totalCount"]):
                return listed

    def _apply(self, control: Connection, aim: Contents) -> bool:
        """Change the plugin towards `aim`, for about `ROUND_S`; return whether it is there."""
        end = time.monotonic() + ROUND_S
        pending = dynsec.commands(self._known.copy(), aim)
        batch = list(itertools.islice(pending, COMMANDS_AT_ONCE))
        while batch:
            self._ask(control, batch)
            for command in batch:
                dynsec.apply(self._known, command)
                if command["command"] == "deleteClient":
                    _log.info("the broker accepts %s no more", command["username"])
            batch = list(itertools.islice(pending, COMMANDS_AT_ONCE))
            if batch and time.monotonic() >= end and batch[0]["command"] not in dynsec.TAKING:
                return False
        return True

    def _ask(self, control: Connection, commands: Sequence[Command]) -> list[dict[str, Any]]:
        """Send commands to the plugin; return the data of its answers.

        Raises:
            BrokerError: if it does not answer, or refuses one.
        """
        number = str(next(self._numbers))
        sent = [command | {"correlationData": number} for command in commands]
        control.publish(dynsec.REQUESTS, json.dumps({"commands": sent}).encode())
        answers: list[dict[str, Any]] = []
        found = control.take(lambda message: _is_answer(message, number), ANSWER_TIMEOUT_S)
        if found is None:
            raise BrokerError(
                "the broker's dynamic security plugin does not answer. Does its configuration load"
                " it, and its file name this hub? `edgefleet broker config` writes both"
            )
        for command, answer in zip(commands, json.loads(found[1])["responses"], strict=True):
            if "error" in answer:
                raise BrokerError(
                    f"the broker refuses {command['command']}: {str(answer['error'])[:200]}"
                )
            answers.append(answer.get("data", {}))
        return answers

    # --- rules 2 to 4 ---------------------------------------------------------------------------

    def _try(self, control: Connection) -> None:
        """Run the self-test; a leak is an incident, too."""
        before = self._known.copy()

        def admit(mark: str) -> None:
            aim = before.copy()
            dynsec.admit(aim, policy.PROBE, [mark])
            self._apply(control, aim)

        def expel() -> None:
            self._apply(control, before)

        try:
            address = (self._settings.mqtt_host, self._settings.mqtt_port)
            closed_s = selftest.run(
                address, self._connection, self._authority, self._folder, admit, expel
            )
        except LeakError as error:
            self._report(str(error))
            raise
        finally:
            expel()
        self._settle()
        _log.info(
            "the broker lets through what it should and nothing else;"
            " a revoked device's connection was closed after %.0f ms",
            closed_s * 1000,
        )

    def _report(self, text: str) -> None:
        with self._database.write() as session:
            if not session.scalars(_open_leaks()).first():
                session.add(
                    Incident(
                        kind=LEAK, scope="fleet", devices=[], text=text, opened_at=self._clock()
                    )
                )

    def _settle(self) -> None:
        with self._database.write() as session:
            for incident in session.scalars(_open_leaks()):
                incident.closed_at = self._clock()

    def _mind_marker(self, control: Connection) -> None:
        """Have everything published again if the broker has not kept what it was given."""
        # Retained messages come before what is published after the subscription.
        own = identities.link_mark(self._folder).encode()
        fence = secrets.token_bytes(16)
        control.publish(policy.MARKER, fence)
        seen: list[bytes] = []
        while fence not in seen:
            found = control.take(lambda message: message[0] == policy.MARKER, MARKER_TIMEOUT_S)
            if found is None:
                raise BrokerError("the broker does not deliver the hub's own marker")
            seen.append(found[1])
        if own not in seen:
            _log.warning("the broker has not kept what was published; publishing all of it again")
            with self._database.write() as session:
                assignments.publish_all_again(session)
            control.publish(policy.MARKER, own, retain=True)

    def _mind_expiry(self, control: Connection) -> None:
        left_s = control.expires_at() - self._clock()
        if left_s < EXPIRY_WARNING_S:
            _log.warning(
                "the broker's certificate ends in %.0f days: write its configuration anew with"
                " `edgefleet broker config`, and have it read again",
                left_s / 86_400,
            )


def wanted(valid: dict[str, set[str]], folder: Path) -> Contents:
    """Return what the plugin is to know for a fleet, with the marks in the hub's folder."""
    return dynsec.wanted(
        valid,
        identities.link_mark(folder),
        identities.control_mark(folder),
        identities.watch_mark(folder),
    )


def _is_answer(message: tuple[str, bytes], number: str) -> bool:
    topic, payload = message
    if topic != dynsec.RESPONSES:
        return False
    try:
        responses = json.loads(payload)["responses"]
        return bool(responses) and responses[0].get("correlationData") == number
    except (ValueError, KeyError, TypeError, AttributeError):
        _log.warning("the broker's plugin sent an answer that cannot be read")
        return False


def _open_leaks() -> Any:
    return select(Incident).where(Incident.kind == LEAK, Incident.closed_at.is_(None))
