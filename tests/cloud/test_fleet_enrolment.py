"""Claims, enrolment, groups, labels and revocation."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.database.models import Claim, Device, DirectorRecord
from edgefleet_cloud.errors import DeniedError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import assignments, devices, enrolment, groups
from edgefleet_cloud.fleet.enrolment import EnrolmentRequest
from edgefleet_cloud.fleet.testing import enrol, open_services, signing_request
from edgefleet_cloud.services import Services
from edgefleet_protocol.identifiers import digest_of

NOW = 1_800_000_000.0


@pytest.fixture
def services(tmp_path: Path, migrated: Path) -> Iterator[Services]:
    opened = open_services(tmp_path, lambda: NOW, migrated=migrated)
    yield opened
    opened.database.close()


def claim(services: Services, device: str, ttl_s: float = 60.0, now: float = NOW) -> str:
    fingerprint = services.authority.fingerprint
    with services.database.write() as session:
        return enrolment.create_claim(session, device, {}, ttl_s, fingerprint, now)


def request(token: str, **changes: str) -> EnrolmentRequest:
    _, device, secret, _ = token.split(".")
    asked = EnrolmentRequest(device, secret, signing_request(device), "rpi4", {}, 1 << 30)
    return replace(asked, **changes)


def redeem(services: Services, asked: EnrolmentRequest, now: float = NOW) -> enrolment.Grant:
    with services.database.write() as session:
        return enrolment.redeem(session, services, asked, now)


def test_a_token_names_the_device_and_the_fingerprint_and_only_its_digest_is_kept(services):
    form, device, secret, fingerprint = claim(services, "cam-1").split(".")
    assert (form, device, fingerprint) == ("ef1", "cam-1", services.authority.fingerprint)
    with services.database.read() as session:
        row = session.query(Claim).one()
        assert session.get_one(Device, "cam-1").state == "claimed"
    assert row.secret_digest == digest_of(secret.encode())


def test_an_enrolled_device_gets_what_it_needs_and_an_empty_assignment_is_due(services):
    grant = redeem(services, request(claim(services, "cam-1")))
    assert grant.ca == services.authority.ca_pem.decode()
    assert grant.image_root == services.images.root_1.decode()
    assert grant.director_root == services.director.root_1.decode()
    assert (grant.mqtt_host, grant.mqtt_port) == ("localhost", services.settings.mqtt_port)
    with services.database.read() as session:
        device = session.get_one(Device, "cam-1")
        record = session.get_one(DirectorRecord, "cam-1")
    assert (device.state, device.board) == ("enrolled", "rpi4")
    assert device.certificate_expires_at == NOW + services.settings.certificate_ttl_s
    assert record.signed_sequence < record.sequence


def test_a_token_works_once(services):
    token = claim(services, "cam-1")
    redeem(services, request(token))
    with pytest.raises(DeniedError, match="was used already; ask for a new one"):
        redeem(services, request(token))


def test_a_token_ends_at_its_moment_and_not_before(services):
    token = claim(services, "cam-1", ttl_s=60.0)
    with pytest.raises(DeniedError, match="not valid any more"):
        redeem(services, request(token), now=NOW + 60.0)
    redeem(services, request(token), now=NOW + 59.9)


def test_a_wrong_secret_and_another_devices_token_are_refused(services):
    token = claim(services, "cam-1")
    claim(services, "cam-2")
    with pytest.raises(DeniedError, match="not known for 'cam-1'"):
        redeem(services, request(token, secret="x" * 43))
    with pytest.raises(DeniedError, match="not known for 'cam-2'"):
        redeem(services, request(token, device="cam-2", csr=signing_request("cam-2")))


def test_a_refused_signing_request_leaves_the_token_usable(services):
    token = claim(services, "cam-1")
    with pytest.raises(InvalidError):
        redeem(services, request(token, csr=signing_request("cam-2")))
    redeem(services, request(token))


def test_a_newer_token_makes_the_older_one_void(services):
    older = claim(services, "cam-1")
    newer = claim(services, "cam-1")
    with pytest.raises(DeniedError, match="not valid any more"):
        redeem(services, request(older))
    redeem(services, request(newer))


def test_a_device_that_enrols_again_counts_its_states_from_the_beginning(services):
    redeem(services, request(claim(services, "cam-1")))
    with services.database.write() as session:
        device = session.get_one(Device, "cam-1")
        device.boot, device.sequence, device.reported = 4, 9, {"assignment": 3}
        first = device.certificate_serial
    redeem(services, request(claim(services, "cam-1")))
    with services.database.read() as session:
        device = session.get_one(Device, "cam-1")
        record = session.get_one(DirectorRecord, "cam-1")
    assert (device.boot, device.sequence, device.reported) == (0, 0, {})
    assert device.certificate_serial != first
    assert record.sequence == 2


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "é", "x" * 65, "hub", "Hub", "a\n"])
def test_names_that_cannot_travel_or_are_the_hubs_own_are_refused(services, name):
    with pytest.raises(InvalidError):
        claim(services, name)


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"a=b": "c"}, {"a": "x\n"}, {"k" * 65: "v"}, {"k": "v" * 65}],
)
def test_labels_that_a_query_could_not_name_are_refused(labels):
    with pytest.raises(InvalidError, match="label"):
        enrolment.check_labels(labels)


def test_a_device_has_at_most_32_labels():
    enrolment.check_labels({str(index): "" for index in range(32)})
    with pytest.raises(InvalidError, match="at most 32"):
        enrolment.check_labels({str(index): "" for index in range(33)})


# --- groups -----------------------------------------------------------------------------------


@pytest.fixture
def fleet(services: Services, tmp_path: Path) -> Services:
    for name, labels in (("c", {"site": "north"}), ("a", {"site": "north"}), ("b", {})):
        enrol(services, name, tmp_path / "devices")
        with services.database.write() as session:
            devices.relabel(session, name, labels, NOW)
    claim(services, "expected")
    return services


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("all", ["a", "b", "c"]),
        (" all ", ["a", "b", "c"]),
        ("device:c,a", ["a", "c"]),
        ("device: a , a", ["a"]),
        ("label:site=north", ["a", "c"]),
        ("label:site=south", []),
        ("label:site=", []),
        ("board:generic-x86_64", ["a", "b", "c"]),
        ("board:rpi4", []),
    ],
)
def test_a_group_is_its_enrolled_devices_by_name(fleet, query, found):
    with fleet.database.read() as session:
        assert groups.select(session, query) == found


@pytest.mark.parametrize("query", ["", "everything", "all:x", "device:", "label:site", "label:=x"])
def test_an_unknown_form_of_group_is_refused_with_the_known_ones(fleet, query):
    with fleet.database.read() as session, pytest.raises(InvalidError, match="expected all, dev"):
        groups.select(session, query)


def test_naming_a_device_that_is_not_enrolled_is_an_error(fleet):
    with fleet.database.read() as session, pytest.raises(InvalidError, match="'expected', 'no'"):
        groups.select(session, "device:a,no,expected")


def test_no_query_brings_anything_but_devices_or_a_clear_error(fleet):
    with fleet.database.read() as session:

        @given(st.text())
        def check(query: str) -> None:
            with contextlib.suppress(InvalidError):
                assert set(groups.select(session, query)) <= {"a", "b", "c"}

        check()


# --- as the operator sees them ----------------------------------------------------------------


def test_a_device_is_online_up_to_90_s_after_it_was_heard(fleet):
    with fleet.database.write() as session:
        session.get_one(Device, "a").last_seen_at = NOW - 90.0
        session.get_one(Device, "b").last_seen_at = NOW - 90.1
    with fleet.database.read() as session:
        online = {row["id"]: row["online"] for row in devices.listing(session, NOW)}
    assert online == {"a": True, "b": False, "c": False, "expected": False}
    with fleet.database.write() as session:
        devices.revoke(session, "a", NOW)
        assert not devices.describe(session, "a", NOW)["online"]


def test_devices_are_listed_by_state_and_group(fleet):
    with fleet.database.read() as session:
        claimed = devices.listing(session, NOW, state="claimed")
        north = devices.listing(session, NOW, group="label:site=north")
        with pytest.raises(InvalidError, match="expected claimed, enrolled, revoked"):
            devices.listing(session, NOW, state="lost")
    assert [row["id"] for row in claimed] == ["expected"]
    assert [row["id"] for row in north] == ["a", "c"]


def test_a_revoked_device_is_in_no_group_and_its_topic_is_cleared(fleet):
    token = claim(fleet, "a")
    with fleet.database.write() as session:
        devices.revoke(session, "a", NOW)
    with fleet.database.read() as session:
        assert groups.select(session, "all") == ["b", "c"]
        assert assignments.unpublished(session) == [("a", b"")]
    with pytest.raises(DeniedError):
        redeem(fleet, request(token))


def test_what_is_not_known_is_named(fleet):
    with fleet.database.write() as session:
        for action in (
            lambda: devices.revoke(session, "no", NOW),
            lambda: devices.relabel(session, "no", {}, NOW),
            lambda: devices.describe(session, "no", NOW),
        ):
            with pytest.raises(NotFoundError, match="there is no device 'no'"):
                action()
