"""Where a variant came from: an in-toto statement with SLSA provenance, signed by the builder."""

import base64
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from sqlalchemy import select
from sqlalchemy.orm import Session

import edgefleet_cloud
import edgefleet_converters
import edgefleet_protocol
from edgefleet_cloud.database.models import (
    AuditEntry,
    Dataset,
    Job,
    Provenance,
    Run,
    Variant,
    Version,
)
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.registry.registration import store_result
from edgefleet_cloud.storage import Store
from edgefleet_cloud.training.testing import conversion_result
from edgefleet_cloud.trust.audit import attesting
from edgefleet_cloud.trust.audit.keys import SigningKey, public_key
from edgefleet_protocol.manifest import Lineage

WHOLE, TRAIN, HOLDOUT = "a" * 64, "b" * 64, "c" * 64
NOW = 1_800_000_000.0


def dataset(digest: str, name: str, rows: int, parents: list[str]) -> Dataset:
    return Dataset(
        digest=digest, name=name, rows=rows, columns=[], label="y", source="file:door.csv",
        parents=parents, created_at=NOW,
    )  # fmt: skip


def trained(session: Session, store: Store) -> Version:
    """Register a version as a retraining does."""
    session.add(dataset(WHOLE, "door", 100, []))
    session.add(dataset(TRAIN, "door-train", 70, [WHOLE]))
    session.add(dataset(HOLDOUT, "door-holdout", 30, [WHOLE]))
    session.flush()
    run = Run(
        model="door", trainer="sklearn", dataset=TRAIN, holdout=HOLDOUT, parameters={"depth": 3},
        seed=7, code="edgefleet-cloud 0.1.0", environment={"python": "3.11.2", "numpy": "2.0"},
        metrics={"train_score": 0.99}, artifact="d" * 64, state="succeeded", created_at=NOW,
        finished_at=NOW + 20,
    )  # fmt: skip
    session.add(run)
    session.flush()
    champion = {"version": "1", "manifests": {"onnx-fp32": "e" * 64}}
    job = Job(
        kind="retrain", arguments={"run_id": run.id, "champion": champion, "budget": {}},
        state="succeeded", created_at=NOW, started_at=NOW + 1, finished_at=NOW + 20,
    )  # fmt: skip
    session.add(job)
    lineage = Lineage(TRAIN, str(run.id), "sklearn", "code", {"depth": 3})
    made = store_result(store, conversion_result(b"2"), model="door", version="2", lineage=lineage)
    return registry.register(session, store, made, run.id, NOW + 20)


@pytest.fixture
def builder(tmp_path: Path) -> SigningKey:
    return SigningKey.open(tmp_path / "builder")


def attested(database: Database, store: Store, builder: SigningKey) -> dict[str, dict[str, Any]]:
    """Attest what is due; return variant → statement, every signature checked."""
    attesting.attest_due(database, store, builder, NOW + 21)
    with database.read() as session:
        rows = session.execute(
            select(Variant.name, Provenance.digest).join(
                Provenance, Provenance.variant_id == Variant.id
            )
        ).all()
    found = {}
    for name, digest in rows:
        envelope = Envelope.from_dict(json.loads(store.read(digest)))
        assert set(envelope.verify([public_key(builder.public_pem)], 1)) == {builder.keyid}
        assert envelope.payload_type == "application/vnd.in-toto+json"
        found[name] = json.loads(envelope.payload)
    return found


def test_a_statement_names_what_came_out_and_what_went_in(
    database: Database, store: Store, builder: SigningKey
) -> None:
    with database.write() as session:
        version = trained(session, store)
        variants = {item.name: item for item in registry.variants(session, version.id)}
    found = attested(database, store, builder)
    assert set(found) == {n for n, item in variants.items() if item.state == "verified"}
    statement = found["onnx-fp32"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    variant = variants["onnx-fp32"]
    assert statement["subject"] == [
        {"name": "door-onnx-fp32.model", "digest": {"sha256": variant.model_digest}},
        {"name": "door-onnx-fp32.manifest.json", "digest": {"sha256": variant.manifest}},
    ]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["buildType"] == "edgefleet:train:1"
    assert definition["externalParameters"] == {
        "model": "door", "version": "2", "variant": "onnx-fp32", "trainer": "sklearn",
        "parameters": {"depth": 3}, "seed": 7, "budget": {},
    }  # fmt: skip
    assert definition["internalParameters"]["environment"] == {"python": "3.11.2", "numpy": "2.0"}
    materials = {item["name"]: item for item in definition["resolvedDependencies"]}
    assert list(materials) == [
        "dataset:door-holdout", "dataset:door-train", "dataset:door", "code", "fitted-model",
        "champion:1/onnx-fp32",
    ]  # fmt: skip
    assert materials["dataset:door-train"]["digest"] == {"sha256": TRAIN}
    assert materials["dataset:door-train"]["annotations"] == {
        "role": "training", "rows": 70, "source": "file:door.csv",
    }  # fmt: skip
    assert materials["dataset:door"]["annotations"]["role"] == "ancestor"
    assert materials["code"]["uri"] == "pkg:pypi/edgefleet-cloud@0.1.0"
    assert materials["code"]["digest"]["sha256"] == attesting.code_digest()
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == f"edgefleet:hub:{builder.keyid}"
    assert details["metadata"] == {
        "invocationId": "run/1",
        "startedOn": "2027-01-15T08:00:01Z",
        "finishedOn": "2027-01-15T08:00:20Z",
    }
    metrics = json.loads(base64.b64decode(details["byproducts"][0]["content"]))
    assert metrics["run"] == {"train_score": 0.99}


def test_each_variant_is_attested_once_and_that_is_recorded(
    database: Database, store: Store, builder: SigningKey
) -> None:
    with database.write() as session:
        trained(session, store)
    first = attested(database, store, builder)
    assert attested(database, store, builder) == first
    with database.read() as session:
        query = select(AuditEntry.subject).where(AuditEntry.action == "version.attest")
        assert list(session.scalars(query)) == ["door 2"] * len(first)


def test_the_same_facts_give_the_same_statement(
    database: Database, store: Store, builder: SigningKey
) -> None:
    with database.write() as session:
        trained(session, store)
        ids = list(session.scalars(select(Variant.id).where(Variant.state == "verified")))
        first = attesting.attest(session, store, builder, ids[0], NOW).digest
        session.delete(session.get_one(Provenance, ids[0]))
        session.flush()
        assert attesting.attest(session, store, builder, ids[0], NOW + 5).digest == first


def test_one_that_cannot_be_attested_holds_up_only_itself(
    database: Database,
    store: Store,
    builder: SigningKey,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with database.write() as session:
        trained(session, store)
    attest = attesting.attest

    def fail_first(session: Session, *args: Any) -> Provenance:
        if args[2] == 1:
            raise NotFoundError("dataset", "x")
        return attest(session, *args)

    monkeypatch.setattr(attesting, "attest", fail_first)
    with caplog.at_level(logging.ERROR):
        found = attested(database, store, builder)
    assert "variant 1 cannot be attested" in caplog.text
    assert len(found) == 1
    monkeypatch.undo()
    assert len(attested(database, store, builder)) == 2


def test_the_digest_of_the_code_is_that_of_its_files() -> None:
    lines = []
    for package in (edgefleet_cloud, edgefleet_converters, edgefleet_protocol):
        folder = Path(package.__file__).parent
        for path in folder.rglob("*.py"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{package.__name__}/{path.relative_to(folder).as_posix()} {digest}\n")
    attesting.code_digest.cache_clear()
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert attesting.code_digest() == expected
