"""The fleet over HTTP, and `edgefleet devices` over the same API."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fastapi import FastAPI
from typer.testing import CliRunner

from edgefleet_cloud.api import devices as api
from edgefleet_cloud.api import errors
from edgefleet_cloud.api.authentication import Authentication
from edgefleet_cloud.cli import devices as cli
from edgefleet_cloud.cli.client import Client
from edgefleet_cloud.fleet.ingest import Inbound, ingest
from edgefleet_cloud.fleet.testing import open_services, signing_request, until
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.people import bootstrap
from edgefleet_cloud.trust.people.throttle import Throttle
from edgefleet_protocol import codec, topics
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Refusal, Report

TOKEN = "t" * 40


@dataclass
class Api:
    services: Services
    anonymous: httpx.Client
    operator: httpx.Client

    def claim(self, device: str) -> str:
        return self.operator.post("/v1/devices", json={"device": device}).json()["token"]

    def enrol(self, token: str, **changes: object) -> httpx.Response:
        _, device, secret, _ = token.split(".")
        body = {
            "device": device,
            "secret": secret,
            "csr": signing_request(device),
            "board": "rpi4",
            "runtimes": {"onnxruntime": "1.20.0"},
            "memory_bytes": 1 << 30,
        }
        return self.anonymous.post("/v1/enrol", json=body | changes)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, str]]:
    """The router on a real HTTP server; each test puts its own services behind it."""
    app = FastAPI()
    app.include_router(api.router)
    app.add_middleware(Authentication, throttle=Throttle())
    errors.install(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the HTTP server")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield app, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def hub(address: tuple[FastAPI, str], tmp_path: Path, migrated: Path) -> Iterator[Api]:
    app, url = address
    services = open_services(tmp_path, migrated=migrated)
    app.state.services = services
    with services.database.write() as session:
        bootstrap.admit(session, TOKEN, services.clock())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        httpx.Client(base_url=url) as anonymous,
        httpx.Client(base_url=url, headers=headers) as operator,
    ):
        yield Api(services, anonymous, operator)
    services.database.close()


def test_a_device_comes_in_with_its_token_and_shows_up(hub):
    token = hub.claim("cam-1")
    ca = hub.anonymous.get("/v1/ca")
    der = x509.load_pem_x509_certificate(ca.content).public_bytes(serialization.Encoding.DER)
    assert digest_of(der) == token.rsplit(".", 1)[1]
    grant = hub.enrol(token).json()
    assert set(grant) == {
        "device",
        "certificate",
        "ca",
        "mqtt_host",
        "mqtt_port",
        "image_root",
        "director_root",
    }
    assert json.loads(grant["image_root"])["signed"]["_type"] == "root"
    (row,) = hub.operator.get("/v1/devices").json()
    assert (row["id"], row["state"], row["online"]) == ("cam-1", "enrolled", False)
    detail = hub.operator.get("/v1/devices/cam-1").json()
    assert detail["runtimes"] == {"onnxruntime": "1.20.0"}
    assert detail["assignment"]["wanted"] == 1
    assert detail["certificate_expires_at"] > hub.services.clock()


def test_a_wrong_or_used_token_is_403_with_a_sentence(hub):
    token = hub.claim("cam-1")
    answer = hub.enrol(token, secret="x" * 43)
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("this claim token is not known for 'cam-1'")
    assert hub.enrol(token).status_code == 200
    again = hub.enrol(token)
    assert (again.status_code, "used already" in again.json()["error"]) == (403, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"csr": "junk"},
        {"csr": signing_request("other")},
        {"csr": "x" * 20_000},
        {"board": "a\x00b"},
        {"board": "x" * 65},
        {"memory_bytes": -1},
        {"memory_bytes": 2**60},
        {"runtimes": {str(i): "1" for i in range(17)}},
        {"secret": None},
    ],
)
def test_a_malformed_enrolment_is_422_with_a_sentence(hub, changes):
    answer = hub.enrol(hub.claim("cam-1"), **changes)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/devices"),
        ("POST", "/v1/devices"),
        ("GET", "/v1/devices/a"),
        ("PUT", "/v1/devices/a/labels"),
        ("POST", "/v1/devices/a/revoke"),
        ("GET", "/v1/refusals"),
    ],
)
def test_everything_else_needs_a_token(hub, method, path):
    body = {} if method == "PUT" else {"device": "a"}
    answer = hub.anonymous.request(method, path, json=None if method == "GET" else body)
    assert answer.status_code in (401, 403)
    assert "needs a token" in answer.json()["error"]


def test_bad_names_labels_queries_and_unknown_devices_are_said(hub):
    hub.claim("cam-1")
    for answer, status in (
        (hub.operator.post("/v1/devices", json={"device": "a/b"}), 422),
        (hub.operator.post("/v1/devices", json={"device": "hub"}), 422),
        (hub.operator.put("/v1/devices/cam-1/labels", json={"a=b": "c"}), 422),
        (hub.operator.get("/v1/devices", params={"group": "x"}), 422),
        (hub.operator.get("/v1/devices", params={"state": "x"}), 422),
        (hub.operator.get("/v1/devices/no"), 404),
        (hub.operator.post("/v1/devices/no/revoke"), 404),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]


def test_what_devices_refused_is_listed(hub):
    hub.enrol(hub.claim("cam-1"))
    refusal = Report("cam-1", "s", 1, 5.0, Refusal("bundle", "oversized", "too big"))
    message = Inbound(topics.up("cam-1", "report"), codec.encode(refusal))
    ingest(hub.services.database, hub.services.store, [message], hub.services.clock())
    (row,) = hub.operator.get("/v1/refusals").json()
    assert (row["device"], row["what"], row["reason"]) == ("cam-1", "bundle", "oversized")
    assert hub.operator.get("/v1/refusals", params={"device": "cam-2"}).json() == []


# --- the same from the terminal ---------------------------------------------------------------


def run(hub: Api, *arguments: str, code: int = 0) -> str:
    answer = CliRunner().invoke(cli.app, list(arguments), obj=Client(hub.operator))
    assert answer.exit_code == code, answer.output
    return answer.stdout if code == 0 else answer.stderr


def test_claim_list_show_label_and_revoke(hub):
    claimed = json.loads(run(hub, "claim", "cam-1", "--label", "site=north", "--json"))
    assert claimed["token"].startswith("ef1.cam-1.")
    assert hub.enrol(claimed["token"]).status_code == 200
    (row,) = json.loads(run(hub, "list", "--group", "label:site=north", "--json"))
    assert row["labels"] == {"site": "north"}
    assert "cam-1" in run(hub, "list")
    shown = run(hub, "show", "cam-1")
    assert "wanted 1, signed 0, accepted 0 (not published yet)" in shown
    assert "ends in 30 days" in shown
    assert json.loads(run(hub, "label", "cam-1", "site=south", "--json"))["labels"] == {
        "site": "south"
    }
    assert json.loads(run(hub, "revoke", "cam-1", "--json"))["state"] == "revoked"
    assert run(hub, "refusals") == ""


def test_the_token_stands_alone_in_one_piece_on_standard_output(hub):
    out = run(hub, "claim", "cam-1")
    (token,) = [word for word in out.split() if word.startswith("ef1.")]
    assert hub.enrol(token).status_code == 200


def test_bad_input_exits_with_2_and_an_unknown_device_with_1(hub):
    assert "expected KEY=VALUE" in run(hub, "claim", "cam-1", "--label", "x", code=2)
    assert "device id" in run(hub, "claim", "a b", code=2)
    assert "there is no device 'no'" in run(hub, "show", "no", code=1)
