"""The hub's tables. All times are Unix seconds (UTC), all digests SHA-256 in hexadecimal.

Files (datasets, models, manifests, transfer blobs) are in the content-addressed store
(`edgefleet_cloud.storage`); a table holds their digests.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edgefleet_cloud.values import Json

# Bytes, seeds and row totals outgrow PostgreSQL's 32-bit integer.
Big = Annotated[int, mapped_column(BigInteger)]


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar = {
        Json: JSON,
        list[Any]: JSON,
        bytes: LargeBinary,
    }


# --- what a model is made of ------------------------------------------------------------------


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
    """One training run (experiment), or the import of a fitted model (`trainer` = "import").

    Attributes:
        dataset: trained on; `holdout` judged on (disjoint rows).
        code: version of the code that trained: `edgefleet-cloud 0.1.0`.
        environment: package name → version.
        artifact: digest of the fitted model file, None until it has succeeded.
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
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


class Model(Base):
    """A named model; its versions and releases are below."""

    __tablename__ = "models"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    task: Mapped[str] = mapped_column(String(16))
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


class Release(Base):
    """A version made available to devices. The number only grows within a model.

    Going back to an older version is a new release of it (docs/adr/0003), so that a device's
    release counter never has to go back.

    Attributes:
        challenge: made only to run beside the champion, which it does not replace.
    """

    __tablename__ = "releases"
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    reason: Mapped[str] = mapped_column(String(500))
    created_at: Mapped[float]
    challenge: Mapped[bool] = mapped_column(default=False, server_default=false())


# --- the fleet --------------------------------------------------------------------------------


class DeviceState(StrEnum):
    """claimed: expected, not enrolled. enrolled: has a certificate. revoked: may not connect."""

    CLAIMED = "claimed"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


class Device(Base):
    """A device, as wanted and as last reported.

    Attributes:
        labels: free key → value, for groups and cohorts (`site` → `north`).
        boot, sequence: of the newest state message; an older one is ignored.
        reported: `messages.State` as JSON, {} before the first.
    """

    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    board: Mapped[str] = mapped_column(String(64), default="")
    runtimes: Mapped[Json] = mapped_column(default=dict)
    memory_bytes: Mapped[Big] = mapped_column(default=0)
    labels: Mapped[Json] = mapped_column(default=dict)
    agent_version: Mapped[str] = mapped_column(String(64), default="")
    certificate_serial: Mapped[str | None] = mapped_column(String(64))
    certificate_expires_at: Mapped[float | None]
    boot: Mapped[int] = mapped_column(default=0)
    sequence: Mapped[int] = mapped_column(default=0)
    reported: Mapped[Json] = mapped_column(default=dict)
    last_seen_at: Mapped[float | None]
    created_at: Mapped[float]


class Claim(Base):
    """A one-time enrolment token; only the SHA-256 digest of its secret is kept."""

    __tablename__ = "claims"
    secret_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    expires_at: Mapped[float]
    used_at: Mapped[float | None]
    created_at: Mapped[float]


class Desired(Base):
    """What a device is to run: one row a model. All rows of a device make its assignment.

    Attributes:
        attempt: grows with every order for the device.
        order: the policy part of `trust.DirectorTarget` as JSON (window_rows, confirm_rows,
            confirm_deadline_s, samples).
    """

    __tablename__ = "desired"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    release: Mapped[int]
    variant: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int]
    order: Mapped[Json]
    rollout_id: Mapped[int | None] = mapped_column(ForeignKey("rollouts.id"))
    updated_at: Mapped[float]


class Challenge(Base):
    """A version that runs beside the champion on some devices, to be compared with it.

    Attributes:
        role: `shadow` or `split`; see `trust.DirectorTarget`.
        state: running or stopped.
    """

    __tablename__ = "challenges"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    release: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))
    share_percent: Mapped[int]
    to: Mapped[str] = mapped_column(String(500))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(300), default="")
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class ChallengerOrder(Base):
    """What a device is to run beside a model that it serves: one row a model, like `Desired`."""

    __tablename__ = "challenger_orders"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    release: Mapped[int]
    variant: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int]
    order: Mapped[Json]
    challenge_id: Mapped[int] = mapped_column(ForeignKey("challenges.id"), index=True)


class DirectorRecord(Base):
    """The director repository of one device.

    Attributes:
        sequence: of the assignment that the desired rows make; raised when they change.
        signed_sequence: of `payload`; lower than `sequence` while signing is due.
        version: of the TUF roles, raised with every signing.
        payload: `messages.Assignment` as published.
        published: whether the link has handed `payload` to the broker.
    """

    __tablename__ = "directors"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(default=0)
    signed_sequence: Mapped[int] = mapped_column(default=-1)
    version: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[float] = mapped_column(default=0.0)
    payload: Mapped[bytes | None]
    published: Mapped[bool] = mapped_column(default=False)


