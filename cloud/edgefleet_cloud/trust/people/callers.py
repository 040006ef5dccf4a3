"""Who asks, and what they may: the one decision that every request goes through. Pure.

Rules:

1. A permission comes from a role, and a role is for the whole fleet or for one model.
2. What is limited to one model (a role or a token) may read and check everything, may make what
   belongs to no model yet (datasets), and may do everything else only to its model.
3. A token never permits more than its account; a limit of either holds.
"""

from dataclasses import dataclass

from edgefleet_cloud.database.models import AccountKind
from edgefleet_cloud.trust.acting import Actor
from edgefleet_cloud.trust.people.roles import MAY, Permission, Role

_ANYWHERE = frozenset({Permission.READ, Permission.CHECK})


@dataclass(frozen=True)
class Grant:
    """A role; `model` is the only one that it is for, "" means the whole fleet."""

    role: Role
    model: str = ""


@dataclass(frozen=True)
class Caller:
    """An account that showed who it is.

    Attributes:
        name: of the account.
        grants: its roles.
        scope: permissions of the token that was shown; None where nothing limits the account.
        model: the only model that the token is for, "" for all.
        token: number of the token that was shown, 0 for a web session.
        session: digest of the web session, "" where a token was shown.
    """

    name: str
    kind: AccountKind
    grants: tuple[Grant, ...]
    scope: frozenset[Permission] | None = None
    model: str = ""
    token: int = 0
    session: str = ""

    @property
    def actor(self) -> Actor:
        """Return the caller as one who acts."""
        return Actor(self.name, "person" if self.kind == AccountKind.PERSON else "service")

    @property
    def permissions(self) -> frozenset[Permission]:
        """Return what the caller may do at least to some model."""
        held = frozenset[Permission]().union(*(MAY[grant.role] for grant in self.grants))
        return held if self.scope is None else held & self.scope

    def may(self, permission: Permission, model: str = "") -> bool:
        """Return whether the caller may do this to `model`, or to the whole fleet without one."""
        return (
            permission in self.permissions
            and _covers(self.model, permission, model)
            and any(
                permission in MAY[grant.role] and _covers(grant.model, permission, model)
                for grant in self.grants
            )
        )


def _covers(limit: str, permission: Permission, model: str) -> bool:
    if not limit or permission in _ANYWHERE:
        return True
    return limit == model or (not model and permission is Permission.MAKE)
