"""What Mosquitto's dynamic security plugin is to know, and the commands that bring it there.

Pure: the policy as clients and roles of the plugin (Mosquitto 2.0, its JSON file and its
`$CONTROL/dynamic-security/v1` commands). Rules:

1. A client of the plugin is one certificate, known by its whole subject
   (`use_subject_as_username`). A device that renews is two clients for a while; one whose
   certificate was replaced or revoked is none, and the broker closes its connection.
2. Nothing is allowed by default: not even to receive, so that a subscription never outlives the
   right to read.
3. Each device has a role of its own (the plugin has no pattern for "own topics"), and one with all
   others. The three parts of the hub have one each.
4. Whatever else is found in the plugin is taken away. The hub alone administers it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgefleet_cloud.broker import policy
from edgefleet_cloud.broker.policy import Allowed
from edgefleet_cloud.values import Json

REQUESTS = "$CONTROL/dynamic-security/v1"
RESPONSES = "$CONTROL/dynamic-security/v1/response"
DEVICES_ROLE = "devices"

_PUBLISH, _RECEIVE, _SUBSCRIBE = "publishClientSend", "publishClientReceive", "subscribePattern"
# Leaving a subscription harms nobody.
_DEFAULTS = {_PUBLISH: False, _RECEIVE: False, "subscribe": False, "unsubscribe": True}

# The commands that take something away, and so come first.
TAKING = frozenset(
    {"deleteClient", "deleteGroup", "setDefaultACLAccess", "deleteRole", "modifyRole"}
)

Rule = tuple[str, str]
Command = dict[str, Any]


@dataclass
class Contents:
    """What the plugin knows, or is to know.

    Attributes:
        roles: name → (kind of access, MQTT filter) that it allows.
        clients: username → names of its roles.
        defaults: kind of access → whether it is allowed where no role says anything.
        groups: names of the plugin's groups, which the hub does not use.
    """

    roles: dict[str, frozenset[Rule]] = field(default_factory=dict)
    clients: dict[str, frozenset[str]] = field(default_factory=dict)
    defaults: dict[str, bool] = field(default_factory=lambda: dict(_DEFAULTS))
    groups: set[str] = field(default_factory=set)

    def copy(self) -> "Contents":
        """Return a copy that may be changed."""
        return Contents(dict(self.roles), dict(self.clients), dict(self.defaults), set(self.groups))


def username(name: str, mark: str) -> str:
    """Return how Mosquitto writes the subject of a certificate (RFC 2253).

    Args:
        name: its common name: letters, digits, `-`, `_`, `.`.
        mark: its serial number attribute, of the same characters.
    """
    return f"serialNumber={mark},CN={name}"


def wanted(
    valid: Mapping[str, Iterable[str]], link_mark: str, control_mark: str, watch_mark: str
) -> Contents:
    """Return what the plugin is to know.

    Args:
        valid: enrolled device → serials of the certificates with which it may be connected.
        link_mark: in the subject of the link's certificate, see `identities`.
        control_mark: in that of the control connection's.
        watch_mark: in that of the observer's.
    """
    administer = {(_PUBLISH, REQUESTS), (_RECEIVE, RESPONSES), (_SUBSCRIBE, RESPONSES)}
    contents = Contents(
        roles={
            "link": rules(policy.of_link()),
            "control": rules(policy.of_control()) | administer,
            "watch": rules(policy.of_watch()),
            DEVICES_ROLE: rules(policy.of_every_device()),
        },
        clients={
            username(policy.HUB, link_mark): frozenset({"link"}),
            username(policy.HUB, control_mark): frozenset({"control"}),
            username(policy.HUB, watch_mark): frozenset({"watch"}),
        },
    )
    for device, serials in valid.items():
        admit(contents, device, serials)
    return contents


def admit(contents: Contents, device: str, marks: Iterable[str]) -> None:
    """Add a device that connects with certificates of these serial numbers in their subjects."""
    role = f"device-{device}"
    contents.roles[role] = rules(policy.of_device_alone(device))
    for mark in marks:
        contents.clients[username(device, mark)] = frozenset({role, DEVICES_ROLE})


def rules(allowed: Allowed) -> frozenset[Rule]:
    """Return a policy as rules of the plugin."""
    return frozenset(
        {(_PUBLISH, filter_) for filter_ in allowed.publish}
        | {(kind, filter_) for filter_ in allowed.read for kind in (_RECEIVE, _SUBSCRIBE)}
    )


def document(contents: Contents) -> Json:
    """Return the plugin's configuration file, as JSON."""
    return {
        "defaultACLAccess": contents.defaults,
        "clients": [
            {"username": name, "roles": _names(roles)}
            for name, roles in sorted(contents.clients.items())
        ],
        "groups": [],
        "roles": [
            {"rolename": name, "acls": _acls(role)} for name, role in sorted(contents.roles.items())
        ],
    }


