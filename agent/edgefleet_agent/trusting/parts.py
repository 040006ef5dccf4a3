"""The roles of a repository as they arrive; those of the image repository come one by one.

Rules:

1. What is read here is read before any signature is checked. It decides when to judge, and what to
   hold, never what to believe.
2. A set is whole when the timestamp names the snapshot that is here, and the snapshot names the
   version of every role that is here. A role that cannot be read counts as fitting, so that it is
   judged, and refused.
3. Number and length of what is held are bounded. Where they are reached, what the snapshot does not
   list is let go of; what is still too much is refused.
4. The last set that was verified stays at hand, until it has expired: what is refused is forgotten,
   and new parts join what was good.
"""

import re

import msgspec
from msgspec import Struct, field

from edgefleet_agent.trusting import bounds
from edgefleet_protocol.errors import TooLargeError
from edgefleet_protocol.identifiers import digest_of

TOP_ROLES = ("timestamp", "snapshot", "targets")
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ROOT = re.compile(r"root-([1-9][0-9]{0,3})")
_MAX_NAMED = 3
_MIXED = "the image roles that have arrived are of different publications"


class _Named(Struct, frozen=True):
    version: int


class _Signed(Struct, frozen=True):
    version: int = 0
    meta: dict[str, _Named] = field(default_factory=dict)


class _Signature(Struct, frozen=True):
    keyid: str = ""


class _Keys(Struct, frozen=True):
    keyids: list[str]


class _SignedRoot(Struct, frozen=True):
    roles: dict[str, _Keys]


class Root(Struct, frozen=True):
    """What a verified root says of the keys of a role."""

    signed: _SignedRoot

    @classmethod
    def read(cls, data: bytes) -> "Root":
        """Read a root that the TUF client has verified."""
        return msgspec.json.decode(data, type=cls)

    def keyids(self, role: str) -> set[str]:
        """Return the keys of a role."""
        return set(self.signed.roles[role].keyids)


class Look(Struct, frozen=True):
    """What a role says of versions and signers, believed by nobody (rule 1)."""

    signed: _Signed
    signatures: list[_Signature] = field(default_factory=list)

    @property
    def keyids(self) -> set[str]:
        """Keys that it says it is signed by."""
        return {signature.keyid for signature in self.signatures}


