"""Rollouts, and where each device stands in them."""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base
from edgefleet_cloud.values import Json


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
