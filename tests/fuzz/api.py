"""The hub's HTTP API against its own OpenAPI document, by schemathesis.

For every operation: requests that the document allows, requests that it forbids, and requests that
it allows with single values changed as `forms` changes them (which no JSON schema thinks of: lone
surrogates, NUL characters, numbers that no database holds). Half of them are about things that
exist. Checked of each answer: no server error, a documented status, content type and schema, and
that an operation which asks for a token in the document asks for it in truth.
"""

import asyncio
import contextlib
import json
import ssl
import tempfile
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi.checks import IgnoredAuth
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from sqlalchemy import update

from edgefleet_cloud.api.app import create_app
from edgefleet_cloud.api.testing import TOKEN
from edgefleet_cloud.database.models import Account, ApiToken
from edgefleet_cloud.fleet.testing import free_port, open_services
from edgefleet_cloud.hub import running
from edgefleet_cloud.services import Services
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.testing import Fleet
from edgefleet_cloud.trust.people import bootstrap
from edgefleet_protocol import sketch
from tests.fuzz import forms
from tests.fuzz.engine import Finding, Tally
from tests.fuzz.protocol_targets import a_profile

# Of one answer, by the clock; the machine may be busy.
HANG_S = 60.0
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Asked once for each operation and mode: each sends requests of its own.
_ONCE = [ignored_auth, unsupported_method]
_NOW = 1_800_000_000.0
_PATH_VALUES: list[object] = [
    0, -1, 2**31, 2**63, 2**64, 10**30, "9" * 5000, "\x00", "a\x00b", "..", "../x", "a/b", "%2e%2e",
    "²", "é", "x" * 4000, "\u202e", "nan", " ", "'", "%", "+1", "1e3", "1_000", "٣",
]  # fmt: skip


@dataclass(frozen=True)
class Hub:
    """A hub to be fuzzed.

    Attributes:
        schema: of it, by schemathesis.
        request: sends requests that schemathesis would not make; as `httpx.Client.request`.
        headers: that name the caller.
        restore: undoes what would keep the caller out.
    """

    schema: Any
    request: Callable[..., httpx.Response]
    headers: dict[str, str]
    restore: Callable[[], None]


# Path parameters of what exists in the hub of `in_process`.
KNOWN: dict[str, object] = {
    "model": "digits",
    "version": "v1",
    "device_id": "cam-00",
    "account": "robot",
    "rollout_id": 1,
    "number": 1,
    "trigger_id": 1,
    "owner": "acme",
    "name": "1.root.json",
}


class _InProcess:
    """Requests to an ASGI application, without a socket; its errors come out."""

    def __init__(self, app: Any, loop: asyncio.Runner) -> None:
        self._loop = loop
        transport = httpx.ASGITransport(app)
        self._client = httpx.AsyncClient(transport=transport, base_url="https://hub")

    def request(self, *args: Any, **options: Any) -> httpx.Response:
        return self._loop.run(self._client.request(*args, **options))


def _fill(services: Services) -> None:
    fleet = Fleet(services.database, services.store, services.clock, "digits")
    fleet.add_devices(2, site="north")
    fleet.add_version("v1", reference=sketch.encode_profile(a_profile()))
    fleet.add_version("v2")


def _restore(services: Services) -> None:
    with services.database.write() as session:
        session.execute(update(Account).values(disabled_at=None))
        session.execute(update(ApiToken).values(revoked_at=None))


