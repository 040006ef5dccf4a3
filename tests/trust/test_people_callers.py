"""Who may what: the one decision behind every request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.database.models import AccountKind
from edgefleet_cloud.trust.people.callers import Caller, Grant
from edgefleet_cloud.trust.people.roles import MAY, Permission, Role

P = Permission


def caller(*grants: Grant, scope: frozenset[P] | None = None, model: str = "") -> Caller:
    return Caller("ada", AccountKind.PERSON, grants, scope, model)


@pytest.mark.parametrize("role", list(Role))
def test_a_role_for_the_fleet_may_exactly_what_the_table_says(role: Role) -> None:
    held = caller(Grant(role))
    for permission in Permission:
        assert held.may(permission) == (permission in MAY[role])
        assert held.may(permission, "digits") == (permission in MAY[role])


def test_an_owner_of_one_model_releases_that_model_only() -> None:
    held = caller(Grant(Role.OWNER, "digits"))
    assert held.may(P.RELEASE, "digits")
    assert not held.may(P.RELEASE, "doors")
    assert not held.may(P.RELEASE)
    assert not held.may(P.OPERATE, "digits")


def test_an_owner_of_one_model_reads_all_and_brings_data() -> None:
    held = caller(Grant(Role.OWNER, "digits"))
    assert held.may(P.READ)
    assert held.may(P.READ, "doors")
    assert held.may(P.CHECK, "doors")
    assert held.may(P.MAKE)  # a dataset belongs to no model
    assert held.may(P.MAKE, "digits")
    assert not held.may(P.MAKE, "doors")


def test_a_token_for_one_model_does_nothing_to_the_fleet() -> None:
    held = caller(Grant(Role.ADMIN), model="digits")
    assert held.may(P.OPERATE, "digits")
    for permission in (P.OPERATE, P.ADMINISTER, P.APPROVE, P.RELEASE):
        assert not held.may(permission)
        assert not held.may(permission, "doors")


def test_a_token_with_fewer_permissions_has_no_other() -> None:
    held = caller(Grant(Role.ADMIN), scope=frozenset({P.READ}))
    assert [p for p in Permission if held.may(p)] == [P.READ]


def test_nobody_may_anything_without_a_role() -> None:
    assert not any(caller().may(p, m) for p in Permission for m in ("", "digits"))


GRANTS = st.builds(Grant, st.sampled_from(Role), st.sampled_from(["", "digits", "doors"]))


@given(
    st.lists(GRANTS, max_size=4),
    st.none() | st.frozensets(st.sampled_from(Permission)),
    st.sampled_from(["", "digits"]),
    st.sampled_from(Permission),
    st.sampled_from(["", "digits", "doors"]),
)
def test_a_token_never_may_more_than_its_account(
    grants: list[Grant], scope: frozenset[P] | None, limit: str, permission: P, model: str
) -> None:
    account, token = caller(*grants), caller(*grants, scope=scope, model=limit)
    assert not token.may(permission, model) or account.may(permission, model)
    assert not token.may(permission, model) or scope is None or permission in scope
    assert token.may(permission, model) <= (permission in token.permissions)
