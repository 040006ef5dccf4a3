"""From an order to a signed, published assignment."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_cloud.database.models import Device, DirectorRecord
from edgefleet_cloud.errors import ConflictError, DamagedError, InvalidError, NotFoundError
from edgefleet_cloud.fleet import assignments, devices
from edgefleet_cloud.fleet.testing import Bundle, enrol, open_services, release_bundle
from edgefleet_cloud.services import Services
from edgefleet_protocol import codec
from edgefleet_protocol.messages import Assignment

NOW = 1_800_000_000.0
TTL_S = 86_400.0


@pytest.fixture
def services(tmp_path: Path, migrated: Path) -> Iterator[Services]:
    opened = open_services(tmp_path, lambda: NOW, migrated=migrated)
    for name in ("cam-1", "cam-2"):
        enrol(opened, name, tmp_path / "devices")
    yield opened
    opened.database.close()


@pytest.fixture
def bundle(services: Services) -> Bundle:
    with services.database.write() as session:
        return release_bundle(session, services.store, "digits", "1", 1, b"model")


def order(services: Services, device: str = "cam-1", **fields: object) -> int:
    with services.database.write() as session:
        return assignments.order(session, device, "digits", 1, "onnx-fp32", fields, None, NOW)


def sign(services: Services, now: float = NOW) -> list[str]:
    return assignments.sign_due(
        services.database, services.store, services.director, services.settings, now
    )


def record(services: Services, device: str = "cam-1") -> DirectorRecord:
    with services.database.read() as session:
        return session.get_one(DirectorRecord, device)


def test_an_order_becomes_the_one_target_of_the_devices_assignment(services, bundle):
    attempt = order(services, window_rows=250)
    assert sign(services) == ["cam-1", "cam-2"]
    message = codec.decode(record(services).payload, Assignment)
    assert bundle.path.encode() in message.targets
    assert bundle.manifest.encode() in message.targets
    assert f'"attempt":{attempt}'.encode() in message.targets.replace(b" ", b"")
    assert b'"window_rows":250' in message.targets.replace(b" ", b"")


def test_attempts_grow_over_withdrawals_too(services, bundle):
    first = order(services)
    with services.database.write() as session:
        assignments.withdraw(session, "cam-1", "digits", NOW)
    second = order(services)
    assert second > first
    assert order(services) == second + 1


def test_withdrawing_what_is_not_assigned_changes_nothing(services, bundle):
    before = record(services).sequence
    with services.database.write() as session:
        assignments.withdraw(session, "cam-1", "digits", NOW)
    assert record(services).sequence == before


def test_nothing_is_signed_twice_for_the_same_content(services, bundle):
    sign(services)
    assert sign(services) == []
    order(services, "cam-2")
    assert sign(services) == ["cam-2"]


def test_an_assignment_is_signed_again_at_half_its_life_with_the_next_version(services):
    sign(services)
    before = record(services)
    assert sign(services, NOW + TTL_S / 2 - 1) == []
    assert sign(services, NOW + TTL_S / 2) == ["cam-1", "cam-2"]
    after = record(services)
    assert (after.version, after.sequence) == (before.version + 1, before.sequence)
    assert not after.published


def test_published_holds_for_the_newest_payload_alone(services, bundle):
    sign(services)
    with services.database.read() as session:
        older = dict(assignments.unpublished(session))["cam-1"]
    order(services)
    sign(services)
    with services.database.write() as session:
        assignments.mark_published(session, "cam-1", older)
    assert not record(services).published
    with services.database.write() as session:
        assignments.mark_published(session, "cam-1", record(services).payload)
    assert record(services).published
    with services.database.write() as session:
        assignments.publish_all_again(session)
    assert not record(services).published


def test_a_signing_that_was_overtaken_is_thrown_away(services, bundle, monkeypatch):
    real = services.director.sign

    def overtaken(device, *args):
        if device == "cam-1":
            with services.database.write() as session:
                devices.revoke(session, "cam-1", NOW)
        return real(device, *args)

    monkeypatch.setattr(services.director, "sign", overtaken)
    sign(services)
    assert record(services).payload == b""


def test_a_device_that_is_not_enrolled_gets_no_order_and_no_signature(services, bundle):
    with services.database.write() as session:
        devices.revoke(session, "cam-1", NOW)
        session.add(Device(id="new", state="claimed", created_at=NOW))
    for device in ("cam-1", "new"):
        with pytest.raises(ConflictError, match="only an enrolled one"):
            order(services, device)
    assert sign(services) == ["cam-2"]


def test_an_order_for_what_is_not_there_is_refused(services, bundle):
    with services.database.write() as session:
        for device, release, variant in (
            ("no", 1, "onnx-fp32"),
            ("cam-1", 2, "onnx-fp32"),
            ("cam-1", 1, "tflite"),
        ):
            with pytest.raises(NotFoundError):
                assignments.order(session, device, "digits", release, variant, {}, None, NOW)


@pytest.mark.parametrize(
    "fields",
    [{"window": 5}, {"window_rows": 0}, {"confirm_deadline_s": -1}, {"release": 9}, {"attempt": 1}],
)
def test_an_order_with_an_unknown_or_impossible_field_is_refused(services, bundle, fields):
    with pytest.raises(InvalidError):
        order(services, **fields)


def test_one_lost_manifest_does_not_hold_up_other_devices(services, bundle):
    order(services, "cam-1")
    services.store.path(bundle.manifest).unlink()
    with pytest.raises(DamagedError, match=r"1 assignments could not be signed.*'cam-1'"):
        sign(services)
    assert record(services, "cam-2").payload
    assert record(services).payload is None


def test_desired_and_reported_are_compared_by_hash(services, bundle):
    order(services)
    slot = {"model": "digits", "version": "1", "release": 1, "variant": "onnx-fp32"}
    for manifest, in_sync in (("0" * 64, False), (bundle.manifest, True)):
        with services.database.write() as session:
            session.get_one(Device, "cam-1").reported = {"serving": [slot | {"manifest": manifest}]}
        with services.database.read() as session:
            row = devices.describe(session, "cam-1", NOW)
        assert [model["in_sync"] for model in row["models"]] == [in_sync]
