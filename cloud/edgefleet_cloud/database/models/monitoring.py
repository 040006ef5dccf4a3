"""Monitoring and retraining."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.values import Json


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
            refused-assignment | refused-metadata | device-storage | rollback | trust.
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
        made_by: account.
        fired_at: when it last started a retraining; fired_version: the version that it replaced.
    """

    __tablename__ = "triggers"
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    recipe: Mapped[Json]
    enabled: Mapped[bool] = mapped_column(default=True)
    made_by: Mapped[str] = mapped_column(String(64), default="hub", server_default="hub")
    fired_at: Mapped[float | None]
    fired_version: Mapped[str | None] = mapped_column(String(64))


class Retraining(Base):
    """One challenge of a model's champion: from a recipe and field samples to a decision.

    Attributes:
        trigger_id, incident_id: what started it; None where a person did.
        champion: version that it challenges, None if there was none.
        state: running | waiting (for people) | approved | refused | failed.
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