# --- what devices report ----------------------------------------------------------------------


class ReportRecord(Base):
    """One report that has been taken in; the key makes resends idempotent."""

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("device_id", "store", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    store: Mapped[str] = mapped_column(String(64))
    number: Mapped[Big]
    kind: Mapped[str] = mapped_column(String(16))
    payload_bytes: Mapped[Big]
    at: Mapped[float]
    received_at: Mapped[float]


class WindowRecord(Base):
    """A window report (`messages.Window`)."""

    __tablename__ = "windows"
    __table_args__ = (Index("windows_by_model", "model", "version", "received_at"),)
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    release: Mapped[int]
    manifest: Mapped[str] = mapped_column(String(64))
    reference: Mapped[str] = mapped_column(String(64))
    start: Mapped[float]
    end: Mapped[float]
    rows: Mapped[int]
    counts: Mapped[bytes]
    moments: Mapped[bytes]
    predictions: Mapped[list[Any]]
    confidences: Mapped[list[Any]]
    psi: Mapped[list[Any]]
    latency_us: Mapped[list[Any]]
    errors: Mapped[int]
    labelled: Mapped[int]
    correct: Mapped[int]
    health: Mapped[Json]
    received_at: Mapped[float]


class SampleRecord(Base):
    """A batch of labelled rows (`messages.Samples`).

    Attributes:
        dataset: digest of the dataset that it went into, None if not used yet.
    """

    __tablename__ = "samples"
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(64))
    columns: Mapped[list[Any]]
    rows: Mapped[bytes]
    labels: Mapped[list[Any]]
    predicted: Mapped[list[Any]]
    dataset: Mapped[str | None] = mapped_column(String(64))
    at: Mapped[float]
    received_at: Mapped[float]


class ResultRecord(Base):
    """How an update attempt ended (`messages.Result`)."""

    __tablename__ = "results"
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    attempt: Mapped[int]
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    release: Mapped[int]
    manifest: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    bytes_fetched: Mapped[Big]
    seconds: Mapped[float]
    at: Mapped[float]


class RefusalRecord(Base):
    """Something that a device would not take (`messages.Refusal`)."""

    __tablename__ = "refusals"
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    what: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(64))
    text: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    at: Mapped[float]


# --- rollouts ---------------------------------------------------------------------------------


class RolloutState(StrEnum):
    """running → completed | paused | rolling_back → rolled_back | cancelled; paused → running."""

    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"


class Rollout(Base):
    """One release on its way to a group of devices.

    Attributes:
        previous: release that the devices had before, None for the first.
        strategy: direct | staged | canary.
        stages: [{"name", "devices": [id, …]}]; fixed when the rollout is created.
        gate: `rollouts.gate.GatePolicy` as JSON.
        order: policy part of the devices' orders (see `Desired.order`).
        stage: index of the running stage.
        statistics: `rollouts.gate.StageStatistics` of the running stage as JSON, as last read.
        reverts_to: release that the devices get when it is rolled back, None for "take it off".
        watermark: newest report that is in `statistics` and in the devices' states.
        checked_at: device states received before this time are taken in.
        history: [{"at", "event", "stage", "text", …}], newest last.
    """

    __tablename__ = "rollouts"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    release: Mapped[int]
    previous: Mapped[int | None]
    reverts_to: Mapped[int | None]
    strategy: Mapped[str] = mapped_column(String(16))
    stages: Mapped[list[Any]]
    gate: Mapped[Json]
    order: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[int] = mapped_column(default=0)
    stage_started_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    statistics: Mapped[Json] = mapped_column(default=dict)
    watermark: Mapped[int] = mapped_column(default=0)
    checked_at: Mapped[float] = mapped_column(default=0.0)
    history: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


class RolloutDevice(Base):
    """A device's part in a rollout.

    Attributes:
        state: waiting | assigned | confirmed | failed | skipped (no variant fits, or another
            rollout took the device over) | reverting | reverted.
        previous_variant: that the device was to run before, None if it had no version.
        step: of the attempt, as last reported, with the bytes received; `step_at`: since when.
    """

    __tablename__ = "rollout_devices"
    __table_args__ = (Index("rollout_devices_by_state", "rollout_id", "state"),)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stage: Mapped[int]
    variant: Mapped[str | None] = mapped_column(String(64))
    previous_variant: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int | None]
    step: Mapped[str] = mapped_column(String(64), default="")
    step_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    assigned_at: Mapped[float | None]
    finished_at: Mapped[float | None]


