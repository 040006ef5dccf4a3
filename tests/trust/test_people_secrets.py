"""Secrets are in files, the environment, or hashed; never in logs, answers, errors or documents."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefleet_cloud import settings as hub_settings
from edgefleet_cloud.api.app import describe
from edgefleet_cloud.api.testing import TOKEN
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.settings import Secret, Settings, described
from edgefleet_cloud.trust.people import sessions
from edgefleet_cloud.trust.people.testing import PASSWORD, account
from tests.trust.people_rig import Clock, Provider, WebHub, provider_settings, web_hub
from tests.trust.people_rig import moved as moved  # a fixture
from tests.trust.people_rig import provider as provider  # a fixture


@pytest.fixture
def hub(tmp_path: Path, migrated: Path, moved: Clock, provider: Provider) -> Iterator[WebHub]:
    provider.control(user={"sub": "u", "preferred_username": "ada", "groups": ["door-team"]})
    with web_hub(tmp_path, migrated, moved, **provider_settings(provider)) as held:
        yield held


def everything_kept(database: Database) -> str:
    """Return all text and numbers of all tables."""
    with database.engine.connect() as connection:
        tables = connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).scalars()
        return "\n".join(
            repr(tuple(row))
            for table in list(tables)
            for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"')
        )


def test_no_secret_is_in_logs_tables_or_answers_after_all_ways_to_sign_in(
    hub: WebHub, caplog: pytest.LogCaptureFixture
) -> None:
    # The hub's own and its server's; the clients of this test are not the hub.
    for name in ("edgefleet_cloud", "uvicorn", "fastapi", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    database = hub.services.database
    secrets = [account(database, "root", "admin", password=PASSWORD), PASSWORD, TOKEN]
    answers = []

    # With a password, rightly and wrongly, over the API and the page.
    made = hub.api.post("/v1/login", json={"name": "root", "password": PASSWORD}).json()
    secrets.append(made["token"])
    wrong = "wrong " + PASSWORD
    secrets.append(wrong)
    answers.append(hub.api.post("/v1/login", json={"name": "root", "password": wrong}))
    answers.append(hub.api.post("/v1/login", json={"name": wrong, "password": ""}))
    answers.append(hub.api.post("/v1/login", json={"name": "root", "password": ["eft_in_error"]}))
    secrets.append("eft_in_error")
    browser = hub.browser()
    answers.append(browser.post("/sign-in", data={"name": "root", "password": PASSWORD}))
    secrets += [browser.cookies["__Host-edgefleet"]]
    csrf = sessions.csrf_token(secrets[-1])

    # Through the provider.
    person = hub.browser()
    away = person.get("/sign-in/provider")
    back = person.get(away.headers["Location"])
    secrets += [person.cookies["__Host-edgefleet-sign-in"], csrf]
    person.get(back.headers["Location"])
    secrets += [person.cookies["__Host-edgefleet"]]
    settings = hub.services.settings
    secrets.append(settings.oidc_client_secret.reveal())

    # For a command line, for a device, and with something that is no token.
    begun = hub.api.post("/v1/login/terminal").json()
    secrets.append(begun["secret"])
    claim = hub.api.post("/v1/devices", json={"device": "cam-1"}).json()["token"]
    secrets.append(claim.split(".")[2])
    bad = "eft_" + "b" * 43
    secrets.append(bad)
    answers.append(hub.api.get("/v1/me", headers={"Authorization": f"Bearer {bad}"}))
    answers.append(hub.api.post("/v1/accounts", json={"name": "x", "password": wrong, "kind": 1}))

    kept, said = everything_kept(database), caplog.text
    told = "\n".join(answer.text for answer in answers)
    for secret in secrets:
        assert secret not in kept
        assert secret not in said
        assert secret not in told
        assert secret not in repr(settings)
        assert secret not in json.dumps(described(settings))


def test_the_description_of_the_api_shows_passwords_as_passwords_and_no_example_of_one() -> None:
    document = describe().openapi()
    schemas = document["components"]["schemas"]
    for name in ("SignInBody", "AccountBody", "PasswordBody"):
        field = schemas[name]["properties"]["password"]
        assert "password" in json.dumps(field)
        assert "example" not in json.dumps(field)
    assert "eft_" not in json.dumps(document)


def test_a_setting_comes_from_a_file_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from the store\n")
    environment = {"EDGEFLEET_OIDC_CLIENT_SECRET_FILE": str(tmp_path / "secret")}
    settings = hub_settings.load(tmp_path, environment)
    assert settings.oidc_client_secret.reveal() == "from the store"
    # What is given itself comes first.
    both = environment | {"EDGEFLEET_OIDC_CLIENT_SECRET": "given"}
    assert hub_settings.load(tmp_path, both).oidc_client_secret.reveal() == "given"


def test_a_secret_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    environment = {"EDGEFLEET_OIDC_CLIENT_SECRET_FILE": str(tmp_path / "gone")}
    with pytest.raises(InvalidError, match=r"EDGEFLEET_OIDC_CLIENT_SECRET_FILE: .*gone"):
        hub_settings.load(tmp_path, environment)


@pytest.mark.parametrize("show", [str, repr, lambda s: f"{s}", lambda s: f"{s!r:>10}".strip()])
def test_a_secret_setting_shows_itself_to_nobody(show: Any) -> None:
    assert show(Secret("hush")) == "***"
    assert show(Secret("")) == ""
    assert "hush" not in repr(Settings(home=Path("/"), oidc_client_secret=Secret("hush")))


def test_what_is_told_of_the_settings_says_only_whether_there_is_a_secret(tmp_path: Path) -> None:
    for secret, told in (("hush", True), ("", False)):
        settings = Settings(home=tmp_path, oidc_client_secret=Secret(secret))
        assert described(settings)["oidc_client_secret"] is told
