"""The terminal's way to the hub: HTTPS with the hub's own CA and a token.

Where to connect comes from `--hub`, `--ca`, else from `EDGEFLEET_HUB`, `EDGEFLEET_CA`, else from
the file that `edgefleet up` leaves in the hub's home on the same machine (`client.json`), else
from the last `edgefleet login`. Who asks comes from `--token`, `EDGEFLEET_TOKEN`,
`EDGEFLEET_TOKEN_FILE`, else from the login at that hub, else from the hub's home (`admin.token`).
"""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer

from edgefleet_cloud.cli import logins
from edgefleet_cloud.cli.output import CliError, ExitCode

# The hub reads an uploaded table before it answers; a table of 1 GiB takes minutes.
TIMEOUT = httpx.Timeout(30.0, read=600.0)


@dataclass(frozen=True)
class Target:
    """What the options of `edgefleet` say about the hub; None where nothing was said."""

    hub: str | None = None
    token: str | None = None
    ca: Path | None = None
    home: Path | None = None


class Client:
    """Talks to one hub.

    Args:
        http: has the base URL, the CA and the token set.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON answer of `GET path`; query values that are None are left out.

        Raises:
            CliError: if the hub does not answer, or answers with an error.
        """
        params = {key: value for key, value in query.items() if value is not None}
        return self._request("GET", path, params=params)

    def post(
        self,
        path: str,
        body: object = None,
        *,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the JSON answer of `POST path`.

        Args:
            path: for example `/v1/devices`.
            body: sent as JSON.
            form: fields of a multipart form, instead of `body`.
            files: files of that form, as httpx takes them.

        Raises:
            CliError: as for `get`.
        """
        if form is not None or files is not None:
            return self._request("POST", path, data=form, files=files)
        return self._request("POST", path, json=body)

    def find(self, path: str) -> Any | None:
        """Return the JSON answer of `GET path`, None where the hub says that there is none."""
        answer = self._send("GET", path)
        return None if answer.status_code == 404 else _checked(answer)

    def content(self, path: str) -> bytes | None:
        """Return the answer of `GET path` as it is, None where the hub says that there is none."""
        answer = self._send("GET", path)
        if answer.status_code == 404:
            return None
        if not answer.is_success:
            _checked(answer)
        return answer.content

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        """Give the answer of `GET path` piece by piece, however long it is.

        Raises:
            CliError: as for `get`, or if the answer breaks off.
        """
        params = {key: value for key, value in query.items() if value is not None}
        try:
            with self._http.stream("GET", path, params=params) as answer:
                if not answer.is_success:
                    answer.read()
                    _checked(answer)
                yield from answer.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def put(self, path: str, body: object) -> Any:
        """Return the JSON answer of `PUT path` with `body` as JSON.

        Raises:
            CliError: as for `get`.
        """
        return self._request("PUT", path, json=body)

    def _request(self, method: str, path: str, **kwargs: Any) -> Any:
        return _checked(self._send(method, path, **kwargs))

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> CliError:
        return CliError(
            f"the hub at {self._http.base_url} does not answer: {error}."
            " Is `edgefleet up` running there?",
            ExitCode.UNREACHABLE,
        )


def connect(ctx: typer.Context) -> Client:
    """Return a client for the hub that the command line, the environment or the home names.

    Args:
        ctx: of the command; its object is a `Target`, or a ready `Client` (in tests).

    Raises:
        CliError: if it is not known where the hub is, or a file cannot be read.
    """
    if isinstance(ctx.obj, Client):
        return ctx.obj
    client = open_client(ctx.obj if isinstance(ctx.obj, Target) else Target(), os.environ)
    ctx.call_on_close(client.close)
    return client


def open_client(target: Target, environment: Mapping[str, str]) -> Client:
    """Return a client for `target`, completed from `environment` and the hub's home."""
    url, ca = find_hub(target, environment)
    return _open(url, ca, _token(target, environment, url))


def open_anonymous(url: str, ca: str) -> Client:
    """Return a client that shows no token, to get one."""
    return _open(url, ca, None)


def _open(url: str, ca: str, token: str | None) -> Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        verify = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise CliError(f"{ca} cannot be read as a CA certificate: {error}", ExitCode.USAGE) from (
            error
        )
    return Client(httpx.Client(base_url=url, headers=headers, verify=verify, timeout=TIMEOUT))


def _token(target: Target, environment: Mapping[str, str], url: str) -> str | None:
    if target.token or environment.get("EDGEFLEET_TOKEN"):
        return target.token or environment["EDGEFLEET_TOKEN"]
    if environment.get("EDGEFLEET_TOKEN_FILE"):
        return _read(Path(environment["EDGEFLEET_TOKEN_FILE"])).strip()
    login = logins.find(environment, url)
    if login is not None:
        return login.token
    home = _home(target, environment)
    # The admin's token is for the hub of this home, and shown to no other.
    if (home / "admin.token").is_file() and _local_hub(home, required=False).get("url") == url:
        return _read(home / "admin.token").strip()
    return None


def _home(target: Target, environment: Mapping[str, str]) -> Path:
    return target.home or Path(environment.get("EDGEFLEET_HOME") or Path.home() / ".edgefleet")


def find_hub(target: Target, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the URL of the hub that is meant, and the file of its CA; "" for the system's.

    Raises:
        CliError: if no hub is known, or a file cannot be read.
    """
    home = _home(target, environment)
    url = target.hub or environment.get("EDGEFLEET_HUB")
    ca = str(target.ca or environment.get("EDGEFLEET_CA") or "")
    if url and ca:
        return url, ca
    last = logins.last(environment)
    known = _local_hub(home, required=not url and last is None)
    if not url and not known:
        assert last is not None  # else the hub's home was required
        return last.hub, ca or last.ca
    if url and url != known.get("url"):
        login = logins.find(environment, url)
        return url, ca or (login.ca if login else "")
    return known["url"], ca or known["ca"]


def _local_hub(home: Path, *, required: bool) -> dict[str, str]:
    path = home / "client.json"
    if not path.is_file():
        if required:
            raise CliError(
                f"no hub is known: {path} does not exist. Start one with `edgefleet up`, or name"
                " one with --hub and --ca (EDGEFLEET_HUB, EDGEFLEET_CA), best for `edgefleet"
                " login`",
                ExitCode.UNREACHABLE,
            )
        return {}
    try:
        known: dict[str, str] = json.loads(_read(path))
        return {"url": str(known["url"]), "ca": str(known["ca"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(
            f'{path} cannot be read: expected {{"url", "ca"}} ({error})', ExitCode.USAGE
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", ExitCode.DENIED) from error


def _checked(answer: httpx.Response) -> Any:
    if answer.is_success:
        return None if answer.status_code == 204 else _json(answer)
    raise CliError(_error_text(answer), _exit_code(answer.status_code))


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise CliError(
            f"{answer.url} did not answer with JSON; is it an edgefleet hub?", ExitCode.UNREACHABLE
        ) from error


def _error_text(answer: httpx.Response) -> str:
    try:
        text = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = answer.text[:500] or answer.reason_phrase
    return str(text)


def _exit_code(status: int) -> ExitCode:
    if status in (401, 403, 429):
        return ExitCode.DENIED
    if status in (400, 413, 415, 422):
        return ExitCode.USAGE
    return ExitCode.FAILED
