"""Every request that changes something leaves an entry: one scenario a route of the whole API.

A new route fails here until it has a scenario, or stands in `NO_DECISION` with its reason.
"""

import base64
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi.routing import APIRoute
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from edgefleet_cloud.api.app import describe
from edgefleet_cloud.api.authentication import SESSION_COOKIE
from edgefleet_cloud.api.testing import served
from edgefleet_cloud.database.models import AuditEntry, Incident, Run, VersionState
from edgefleet_cloud.datasets import content
from edgefleet_cloud.datasets import service as datasets
from edgefleet_cloud.fleet.testing import enrol, open_services, signing_request
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.services import Services
from edgefleet_cloud.testing import Fleet
from edgefleet_cloud.trust.people import sessions, terminal, tokens
from edgefleet_cloud.trust.repositories import drafts, exchange, keyfiles
from edgefleet_cloud.trust.repositories.testing import founded, signer
from edgefleet_cloud.web import pages, signing
from edgefleet_converters.tables import Table
from edgefleet_protocol import sketch, statements
from tests.cloud.conftest import Clock

NO_DECISION = {
    "POST /v1/rollouts/preview": "it says what would be done, and does nothing",
    "POST /v1/login/terminal": "a command line asks; the person's answer is the decision",
    "POST /v1/renew/challenge": "a nonce without a state; the renewal is the decision",
}
PASSWORD = "correct horse battery"


@dataclass
class Asked:
    """A request that will succeed.

    Attributes:
        actions: of the entries that it leaves, at least.
        actor: who decides; the test's own account by default.
    """

    actions: set[str]
    path: dict[str, object] = field(default_factory=dict)
    actor: tuple[str, str] = ("admin", "service")
    request: dict[str, Any] = field(default_factory=dict)


