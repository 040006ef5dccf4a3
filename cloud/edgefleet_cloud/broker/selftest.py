"""Trying whether an external broker forbids what it has to, before it is used.

The hub plays two devices that do not exist. One is admitted, as any device is; it tries what no
device may, while an observer looks. Rules:

1. What matters is what gets through, not what the broker answers: some brokers acknowledge what
   they drop.
2. Each part ends with something that is allowed, sent after what is forbidden: only when that has
   come through does the absence of the rest mean anything.
3. One thing that gets through is enough to refuse the broker. All of them are named.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgefleet_cloud.broker import identities, policy
from edgefleet_cloud.broker.connection import Connection, Message
from edgefleet_cloud.broker.errors import BrokerError, LeakError
from edgefleet_cloud.trust.identity.authority import Authority, KeyPair
from edgefleet_protocol import topics

FENCE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
# Client id of the observer, which the device that is played asks for.
WATCH_ID = "hub-watch"
FORBIDDEN_READS = (
    "#",
    "+/#",
    "ef/1/#",
    "ef/1/d/+/down/+",
    topics.down_all(policy.PROBED),
    f"$share/probe/{topics.down_all(policy.PROBED)}",
    "$share/probe/#",
    topics.ALL_UP,
    "$SYS/#",
    "$CONTROL/#",
)
FORBIDDEN_TOPICS = (
    topics.up(policy.PROBED, "state"),
    topics.down(policy.PROBED, "ack"),
    topics.down(policy.PROBE, "ack"),
    topics.fleet_meta(policy.PROBE),
    f"{topics.PREFIX}/d/{policy.PROBE}/up/unknown",
)
_ACK = topics.down(policy.PROBE, "ack")
_STATE = topics.up(policy.PROBE, "state")


# Makes a connection to the broker, not connected yet: certificate, client id, last will.
Connect = Callable[[KeyPair, str, Message | None], Connection]


def run(
    address: tuple[str, int],
    connect: Connect,
    authority: Authority,
    folder: Path,
    admit: Callable[[str], None],
    expel: Callable[[], None],
) -> float:
    """Try all of it.

    Args:
        address: host and port of the broker.
        connect: makes connections to the broker.
        authority: certifies the devices that are played.
        folder: of the hub's own certificates.
        admit: lets the first device in, with a certificate of the given mark.
        expel: takes that back.

    Returns:
        How long it took from `expel` until the broker had closed the device's connection, seconds.

    Raises:
        LeakError: naming what got through.
        BrokerError: if the broker cannot be judged: what it has to let through does not.
    """
    mark = secrets.token_hex(16)
    trial = _Trial(
        connect,
        authority.issue_client(policy.PROBE, folder, file="probe", mark=mark),
        authority.issue_client(policy.PROBE, folder, file="stranger", mark=secrets.token_hex(16)),
    )
    with _connected(connect(identities.watch(authority, folder), WATCH_ID, None)) as watch:
        watch.subscribe(*policy.of_watch().read)
        admit(mark)
        leaks = [
            *trial.unadmitted(watch),
            *trial.publishing(watch),
            *trial.reading(watch),
            *trial.wills(watch),
            *trial.client_ids(watch),
        ]
        closed_s = trial.revoked(expel)
    if closed_s is None:
        leaks.append("the connection of a device that was revoked stays open")
    if answers_without_tls(*address):
        leaks.append("it takes connections that are not encrypted")
    if leaks or closed_s is None:
        raise LeakError(
            "the broker must not be used, it lets through what it has to forbid: "
            + "; ".join(leaks)
            + ". Write its configuration with `edgefleet broker config`"
        )
    return closed_s


class _Trial:
    """The trials, each of which returns what got through.

    Args:
        connect: makes connections to the broker.
        probe: certificate of the device that is admitted.
        stranger: one of the same name and authority that is not.
    """

    def __init__(self, connect: Connect, probe: KeyPair, stranger: KeyPair) -> None:
        self._connect = connect
        self._probe = probe
        self._stranger = stranger

    def unadmitted(self, watch: Connection) -> list[str]:
        """A certificate of the right authority that is nobody's may do nothing."""
        secret = _secret()
        try:
            with _connected(self._connect(self._stranger, policy.PROBE, None)) as stranger:
                stranger.subscribe(topics.down_all(policy.PROBE), "ef/1/fleet/meta/+")
                stranger.publish(_STATE, secret)
                watch.publish(_ACK, secret)
                self._fence(watch)
                heard = stranger.received()
        except BrokerError:  # not let in at all
            return []
        leaks = [f"a certificate that is nobody's reads {topic}" for topic, _ in heard]
        if _seen(watch, secret) - {_ACK}:
            leaks.append(f"a certificate that is nobody's publishes on {_STATE}")
        return leaks

    def publishing(self, watch: Connection) -> list[str]:
        """A device publishes on its own up-topics and nowhere else, retained or not."""
        secret = _secret()
        for topic in FORBIDDEN_TOPICS:
            # A connection each: a broker may close one that tries what is forbidden.
            with contextlib.suppress(BrokerError), self._device() as device:
                device.publish(topic, secret, retain=True)
        self._fence(watch)
        through = _seen(watch, secret)
        for topic in through:
            watch.publish(topic, b"", retain=True)
        return [f"a device publishes on {topic}" for topic in sorted(through)]

    def reading(self, watch: Connection) -> list[str]:
        """A device receives its own down-topics and the fleet's, whatever it subscribes to."""
        leaks = []
        other = topics.down(policy.PROBED, "ack")
        allowed = policy.of_device(policy.PROBE)
        for filter_ in FORBIDDEN_READS:
            # A connection each, and one that is closed has read nothing.
            with contextlib.suppress(BrokerError), self._device() as device:
                device.subscribe(filter_)
                watch.publish(other, _secret())
                watch.publish(_STATE, _secret())
                self._receives(device, watch)
                leaks += [
                    f"a device reads {topic} by {filter_}"
                    for topic, _ in device.received()
                    if not allowed.may_read(topic)
                ]
        with self._device() as device:
            if not self._receives(device, watch):
                raise BrokerError("the broker does not let a device read its own topics")
        return leaks

    def _receives(self, device: Connection, watch: Connection) -> bool:
        """Let the device read what it may; return whether it does."""
        secret = _secret()
        device.subscribe(topics.down_all(policy.PROBE))
        watch.publish(_ACK, secret)
        return device.take(lambda message: message == (_ACK, secret), FENCE_TIMEOUT_S) is not None

    def wills(self, watch: Connection) -> list[str]:
        """A device's last will is held to the same rules as what it publishes."""
        secret = _secret()
        for topic in FORBIDDEN_TOPICS:
            with contextlib.suppress(BrokerError):
                lost = self._connect(self._probe, policy.PROBE, (topic, secret)).connect()
                # The same client again: the broker takes the first one for lost.
                with contextlib.suppress(BrokerError), self._device():
                    lost.await_closed(CLOSE_TIMEOUT_S)
                lost.close()
        self._fence(watch)
        return [f"a last will arrives on {topic}" for topic in sorted(_seen(watch, secret))]

    def client_ids(self, watch: Connection) -> list[str]:
        """A device throws nobody off by asking for their client id."""
        with contextlib.suppress(BrokerError):
            with _connected(self._connect(self._probe, WATCH_ID, None)):
                pass
            with self._device():
                pass
        if watch.closed:
            return ["a device throws another client off by its client id"]
        self._fence(watch)
        return []

    def revoked(self, expel: Callable[[], None]) -> float | None:
        """Return how long the connection of a revoked device stayed; None for too long."""
        with self._device() as device:
            device.subscribe(topics.down_all(policy.PROBE))
            began = time.monotonic()
            expel()
            return time.monotonic() - began if device.await_closed(CLOSE_TIMEOUT_S) else None

    def _device(self) -> contextlib.AbstractContextManager[Connection]:
        return _connected(self._connect(self._probe, policy.PROBE, None))

    def _fence(self, watch: Connection) -> None:
        """Wait until the broker has dealt with everything that was sent before (rule 2)."""
        secret = _secret()
        with self._device() as device:
            device.publish(_STATE, secret)
            if watch.take(lambda message: message == (_STATE, secret), FENCE_TIMEOUT_S) is None:
                raise BrokerError(
                    "the broker does not let a device publish on its own topics, or the observer"
                    " read them"
                )


def answers_without_tls(host: str, port: int) -> bool:
    """Tell whether the broker's port takes an MQTT connection that is not encrypted."""
    packet = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x1e\x00\x04hub0"
    with contextlib.suppress(OSError), socket.create_connection((host, port), 5.0) as plain:
        plain.settimeout(CLOSE_TIMEOUT_S)
        plain.sendall(packet)
        return plain.recv(1)[:1] == b"\x20"
    return False


@contextlib.contextmanager
def _connected(connection: Connection) -> Iterator[Connection]:
    connection.connect()
    try:
        yield connection
    finally:
        connection.close()


def _secret() -> bytes:
    return secrets.token_bytes(16)


def _seen(watch: Connection, secret: bytes) -> set[str]:
    """Return the topics on which a secret has come through."""
    return {topic for topic, payload in watch.received() if payload == secret}
