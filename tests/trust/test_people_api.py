"""Accounts, tokens and permissions over HTTP."""

import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from edgefleet_cloud.api.app import describe
from edgefleet_cloud.api.testing import TOKEN
from edgefleet_cloud.database.models import Account, AccountKind, ApiToken
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.trust.people import accounts, bootstrap, tokens
from edgefleet_cloud.trust.people.roles import MAY, Permission, Role
from edgefleet_cloud.trust.people.testing import NOW, PASSWORD, account, version

DAY_S = 86_400.0


@pytest.fixture
def hub(hub_rig: Any) -> Iterator["Hub"]:
    held = Hub(hub_rig)
    yield held
    for client in held.clients:
        client.close()


class Hub:
    """The hub of `hub_rig`, asked by several accounts."""

    def __init__(self, rig: Any) -> None:
        self.rig, self.services, self.admin = rig, rig.services, rig.http
        self.database = rig.services.database
        self.clients: list[httpx.Client] = []

    def client(self, token: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(base_url=self.rig.http.base_url, headers=headers, timeout=60.0)
        self.clients.append(client)
        return client

    def who(self, name: str, *roles: str, kind: AccountKind = AccountKind.PERSON) -> httpx.Client:
        return self.client(account(self.database, name, *roles, kind=kind))


# --- who may what ---------------------------------------------------------------------------------

# Of every kind of request one, and what it needs; the body is wrong on purpose or names nothing
# that there is, so that whoever may gets another error than 403.
SAMPLES = [
    ("GET", "/v1/models", None, Permission.READ),
    ("GET", "/v1/approvals", None, Permission.READ),
    ("POST", "/v1/rollouts/preview", {}, Permission.READ),
    ("POST", "/v1/datasets/bundled", {"name": "?"}, Permission.MAKE),
    ("POST", "/v1/runs", {"model": "m", "trainer": "?", "dataset": "?"}, Permission.MAKE),
    ("POST", "/v1/models/m/versions/1/search", {}, Permission.MAKE),
    ("POST", "/v1/jobs/7/cancel", None, Permission.MAKE),
    ("POST", "/v1/models/m/versions/1/approve", {}, Permission.RELEASE),
    ("POST", "/v1/models/m/versions/1/release", {}, Permission.RELEASE),
    ("PUT", "/v1/models/m/risk", {"risk": "high"}, Permission.RELEASE),
    ("POST", "/v1/triggers", {"model": "m", "recipe": {}}, Permission.RELEASE),
    ("POST", "/v1/approvals/7/approve", {"digest": "0"}, Permission.APPROVE),
    ("POST", "/v1/devices/x/revoke", {}, Permission.OPERATE),
    ("POST", "/v1/incidents/7/close", None, Permission.OPERATE),
    ("POST", "/v1/rollouts/7/pause", None, Permission.OPERATE),
    ("POST", "/v1/rollouts", {"model": "m", "version": "1", "to": "all"}, Permission.OPERATE),
    ("GET", "/v1/accounts", None, Permission.ADMINISTER),
    ("POST", "/v1/accounts", {"name": "?"}, Permission.ADMINISTER),
    ("GET", "/v1/tokens?everyone=true", None, Permission.ADMINISTER),
]


@pytest.mark.parametrize("role", list(Role))
def test_a_role_is_let_do_what_the_table_says_and_told_403_otherwise(hub: Hub, role: Role) -> None:
    http = hub.who("someone", role.value)
    for method, path, body, permission in SAMPLES:
        answer = http.request(method, path, json=body)
        refused = answer.status_code == 403
        assert refused == (permission not in MAY[role]), (path, answer.text)
        if refused:
            said = f"someone has not the permission to {permission}"
            assert answer.json()["error"].startswith(said)


def test_every_operation_says_in_the_description_whether_it_needs_a_token() -> None:
    document = describe().openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            security = operation.get("security", [])
            assert security in ([], [{"HTTPBearer": []}]), (method, path)


def test_an_owner_of_one_model_decides_on_that_model_only(hub: Hub) -> None:
    for model in ("digits", "doors"):
        version(hub.database, model)
    http = hub.who("olga", "owner:digits")
    assert http.post("/v1/models/digits/versions/1/approve", json={}).status_code == 200
    assert http.post("/v1/models/digits/versions/1/release", json={}).status_code == 201
    refused = http.post("/v1/models/doors/versions/1/approve", json={})
    assert (refused.status_code, refused.json()["error"]) == (
        403,
        "olga has not the permission to release for doors",
    )
    for path, body in (
        ("/v1/runs", {"model": "doors", "trainer": "sklearn", "dataset": "d"}),
        ("/v1/triggers", {"model": "doors", "recipe": {}}),
        ("/v1/retrainings", {"model": "doors", "recipe": {}}),
        ("/v1/approvals", {"model": "doors", "version": "1"}),
    ):
        assert http.post(path, json=body).status_code == 403, path
    assert http.get("/v1/models/doors").status_code == 200


def test_who_decides_is_named_in_the_decision(hub: Hub) -> None:
    version(hub.database)
    http = hub.who("olga", "owner")
    answer = http.post("/v1/models/door/versions/1/approve", json={"reason": "good"}).json()
    assert answer["decision"]["by"] == "olga"


def test_shipping_needs_all_that_it_does(hub: Hub) -> None:
    files = {"model": ("m.joblib", b"x"), "sample": ("s.csv", b"a\n1\n")}
    form = {"options": '{"name": "m", "to": "all"}'}
    for roles, status in ((["owner"], 403), (["operator"], 403), (["owner", "operator"], 409)):
        http = hub.who(f"sender{len(roles)}-{roles[0]}", *roles)
        assert http.post("/v1/ship", data=form, files=files).status_code == status, roles


# --- accounts -------------------------------------------------------------------------------------


def test_an_account_is_made_changed_and_shut_out(hub: Hub) -> None:
    body = {"name": "ada", "roles": ["viewer", "owner:digits"], "password": PASSWORD}
    made = hub.admin.post("/v1/accounts", json=body)
    assert made.status_code == 201
    assert PASSWORD not in made.text
    assert made.json() | {"created_at": 0} == {
        "name": "ada", "kind": "person", "roles": ["owner:digits", "viewer"],
        "signs_in": "password", "disabled_at": None, "created_at": 0,
    }  # fmt: skip
    signed_in = hub.client(None).post("/v1/login", json={"name": "ada", "password": PASSWORD})
    ada = hub.client(signed_in.json()["token"])
    assert ada.get("/v1/me").json()["permissions"] == ["check", "make", "read", "release"]
    changed = hub.admin.put("/v1/accounts/ada/roles", json={"roles": ["ci"]}).json()
    assert changed["roles"] == ["ci"]
    assert ada.get("/v1/me").json()["permissions"] == ["check", "make", "read"]
    hub.admin.post("/v1/accounts/ada/disable", json={"reason": "left"})
    assert ada.get("/v1/me").status_code == 401
    hub.admin.post("/v1/accounts/ada/enable", json={})
    assert ada.get("/v1/me").status_code == 401  # her tokens stay revoked
    assert hub.admin.post("/v1/accounts", json=body).status_code == 409


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "Ada"}, "'Ada' is no account name"),
        ({"name": "hub"}, "'hub' is no account name"),
        ({"name": "-a"}, "'-a' is no account name"),
        ({"name": "a" * 64}, "is no account name"),
        ({"roles": ["king"]}, "'king' is no role; expected one of viewer, operator, owner"),
        ({"roles": ["operator:digits"]}, "only the role owner can be for one model"),
        ({"roles": ["owner:Digits!"]}, "'Digits!' is no model name"),
        ({"password": "short"}, "at least 12 characters; this has 5"),
        ({"kind": "service", "password": PASSWORD}, "a service has no password"),
        ({"surprise": 1}, "body.surprise"),
    ],
)
def test_an_account_that_cannot_be_is_refused(
    hub: Hub, changes: dict[str, Any], complaint: str
) -> None:
    answer = hub.admin.post("/v1/accounts", json={"name": "ada"} | changes)
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]


