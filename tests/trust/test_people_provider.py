"""Signing in with OpenID Connect: a real provider over TLS, and what attackers try with one."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from edgefleet_cloud.database.models import Account, AccountKind
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.people import accounts, provider_sign_in, tokens
from edgefleet_cloud.trust.people.id_tokens import Identity
from edgefleet_cloud.trust.people.testing import account
from tests.trust.people_rig import Clock, Provider, WebHub, provider_settings, web_hub
from tests.trust.people_rig import moved as moved  # a fixture
from tests.trust.people_rig import provider as provider  # a fixture

ADA = {"sub": "u-1", "preferred_username": "Ada.Lovelace@example.org", "groups": ["door-team"]}


@pytest.fixture
def hub(tmp_path: Path, migrated: Path, moved: Clock, provider: Provider) -> Iterator[WebHub]:
    provider.control(user=ADA)
    with web_hub(tmp_path, migrated, moved, **provider_settings(provider)) as held:
        yield held


def back_url(browser: httpx.Client) -> str:
    """Go to the provider; return where it sends the browser back to."""
    away = browser.get("/sign-in/provider", params={"next": "/tokens"})
    assert away.status_code == 303
    back = browser.get(away.headers["Location"])
    assert back.status_code == 303
    return str(back.headers["Location"])


def sign_in(browser: httpx.Client) -> httpx.Response:
    return browser.get(back_url(browser))


def refused(answer: httpx.Response) -> str:
    """Return what a page that does not sign in says."""
    assert answer.status_code in (401, 403, 404, 500), answer.text
    assert "__Host-edgefleet=" not in answer.headers.get("set-cookie", "")
    found = re.search(r'role="alert">(.*?)</p>', answer.text, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_person_signs_in_and_their_groups_are_their_roles(
    hub: WebHub, provider: Provider, algorithm: str
) -> None:
    provider.control(rotate=algorithm, user=ADA)
    browser = hub.browser()
    answer = sign_in(browser)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/tokens")
    assert "ada.lovelace" in browser.get("/tokens").text
    (row,) = [r for r in hub.api.get("/v1/accounts").json() if r["signs_in"] == "provider"]
    assert (row["name"], row["kind"], row["roles"]) == (
        "ada.lovelace", "person", ["owner:door", "viewer"],
    )  # fmt: skip


def test_the_page_offers_the_provider_by_its_name(hub: WebHub) -> None:
    page = hub.browser().get("/sign-in?next=/terminal").text
    assert '<a href="/sign-in/provider?next=/terminal">Sign in with the test provider</a>' in page


def test_new_keys_of_the_provider_are_taken_up(
    hub: WebHub, provider: Provider, moved: Clock
) -> None:
    assert sign_in(hub.browser()).status_code == 303
    provider.control(rotate="RS256", user=ADA)
    moved.ahead_s += 60.0
    assert sign_in(hub.browser()).status_code == 303


def test_a_forger_cannot_make_the_hub_ask_for_keys_without_end(
    hub: WebHub, provider: Provider
) -> None:
    assert sign_in(hub.browser()).status_code == 303
    before = provider.asked().count("/keys")
    provider.control(user=ADA, faults={"kid": "unheard-of"})
    for _ in range(3):
        assert "signed by an unknown key" in refused(sign_in(hub.browser()))
    assert provider.asked().count("/keys") == before


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"claims": {"aud": "another"}}, "is for another client"),
        ({"claims": {"nonce": "replayed"}}, "is of another sign-in"),
        ({"sign": "none"}, "has the algorithm"),
        ({"sign": "public key as secret"}, "has the algorithm"),
        ({"sign": "another key"}, "is not valid"),
    ],
)
def test_an_id_token_that_does_not_fit_signs_nobody_in(
    hub: WebHub, provider: Provider, faults: dict[str, Any], said: str
) -> None:
    provider.control(user=ADA, rotate="RS256", faults=faults)
    browser = hub.browser()
    assert said in refused(sign_in(browser))
    assert browser.get("/tokens").status_code == 303  # to the sign-in
    with hub.services.database.read() as session:
        assert session.query(Account).filter(Account.issuer.is_not(None)).all() == []


def test_an_answer_counts_once(hub: WebHub) -> None:
    browser = hub.browser()
    url = back_url(browser)
    cookies = dict(browser.cookies)
    assert browser.get(url).status_code == 303
    again = hub.browser()
    again.cookies.update(cookies)
    assert "this sign-in is over" in refused(again.get(url))


def test_a_state_that_nobody_began_is_refused(hub: WebHub) -> None:
    browser = hub.browser()
    answer = browser.get("/sign-in/provider/back", params={"state": "x" * 43, "code": "c"})
    assert "this sign-in is over" in refused(answer)


def test_an_attackers_answer_does_not_sign_a_victims_browser_in(hub: WebHub) -> None:
    """Login CSRF: the attacker begins, and lets the victim's browser come back."""
    attacker, victim = hub.browser(), hub.browser()
    url = back_url(attacker)
    back_url(victim)  # has a cookie of its own
    assert "began in another browser" in refused(victim.get(url))
    # The attempt used nothing up.
    assert attacker.get(url).status_code == 303