# --- monitoring and retraining ----------------------------------------------------------------


class Watch(Base):
    """What monitoring remembers of one device on one model version.

    Attributes:
        report_id: newest window that is in here.
        state: learning (its own baseline is not complete) | steady | unlike | shifted | stuck.
        memory: `monitoring.watch.Memory`, msgpack.
        flags: `monitoring.watch.Flags` as JSON, {} while nothing is suspected.
        looked_at: end of the newest look; quiet_after: silent from then on, so no longer counted.
        rows: taken in; malformed: windows refused because they do not fit their profile.
    """

    __tablename__ = "watches"
    __table_args__ = (Index("watches_by_model", "model", "version", "quiet_after"),)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    report_id: Mapped[int] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(String(16))
    memory: Mapped[bytes] = mapped_column(deferred=True)
    flags: Mapped[Json] = mapped_column(default=dict)
    looked_at: Mapped[float | None]
    quiet_after: Mapped[float]
    rows: Mapped[Big] = mapped_column(default=0)
    malformed: Mapped[int] = mapped_column(default=0)


class Verdict(Base):
    """The fleet's drift verdict for one model version at one time.

    Attributes:
        scope: none | device | cohort | fleet (the widest found).
        findings: list of `monitoring.verdict.Finding` as JSON.
        rows, devices: that took part.
    """

    __tablename__ = "verdicts"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    version: Mapped[str] = mapped_column(String(64))
    at: Mapped[float]
    scope: Mapped[str] = mapped_column(String(16))
    findings: Mapped[list[Any]]
    rows: Mapped[int]
    devices: Mapped[int]


class Incident(Base):
    """Something that a person, or a retraining, has to act on. At most one open a kind and subject.

    Attributes:
        kind: drift | device-fault | unlike-training | malformed-report | refused-artifact |
            refused-assignment | refused-metadata | device-storage | rollback.
        scope: device | cohort | fleet.
        devices: concerned; features: likewise.
    """

    __tablename__ = "incidents"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(64), default="")
    version: Mapped[str] = mapped_column(String(64), default="")
    kind: Mapped[str] = mapped_column(String(32), index=True)
    scope: Mapped[str] = mapped_column(String(16))
    devices: Mapped[list[Any]]
    features: Mapped[list[Any]] = mapped_column(default=list)
    text: Mapped[str]
    opened_at: Mapped[float]
    closed_at: Mapped[float | None]


class Trigger(Base):
    """A rule that starts a retraining.

    Attributes:
        kind: drift (a fleet or cohort verdict).
        recipe: how to retrain: {"trainer", "parameters", "min_samples", "strategy", …}, see
            `retraining.recipe.Recipe`.
        fired_at: when it last started a retraining; fired_version: the version that it replaced.
    """

    __tablename__ = "triggers"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    recipe: Mapped[Json]
    enabled: Mapped[bool] = mapped_column(default=True)
    fired_at: Mapped[float | None]
    fired_version: Mapped[str | None] = mapped_column(String(64))


class Retraining(Base):
    """One challenge of a model's champion: from a recipe and field samples to a decision.

    Attributes:
        trigger_id, incident_id: what started it; None where a person did.
        champion: version that it challenges, None if there was none.
        state: running | approved | refused | failed.
        decision: `retraining.decision.Decision` as JSON, {} while it runs.
        rollout_id: of the challenger, where the recipe releases by itself.
    """

    __tablename__ = "retrainings"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    trigger_id: Mapped[int | None] = mapped_column(ForeignKey("triggers.id"))
    incident_id: Mapped[int | None] = mapped_column(ForeignKey("incidents.id"))
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    champion: Mapped[str | None] = mapped_column(String(64))
    recipe: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(default="")
    decision: Mapped[Json] = mapped_column(default=dict)
    version: Mapped[str | None] = mapped_column(String(64))
    rollout_id: Mapped[int | None] = mapped_column(ForeignKey("rollouts.id"))
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


# --- background work --------------------------------------------------------------------------


class JobState(StrEnum):
    """queued → running → succeeded | failed; running → queued when its process or hub died."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Job(Base):
    """A background job: a row here, a picklable function elsewhere (docs/adr/0005).

    Attributes:
        kind: name of the function in `jobs.KINDS`.
        arguments: its keyword arguments, JSON.
        owner: boot id of the hub that runs it; another owner's running job is queued again.
        attempts: how often it was started; after 3 it fails.
        result: what the function returned, JSON.
    """

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    arguments: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16), index=True)
    owner: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(default=0)
    progress: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[str] = mapped_column(String(200), default="")
    result: Mapped[Json] = mapped_column(default=dict)
    error: Mapped[str | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
