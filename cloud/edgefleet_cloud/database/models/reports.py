"""What devices report."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.values import Json


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
