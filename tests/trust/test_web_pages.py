"""The web page without a browser: sessions, foreign forms, headers, what is escaped."""

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest

from edgefleet_cloud.database.models import WebSession
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.acting import Actor
from edgefleet_cloud.trust.people import approvals, sessions
from edgefleet_cloud.trust.people.testing import NOW, PASSWORD, account, version
from tests.trust.people_rig import Clock, WebHub, web_hub
from tests.trust.people_rig import moved as moved  # a fixture

COOKIE = "__Host-edgefleet"


@pytest.fixture
def hub(tmp_path: Path, migrated: Path, moved: Clock) -> Iterator[WebHub]:
    with web_hub(tmp_path, migrated, moved) as held:
        yield held


def person(hub: WebHub, name: str, *roles: str) -> httpx.Client:
    """Make an account and return its browser, signed in."""
    account(hub.services.database, name, *roles)
    browser = hub.browser()
    with hub.services.database.write() as session:
        browser.cookies.set(COOKIE, sessions.begin(session, name, hub.services.clock()))
    return browser


def csrf(browser: httpx.Client, path: str = "/tokens") -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', browser.get(path).text)
    assert found is not None
    return found.group(1)


def question(hub: WebHub, *, model: str = "door", reason: str = "") -> int:
    """Let a version of a high-risk model wait for people; return the question's number."""
    database = hub.services.database
    version(database, model)
    with database.write() as session, acting.acting(Actor("olga", "person")):
        approvals.set_risk(session, model, "high", "", NOW)
        registry.approve(session, model, "1", {"by": "olga", "reason": reason}, NOW)
        return approvals.listing(session)[0].id


# --- sessions -------------------------------------------------------------------------------------


def test_the_cookie_is_for_this_host_over_https_and_unseen_by_scripts(hub: WebHub) -> None:
    account(hub.services.database, "ada", "viewer", password=PASSWORD)
    answer = hub.browser().post("/sign-in", data={"name": "ada", "password": PASSWORD})
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert (cookie["path"], cookie["domain"], cookie["samesite"]) == ("/", "", "lax")
    assert cookie["secure"]
    assert cookie["httponly"]
    assert cookie["max-age"] == str(12 * 3600)
    with hub.services.database.read() as session:
        (row,) = session.query(WebSession)
        assert cookie.value not in row.digest


def test_signing_in_again_gives_another_session_and_ends_the_first(hub: WebHub) -> None:
    account(hub.services.database, "ada", "viewer", password=PASSWORD)
    browser = hub.browser()
    browser.post("/sign-in", data={"name": "ada", "password": PASSWORD})
    before = browser.cookies[COOKIE]
    form = {"name": "ada", "password": PASSWORD, "csrf": csrf(browser)}
    assert browser.post("/sign-in", data=form).status_code == 303
    assert browser.cookies[COOKIE] != before
    old = hub.browser()
    old.cookies.set(COOKIE, before)
    assert old.get("/tokens").status_code == 303


def test_a_session_that_was_planted_beforehand_is_not_taken_up(hub: WebHub) -> None:
    account(hub.services.database, "ada", "viewer", password=PASSWORD)
    browser = hub.browser()
    browser.cookies.set(COOKIE, "planted")
    answer = browser.post("/sign-in", data={"name": "ada", "password": PASSWORD})
    assert "planted" not in answer.headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("steps_s", "open_after"),
    [([3590.0], True), ([3600.0], False), ([3000.0] * 14, True), ([3000.0] * 15, False)],
)
def test_a_session_ends_when_idle_or_old(
    hub: WebHub, moved: Clock, steps_s: list[float], open_after: bool
) -> None:
    """An hour of idleness, or 12 hours in all."""
    browser = person(hub, "ada", "viewer")
    for step_s in steps_s:
        moved.ahead_s += step_s
        answer = browser.get("/tokens")
    assert answer.status_code == (200 if open_after else 303)
    if not open_after:
        assert answer.headers["Location"] == "/sign-in?next=/tokens"