@contextmanager
def in_process() -> Iterator[Hub]:
    """Give a hub without sockets, with a little of everything in its database."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        services = open_services(Path(folder), lambda: _NOW, upload_limit_bytes=200_000)
        _fill(services)
        with services.database.write() as session:
            bootstrap.admit(session, TOKEN, _NOW)
        app = create_app(services)
        # Its answers to too many failures would hide all others.
        app.state.throttle.wait_s = lambda *_: 0
        try:
            schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with asyncio.Runner() as loop:
                yield Hub(
                    schema, _InProcess(app, loop).request, headers, partial(_restore, services)
                )
        finally:
            services.database.close()


class Request(msgspec.Struct, frozen=True):
    """A request as it is kept in the corpus.

    Attributes:
        path: quoted.
        body: JSON, or what was made of it, one character a byte.
    """

    method: str
    path: str
    query: dict[str, str]
    body: str | None


@dataclass(frozen=True)
class _Changed:
    """A case that the document allows, and what is sent in place of its parts."""

    case: Any
    body: bytes | None
    path_parameters: dict[str, object]
    query: dict[str, str]


class Api:
    """The fuzzing of one hub.

    Args:
        name: of the target.
        hub: that is fuzzed.
        **transport: of schemathesis' own requests.
    """

    def __init__(self, name: str, hub: Hub, **transport: Any) -> None:
        self._hub = hub
        self._transport = transport
        self._tally = Tally(name, "schemathesis")
        self._seen: set[str] = set()

    def run(self, *, examples: int, first_seed: int = 1, only: str = "") -> Tally:
        """Fuzz all operations; go on after a finding, and tell each once.

        Args:
            examples: for each operation, half of them valid.
            first_seed: of Hypothesis.
            only: a part of `METHOD path`.
        """
        began = time.monotonic()
        part = max(examples // 3, 1)
        for result in self._hub.schema.get_all_operations():
            operation = result.ok()
            if only not in f"{operation.method.upper()} {operation.path}":
                continue
            self._hub.restore()
            first = iter([_ONCE + _CHECKS])
            allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            forbidden = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            self._fuzz(allowed, partial(self._check, first), part, first_seed)
            self._fuzz(forbidden, partial(self._check, first), part, first_seed)
            self._fuzz(_changed(allowed), self._send, part, first_seed)
        self._tally.seconds = time.monotonic() - began
        return self._tally

    def _fuzz(
        self, cases: st.SearchStrategy[Any], take: Callable[[Any], None], examples: int, number: int
    ) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(number)
        @given(cases, st.booleans())
        def fuzz(case: Any, about_known: bool) -> None:
            asked = case.case if isinstance(case, _Changed) else case
            for name in set(asked.path_parameters or ()) & set(KNOWN):
                if about_known:
                    asked.path_parameters[name] = KNOWN[name]
            take(case)

        # Schemathesis can make no forbidden requests of operations without parameters.
        with contextlib.suppress(Unsatisfiable, unittest.SkipTest):
            fuzz()

    def _send(self, changed: "_Changed") -> None:
        """Send a case with another body or other parameters, past schemathesis."""
        case = changed.case
        path = case.operation.path
        for name, value in {**(case.path_parameters or {}), **changed.path_parameters}.items():
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        body = None if changed.body is None else changed.body.decode("latin-1")
        documented = {*map(int, case.operation.definition.raw["responses"])}
        # A path that became another one is that one's, or nobody's.
        elsewhere = {200, 307, 405} if changed.path_parameters else set()
        label = f"{case.method} {case.operation.path}"
        self._request(
            label, Request(case.method, path, changed.query, body), documented | elsewhere
        )

    def replay(self, data: bytes) -> Tally:
        """Make a request of the corpus again: the hub must not fail, whatever else it says."""
        request = msgspec.json.decode(data, type=Request)
        self._request(f"{request.method} {request.path}", request, set(range(200, 500)))
        return self._tally

    def _request(self, label: str, request: "Request", expected: set[int]) -> None:
        self._tally.executions += 1
        told = msgspec.json.encode(request)
        headers = dict(self._hub.headers)
        body = None
        if request.body is not None:
            headers["content-type"] = "application/json"
            body = request.body.encode("latin-1")
        try:
            answer = self._hub.request(
                request.method, request.path, content=body, params=request.query, headers=headers
            )
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{label}: {type(error).__name__}: {error}"[:400]
            self._found("crash", f"{text} ({where.filename}, line {where.lineno})", told)
            return
        self._tally.accepted += answer.status_code < 400
        if answer.status_code not in expected or answer.status_code == 500:
            text = f"{label}: answered with {answer.status_code}: {answer.text[:300]}"
            self._found("crash", text, told)

    def _check(self, first: Iterator[list[Callable[..., Any]]], case: Any) -> None:
        self._tally.executions += 1
        label = f"{case.operation.method.upper()} {case.operation.path}"
        began = time.monotonic()
        try:
            response = case.call(headers=self._hub.headers, **self._transport)
        except Exception as error:
            self._found("crash", f"{label}: {type(error).__name__}: {error}"[:500], _told(case))
            return
        took_s = time.monotonic() - began
        if took_s > HANG_S:
            self._found("hang", f"{label}: {took_s:.0f} s", _told(case))
        self._tally.accepted += response.status_code < 400
        try:
            case.validate_response(
                response,
                checks=next(first, _CHECKS),
                headers=self._hub.headers,
                transport_kwargs=self._transport,
            )
        except schemathesis.core.failures.FailureGroup as group:
            for failure in group.exceptions:
                # A running hub answers to many wrong tokens in turn by 429: refused all the same.
                if isinstance(failure, IgnoredAuth) and "got `429 " in failure.message:
                    continue
                text = f"{label}: {failure.title}: {failure.message}"[:600]
                self._found("crash", f"{text} (status {response.status_code})", _told(case))

    def _found(self, kind: Any, text: str, data: bytes) -> None:
        key = text[:120]
        if key not in self._seen:
            self._seen.add(key)
            self._tally.findings.append(Finding(kind, text, data))


def _told(case: Any) -> bytes:
    """Return a request as JSON, to be made again by hand."""
    body = json.dumps(case.body, default=repr)
    request = Request(case.method, str(case.formatted_path), _flat(case.query), body)
    return msgspec.json.encode(request)


@st.composite
def _changed(draw: st.DrawFn, allowed: st.SearchStrategy[Any]) -> Any:
    """Draw a case that the document allows, and what is to be changed in it."""
    case = draw(allowed)
    path_parameters, query = {}, dict(_flat(case.query))
    for parameter in case.operation.query:
        if draw(st.integers(0, 3)) == 0:
            query[parameter.name] = str(draw(st.sampled_from(_PATH_VALUES)))
    if case.path_parameters and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(case.path_parameters)))
        path_parameters[name] = draw(st.sampled_from(_PATH_VALUES))
    body = None
    if case.media_type == "application/json":
        body = draw(forms.inputs([json.dumps(case.body, default=str).encode()], forms.JSON))
    return _Changed(case, body, path_parameters, query)


def _flat(query: Any) -> dict[str, str]:
    return {name: str(value) for name, value in (query or {}).items()}


@contextmanager
def over_tls() -> Iterator[tuple[Hub, Path]]:
    """Give a whole running hub, with broker, scheduler and jobs, and its CA's certificate."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-fuzz-") as folder:
        home = Path(folder) / "hub"
        ports = {"api_port": free_port(), "mqtt_port": free_port()}
        with running(
            Settings(home=home, job_workers=1, upload_limit_bytes=200_000, **ports)
        ) as hub:
            _fill(hub.services)
            ca = home / "ca.pem"
            token = (home / "admin.token").read_text("ascii").strip()
            document = f"{hub.url}/v1/openapi.json"
            schema = schemathesis.openapi.from_url(document, verify=str(ca), timeout=HANG_S)
            context = ssl.create_default_context(cafile=str(ca))
            with httpx.Client(base_url=hub.url, verify=context, timeout=HANG_S) as client:
                headers = {"Authorization": f"Bearer {token}"}
                yield Hub(schema, client.request, headers, partial(_restore, hub.services)), ca


def run_in_process(*, examples: int, first_seed: int = 1, only: str = "") -> Tally:
    """Fuzz a hub in this process."""
    with in_process() as hub:
        return Api("hub-api", hub).run(examples=examples, first_seed=first_seed, only=only)


def run_over_tls(*, examples: int, first_seed: int = 1, only: str = "") -> Tally:
    """Fuzz a running hub over HTTPS."""
    with over_tls() as (hub, ca):
        api = Api("hub-api-tls", hub, verify=str(ca), timeout=HANG_S)
        return api.run(examples=examples, first_seed=first_seed, only=only)
