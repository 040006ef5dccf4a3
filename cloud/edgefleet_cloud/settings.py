"""Settings of the hub: one TOML file, with environment variables on top.

`EDGEFLEET_HOME` names the folder that holds everything the hub keeps; `hub.toml` in it is read if
it is there; `EDGEFLEET_<NAME>` overrides one setting, and `EDGEFLEET_<NAME>_FILE` names a file with
its value, as secret stores mount them. An unknown name or a wrong type is an error.
"""

import hmac
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.values import Json

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]


class Secret:
    """A secret among the settings: no log, error or `repr` shows it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret, for the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "***" if self._value else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            self._value.encode(), other._value.encode()
        )

    __hash__ = None  # type: ignore[assignment]  # nothing looks secrets up


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be set.

    Attributes:
        home: folder of the hub's files (database, store, keys, broker).
        database_url: SQLAlchemy URL; empty for SQLite in `home`.
        api_host, api_port: where the HTTPS API listens.
        broker: `embedded`, started by the hub, or `mosquitto`, an external one (docs/brokers.md).
        mqtt_host, mqtt_port: where the embedded broker listens (mutual TLS), or where the hub
            reaches the external one.
        public_host: name or address that devices use to reach the hub; in the server certificate.
        mqtt_public_host: the same for the broker, if it is another.
        job_workers: processes for background jobs.
        upload_limit_bytes: the most that one request may carry (models, data).
        tick_s: pause between two rounds of the scheduler.
        assignment_ttl_s: life of signed director metadata; renewed at half of it.
        certificate_ttl_s: life of a device certificate; devices renew at two thirds of it.
        renew_expired_s: how long after its end a device may still renew its certificate.
        claim_ttl_s: life of an enrolment token.
        expect_ttl_s: how long an expected serial number may enrol.
        online_keys: URIs of signing keys that the hub uses besides the files in its home.
        public_url: of the web page, if a proxy is before the hub; `https://public_host:api_port`.
        trusted_proxies: addresses of proxies whose `X-Forwarded-For` says who asks; empty for none.
        oidc_issuer: of the OpenID Connect provider that people sign in with; empty for none.
        oidc_client_id, oidc_client_secret: this hub's, at the provider.
        oidc_label: what people call the provider.
        oidc_ca: file of the CA that signed the provider's certificate; the system's if empty.
        oidc_scopes: asked for; `groups` is in one of them with most providers.
        oidc_name_claim, oidc_groups_claim: claims of the ID token.
        oidc_roles: group → roles (`viewer`, `owner:MODEL`, …); no group here, no way in.
    """

    home: Path
    database_url: str = ""
    api_host: str = "127.0.0.1"
    api_port: Port = 8443
    broker: Literal["embedded", "mosquitto"] = "embedded"
    mqtt_host: str = "127.0.0.1"
    mqtt_port: Port = 8883
    public_host: str = "localhost"
    mqtt_public_host: str = ""
    job_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    upload_limit_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    tick_s: Seconds = 0.5
    assignment_ttl_s: Seconds = 86_400.0
    certificate_ttl_s: Seconds = 30 * 86_400.0
    renew_expired_s: Annotated[float, Meta(ge=0)] = 5 * 365 * 86_400.0
    claim_ttl_s: Seconds = 86_400.0
    expect_ttl_s: Seconds = 30 * 86_400.0
    online_keys: list[str] = []
    public_url: str = ""
    trusted_proxies: str = ""
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: Secret = Secret("")
    oidc_label: str = "single sign-on"
    oidc_ca: str = ""
    oidc_scopes: str = "openid profile"
    oidc_name_claim: str = "preferred_username"
    oidc_groups_claim: str = "groups"
    oidc_roles: dict[str, list[str]] = {}

    @property
    def oidc_redirect(self) -> str:
        """Where the provider sends browsers back to; to be registered there."""
        own = self.public_url or f"https://{self.public_host}:{self.api_port}"
        return f"{own.rstrip('/')}/sign-in/provider/back"

    @property
    def devices_mqtt_host(self) -> str:
        """Name or address by which devices reach the broker."""
        return self.mqtt_public_host or self.public_host

    @property
    def sqlalchemy_url(self) -> str:
        """The database to use."""
        return self.database_url or f"sqlite:///{self.home / 'hub.db'}"


def load(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        home: overrides `EDGEFLEET_HOME`; `~/.edgefleet` if neither is given.
        environment: for `EDGEFLEET_*`; the process's own by default.

    Raises:
        InvalidError: unreadable file, unknown name, or value of the wrong type.
    """
    env = os.environ if environment is None else environment
    folder = home or Path(env.get("EDGEFLEET_HOME") or Path.home() / ".edgefleet")
    folder = folder.expanduser().resolve()
    values: dict[str, object] = {}
    path = folder / "hub.toml"
    if path.exists():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidError(f"{path} cannot be read as TOML: {error}") from error
    for name in Settings.__struct_fields__:
        text = env.get(f"EDGEFLEET_{name.upper()}", _from_file(env, name))
        if text is not None and name != "home":
            values[name] = text
    values["home"] = str(folder)
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidError(f"settings in {path} or EDGEFLEET_* variables: {error}") from error


def _from_file(environment: Mapping[str, str], name: str) -> str | None:
    path = environment.get(f"EDGEFLEET_{name.upper()}_FILE")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidError(f"EDGEFLEET_{name.upper()}_FILE: {path}: {error}") from error


def described(settings: Settings) -> Json:
    """Return the settings as they may be read by others: no password, no key."""
    from sqlalchemy import make_url  # every command reads settings; only the hub describes them

    values: Json = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    values["database_url"] = make_url(settings.sqlalchemy_url).render_as_string(hide_password=True)
    shown: Json = msgspec.to_builtins(values, enc_hook=str)
    return {name: _shown(name, value) for name, value in shown.items()}


def _shown(name: str, value: object) -> object:
    # A new setting that holds a secret has to be named so; its value is then not told.
    secret = any(word in name for word in ("secret", "password", "passphrase", "token", "pin"))
    return bool(value) if secret else value


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    if kind is Secret:
        return Secret(str(value))
    raise NotImplementedError(f"no setting has the type {kind}")
