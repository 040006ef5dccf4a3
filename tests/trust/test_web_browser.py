"""The web page in a real browser: Debian's Chromium."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.trust import acting
from edgefleet_cloud.trust.acting import Actor
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.trust.people.testing import NOW, PASSWORD, account, version
from tests.trust.people_rig import Clock, WebHub, web_hub

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: run scripts/system_packages.sh"
)
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
EVIL = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        held = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield held
        held.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[WebHub]:
    with web_hub(tmp_path_factory.mktemp("web"), migrated, Clock()) as held:
        for name, roles in {
            "ann": ["approver"], "ben": ["approver"], "root": ["admin"], "olga": ["owner"],
        }.items():  # fmt: skip
            account(held.services.database, name, *roles, password=PASSWORD)
        yield held


@contextmanager
def opened(browser: Browser, hub: WebHub, *, phone: bool = False) -> Iterator[Page]:
    """Give a page of a browser that knows nothing of the others."""
    size: Any = {"width": 360, "height": 740} if phone else {"width": 1200, "height": 900}
    context = browser.new_context(base_url=hub.url, ignore_https_errors=True, viewport=size)
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def sign_in(page: Page, name: str, path: str = "/approvals") -> None:
    page.goto(path)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**{path}")


def ask(hub: WebHub, number: str, reason: str) -> int:
    """Register a version of the high-risk model `door`; return the question that it asks."""
    version(hub.services.database, "door", number)
    with hub.services.database.write() as session, acting.acting(Actor("olga", "person")):
        approvals.set_risk(session, "door", "high", "", NOW)
        registry.approve(session, "door", number, {"by": "olga", "reason": reason}, NOW)
        return approvals.listing(session)[0].id


def test_two_people_sign_in_and_approve(browser: Browser, hub: WebHub) -> None:
    number = ask(hub, "1", "better on the new cameras")
    for name in ("ann", "ben"):
        with opened(browser, hub) as page:
            sign_in(page, name)
            page.get_by_role("link", name=str(number), exact=True).click()
            assert page.get_by_text("better on the new cameras").count()
            page.get_by_label("Why").fill(f"looked at by {name}")
            page.get_by_role("button", name="Approve").click()
            page.get_by_text(f"looked at by {name}").wait_for()
            assert page.get_by_role("button", name="Approve").count() == 0
    shown = hub.api.get(f"/v1/approvals/{number}").json()
    assert (shown["state"], len(shown["voices"])) == ("approved", 2)


def test_what_people_write_runs_nothing_in_a_browser(browser: Browser, hub: WebHub) -> None:
    number = ask(hub, "2", EVIL)
    with opened(browser, hub) as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        sign_in(page, "ann")
        page.goto(f"/approvals/{number}")
        page.get_by_label("Why").fill(EVIL)
        page.get_by_role("button", name="Refuse").click()
        page.get_by_text("superseded").or_(page.get_by_text("refused")).first.wait_for()
        assert page.get_by_text(EVIL).count() >= 2  # as text
        assert page.title() == f"Approval {number} – edgefleet"
        assert said == []


def test_a_style_or_script_that_gets_in_all_the_same_is_not_run(
    browser: Browser, hub: WebHub
) -> None:
    """The second line: the content security policy, with escaping out of the way."""
    with opened(browser, hub) as page:
        page.goto("/sign-in")
        page.evaluate(
            "() => { const s = document.createElement('script');"
            " s.textContent = 'document.title = \"pwned\"'; document.body.append(s); }"
        )
        assert page.title() == "Sign in – edgefleet"


class ForeignPage(BaseHTTPRequestHandler):
    """Another site, with a form that sends itself to the hub."""

    target = ""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Give the page."""
        body = (
            f'<form method="post" action="{self.target}/accounts/ben" target="_self">'
            '<input name="action" value="disable"><input name="csrf" value="guess"></form>'
            "<script>document.forms[0].submit()</script>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)


def test_a_form_of_a_foreign_page_changes_nothing(browser: Browser, hub: WebHub) -> None:
    ForeignPage.target = hub.url
    server = ThreadingHTTPServer(("127.0.0.1", 0), ForeignPage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with opened(browser, hub) as page:
            sign_in(page, "root", "/accounts")
            with page.expect_response("**/accounts/ben") as caught:
                page.goto(f"http://127.0.0.1:{server.server_port}/")
            assert caught.value.status == 403
            assert "__Host-edgefleet" not in caught.value.request.all_headers().get("cookie", "")
            page.goto("/accounts")  # still signed in
            assert page.get_by_role("button", name="Sign out").count() == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    ben = next(row for row in hub.api.get("/v1/accounts").json() if row["name"] == "ben")
    assert ben["disabled_at"] is None


def test_the_page_is_not_shown_in_a_frame(browser: Browser, hub: WebHub) -> None:
    with opened(browser, hub) as page:
        with page.expect_console_message(lambda said: "frame-ancestors" in said.text):
            page.set_content(f'<iframe src="{hub.url}/sign-in"></iframe>')
        assert page.frame_locator("iframe").get_by_label("Name").count() == 0


def test_a_command_line_is_signed_in_by_its_code(browser: Browser, hub: WebHub) -> None:
    begun = hub.api.post("/v1/login/terminal", headers={"Authorization": ""}).json()
    secret = {"secret": begun["secret"]}
    assert hub.api.post("/v1/login/terminal/token", json=secret).json() == {"token": None}
    with opened(browser, hub) as page:
        sign_in(page, "ann", "/terminal")
        page.get_by_label("Code").fill(begun["code"].lower().replace("-", " "))
        page.get_by_role("button", name="Go on").click()
        assert page.get_by_text("127.0.0.1").or_(page.get_by_text("::1")).count() == 1
        page.get_by_role("button", name="Allow").click()
        page.get_by_role("status").wait_for()
    made = hub.api.post("/v1/login/terminal/token", json=secret).json()["token"]
    assert made["account"] == "ann"
    assert hub.api.post("/v1/login/terminal/token", json=secret).status_code == 404


def test_the_pages_fit_on_a_phone(browser: Browser, hub: WebHub, tmp_path: Path) -> None:
    number = ask(hub, "3", "a long reason " * 20)
    with opened(browser, hub, phone=True) as page:
        sign_in(page, "root")
        for path in ("/approvals", f"/approvals/{number}", "/tokens", "/accounts", "/decisions"):
            page.goto(path)
            page.screenshot(path=tmp_path / f"{path.strip('/').replace('/', '-')}.png")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, path