def look(data: bytes) -> Look | None:
    """Return what a role says of itself, None if it cannot be read."""
    try:
        return msgspec.json.decode(data, type=Look)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Parts:
    """What has arrived of a repository.

    Attributes:
        changed: since `verified`, or since what was refused was dropped.
    """

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}
        self._looks: dict[str, Look | None] = {}
        self._good: dict[str, bytes] = {}
        self.changed = False

    def take(self, role: str, payload: bytes) -> bool:
        """Hold a role; return whether it is one that is used, and new.

        Args:
            role: the last level of its topic.
            payload: as it arrived.

        Raises:
            TooLargeError: if it, or what is held with it, is longer than may be.
        """
        if not _is_used(role) or self._parts.get(role) == payload:
            return False
        limit = bounds.role_bytes(role)
        if len(payload) > limit:
            raise TooLargeError(f"role {role}", len(payload), limit)
        self._hold(role, payload)
        self.changed = self.changed or self._counts(role)
        return True

    def lacking(self) -> str:
        """Say what is missing for a whole set, or does not fit; empty if nothing (rule 2)."""
        missing = self.missing_top()
        if missing:
            return missing
        timestamp, snapshot = self._looks["timestamp"], self._looks["snapshot"]
        if timestamp is None or snapshot is None:
            return ""
        named = timestamp.signed.meta.get("snapshot.json")
        if named is not None and named.version != snapshot.signed.version:
            return _MIXED
        absent = sorted(self._listed() - set(self._parts))
        if absent:
            more = " and others" if len(absent) > _MAX_NAMED else ""
            return f"the image roles {', '.join(absent[:_MAX_NAMED])}{more} have not arrived"
        for name, listed in snapshot.signed.meta.items():
            held = self._looks[name.removesuffix(".json")]
            if held is not None and held.signed.version != listed.version:
                return _MIXED
        return ""

    def missing_top(self) -> str:
        """Say which of the roles that every repository has are missing; empty if none is."""
        missing = [role for role in TOP_ROLES if role not in self._parts]
        if len(missing) == len(TOP_ROLES):
            return "no image metadata has arrived"
        return f"the image roles {', '.join(missing)} have not arrived" if missing else ""

    def all(self) -> dict[str, bytes]:
        """Return the roles to be judged."""
        return dict(self._parts)

    def keyids(self, role: str) -> set[str]:
        """Return the keys that a role says it is signed by."""
        read = self._looks.get(role)
        return read.keyids if read else set()

    def verified(self) -> None:
        """Note that the set was verified; what it does not list is let go of."""
        listed = self._listed() | set(TOP_ROLES)
        for role in [r for r in self._parts if r not in listed and not _ROOT.fullmatch(r)]:
            self._drop(role)
        self._good = dict(self._parts)
        self.changed = False

    def refused(self) -> str:
        """Go back to the last good set (rule 4); return the digest of what was refused."""
        digest = digest_of(b"".join(self._parts[role] for role in sorted(self._parts)))
        self._parts = dict(self._good)
        self._looks = {role: look(data) for role, data in self._parts.items()}
        self.changed = False
        return digest

    def forget(self) -> None:
        """Let go of the last good set too: it has expired."""
        self._good = {}

    def drop(self, role: str) -> str:
        """Forget one delegated role that was refused, so that it is waited for anew.

        Returns:
            The digest of what is forgotten; empty if there is no such role.
        """
        if role not in self._parts or _is_top(role):
            return ""
        digest = digest_of(self._parts[role])
        self._good.pop(role, None)
        self._drop(role)
        self.changed = True
        return digest

    def version(self, role: str) -> int:
        """Return the version that a role says it has, 0 if it is not here or cannot be read."""
        read = self._looks.get(role)
        return read.signed.version if read else 0

    def _hold(self, role: str, payload: bytes) -> None:
        self._parts[role] = payload
        self._looks[role] = look(payload)
        if not self._over():
            return
        listed = self._listed()
        for other in [r for r in self._parts if not _is_top(r) and r not in listed]:
            self._drop(other)
        if self._over():
            self._drop(role)
            total = sum(map(len, self._parts.values())) + len(payload)
            raise TooLargeError("image metadata", total, bounds.MAX_TOTAL_BYTES)

    def _over(self) -> bool:
        delegated = sum(not _is_top(role) for role in self._parts)
        total = sum(map(len, self._parts.values()))
        return delegated > bounds.MAX_ROLES or total > bounds.MAX_TOTAL_BYTES

    def _counts(self, role: str) -> bool:
        """Tell whether a role bears on the next verdict: a delegated one only if it is listed."""
        return _is_top(role) or role in self._listed()

    def _listed(self) -> set[str]:
        """Return the roles that the snapshot at hand names and that may exist."""
        snapshot = self._looks.get("snapshot")
        names = snapshot.signed.meta if snapshot else {}
        return {name.removesuffix(".json") for name in names}

    def _drop(self, role: str) -> None:
        del self._parts[role], self._looks[role]


def _is_top(role: str) -> bool:
    return role in TOP_ROLES or _ROOT.fullmatch(role) is not None


def _is_used(role: str) -> bool:
    if role.startswith("root"):
        number = _ROOT.fullmatch(role)
        return number is not None and int(number[1]) <= bounds.MAX_ROOTS
    return _ROLE.fullmatch(role) is not None


def version_of(data: bytes) -> int:
    """Return the version that a role says it has, 0 if it cannot be read."""
    read = look(data)
    return read.signed.version if read else 0
