"""Who may publish and read what on the broker: the one statement of it, for every broker.

Pure. `tickets` renders it as NATS permissions, `dynsec` as roles of Mosquitto's dynamic security
plugin; neither adds a rule of its own. Rules:

1. A device publishes on its own up-topics, by their names: with a wildcard it could leave retained
   messages under as many names as it likes.
2. A device reads its own down-topics and the fleet's.
3. The hub's link reads what devices say and publishes what they read.
4. The hub's control connection administers an external broker; its watch sees what the self-test's
   devices achieve. Neither reads what real devices say, nor publishes what they read.
5. What is not allowed here is forbidden.

Allowed is stated in MQTT filters. `+` stands for one level; `#` is used nowhere, because it would
match the parent level too, which NATS writes as a second subject.
"""

from dataclasses import dataclass

from edgefleet_protocol import topics
from edgefleet_protocol.topics import DOWN_KINDS, PREFIX, UP_KINDS

# The name of the hub's own certificates, and the ids of the start-up self-test's two devices.
HUB = "hub"
PROBE, PROBED = "hub-probe", "hub-other"
# No device may be called so.
RESERVED = frozenset({HUB, PROBE, PROBED})
# Retained, written and read by the hub's control connection alone: tells whether the broker has
# kept what this hub published.
MARKER = f"{PREFIX}/hub/marker"

_FLEET = (topics.FLEET_META_ALL, f"{PREFIX}/fleet/blob/+")
_PROBES = tuple(f"{PREFIX}/d/{probe}/+/+" for probe in (PROBE, PROBED))


@dataclass(frozen=True)
class Allowed:
    """What a connection may do, as MQTT filters.

    Attributes:
        publish: topics on which it may publish, its last will included.
        read: topics of which it may receive messages; it may subscribe to these and to narrower
            filters.
    """

    publish: tuple[str, ...]
    read: tuple[str, ...]

    def may_publish(self, topic: str) -> bool:
        """Tell whether a message may be published on a topic."""
        return any(matches(filter_, topic) for filter_ in self.publish)

    def may_read(self, topic: str) -> bool:
        """Tell whether a message on a topic may be received."""
        return any(matches(filter_, topic) for filter_ in self.read)


def of_device(device_id: str) -> Allowed:
    """Return what a device may do (rules 1 and 2)."""
    own, every = of_device_alone(device_id), of_every_device()
    return Allowed(own.publish + every.publish, own.read + every.read)


def of_device_alone(device_id: str) -> Allowed:
    """Return the part of it that no other device may do."""
    return Allowed(
        publish=tuple(topics.up(device_id, kind) for kind in sorted(UP_KINDS)),
        read=(topics.down_all(device_id),),
    )


def of_every_device() -> Allowed:
    """Return the part of it that all devices share."""
    return Allowed(publish=(), read=_FLEET)


def of_link() -> Allowed:
    """Return what the hub's link may do (rule 3)."""
    down = tuple(f"{PREFIX}/d/+/down/{kind}" for kind in sorted(DOWN_KINDS))
    return Allowed(publish=(*down, *_FLEET), read=(topics.ALL_UP,))


def of_control() -> Allowed:
    """Return what the hub's control connection may do on topics of edgefleet (rule 4)."""
    return Allowed(publish=(MARKER,), read=(MARKER,))


def of_watch() -> Allowed:
    """Return what the observer of the self-test may do (rule 4)."""
    tried = (*_PROBES, topics.fleet_meta(PROBE))
    return Allowed(publish=tried, read=tried)


def matches(filter_: str, topic: str) -> bool:
    """Tell whether an MQTT filter of this module matches a topic (MQTT 3.1.1, 4.7).

    Wildcards at the front match no topic that begins with `$`.
    """
    asked, given = filter_.split("/"), topic.split("/")
    if topic.startswith("$") and asked[0] == "+":
        return False
    return len(asked) == len(given) and all(
        one in ("+", other) for one, other in zip(asked, given, strict=True)
    )
