"""What a model is made of: datasets, runs, versions, variants, releases."""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.values import Json


class Dataset(Base):
    """Rows that models are trained or judged on, named by the digest of their Parquet file.

    Attributes:
        columns: [{"name", "kind": "numeric" | "categorical"}] of the features, in order.
        label: name of the label column, None if there is none.
        parents: digests of the datasets that this one was made from.
    """

    __tablename__ = "datasets"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    rows: Mapped[int]
    columns: Mapped[list[Any]]
    label: Mapped[str | None] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(String(500))
    parents: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[float]


class Run(Base):
    """One training run (experiment), or what took its place: an import, a search.

    Attributes:
        trainer: of `training.trainers`; `import` of a fitted model, `search` for its best variants.
        dataset: trained on; `holdout` judged on (disjoint rows).
        code: version of the code that trained: `edgefleet-cloud 0.1.0`.
        environment: package name → version.
        artifact: digest of the fitted model file, None until it has succeeded; `filename` is what
            it is called, whose suffix is its format. Empty where no fitted model was handed in.
        classes: in the order of the model's outputs, where its format does not carry them.
        reports: of a search: html | md | json → digest.
        started_by: account, or `hub`.
        state: running | succeeded | failed.
    """

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    trainer: Mapped[str] = mapped_column(String(64))
    dataset: Mapped[str | None] = mapped_column(ForeignKey("datasets.digest"))
    holdout: Mapped[str | None] = mapped_column(ForeignKey("datasets.digest"))
    parameters: Mapped[Json]
    seed: Mapped[Big]
    code: Mapped[str] = mapped_column(String(200))
    environment: Mapped[Json]
    metrics: Mapped[Json] = mapped_column(default=dict)
    artifact: Mapped[str | None] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(String(200), default="", server_default="")
    classes: Mapped[list[Any] | None]
    reports: Mapped[Json] = mapped_column(default=dict, server_default="{}")
    started_by: Mapped[str] = mapped_column(String(64), default="hub", server_default="hub")
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


class Model(Base):
    """A named model; its versions and releases are below.

    Attributes:
        risk: standard, or high: then two people approve each version before its release.
    """

    __tablename__ = "models"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    task: Mapped[str] = mapped_column(String(16))
    risk: Mapped[str] = mapped_column(String(16), default="standard", server_default="standard")
    created_at: Mapped[float]


class VersionState(StrEnum):
    """Where a version stands.

    registered: converted and verified, not yet judged. approved: may be released.
    refused: lost against the champion, or nothing of it could be verified. retired: withdrawn.
    """

    REGISTERED = "registered"
    APPROVED = "approved"
    REFUSED = "refused"
    RETIRED = "retired"


class Version(Base):
    """One version of a model ("1", "2", …) with everything that describes it.

    Attributes:
        reference: digest of the reference profile, shared by all variants.
        metrics: of the original model on the hold-out rows.
        decision: why it was approved or refused (champion, challenger, interval, who).
    """

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    version: Mapped[str] = mapped_column(String(64))
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    state: Mapped[str] = mapped_column(String(16))
    reference: Mapped[str] = mapped_column(String(64))
    metrics: Mapped[Json]
    lineage: Mapped[Json]
    decision: Mapped[Json] = mapped_column(default=dict)
    created_at: Mapped[float]


class Variant(Base):
    """One compiled form of a version: `onnx-fp32`, `onnx-int8`, `tflite-int8`, ….

    Attributes:
        state: verified | refused. Only a verified variant is ever released.
        reason: why it was refused.
        measured: `manifest.Measured` as JSON.
        needs: `manifest.Needs` as JSON.
        model_digest, model_bytes: of the model file; transfer_bytes: of the whole bundle as sent.
        manifest: digest of the manifest file, None if refused.
        recipe: by which it was made, as YAML; empty for a finished bundle.
    """

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("version_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    runtime: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None]
    measured: Mapped[Json]
    needs: Mapped[Json]
    model_digest: Mapped[str | None] = mapped_column(String(64))
    model_bytes: Mapped[Big]
    transfer_bytes: Mapped[Big]
    manifest: Mapped[str | None] = mapped_column(String(64))
    recipe: Mapped[str] = mapped_column(default="", server_default="")


class Release(Base):
    """A version made available to devices. The number only grows within a model.

    Going back to an older version is a new release of it (docs/adr/0003), so that a device's
    release counter never has to go back.

    Attributes:
        challenge: made only to run beside the champion, which it does not replace.
        waits_for: role of the model's owner while it has not signed the bundles.
    """

    __tablename__ = "releases"
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    reason: Mapped[str] = mapped_column(String(500))
    created_at: Mapped[float]
    challenge: Mapped[bool] = mapped_column(default=False, server_default=false())
    waits_for: Mapped[str] = mapped_column(String(64), default="", server_default="")
