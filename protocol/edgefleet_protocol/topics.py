"""Topic names, format version 1. Every topic begins with `ef/1/`.

A device publishes only below `ef/1/d/{device}/up/` and reads only below `ef/1/d/{device}/down/`
and `ef/1/fleet/`.
"""

from edgefleet_protocol import identifiers
from edgefleet_protocol.errors import MalformedError

PREFIX = "ef/1"
UP_KINDS = frozenset({"state", "report", "request"})
DOWN_KINDS = frozenset({"assignment", "blocks", "ack", "time"})
ALL_UP = f"{PREFIX}/d/+/up/+"
FLEET_META_ALL = f"{PREFIX}/fleet/meta/+"


def up(device: str, kind: str) -> str:
    """Return the topic on which `device` publishes messages of `kind`."""
    if kind not in UP_KINDS:
        raise MalformedError(f"{kind!r} is no up-topic; expected one of {sorted(UP_KINDS)}")
    return f"{PREFIX}/d/{identifiers.device_id(device)}/up/{kind}"


def down(device: str, kind: str) -> str:
    """Return the topic on which `device` receives messages of `kind`."""
    if kind not in DOWN_KINDS:
        raise MalformedError(f"{kind!r} is no down-topic; expected one of {sorted(DOWN_KINDS)}")
    return f"{PREFIX}/d/{identifiers.device_id(device)}/down/{kind}"


def down_all(device: str) -> str:
    """Return the filter for everything sent to `device` alone."""
    return f"{PREFIX}/d/{identifiers.device_id(device)}/down/+"


def fleet_meta(role: str) -> str:
    """Return the retained topic of one file of the image repository.

    Args:
        role: `timestamp`, `snapshot`, `targets`, a delegated role, or `root-{version}`: every
            root version keeps its own retained topic so that a device can walk the chain.
    """
    return f"{PREFIX}/fleet/meta/{identifiers.model_name(role)}"


def fleet_blob(digest: str) -> str:
    """Return the topic on which blocks of one artifact are broadcast to a stage."""
    return f"{PREFIX}/fleet/blob/{identifiers.digest(digest)}"


def parse_up(topic: str) -> tuple[str, str]:
    """Return `(device, kind)` of a topic that a device published on.

    Raises:
        MalformedError: if the topic is not of that form.
    """
    parts = topic.split("/")
    if len(parts) != 6 or parts[:3] != ["ef", "1", "d"] or parts[4] != "up":
        raise MalformedError(f"{topic[:120]!r} is no device topic of wire version 1")
    if parts[5] not in UP_KINDS:
        raise MalformedError(f"{parts[5][:40]!r} is no up-topic; expected {sorted(UP_KINDS)}")
    return identifiers.device_id(parts[3]), parts[5]
