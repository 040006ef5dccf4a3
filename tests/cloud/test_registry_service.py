"""Versions, decisions and releases in the database."""

from pathlib import Path

import msgspec
import pytest
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Dataset, Job, JobState, Run, Version, VersionState
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.registry import service
from edgefleet_cloud.registry.registration import Registration, store_result
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training.testing import conversion_result
from edgefleet_cloud.trust.audit import attesting
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_protocol import manifest as manifests
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.manifest import Lineage
from edgefleet_protocol.profiles import DeviceProfile

ONNX = DeviceProfile("rpi4", {"onnxruntime": "1.20.0"}, 1 << 30)
BOTH = DeviceProfile("rpi4", {"onnxruntime": "1.20.0", "litert": "2.1.0"}, 1 << 30)


def registration(store: Store, version: str = "1", model: str = "door") -> Registration:
    made = conversion_result(version.encode())
    lineage = Lineage("d" * 64, "1", "sklearn", "code", {"depth": 3})
    return store_result(store, made, model=model, version=version, lineage=lineage)


def run(session: Session, **columns: object) -> Run:
    values = {
        "model": "door", "trainer": "sklearn", "parameters": {}, "seed": 0, "code": "",
        "environment": {}, "state": "running", "created_at": 1.0,
    }  # fmt: skip
    row = Run(**(values | columns))
    session.add(row)
    session.flush()
    return row


def registered(session: Session, store: Store, version: str = "1") -> Version:
    return service.register(session, store, registration(store, version), run(session).id, 2.0)


def test_a_registered_version_has_every_file_in_the_store(database: Database, store: Store) -> None:
    with database.write() as session:
        version = registered(session, store)
        assert (version.state, version.metrics["accuracy"]) == (VersionState.REGISTERED, 0.9)
        assert version.lineage["parameters"] == {"depth": 3}
        store.read(version.reference)
        first, second, refused = service.variants(session, version.id)
        for variant in (first, second):
            assert variant.manifest is not None
            bundle = manifests.decode(store.read(variant.manifest))
            assert (bundle.model, bundle.model_version, bundle.variant) == (
                "door", "1", variant.name,
            )  # fmt: skip
            for file in bundle.files:
                manifests.unpack_file(file, store.read(file.transfer.digest))
            assert bundle.transfer_bytes == variant.transfer_bytes
            assert store.size(variant.model_digest or "") == variant.model_bytes
        assert (refused.state, refused.manifest) == ("refused", None)
        assert refused.reason == "loses 5 points"


def test_a_registration_survives_the_way_through_json(store: Store) -> None:
    made = registration(store)
    assert msgspec.convert(msgspec.to_builtins(made), Registration) == made


def test_the_same_run_registers_its_version_once(database: Database, store: Store) -> None:
    with database.write() as session:
        number = run(session).id
        first = service.register(session, store, registration(store), number, 2.0)
        again = service.register(session, store, registration(store), number, 3.0)
        assert again is first
        assert len(service.variants(session, first.id)) == 3
        with pytest.raises(ConflictError, match="door 1 was registered by run 1, not 2"):
            service.register(session, store, registration(store), run(session).id, 3.0)


def test_a_version_of_another_task_or_without_files_is_refused(
    database: Database, store: Store
) -> None:
    with database.write() as session:
        registered(session, store)
        other = msgspec.structs.replace(registration(store, "2"), task="regression")
        with pytest.raises(InvalidError, match="door is for classification; this version is for"):
            service.register(session, store, other, run(session).id, 2.0)
        made = registration(store, "2")
        nothing = msgspec.structs.replace(made, variants=made.variants[2:])
        with pytest.raises(InvalidError, match="not one variant of door 2 is verified"):
            service.register(session, store, nothing, run(session).id, 2.0)
        lost = msgspec.structs.replace(made, reference="0" * 64)
        with pytest.raises(NotFoundError, match="0000"):
            service.register(session, store, lost, run(session).id, 2.0)
        assert [row.version for row in service.versions(session, "door")] == ["1"]


def test_numbers_pass_over_versions_and_what_open_jobs_will_make(
    database: Database, store: Store
) -> None:
    with database.write() as session:
        assert service.reserve(session, "door") == "1"
        registered(session, store, "9")
        assert service.reserve(session, "door") == "10"
        for state, version in ((JobState.QUEUED, "10"), (JobState.FAILED, "11")):
            arguments = {"model": "door", "version": version}
            session.add(Job(kind="train", arguments=arguments, state=state, created_at=1.0))
        session.flush()
        assert service.reserve(session, "door") == "11"
        assert service.reserve(session, "window") == "1"
        with pytest.raises(MalformedError):
            service.reserve(session, "Door")