class World:
    """A hub's API over HTTP, and ways to bring it into the state that a route needs."""

    def __init__(
        self,
        services: Services,
        http: httpx.Client,
        signers: dict[str, CryptoSigner],
        folder: Path,
    ) -> None:
        self.services = services
        self.http = http
        self.signers = signers
        self.folder = folder
        self.fleet = Fleet(services.database, services.store, services.clock)
        self._numbers = itertools.count(1)

    def name(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def post(self, path: str, body: object = None) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def version(self, state: VersionState = VersionState.APPROVED) -> str:
        version = str(next(self._numbers))
        self.fleet.add_version(version, state=state)
        return version

    def device(self) -> str:
        (device,) = self.fleet.add_devices(1)
        return device

    def rollout(self) -> int:
        body = {"model": "digits", "version": self.version(), "to": f"device:{self.device()}"}
        made: int = self.post("/v1/rollouts", {**body, "strategy": "direct"})["id"]
        return made

    def account(self, **body: object) -> str:
        name = self.name("person")
        self.post("/v1/accounts", {"name": name, "password": PASSWORD, **body})
        return name

    def dataset(self, name: str) -> Any:
        rows = b"length,width,answer\n" + b"".join(
            b"%d,%d,%s\n" % (i, len(name) * 1000 + next(self._numbers), b"yes" if i % 2 else b"no")
            for i in range(40)
        )
        files = {"file": ("door.csv", rows)}
        answer = self.http.post("/v1/datasets", data={"name": name, "label": "answer"}, files=files)
        assert answer.is_success, answer.text
        return answer.json()


SCENARIOS: dict[str, Callable[[World], Asked]] = {}


def route(name: str) -> Callable[[Callable[[World], Asked]], Callable[[World], Asked]]:
    def keep(scenario: Callable[[World], Asked]) -> Callable[[World], Asked]:
        SCENARIOS[name] = scenario
        return scenario

    return keep


def unsafe_routes() -> list[str]:
    """Return every route of API and web page that may change something, as `METHOD path`."""
    api = [
        f"{method.upper()} {path}"
        for path, operations in describe().openapi()["paths"].items()
        for method in operations
        if method not in ("get", "head", "options")
    ]
    forms = [
        f"{method} {route.path}"
        for route in (*pages.router.routes, *signing.router.routes)
        if isinstance(route, APIRoute)
        for method in route.methods
        if method not in ("GET", "HEAD", "OPTIONS")
    ]
    return api + forms


@pytest.fixture(scope="module")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    home = folder / "home"
    home.mkdir()
    shutil.copy(migrated, home / "hub.db")
    clock = Clock()
    signers = founded(home / "trust", clock).signers
    services = open_services(home, clock)
    with served(services) as http:
        yield World(services, http, signers, folder)
    services.database.close()


@pytest.mark.parametrize("name", unsafe_routes())
def test_a_request_that_changes_something_leaves_an_entry(world: World, name: str) -> None:
    if name in NO_DECISION:
        assert name not in SCENARIOS
        return
    assert name in SCENARIOS, f"{name}: write a scenario, or say in NO_DECISION why there is none"
    method, path = name.split(" ")
    asked = SCENARIOS[name](world)
    with world.services.database.read() as session:
        before = max(session.scalars(select(AuditEntry.number)), default=0)
    answer = world.http.request(method, path.format(**asked.path), **asked.request)
    assert answer.is_success or answer.status_code == 303, answer.text
    with world.services.database.read() as session:
        rows = list(session.scalars(select(AuditEntry).where(AuditEntry.number > before)))
    assert asked.actions <= {row.action for row in rows}
    assert asked.actor in {(row.actor, row.kind) for row in rows}


def test_every_scenario_and_exception_is_of_a_route() -> None:
    assert {*SCENARIOS, *NO_DECISION} == set(unsafe_routes())


# --- data, models -------------------------------------------------------------------------------


@route("POST /v1/datasets")
def _(world: World) -> Asked:
    files = {"file": ("door.csv", io.BytesIO(b"a,b,answer\n1,2,yes\n2,1,no\n"))}
    return Asked(
        {"dataset.add"}, request={"data": {"name": "up", "label": "answer"}, "files": files}
    )


@route("POST /v1/datasets/bundled")
def _(world: World) -> Asked:
    return Asked({"dataset.add"}, request={"json": {"name": "iris"}})


@route("POST /v1/runs")
def _(world: World) -> Asked:
    name = world.dataset(world.name("door"))["name"]
    body = {"model": "door", "trainer": "sklearn", "dataset": name}
    parameters = {"estimator": "LogisticRegression"}
    return Asked({"run.start", "dataset.add"}, request={"json": body | {"parameters": parameters}})


@route("POST /v1/ship")
def _(world: World) -> Asked:
    world.device()
    files = {
        "model": ("door.joblib", b"\x80\x05pickle"),
        "sample": ("door.csv", b"a,answer\n" + b"1,yes\n2,no\n" * 20),
    }
    options = {"name": "door", "to": "all", "label": "answer"}
    request = {"data": {"options": json.dumps(options)}, "files": files}
    return Asked({"run.import", "dataset.add"}, request=request)


@route("POST /v1/bundles")
def _(world: World) -> Asked:
    request = {
        "data": {"name": world.name("handed-in")},
        "files": {"archive": ("bundles.tar", b"read by the job")},
    }
    return Asked({"run.import"}, request=request)


@route("POST /v1/models/{model}/versions/{version}/search")
def _(world: World) -> Asked:
    dataset, version = world.dataset(world.name("rows"))["digest"], world.version()
    with world.services.database.write() as session:
        run = session.get_one(Run, registry.get_version(session, "digits", version).run_id)
        run.dataset, run.artifact, run.filename = dataset, dataset, "model.skops"
    path = {"model": "digits", "version": version}
    return Asked({"run.search"}, path, request={"json": {"boards": [{"name": "rpi4"}]}})


@route("POST /v1/jobs/{job_id}/cancel")
def _(world: World) -> Asked:
    name = world.dataset(world.name("rows"))["name"]
    body = {"model": "door", "trainer": "sklearn", "dataset": name}
    job = world.post("/v1/runs", body | {"parameters": {"estimator": "LogisticRegression"}})["id"]
    return Asked({"job.cancel"}, {"job_id": job})


def _decision(action: str, state: VersionState) -> Callable[[World], Asked]:
    def scenario(world: World) -> Asked:
        path = {"model": "digits", "version": world.version(state)}
        return Asked({action}, path, request={"json": {"reason": "why"}})

    return scenario


_VERSION = "POST /v1/models/{model}/versions/{version}"
route(f"{_VERSION}/approve")(_decision("version.approve", VersionState.REGISTERED))
route(f"{_VERSION}/refuse")(_decision("version.refuse", VersionState.REGISTERED))
route(f"{_VERSION}/retire")(_decision("version.retire", VersionState.APPROVED))
route(f"{_VERSION}/release")(_decision("release.create", VersionState.APPROVED))


@route("PUT /v1/models/{model}/risk")
def _(world: World) -> Asked:
    world.post("/v1/datasets/bundled", {"name": "wine"})
    model = Fleet(world.services.database, world.services.store, world.services.clock, "risky")
    return Asked({"model.risk"}, {"model": model.model}, request={"json": {"risk": "high"}})


def _asked_for(world: World) -> Any:
    """Ask for the approval of a version of a high-risk model."""
    name = world.name("grave")
    fleet = Fleet(world.services.database, world.services.store, world.services.clock, name)
    fleet.add_version("1")
    answer = world.http.put(f"/v1/models/{name}/risk", json={"risk": "high"})
    assert answer.is_success, answer.text
    return {"model": name, "version": "1"}


@route("POST /v1/approvals")
def _(world: World) -> Asked:
    return Asked({"approval.ask"}, request={"json": _asked_for(world)})


def _voice(action: str) -> Callable[[World], Asked]:
    def scenario(world: World) -> Asked:
        asked = world.post("/v1/approvals", _asked_for(world))
        person = world.account(roles=["approver"])
        token = world.post("/v1/login", {"name": person, "password": PASSWORD})["token"]
        headers = {"Authorization": f"Bearer {token}"}
        request = {"json": {"digest": asked["digest"]}, "headers": headers}
        return Asked({action}, {"approval_id": asked["id"]}, (person, "person"), request)

    return scenario


route("POST /v1/approvals/{approval_id}/approve")(_voice("approval.approve"))
route("POST /v1/approvals/{approval_id}/refuse")(_voice("approval.refuse"))

# --- devices ------------------------------------------------------------------------------------

FACTS = {"board": "rpi4", "runtimes": {}, "memory_bytes": 1 << 30}


@route("POST /v1/devices")
def _(world: World) -> Asked:
    return Asked({"device.claim"}, request={"json": {"device": world.name("cam")}})


@route("POST /v1/enrol")
def _(world: World) -> Asked:
    name = world.name("cam")
    secret = world.post("/v1/devices", {"device": name})["token"].split(".")[2]
    body = {"device": name, "secret": secret, "csr": signing_request(name), **FACTS}
    return Asked({"device.enrol"}, {}, (name, "device"), {"json": body})


@route("PUT /v1/devices/{device_id}/labels")
def _(world: World) -> Asked:
    return Asked({"device.label"}, {"device_id": world.device()}, request={"json": {"a": "b"}})


@route("POST /v1/devices/{device_id}/revoke")
def _(world: World) -> Asked:
    return Asked({"device.revoke"}, {"device_id": world.device()})


@route("POST /v1/devices/expected")
def _(world: World) -> Asked:
    return Asked({"serial.expect"}, request={"json": [{"serial": world.name("SN")}]})


def _expected(world: World) -> tuple[str, dict[str, Any], str]:
    """Expect a serial number, let a device ask with it, and return its key's fingerprint."""
    serial = world.name("SN")
    world.post("/v1/devices/expected", [{"serial": serial}])
    body = {"serial": serial, "csr": signing_request("serial"), **FACTS}
    answer = world.http.post("/v1/enrol/serial", json=body)
    assert answer.status_code == 202, answer.text
    return serial, body, answer.json()["key"]


@route("POST /v1/devices/expected/accept")
def _(world: World) -> Asked:
    serial, _body, key = _expected(world)
    return Asked({"serial.accept"}, request={"json": {"serial": serial, "key": key}})


@route("POST /v1/devices/expected/forget")
def _(world: World) -> Asked:
    serial, _body, _key = _expected(world)
    return Asked({"serial.forget"}, request={"json": {"serial": serial}})


@route("POST /v1/enrol/serial")
def _(world: World) -> Asked:
    serial, body, key = _expected(world)
    world.post("/v1/devices/expected/accept", {"serial": serial, "key": key})
    return Asked({"device.enrol"}, {}, (f"sn-{serial}", "device"), {"json": body})


@route("POST /v1/renew")
def _(world: World) -> Asked:
    device = world.name("cam")
    enrol(world.services, device, world.folder / device)
    pem = (world.folder / device / f"{device}.key").read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    nonce = base64.b64decode(world.post("/v1/renew/challenge", {"device": device})["nonce"])
    csr = signing_request(device)
    signed = statements.signed_renewal(nonce, csr.encode())
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    body = {
        "device": device, "csr": csr, "nonce": base64.b64encode(nonce).decode(),
        "signature": base64.b64encode(signature).decode(),
    }  # fmt: skip
    return Asked({"device.renew"}, {}, (device, "device"), {"json": body})


# --- rollouts, monitoring -----------------------------------------------------------------------


@route("POST /v1/rollouts")
def _(world: World) -> Asked:
    body = {"model": "digits", "version": world.version(), "to": f"device:{world.device()}"}
    return Asked(
        {"rollout.create", "release.create"}, request={"json": body | {"strategy": "direct"}}
    )


def _steered(action: str, *first: str) -> Callable[[World], Asked]:
    def scenario(world: World) -> Asked:
        rollout = world.rollout()
        for step in first:
            world.post(f"/v1/rollouts/{rollout}/{step}")
        return Asked({action}, {"rollout_id": rollout})

    return scenario


_ROLLOUT = "POST /v1/rollouts/{rollout_id}"
route(f"{_ROLLOUT}/pause")(_steered("rollout.pause"))
route(f"{_ROLLOUT}/resume")(_steered("rollout.resume", "pause"))
route(f"{_ROLLOUT}/cancel")(_steered("rollout.cancel"))


@route(f"{_ROLLOUT}/rollback")
def _(world: World) -> Asked:
    path = {"rollout_id": world.rollout()}
    return Asked({"rollout.roll_back"}, path, request={"json": {"reason": "worse"}})


def _served(world: World) -> dict[str, Any]:
    """Let a device serve a version; return a challenge for it by another."""
    device, version = world.device(), world.version()
    body = {"model": "digits", "version": version, "to": f"device:{device}", "strategy": "direct"}
    world.post("/v1/rollouts", body)
    with world.services.database.write() as session:
        rollouts.advance(session, world.services.clock())
    return {
        "model": "digits",
        "version": world.version(),
        "to": f"device:{device}",
        "role": "shadow",
    }


@route("POST /v1/challenges")
def _(world: World) -> Asked:
    for running in world.http.get("/v1/challenges").json():
        world.post(f"/v1/challenges/{running['id']}/stop", {})
    return Asked({"challenge.start", "release.create"}, request={"json": _served(world)})


@route("POST /v1/challenges/{challenge}/stop")
def _(world: World) -> Asked:
    for running in world.http.get("/v1/challenges").json():
        world.post(f"/v1/challenges/{running['id']}/stop", {})
    made = world.post("/v1/challenges", _served(world))["id"]
    return Asked({"challenge.stop"}, {"challenge": made}, request={"json": {"reason": "enough"}})


@route("POST /v1/incidents/{incident_id}/close")
def _(world: World) -> Asked:
    with world.services.database.write() as session:
        incident = Incident(
            model="digits", version="1", kind="unlike-training", scope="fleet", devices=[],
            features=[], text="unlike", opened_at=1.0,
        )  # fmt: skip
        session.add(incident)
        session.flush()
        return Asked({"incident.close"}, {"incident_id": incident.id})


RECIPE = {"trainer": "sklearn", "parameters": {"estimator": "LogisticRegression"}}


@route("POST /v1/triggers")
def _(world: World) -> Asked:
    return Asked({"trigger.create"}, request={"json": {"model": "digits", "recipe": RECIPE}})


@route("POST /v1/triggers/{trigger_id}/disable")
def _(world: World) -> Asked:
    made = world.post("/v1/triggers", {"model": "digits", "recipe": RECIPE})["id"]
    return Asked({"trigger.disable"}, {"trigger_id": made})


@route("POST /v1/retrainings")
def _(world: World) -> Asked:
    """A released version, the rows that it was made from, and labelled rows since."""
    services, name = world.services, world.name("again")
    fleet = Fleet(services.database, services.store, services.clock, name)
    random = np.random.default_rng(0)
    values = random.normal(size=(300, 3)).astype(np.float32)
    labels = [str(float(row[0] > 0)) for row in values]
    features = [sketch.numeric_feature(f"p{i}", values[:, i]) for i in range(3)]
    counts = sketch.pack_counts(sketch.count_rows(features, values), features)
    moments = sketch.pack_moments(sketch.moments_of(values))
    profile = sketch.ReferenceProfile(len(values), features, counts, moments)
    fleet.add_version("1", reference=sketch.encode_profile(profile))
    columns = {f"p{i}": values[:, i].astype(np.float64) for i in range(3)}
    table = Table("test", columns | {"label": np.array(labels, dtype=np.float64)})
    prepared = content.prepare(services.store, table, "label")
    with services.database.write() as session:
        base = datasets.add(session, prepared, name=name, source="test", now=services.clock())
        version = registry.get_version(session, name, "1")
        session.get_one(Run, version.run_id).dataset = base.digest
        registry.release(session, name, "1", "first", services.clock())
    fleet.samples(world.device(), "1", values + 3, labels)
    recipe = RECIPE | {"min_samples": 50}
    return Asked(
        {"retraining.start", "run.start"}, request={"json": {"model": name, "recipe": recipe}}
    )


# --- people -------------------------------------------------------------------------------------


@route("POST /v1/login")
def _(world: World) -> Asked:
    person = world.account()
    body = {"name": person, "password": PASSWORD}
    return Asked({"token.create"}, {}, (person, "person"), {"json": body})


@route("POST /v1/login/terminal/token")
def _(world: World) -> Asked:
    asked = world.post("/v1/login/terminal")
    person = world.account()
    with world.services.database.write() as session:
        caller = tokens.caller_of(session, person)
        terminal.decide(session, asked["code"], caller, allowed=True, now=world.services.clock())
    request = {"json": {"secret": asked["secret"]}}
    return Asked({"token.create"}, {}, (person, "person"), request)


@route("POST /v1/logout")
def _(world: World) -> Asked:
    person = world.account()
    token = world.post("/v1/login", {"name": person, "password": PASSWORD})["token"]
    headers = {"Authorization": f"Bearer {token}"}
    return Asked({"token.revoke"}, {}, (person, "person"), {"headers": headers})


@route("POST /v1/accounts")
def _(world: World) -> Asked:
    body = {"name": world.name("person"), "password": PASSWORD}
    return Asked({"account.create"}, request={"json": body})


def _on_account(action: str, body: object, *first: str) -> Callable[[World], Asked]:
    def scenario(world: World) -> Asked:
        person = world.account()
        for step in first:
            world.post(f"/v1/accounts/{person}/{step}", {"reason": "away"})
        return Asked({action}, {"account": person}, request={"json": body})

    return scenario


_ACCOUNT = "/v1/accounts/{account}"
route(f"PUT {_ACCOUNT}/roles")(_on_account("account.roles", {"roles": ["viewer"]}))
route(f"POST {_ACCOUNT}/password")(_on_account("account.password", {"password": PASSWORD * 2}))
route(f"POST {_ACCOUNT}/disable")(_on_account("account.disable", {"reason": "left"}))
route(f"POST {_ACCOUNT}/enable")(_on_account("account.enable", {"reason": "back"}, "disable"))


@route("POST /v1/tokens")
def _(world: World) -> Asked:
    return Asked({"token.create"}, request={"json": {"name": "ci"}})


@route("POST /v1/tokens/{token_id}/revoke")
def _(world: World) -> Asked:
    return Asked({"token.revoke"}, {"token_id": world.post("/v1/tokens", {"name": "ci"})["id"]})


# --- keys and signed metadata -------------------------------------------------------------------


def _key(name: str) -> tuple[CryptoSigner, dict[str, Any]]:
    """Make a key, and its public half as the API takes it."""
    made = signer(name)
    return made, json.loads(keyfiles.public_bytes(made.public_key))


def _owned(world: World) -> tuple[str, CryptoSigner]:
    """Draft that an owner signs a model."""
    owner = world.name("team")
    held, public = _key(owner)
    body = {"models": [world.name("model")], "keys": [public], "threshold": 1}
    answer = world.http.put(f"/v1/trust/owners/{owner}", json=body)
    assert answer.is_success, answer.text
    return owner, held


def _signed(world: World, name: str, *signers: CryptoSigner) -> dict[str, str]:
    """Return a draft of the hub with more signatures, as it is handed in."""
    files = {k: v.encode() for k, v in world.http.get("/v1/trust/export").json()["files"].items()}
    desk = exchange.lay_out(files)
    drafts.sign(desk.drafts, desk.held, list(signers))
    return {"file": drafts.payload_of(desk.drafts[name]).decode()}


@route("PUT /v1/trust/owners/{owner}")
def _(world: World) -> Asked:
    _held, public = _key(world.name("key"))
    body = {"models": [world.name("model")], "keys": [public], "threshold": 1}
    return Asked({"owner.delegate"}, {"owner": world.name("team")}, request={"json": body})


@route("POST /v1/trust/owners/{owner}/remove")
def _(world: World) -> Asked:
    owner, _held = _owned(world)
    return Asked({"owner.undelegate"}, {"owner": owner})


@route("POST /v1/trust/owners/{owner}/signatures")
def _(world: World) -> Asked:
    owner, held = _owned(world)
    body = _signed(world, f"image.owner-{owner}", held)
    return Asked({"metadata.sign"}, {"owner": owner}, request={"json": body})


@route("POST /v1/trust/rotate")
def _(world: World) -> Asked:
    return Asked({"key.rotate"}, request={"json": {"what": "image.timestamp"}})


@route("POST /v1/trust/revoke")
def _(world: World) -> Asked:
    return Asked({"key.revoke"}, request={"json": {"key": "targets-3"}})


@route("POST /v1/trust/drafts/{name}")
def _(world: World) -> Asked:
    return Asked({"metadata.renew"}, {"name": "image.targets"})


@route("POST /v1/trust/drafts/{name}/discard")
def _(world: World) -> Asked:
    world.post("/v1/trust/drafts/director.root")
    return Asked({"metadata.discard"}, {"name": "director.root"})


@route("POST /v1/trust/drafts/{name}/signatures")
def _(world: World) -> Asked:
    world.post("/v1/trust/drafts/image.root")
    body = _signed(world, "image.root", world.signers["root-1"])
    return Asked({"metadata.sign"}, {"name": "image.root"}, request={"json": body})


@route("POST /v1/trust/authorities")
def _(world: World) -> Asked:
    return Asked({"fleet.change"})


@route("POST /v1/trust/authorities/retire")
def _(world: World) -> Asked:
    old = world.services.authority.fingerprint
    world.services.authority.rotate()
    return Asked({"authority.retire"}, request={"json": {"fingerprint": old, "force": True}})


# --- the web page -------------------------------------------------------------------------------


def _form(
    world: World, actions: set[str], role: str, fields: dict[str, object], **path: object
) -> Asked:
    """Send a form as a person with this role who is signed in."""
    person = world.account(roles=[role])
    with world.services.database.write() as session:
        secret = sessions.begin(session, person, world.services.clock())
    headers = {
        "Cookie": f"{SESSION_COOKIE}={secret}",
        "Sec-Fetch-Site": "same-origin",
        "Authorization": "",
    }
    data = {**fields, "csrf": sessions.csrf_token(secret)}
    return Asked(actions, path, (person, "person"), {"data": data, "headers": headers})


@route("POST /sign-in")
def _(world: World) -> Asked:
    person = world.account()
    headers = {"Sec-Fetch-Site": "same-origin", "Authorization": ""}
    data = {"name": person, "password": PASSWORD}
    request = {"data": data, "headers": headers}
    return Asked({"session.begin"}, {}, (person, "person"), request)


@route("POST /sign-out")
def _(world: World) -> Asked:
    return _form(world, {"session.end"}, "viewer", {})


@route("POST /approvals/{approval_id}")
def _(world: World) -> Asked:
    asked = world.post("/v1/approvals", _asked_for(world))
    fields = {"digest": asked["digest"], "answer": "yes"}
    return _form(world, {"approval.approve"}, "approver", fields, approval_id=asked["id"])


@route("POST /tokens")
def _(world: World) -> Asked:
    return _form(world, {"token.create"}, "viewer", {"name": "ci", "days": 5})


@route("POST /tokens/{token_id}/revoke")
def _(world: World) -> Asked:
    made = world.post("/v1/tokens", {"name": "ci"})["id"]
    return _form(world, {"token.revoke"}, "admin", {}, token_id=made)


@route("POST /accounts")
def _(world: World) -> Asked:
    fields = {"name": world.name("person"), "kind": "person", "password": PASSWORD}
    return _form(world, {"account.create"}, "admin", fields)


@route("POST /accounts/{name}")
def _(world: World) -> Asked:
    other = world.account()
    return _form(world, {"account.disable"}, "admin", {"action": "disable"}, name=other)


@route("POST /terminal")
def _(world: World) -> Asked:
    code = world.post("/v1/login/terminal")["code"]
    return _form(world, {"terminal.allow"}, "viewer", {"code": code, "answer": "yes"})
