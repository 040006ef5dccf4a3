"""Roles, and what each may do. Everything that a request needs is one permission of this list."""

from enum import StrEnum


class Permission(StrEnum):
    """What a request may need.

    read: look at anything but secrets. check: ask whether a model runs on a board, verify
    artifacts. make: datasets, trainings, conversions, new versions. release: decide on versions of
    models, release them, order their retraining. approve: the second person's yes or no. operate:
    devices, rollouts, challenges, incidents. administer: accounts, trust, certificate authority.
    """

    READ = "read"
    CHECK = "check"
    MAKE = "make"
    RELEASE = "release"
    APPROVE = "approve"
    OPERATE = "operate"
    ADMINISTER = "administer"


class Role(StrEnum):
    """What a person or program is to the fleet."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    OWNER = "owner"
    APPROVER = "approver"
    ADMIN = "admin"
    CI = "ci"


P = Permission
MAY: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({P.READ}),
    Role.CI: frozenset({P.READ, P.CHECK, P.MAKE}),
    Role.OPERATOR: frozenset({P.READ, P.CHECK, P.OPERATE}),
    Role.OWNER: frozenset({P.READ, P.CHECK, P.MAKE, P.RELEASE}),
    Role.APPROVER: frozenset({P.READ, P.CHECK, P.APPROVE}),
    Role.ADMIN: frozenset(Permission),
}