def commands(found: Contents, aim: Contents) -> Iterator[Command]:
    """Return what changes the plugin from what was found to what it is to know.

    Those who lose something come first: they are to be shut out before others are let in. Roles
    without a client are not made.
    """
    for name in sorted(found.clients):
        if aim.clients.get(name) != found.clients[name]:
            yield {"command": "deleteClient", "username": name}
    for name in sorted(found.groups):
        yield {"command": "deleteGroup", "groupname": name}
    if found.defaults != aim.defaults:
        acls = [{"acltype": kind, "allow": allow} for kind, allow in aim.defaults.items()]
        yield {"command": "setDefaultACLAccess", "acls": acls}
    for name in sorted(found.roles.keys() - aim.roles.keys()):
        yield {"command": "deleteRole", "rolename": name}
    for name in sorted(found.roles.keys() & aim.roles.keys()):
        if found.roles[name] != aim.roles[name]:
            yield {"command": "modifyRole", "rolename": name, "acls": _acls(aim.roles[name])}
    made = set(found.roles)
    for name, roles in sorted(aim.clients.items()):
        if found.clients.get(name) != roles:
            for role in sorted(roles - made):
                yield {"command": "createRole", "rolename": role, "acls": _acls(aim.roles[role])}
            made |= roles
            yield {"command": "createClient", "username": name, "roles": _names(roles)}


def apply(contents: Contents, command: Command) -> None:
    """Change `contents` as the plugin does on a command of `commands`."""
    match command["command"]:
        case "deleteClient":
            del contents.clients[command["username"]]
        case "createClient":
            name, roles = read_client(command)
            contents.clients[name] = roles
        case "deleteGroup":
            contents.groups.remove(command["groupname"])
        case "setDefaultACLAccess":
            contents.defaults = read_defaults(command["acls"])
        case "deleteRole":
            del contents.roles[command["rolename"]]
        case _:
            name, rules_of_role = read_role(command)
            contents.roles[name] = rules_of_role


def read_role(listed: Mapping[str, Any]) -> tuple[str, frozenset[Rule]]:
    """Return a role as `listRoles` tells it; with a rule that denies it equals none of ours."""
    return str(listed["rolename"]), frozenset(
        (str(acl["acltype"]) if acl.get("allow") is True else "deny", str(acl["topic"]))
        for acl in listed.get("acls", [])
    )


def read_client(listed: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """Return a client as `listClients` tells it.

    One that is disabled or in a group gets a role that no client has.
    """
    roles = {str(role["rolename"]) for role in listed.get("roles", [])}
    if listed.get("disabled") or listed.get("groups"):
        roles.add("")
    return str(listed["username"]), frozenset(roles)


def read_defaults(listed: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Return the default access as `getDefaultACLAccess` tells it."""
    return {str(acl["acltype"]): bool(acl["allow"]) for acl in listed}


def _acls(role: Iterable[Rule]) -> list[dict[str, Any]]:
    return [{"acltype": kind, "topic": topic, "allow": True} for kind, topic in sorted(role)]


def _names(roles: Iterable[str]) -> list[dict[str, str]]:
    return [{"rolename": name} for name in sorted(roles)]
