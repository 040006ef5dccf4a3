"""A hub over HTTPS with a sign-in provider beside it, and browsers that are no browsers."""

import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgefleet_cloud.api.testing import served
from edgefleet_cloud.fleet.testing import free_port, open_services
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Secret
from edgefleet_cloud.trust.identity.authority import Authority
from tests.trust.oidc_provider import CLIENT, SECRET

ROLES = {
    "fleet-admins": ["admin"],
    "door-team": ["owner:door", "viewer"],
    "reviewers": ["approver"],
}


class Clock:
    """The real time, moved on by hand: certificates and the provider go by the real one."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Provider:
    """The provider's process.

    Attributes:
        ca: file of the CA of its certificate.
    """

    issuer: str
    ca: Path
    http: httpx.Client

    def control(self, **told: Any) -> None:
        """Say who signs in, what goes wrong, or that keys change."""
        self.http.post(f"{self.issuer}/control", json=told).raise_for_status()

    def asked(self) -> list[str]:
        """Return the paths that were asked for."""
        paths: list[str] = self.http.get(f"{self.issuer}/asked").json()
        return paths


@contextmanager
def provider_process(folder: Path) -> Iterator[Provider]:
    """Run a provider on a free port."""
    authority = Authority.open(folder / "ca", time.time)
    pair = authority.issue_server("provider", ["localhost"], folder)
    ca = folder / "ca.pem"
    ca.write_bytes(authority.ca_pem)
    port = free_port()
    command = [sys.executable, "-m", "tests.trust.oidc_provider", str(port)]
    with subprocess.Popen(
        [*command, str(pair.certificate), str(pair.key)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            context = ssl.create_default_context(cafile=str(ca))
            with httpx.Client(verify=context) as http:
                yield Provider(f"https://localhost:{port}", ca, http)
        finally:
            process.kill()


@dataclass
class WebHub:
    """A hub over HTTPS.

    Attributes:
        api: client with the admin's token.
    """

    services: Services
    api: httpx.Client
    browsers: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return where it is."""
        return str(self.api.base_url).rstrip("/")

    def browser(self) -> httpx.Client:
        """Return what keeps cookies and says where its forms come from, as a browser does."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # two CAs, both ours
        client = httpx.Client(
            base_url=self.url, verify=context, timeout=60.0, headers={"Origin": self.url}
        )
        self.browsers.append(client)
        return client


@contextmanager
def web_hub(folder: Path, migrated: Path, clock: Clock, **settings: Any) -> Iterator[WebHub]:
    """Serve a hub over HTTPS on a free port."""
    home = folder / "hub"
    home.mkdir()
    shutil.copy(migrated, home / "hub.db")
    port = free_port()
    services = open_services(home, clock, public_url=f"https://localhost:{port}", **settings)
    try:
        with served(services, tls=True, port=port) as api:
            held = WebHub(services, api)
            yield held
            for browser in held.browsers:
                browser.close()
    finally:
        services.database.close()


def provider_settings(provider: Provider) -> dict[str, Any]:
    """Return the hub's settings for this provider."""
    return {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": Secret(SECRET),
        "oidc_label": "the test provider",
        "oidc_ca": str(provider.ca),
        "oidc_roles": ROLES,
    }


@pytest.fixture
def moved() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider_process(tmp_path_factory.mktemp("provider")) as held:
        yield held
