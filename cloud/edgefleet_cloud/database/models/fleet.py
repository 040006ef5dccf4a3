"""The fleet: devices, claims, what each is to run."""

from enum import StrEnum

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.values import Json


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
        root_version: of the director's root that `payload` was signed under.
        payload: `messages.Assignment` as published.
        published: whether the link has handed `payload` to the broker.
    """

    __tablename__ = "directors"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(default=0)
    signed_sequence: Mapped[int] = mapped_column(default=-1)
    version: Mapped[int] = mapped_column(default=0)
    root_version: Mapped[int] = mapped_column(default=0, server_default="0")
    expires_at: Mapped[float] = mapped_column(default=0.0)
    payload: Mapped[bytes | None]
    published: Mapped[bool] = mapped_column(default=False)