def test_the_last_admin_cannot_go(hub: Hub) -> None:
    for path, body in (("disable", {}), ("roles", {"roles": ["viewer"]})):
        method = "PUT" if path == "roles" else "POST"
        answer = hub.admin.request(method, f"/v1/accounts/admin/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (
            409,
            "nobody could administer this hub any more; make another admin first",
        )
    hub.who("root", "admin")
    assert hub.admin.post("/v1/accounts/admin/disable", json={}).status_code == 200


def test_a_person_changes_their_own_password_and_no_other(hub: Hub) -> None:
    ada, _ = hub.who("ada", "viewer"), hub.who("bob", "viewer")
    new = {"password": "another horse and 5 boats"}
    assert ada.post("/v1/accounts/ada/password", json=new).status_code == 200
    assert ada.post("/v1/accounts/bob/password", json=new).status_code == 403
    body = {"name": "ada", **new}
    assert hub.client(None).post("/v1/login", json=body).status_code == 200


def test_a_limited_token_does_not_change_the_password(hub: Hub) -> None:
    ada = hub.who("ada", "viewer")
    limited = ada.post("/v1/tokens", json={"name": "t", "permissions": ["read"]}).json()["token"]
    new = {"password": "another horse and 5 boats"}
    assert hub.client(limited).post("/v1/accounts/ada/password", json=new).status_code == 403


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_digest(hub: Hub) -> None:
    made = hub.admin.post("/v1/tokens", json={"name": "nightly"}).json()
    secret = made["token"]
    assert secret.startswith("eft_")
    assert len(secret) == 4 + 43  # 32 random bytes
    assert "token" not in hub.admin.get("/v1/tokens").json()[0]
    with hub.database.read() as session:
        row = session.get_one(ApiToken, made["id"])
        assert row.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert made["expires_at"] == hub.services.clock() + 90 * DAY_S