def test_a_code_is_used_once_at_the_provider(hub: WebHub) -> None:
    first, second = hub.browser(), hub.browser()
    code = parse_qs(urlsplit(back_url(first)).query)["code"][0]
    other = parse_qs(urlsplit(back_url(second)).query)
    stolen = {"state": other["state"][0], "iss": other["iss"][0], "code": code}
    # PKCE: the code belongs to the verifier of the first sign-in.
    said = refused(second.get("/sign-in/provider/back", params=stolen))
    assert "does not accept its code" in said


def test_an_answer_of_another_provider_is_refused(hub: WebHub, provider: Provider) -> None:
    """Mix-up: the browser brings a code that another provider gave."""
    for issuer in ("https://evil.example", None):
        provider.control(user=ADA, faults={"back": {"iss": issuer}})
        assert "another provider has answered" in refused(sign_in(hub.browser()))


def test_an_answer_that_comes_too_late_is_refused(hub: WebHub, moved: Clock) -> None:
    browser = hub.browser()
    url = back_url(browser)
    moved.ahead_s += provider_sign_in.LIFE_S
    assert "this sign-in is over" in refused(browser.get(url))


def test_a_refusal_of_the_provider_is_told(hub: WebHub, provider: Provider) -> None:
    provider.control(user=ADA, faults={"back": {"code": None, "error": "access_denied"}})
    assert "the provider refused the sign-in: access_denied" in refused(sign_in(hub.browser()))


def test_a_description_of_another_issuer_is_not_believed(
    tmp_path: Path, migrated: Path, moved: Clock, provider: Provider
) -> None:
    provider.control(faults={"discovery": {"issuer": "https://evil.example"}})
    with web_hub(tmp_path, migrated, moved, **provider_settings(provider)) as hub:
        said = refused(hub.browser().get("/sign-in/provider"))
    assert "describes the issuer" in said


def test_a_description_without_https_is_not_followed(
    tmp_path: Path, migrated: Path, moved: Clock, provider: Provider
) -> None:
    provider.control(faults={"discovery": {"token_endpoint": "http://evil.example/token"}})
    with web_hub(tmp_path, migrated, moved, **provider_settings(provider)) as hub:
        answer = hub.browser().get("/sign-in/provider")
    assert answer.status_code == 422
    assert "token_endpoint: expected an https:// address" in answer.text


def test_who_is_in_no_group_that_counts_is_not_let_in(hub: WebHub, provider: Provider) -> None:
    provider.control(user=ADA | {"groups": ["canteen"]})
    assert "nobody has let you in here" in refused(sign_in(hub.browser()))
    with hub.services.database.read() as session:
        assert session.query(Account).filter(Account.issuer.is_not(None)).all() == []


