"""Enrolment by serial number: what is expected, who may ask, and what is told."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from edgefleet_cloud.cli.devices import announced
from edgefleet_cloud.cli.output import CliError
from edgefleet_cloud.database.models import Device, Incident
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import expected
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest, Grant
from edgefleet_cloud.fleet.expected import Expected, Waiting
from edgefleet_cloud.fleet.renewal import Refused
from edgefleet_cloud.fleet.testing import open_services, signing_request
from edgefleet_protocol import statements
from edgefleet_protocol.identifiers import digest_of

DAY_S = 86_400.0


class Site:
    """A hub, and devices that ask it."""

    def __init__(self, services: Any, clock: Any) -> None:
        self.services, self.clock = services, clock

    def announce(self, *what: Expected) -> list[dict[str, Any]]:
        with self.services.database.write() as session:
            return expected.announce(session, what, 30 * DAY_S, self.clock())

    def ask(self, serial: str, key: ec.EllipticCurvePrivateKey) -> Grant | Waiting | Refused:
        csr = signing_request(statements.UNNAMED, key)
        request = EnrolmentRequest("", "", csr, "rpi4", {}, 1)
        with self.services.database.write() as session:
            return expected.ask(session, self.services, serial, request, self.clock())

    def accept(self, serial: str, key: str) -> None:
        with self.services.database.write() as session:
            expected.accept(session, serial, key, self.clock())

    def incidents(self) -> list[str]:
        with self.services.database.read() as session:
            return [row.kind for row in session.scalars(select(Incident))]

    def state(self, serial: str) -> str:
        with self.services.database.read() as session:
            rows = expected.listing(session, self.clock())
        return next(str(row["state"]) for row in rows if row["serial"] == serial)


@pytest.fixture
def site(tmp_path: Path, clock: Any, migrated: Path) -> Any:
    services = open_services(tmp_path, clock, migrated=migrated)
    yield Site(services, clock)
    services.database.close()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def print_of(key: ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return digest_of(public)


def test_a_serial_with_its_key_announced_enrols_once(site: Site) -> None:
    key = new_key()
    site.announce(Expected("SN-1", "cam-1", {"site": "north"}, key=print_of(key)))
    grant = site.ask("SN-1", key)
    assert isinstance(grant, Grant)
    assert grant.device == "cam-1"
    with site.services.database.read() as session:
        device = session.get_one(Device, "cam-1")
        assert (device.state, device.labels) == ("enrolled", {"site": "north"})
    assert site.state("SN-1") == "enrolled"


def test_another_key_than_the_announced_one_is_refused_and_told(site: Site) -> None:
    site.announce(Expected("SN-1", key=print_of(new_key())))
    assert isinstance(site.ask("SN-1", new_key()), Refused)
    assert site.incidents() == ["cloned-device"]


def test_a_serial_that_has_enrolled_is_refused_and_told(site: Site) -> None:
    key = new_key()
    site.announce(Expected("SN-1", approval=False))
    assert isinstance(site.ask("SN-1", key), Grant)
    again = site.ask("SN-1", key)
    assert isinstance(again, Refused)
    assert "has enrolled already" in again.reason
    assert site.incidents() == ["cloned-device"]
    with pytest.raises(ConflictError, match="forget it first"):
        site.announce(Expected("SN-1"))
    with site.services.database.write() as session:
        expected.forget(session, "SN-1", site.clock())
    site.announce(Expected("SN-1", approval=False))
    assert isinstance(site.ask("SN-1", new_key()), Grant)


def test_without_a_key_a_person_accepts_the_one_that_asked_first(site: Site) -> None:
    key, other = new_key(), new_key()
    site.announce(Expected("SN-1"))
    assert site.state("SN-1") == "expected"
    assert site.ask("SN-1", key) == Waiting(print_of(key))
    assert site.state("SN-1") == "asking"
    assert isinstance(site.ask("SN-1", other), Refused)
    assert site.incidents() == ["cloned-device"]
    with pytest.raises(ConflictError, match="compare it with what the device shows"):
        site.accept("SN-1", print_of(other))
    with pytest.raises(ConflictError):
        site.accept("SN-1", print_of(key)[:15])
    site.accept("SN-1", print_of(key)[:16])
    assert isinstance(site.ask("SN-1", other), Refused)
    assert isinstance(site.ask("SN-1", key), Grant)


def test_a_serial_is_good_until_its_time_is_over(site: Site, clock: Any) -> None:
    site.announce(Expected("SN-1", approval=False))
    clock.now += 30 * DAY_S
    late = site.ask("SN-1", new_key())
    assert isinstance(late, Refused)
    assert site.state("SN-1") == "expired"
    unknown = site.ask("SN-2", new_key())
    assert isinstance(unknown, Refused)
    assert unknown.reason.replace("SN-2", "SN-1") == late.reason
    assert site.incidents() == []


def test_all_or_none_of_a_list_are_taken(site: Site) -> None:
    with pytest.raises(InvalidError):
        site.announce(Expected("SN-1"), Expected("SN-2", key="no fingerprint"))
    with site.services.database.read() as session:
        assert expected.listing(session, site.clock()) == []
    site.announce(Expected("SN-1", "cam-1"))
    with pytest.raises(ConflictError, match="is expected with serial number 'SN-1'"):
        site.announce(Expected("SN-2", "cam-1"))
    with pytest.raises(InvalidError, match="is the name of the hub itself"):
        site.announce(Expected("SN-3", "hub"))
    with pytest.raises(NotFoundError):
        site.accept("SN-9", "0" * 64)


@pytest.mark.parametrize(
    ("serial", "device"),
    [("10000000abcd", "sn-10000000abcd"), ("a/b c\n", "sn-a-b-c"), ("ü" * 100, "sn-" + "-" * 61)],
)
def test_a_serial_becomes_a_device_id(serial: str, device: str) -> None:
    assert expected.device_id_of(serial) == device


def test_a_csv_is_read_as_the_api_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("serial,device,label.site,approval\nS1,cam-1,north,no\nS2,,,\n", "utf-8")
    assert announced(path) == [
        {"serial": "S1", "device": "cam-1", "labels": {"site": "north"}, "approval": False},
        {"serial": "S2", "device": "", "labels": {}},
    ]
    path.write_text("serial,colour\nS1,red\n", "utf-8")
    with pytest.raises(CliError, match="column 'colour'; expected"):
        announced(path)
    path.write_text("serial,approval\nS1,perhaps\n", "utf-8")
    with pytest.raises(CliError, match="expected yes or no"):
        announced(path)


def test_over_http_a_waiting_device_gets_202_and_then_its_certificate(hub_rig: Any) -> None:
    http, key = hub_rig.http, new_key()
    body = {"serial": "a/b", "csr": signing_request(statements.UNNAMED, key)}
    assert http.post("/v1/enrol/serial", json=body).status_code == 403
    assert http.post("/v1/devices/expected", json=[{"serial": "a/b"}]).status_code == 201
    waiting = http.post("/v1/enrol/serial", json=body)
    assert (waiting.status_code, waiting.json()["key"]) == (202, print_of(key))
    accepted = http.post(
        "/v1/devices/expected/accept", json={"serial": "a/b", "key": print_of(key)}
    )
    assert accepted.json()["state"] == "accepted"
    assert http.post("/v1/enrol/serial", json=body).json()["device"] == "sn-a-b"
    assert http.post("/v1/enrol/serial", json=body).status_code == 403
    kinds = [row["kind"] for row in http.get("/v1/incidents").json()]
    assert kinds == ["cloned-device"]
    identity = http.get("/v1/devices/sn-a-b/identity").json()
    assert [one["ended"] for one in identity["certificates"]] == [""]
    assert "BEGIN X509 CRL" in http.get("/v1/ca/crl").text