ALLOWED = {
    ("registered", "approved"), ("registered", "refused"), ("refused", "approved"),
    ("approved", "retired"),
}  # fmt: skip


@pytest.mark.parametrize("held", list(VersionState))
@pytest.mark.parametrize("wanted", list(VersionState))
def test_a_version_moves_along_the_table_only(
    database: Database, store: Store, held: VersionState, wanted: VersionState
) -> None:
    with database.write() as session:
        version = registered(session, store)
        version.state = held
        if held is wanted or (held, wanted) in ALLOWED:
            service.decide(session, "door", "1", wanted, {"reason": "why"}, 6.0)
            assert (version.state, version.decision) == (wanted, {"reason": "why"})
        else:
            with pytest.raises(ConflictError, match=f"door 1 is {held} and cannot become {wanted}"):
                service.decide(session, "door", "1", wanted, {}, 6.0)
            assert version.state == held


def test_only_an_approved_version_is_released_and_numbers_only_grow(
    database: Database, store: Store
) -> None:
    with database.write() as session:
        for version in ("1", "2"):
            registered(session, store, version)
        assert service.champion(session, "door") is None
        with pytest.raises(ConflictError, match="door 1 is registered; only an approved version"):
            service.release(session, "door", "1", "first", 3.0)
        for version in ("1", "2"):
            service.approve(session, "door", version, {}, 6.0)
        numbers = [
            service.release(session, "door", version, "r", 3.0).number
            for version in ("1", "2", "1")
        ]
        assert numbers == [1, 2, 3]
        champion = service.champion(session, "door")
        assert champion is not None
        assert champion.version == "1"
        assert [row.number for row in service.releases(session, "door")] == [3, 2, 1]
        with pytest.raises(NotFoundError, match="door 7"):
            service.release(session, "door", "7", "r", 3.0)


def test_the_image_repository_lists_every_verified_variant_of_every_release(
    database: Database, store: Store, tmp_path: Path
) -> None:
    with database.write() as session:
        registered(session, store)
        service.approve(session, "door", "1", {}, 6.0)
        for _ in range(2):
            service.release(session, "door", "1", "r", 3.0)
        # Not before it is signed where they came from.
        assert service.image_entries(session, store) == {}
    attesting.attest_due(database, store, SigningKey.open(tmp_path / "builder"), 4.0)
    with database.read() as session:
        entries = service.image_entries(session, store)
    assert sorted(entries) == [
        "door/r1/onnx-fp32.json", "door/r1/tflite-fp32.json",
        "door/r2/onnx-fp32.json", "door/r2/tflite-fp32.json",
    ]  # fmt: skip
    entry = entries["door/r2/tflite-fp32.json"]
    assert len(store.read(entry.digest)) == entry.length
    assert (entry.target.release, entry.target.version, entry.target.runtime) == (2, "1", "litert")
    assert entries["door/r1/tflite-fp32.json"].digest == entry.digest


def test_a_device_is_offered_what_fits_it_best_first(database: Database, store: Store) -> None:
    with database.write() as session:
        registered(session, store)
        service.approve(session, "door", "1", {}, 6.0)
        service.release(session, "door", "1", "r", 3.0)
        offered = service.variants_for(session, "door", 1, BOTH)
        assert [variant.name for variant in offered] == ["tflite-fp32", "onnx-fp32"]
        offered = service.variants_for(session, "door", 1, ONNX)
        assert [variant.name for variant in offered] == ["onnx-fp32"]
        with pytest.raises(NotFoundError, match="door r2"):
            service.variants_for(session, "door", 2, ONNX)


def test_the_ancestry_goes_back_to_the_first_dataset(database: Database, store: Store) -> None:
    parents = {"train": ["whole", "field"], "holdout": ["whole"], "whole": [], "field": ["batch"],
               "batch": []}  # fmt: skip
    with database.write() as session:
        for name, above in parents.items():
            session.add(
                Dataset(
                    digest=name, name=name, rows=1, columns=[], source="x", parents=above,
                    created_at=1.0,
                )
            )  # fmt: skip
        session.flush()
        made = run(session, dataset="train", holdout="holdout")
        version = service.register(session, store, registration(store), made.id, 2.0)
        ancestry = service.ancestry(session, version)
        assert ancestry.run is made
        assert [row.name for row in ancestry.datasets] == [
            "train", "holdout", "whole", "field", "batch",
        ]  # fmt: skip
