"""Settings of the hub: one TOML file, with environment variables on top.

`EDGEFLEET_HOME` names the folder that holds everything the hub keeps; `hub.toml` in it is read if
it is there; `EDGEFLEET_<NAME>` overrides one setting. An unknown name or a wrong type is an error.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgefleet_cloud.errors import InvalidError

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be set.

    Attributes:
        home: folder of the hub's files (database, store, keys, broker).
        database_url: SQLAlchemy URL; empty for SQLite in `home`.
        api_host, api_port: where the HTTPS API listens.
        mqtt_host, mqtt_port: where the embedded broker listens (mutual TLS).
        public_host: name or address that devices use to reach both; in the server certificate.
        job_workers: processes for background jobs.
        upload_limit_bytes: the most that one request may carry (models, data).
        tick_s: pause between two rounds of the scheduler.
        assignment_ttl_s: life of signed director metadata; renewed at half of it.
        certificate_ttl_s: life of a device certificate.
        claim_ttl_s: life of an enrolment token.
    """

    home: Path
    database_url: str = ""
    api_host: str = "127.0.0.1"
    api_port: Port = 8443
    mqtt_host: str = "127.0.0.1"
    mqtt_port: Port = 8883
    public_host: str = "localhost"
    job_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    upload_limit_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    tick_s: Seconds = 0.5
    assignment_ttl_s: Seconds = 86_400.0
    certificate_ttl_s: Seconds = 90 * 86_400.0
    claim_ttl_s: Seconds = 86_400.0

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
        text = env.get(f"EDGEFLEET_{name.upper()}")
        if text is not None and name != "home":
            values[name] = text
    values["home"] = str(folder)
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidError(f"settings in {path} or EDGEFLEET_* variables: {error}") from error


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"no setting has the type {kind}")