def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(hub: WebHub) -> None:
    browser = person(hub, "ada", "viewer")
    copy = hub.browser()
    copy.cookies.set(COOKIE, browser.cookies[COOKIE])
    assert browser.post("/sign-out", data={"csrf": csrf(browser)}).status_code == 303
    assert copy.get("/tokens").status_code == 303


@pytest.mark.parametrize(
    ("wish", "goes_to"),
    [
        ("/terminal", "/terminal"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/tokens?x=1", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_after_signing_in_one_stays_on_this_hub(hub: WebHub, wish: str, goes_to: str) -> None:
    account(hub.services.database, "ada", "viewer", password=PASSWORD)
    form = {"name": "ada", "password": PASSWORD, "next": wish}
    assert hub.browser().post("/sign-in", data=form).headers["Location"] == goes_to


def test_a_wrong_password_is_told_on_the_page_and_slowed_down(hub: WebHub) -> None:
    browser = hub.browser()
    form = {"name": "ada", "password": "wrong password"}
    answers = [browser.post("/sign-in", data=form) for _ in range(6)]
    assert [a.status_code for a in answers] == [401] * 5 + [429]
    assert "name and password do not belong together" in answers[0].text
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 30  # the clock runs here


# --- foreign forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_form_of_a_foreign_page_is_refused_even_with_the_token(
    hub: WebHub, headers: dict[str, str]
) -> None:
    browser = person(hub, "ada", "viewer")
    form = {"name": "t", "days": "1", "csrf": csrf(browser)}
    answer = browser.post("/tokens", data=form, headers=headers)
    assert answer.status_code == 403
    assert "sent from another page" in answer.text
    assert len(hub.api.get("/v1/tokens", params={"everyone": True}).json()) == 2


@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_a_form_without_the_sessions_token_is_refused(hub: WebHub, token: str | None) -> None:
    browser = person(hub, "ada", "viewer")
    form = {"name": "t", "days": "1"} | ({} if token is None else {"csrf": token})
    answer = browser.post("/tokens", data=form)
    assert answer.status_code == 403
    assert "older session" in answer.text


def test_the_token_of_another_session_does_not_fit(hub: WebHub) -> None:
    ada, bob = person(hub, "ada", "viewer"), person(hub, "bob", "viewer")
    form = {"name": "t", "days": "1", "csrf": csrf(bob)}
    assert ada.post("/tokens", data=form).status_code == 403


def test_a_foreign_page_cannot_sign_a_browser_in(hub: WebHub) -> None:
    """Login CSRF: the victim would work in the attacker's account."""
    account(hub.services.database, "eve", "viewer", password=PASSWORD)
    answer = hub.browser().post(
        "/sign-in",
        data={"name": "eve", "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_cookie_alone_changes_nothing_through_the_api(hub: WebHub) -> None:
    browser = person(hub, "root", "admin")
    assert browser.get("/v1/me").status_code == 200
    body = {"name": "eve", "roles": ["admin"]}
    refused = browser.post("/v1/accounts", json=body)
    assert (refused.status_code, refused.json()["error"]) == (
        403,
        "with a cookie this needs the session's token in x-csrf-token too",
    )
    allowed = browser.post("/v1/accounts", json=body, headers={"X-CSRF-Token": csrf(browser)})
    assert allowed.status_code == 201


def test_an_api_token_opens_no_page(hub: WebHub) -> None:
    answer = hub.api.get("/accounts")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?next=/accounts")


def test_the_page_shows_only_what_is_derived_from_the_cookie(hub: WebHub) -> None:
    browser = person(hub, "ada", "viewer")
    assert csrf(browser) == sessions.csrf_token(browser.cookies[COOKIE])
    assert browser.cookies[COOKIE] not in browser.get("/tokens").text


# --- headers, escaping ----------------------------------------------------------------------------

PAGES = ("/sign-in", "/style.css", "/approvals", "/tokens", "/accounts", "/decisions", "/terminal")


def test_every_page_carries_the_headers_that_keep_scripts_and_frames_out(hub: WebHub) -> None:
    browser = person(hub, "root", "admin")
    for path in PAGES:
        answer = browser.get(path)
        assert answer.status_code == 200, path
        headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src data:;")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Strict-Transport-Security"] == "max-age=31536000"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "geolocation=()" in headers["Permissions-Policy"]
        assert "<script" not in answer.text
        assert not re.search(r'\s(on\w+|style)="', answer.text)
        assert not re.search(r'(src|href)="(?:https?:)?//', answer.text)


def test_what_people_write_is_shown_as_text(hub: WebHub) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    browser = person(hub, "ann", "approver")
    number = question(hub, reason=evil)
    for path in (f"/approvals/{number}", "/decisions"):
        text = browser.get(path).text
        assert "<script>" not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_an_error_is_a_page_that_repeats_nothing_as_markup(hub: WebHub) -> None:
    browser = person(hub, "ann", "approver")
    form = {"code": "<b>bold</b>", "answer": "look", "csrf": csrf(browser)}
    answer = browser.post("/terminal", data=form)
    assert answer.status_code == 404
    assert "text/html" in answer.headers["Content-Type"]
    assert "<b>bold" not in answer.text
    assert browser.get("/approvals/77").status_code == 404
    assert "there is no approval 77" in browser.get("/approvals/77").text


# --- what the pages do ----------------------------------------------------------------------------


def test_pages_are_for_those_who_may(hub: WebHub) -> None:
    browser = person(hub, "vera", "viewer")
    number = question(hub)
    assert browser.get("/accounts").status_code == 403
    assert "/accounts" not in browser.get("/tokens").text
    shown = browser.get(f"/approvals/{number}")
    assert shown.status_code == 200
    assert 'name="answer"' not in shown.text
    digest = hub.api.get(f"/v1/approvals/{number}").json()["digest"]
    form = {"digest": digest, "answer": "yes", "csrf": csrf(browser)}
    assert browser.post(f"/approvals/{number}", data=form).status_code == 403


def test_two_people_approve_on_the_page(hub: WebHub) -> None:
    browsers = [person(hub, "ann", "approver"), person(hub, "ben", "approver")]
    number = question(hub)
    page = browsers[0].get(f"/approvals/{number}").text
    assert "accuracy" in page
    digest = hub.api.get(f"/v1/approvals/{number}").json()["digest"]
    assert digest in page
    for browser in browsers:
        form = {"digest": digest, "answer": "yes", "reason": "seen", "csrf": csrf(browser)}
        assert browser.post(f"/approvals/{number}", data=form).status_code == 303
    shown = hub.api.get(f"/v1/approvals/{number}").json()
    assert shown["state"] == "approved"
    assert [v["account"] for v in shown["voices"]] == ["ann", "ben"]


def test_a_token_is_made_shown_once_and_revoked_on_the_page(hub: WebHub) -> None:
    browser = person(hub, "ada", "viewer")
    form = {"name": "laptop", "days": "7", "permissions": ["read"], "csrf": csrf(browser)}
    made = browser.post("/tokens", data=form)
    found = re.search(r'id="secret">(eft_[\w-]{43})<', made.text)
    assert found is not None
    secret = {"Authorization": f"Bearer {found.group(1)}"}
    assert hub.api.get("/v1/me", headers=secret).json()["permissions"] == ["read"]
    page = browser.get("/tokens").text
    assert "eft_" not in page
    (number,) = re.findall(r'action="/tokens/(\d+)/revoke"', page)[:1]
    browser.post(f"/tokens/{number}/revoke", data={"csrf": csrf(browser)})
    assert hub.api.get("/v1/me", headers=secret).status_code == 401


def test_an_admin_makes_and_disables_an_account_on_the_page(hub: WebHub) -> None:
    root = person(hub, "root", "admin")
    form = {
        "name": "ada", "kind": "person", "roles": "viewer owner:door", "password": PASSWORD,
        "csrf": csrf(root),
    }  # fmt: skip
    assert root.post("/accounts", data=form).status_code == 303
    ada = hub.browser()
    assert ada.post("/sign-in", data={"name": "ada", "password": PASSWORD}).status_code == 303
    root.post("/accounts/ada", data={"action": "disable", "csrf": csrf(root)})
    assert ada.get("/tokens").status_code == 303
    assert "disabled" in root.get("/accounts").text