def test_a_token_ends_on_time_and_not_before(hub: Hub) -> None:
    made = hub.admin.post("/v1/tokens", json={"name": "short", "days": 1}).json()
    http = hub.client(made["token"])
    hub.services.clock.now += DAY_S - 0.001
    assert http.get("/v1/me").status_code == 200
    hub.services.clock.now += 0.001
    refused = http.get("/v1/me")
    assert (refused.status_code, refused.json()["error"]) == (
        401,
        f"token {made['id']} has expired; `edgefleet login` gets another",
    )


@pytest.mark.parametrize(
    "changes", [{"days": 365.01}, {"days": 0}, {"days": -1}, {"name": ""}, {"name": "a\nb"},
                {"name": "admin.token"}, {"permissions": []}, {"permissions": ["fly"]}]
)  # fmt: skip
def test_a_token_that_cannot_be_is_refused(hub: Hub, changes: dict[str, Any]) -> None:
    assert hub.admin.post("/v1/tokens", json={"name": "t"} | changes).status_code == 422


def test_a_token_has_at_most_what_its_account_has(hub: Hub) -> None:
    ada = hub.who("ada", "viewer")
    answer = ada.post("/v1/tokens", json={"name": "t", "permissions": ["read", "operate"]})
    assert answer.json()["error"] == "ada has no such permission to give to a token: operate"


def test_a_limited_token_makes_no_wider_one(hub: Hub) -> None:
    body = {"name": "t", "permissions": ["read"], "model": "digits"}
    http = hub.client(hub.admin.post("/v1/tokens", json=body).json()["token"])
    for wider in (
        {"name": "w"},
        {"name": "w", "permissions": ["read", "operate"], "model": "digits"},
        {"name": "w", "permissions": ["read"]},
        {"name": "w", "permissions": ["read"], "model": "doors"},
    ):
        assert http.post("/v1/tokens", json=wider).status_code == 403, wider
    assert http.post("/v1/tokens", json=body).status_code == 201


def test_a_revoked_token_ends_at_once_and_only_its_owner_or_an_admin_revokes(hub: Hub) -> None:
    ada, bob = hub.who("ada", "viewer"), hub.who("bob", "viewer")
    (row,) = ada.get("/v1/tokens").json()
    stranger = bob.post(f"/v1/tokens/{row['id']}/revoke")
    assert (stranger.status_code, stranger.json()["error"]) == (
        404,
        f"there is no token {row['id']}",
    )
    assert hub.admin.post(f"/v1/tokens/{row['id']}/revoke").json()["revoked_at"]
    assert ada.get("/v1/me").status_code == 401


def test_an_admin_makes_tokens_for_services_and_not_for_people(hub: Hub) -> None:
    hub.who("ada", "viewer")
    hub.who("nightly", "ci", kind=AccountKind.SERVICE)
    refused = hub.admin.post("/v1/tokens", json={"name": "t", "account": "ada"})
    assert (refused.status_code, refused.json()["error"]) == (
        403,
        "ada is a person, who makes tokens alone",
    )
    made = hub.admin.post("/v1/tokens", json={"name": "t", "account": "nightly"}).json()
    assert hub.client(made["token"]).get("/v1/me").json()["account"] == "nightly"


def test_when_a_token_was_used_is_known_to_a_quarter_of_an_hour(hub: Hub) -> None:
    ada = hub.who("ada", "viewer")
    began = hub.services.clock()
    for later, noted in ((0, 0), (899, 0), (900, 900)):
        hub.services.clock.now = began + later
        (row,) = ada.get("/v1/tokens").json()
        assert row["used_at"] in (None, began + noted)
    (row,) = ada.get("/v1/tokens").json()
    assert row["used_at"] == began + 900


def test_a_login_token_lives_for_twelve_hours_and_ends_with_logout(hub: Hub) -> None:
    account(hub.database, "ada", "viewer", password=PASSWORD)
    made = hub.client(None).post("/v1/login", json={"name": "ada", "password": PASSWORD}).json()
    assert made["expires_at"] == hub.services.clock() + 12 * 3600
    ada = hub.client(made["token"])
    assert ada.post("/v1/logout").status_code == 204
    assert ada.get("/v1/me").status_code == 401