def test_who_leaves_the_group_loses_the_roles_and_the_sessions(
    hub: WebHub, provider: Provider
) -> None:
    old = hub.browser()
    sign_in(old)
    provider.control(user=ADA | {"groups": []})
    assert "nobody has let you in here" in refused(sign_in(hub.browser()))
    with hub.services.database.read() as session:
        assert accounts.roles(session, "ada.lovelace") == []
    assert old.get("/tokens").status_code == 303


def test_a_disabled_account_stays_out_whatever_the_provider_says(hub: WebHub) -> None:
    sign_in(hub.browser())
    hub.api.post("/v1/accounts/ada.lovelace/disable", json={})
    assert "nobody has let you in here" in refused(sign_in(hub.browser()))


def test_a_name_that_is_taken_stays_who_it_is(hub: WebHub, provider: Provider) -> None:
    """A local account is not taken over by naming oneself like it at the provider."""
    account(hub.services.database, "ada.lovelace", "admin")
    browser = hub.browser()
    sign_in(browser)
    names = {r["name"]: r["roles"] for r in hub.api.get("/v1/accounts").json()}
    (newcomer,) = set(names) - {"admin", "ada.lovelace"}
    assert re.fullmatch(r"ada\.lovelace-[0-9a-f]{8}", newcomer)
    assert (names["ada.lovelace"], names[newcomer]) == (["admin"], ["owner:door", "viewer"])
    provider.control(user=ADA | {"preferred_username": "somebody else"})
    sign_in(hub.browser())
    assert newcomer in {r["name"] for r in hub.api.get("/v1/accounts").json()}  # by its subject


def test_a_token_rests_when_the_provider_has_not_vouched_for_a_month(
    hub: WebHub, moved: Clock
) -> None:
    sign_in(hub.browser())
    now = moved()
    with hub.services.database.write() as session:
        _, secret = tokens.issue(session, "ada.lovelace", "t", now)
    headers = {"Authorization": f"Bearer {secret}"}
    moved.ahead_s += tokens.PRESENCE_S - 60
    assert hub.api.get("/v1/me", headers=headers).status_code == 200
    moved.ahead_s += 61
    answer = hub.api.get("/v1/me", headers=headers)
    assert (answer.status_code, "has not signed in for 30 days" in answer.text) == (401, True)


@pytest.mark.parametrize(
    ("said", "taken", "name"),
    [
        ("Ada@example.org", False, "ada"),
        ("Ada Lovelace", False, "ada-lovelace"),
        ("<script>", False, "script"),
        ("hub", False, r"hub-[0-9a-f]{8}"),
        ("", False, r"person-[0-9a-f]{8}"),
        ("ada", True, r"ada-[0-9a-f]{8}"),
        ("x" * 300, False, "x{40}"),
    ],
)
def test_the_providers_name_is_made_fit(said: str, taken: bool, name: str) -> None:
    made = provider_sign_in.name_for(Identity("i", "s", said, frozenset()), taken)
    assert re.fullmatch(name, made)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"oidc_issuer": "http://idp.example"}, "oidc_issuer: expected an https:// address"),
        ({"oidc_ca": "/nowhere/ca.pem"}, "oidc_ca: /nowhere/ca.pem"),
        ({"oidc_roles": {"g": ["king"]}}, "'king' is no role"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    settings = Settings(home=tmp_path, **({"oidc_issuer": "https://idp.example"} | changes))
    with pytest.raises(InvalidError, match=complaint):
        provider_sign_in.open_provider(settings, time.time)


def test_provider_accounts_have_no_password_here(hub: WebHub) -> None:
    sign_in(hub.browser())
    body = {"password": "a horse, a staple and 3 boats"}
    answer = hub.api.post("/v1/accounts/ada.lovelace/password", json=body)
    assert answer.json()["error"] == "ada.lovelace signs in without a password of this hub"
    with hub.services.database.read() as session:
        row = session.get_one(Account, "ada.lovelace")
        assert (row.kind, row.password) == (AccountKind.PERSON, None)