@pytest.mark.parametrize(
    "header", ["Basic YTpi", "Bearer", "Bearer " + "x" * 201, "eft_abc", "Bearer a b"]
)
def test_a_header_that_is_no_token_is_401(hub: Hub, header: str) -> None:
    answer = hub.client(None).get("/v1/me", headers={"Authorization": header})
    assert answer.status_code == 401


def test_open_routes_answer_whatever_credentials_come_along(hub: Hub) -> None:
    answer = hub.client("wrong").get("/v1/health")
    assert answer.status_code == 200


# --- limits ---------------------------------------------------------------------------------------


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the limits: on a slow machine a minute passes within a test."""
    clock = SimpleNamespace(time=lambda: 1_000.0)
    monkeypatch.setattr("limits.storage.memory.time", clock)
    monkeypatch.setattr("edgefleet_cloud.trust.people.throttle.time", clock)


@pytest.mark.usefixtures("stopped")
def test_guessed_tokens_are_answered_429_and_good_ones_still_pass(hub: Hub) -> None:
    guesser = hub.client("eft_guess")
    statuses = [guesser.get("/v1/me").status_code for _ in range(61)]
    assert statuses == [401] * 60 + [429]
    assert guesser.get("/v1/me").headers["Retry-After"] == "60"
    assert hub.admin.get("/v1/me").status_code == 200


@pytest.mark.usefixtures("stopped")
def test_failed_enrolments_are_slowed_down_by_address(hub: Hub) -> None:
    body = {"device": "cam-1", "secret": "x", "csr": "x"}
    anyone = hub.client(None)
    statuses = [anyone.post("/v1/enrol", json=body).status_code for _ in range(31)]
    assert statuses[:30] == [403] * 30
    assert statuses[30] == 429
    assert anyone.get("/v1/health").status_code == 200


def test_failed_logins_are_slowed_down_with_a_time_to_wait(hub: Hub) -> None:
    anyone = hub.client(None)
    body = {"name": "nobody", "password": "wrong password"}
    answers = [anyone.post("/v1/login", json=body) for _ in range(6)]
    assert [a.status_code for a in answers] == [401] * 5 + [429]
    assert answers[-1].headers["Retry-After"] == "30"


def test_only_who_may_make_versions_sends_a_large_body(hub: Hub) -> None:
    files = {"file": ("d.csv", b"x" * ((1 << 20) + 1))}
    viewer, maker = hub.who("vera", "viewer"), hub.who("carl", "ci")
    limit = hub.services.settings.upload_limit_bytes
    refused = viewer.post("/v1/datasets", data={"name": "d"}, files=files)
    assert (refused.status_code, f"over {1 << 20} bytes" in refused.text) == (413, True)
    larger = maker.post("/v1/datasets", data={"name": "d"}, files=files)
    assert (larger.status_code, f"over {limit} bytes" in larger.text) == (413, True)


# --- the hub's own token --------------------------------------------------------------------------


def test_the_hubs_own_token_is_a_service_and_does_not_end_while_the_hub_runs(hub: Hub) -> None:
    assert hub.admin.get("/v1/me").json()["kind"] == "service"
    for _ in range(4):
        hub.services.clock.now += 182 * DAY_S
        bootstrap.prolong(hub.database, hub.services.clock())
        assert hub.admin.get("/v1/me").status_code == 200


def test_a_revoked_token_of_the_hub_is_replaced_at_the_next_start(hub: Hub, tmp_path: Any) -> None:
    bootstrap.ensure_admin(hub.database, tmp_path, NOW)
    first = (tmp_path / "admin.token").read_text()
    (row, *_) = hub.client(first.strip()).get("/v1/tokens").json()
    with hub.database.write() as session:
        caller = tokens.caller_of(session, "admin")
        tokens.revoke(session, row["id"], caller, NOW)
        with pytest.raises(ConflictError, match="was revoked"):
            bootstrap.admit(session, first.strip(), NOW)
    bootstrap.ensure_admin(hub.database, tmp_path, NOW)
    second = (tmp_path / "admin.token").read_text()
    assert second != first
    assert hub.client(second.strip()).get("/v1/me").json()["account"] == "admin"


def test_a_disabled_admin_stays_disabled_at_the_next_start(hub: Hub, tmp_path: Any) -> None:
    hub.who("root", "admin")
    with hub.database.write() as session:
        accounts.disable(session, "admin", "", NOW)
    bootstrap.ensure_admin(hub.database, tmp_path, NOW)
    with hub.database.read() as session:
        assert session.get_one(Account, "admin").disabled_at == NOW
    assert hub.client(TOKEN).get("/v1/me").status_code == 401
