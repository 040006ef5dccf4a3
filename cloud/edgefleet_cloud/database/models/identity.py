"""Who is a device: certificates, expected serial numbers, what devices have sworn to."""

from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big
from edgefleet_cloud.values import Json


class DeviceIdentity(Base):
    """What belongs to one enrolment of a device; made anew when it enrols again.

    Attributes:
        anchor: public key (SubjectPublicKeyInfo, DER) that lives in the device's TPM or token and
            signs renewals and statements; empty if the certificate's own key does.
        anchor_kind: `file`, `tpm` or `pkcs11`, as the device says.
        since: when it enrolled.
        counter: the highest of its statements.
        stores: names of the outboxes that have reported under this enrolment, newest last.
    """

    __tablename__ = "device_identities"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    anchor: Mapped[bytes]
    anchor_kind: Mapped[str] = mapped_column(String(16))
    since: Mapped[float]
    counter: Mapped[Big] = mapped_column(default=0)
    stores: Mapped[list[Any]] = mapped_column(default=list)


class Certificate(Base):
    """A certificate that a device was given.

    Attributes:
        serial: lower-case hexadecimal.
        public_key: that it certifies, SubjectPublicKeyInfo, DER.
        issuer: fingerprint of the authority that signed it.
        seen_at: when the device first came with it.
        ended_at: since when it is no longer accepted, though it has not expired.
        ended: why: `revoked`, `replaced` (a newer one was seen), `superseded` (never used).
    """

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    public_key: Mapped[bytes]
    issuer: Mapped[str] = mapped_column(String(64))
    issued_at: Mapped[float]
    expires_at: Mapped[float]
    seen_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    ended: Mapped[str] = mapped_column(String(16), default="")


class ExpectedDevice(Base):
    """A serial number that may enrol once.

    Attributes:
        device_id: that it becomes.
        key: SHA-256 of the public key that must ask (SubjectPublicKeyInfo, DER); empty for any.
        approval: whether a person has to accept the key that asked.
        asked_key: like `key`, of who asked first; board: that it said.
        accepted_at: when a person accepted `asked_key`.
        used_at: when the certificate was given.
    """

    __tablename__ = "expected_devices"
    serial: Mapped[str] = mapped_column(String(128), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64), unique=True)
    labels: Mapped[Json] = mapped_column(default=dict)
    board: Mapped[str] = mapped_column(String(64), default="")
    key: Mapped[str] = mapped_column(String(64), default="")
    approval: Mapped[bool]
    asked_key: Mapped[str] = mapped_column(String(64), default="")
    asked_at: Mapped[float | None]
    accepted_at: Mapped[float | None]
    used_at: Mapped[float | None]
    created_at: Mapped[float]
    expires_at: Mapped[float]


class StatementRecord(Base):
    """A statement that a device has signed (`messages.DeviceStatement`) and the hub has verified.

    Attributes:
        digest: SHA-256 of the statement.
        challenge_age_s: how old the hub's challenge in it was; None if there was none.
        differs: whether `serving` is not what the device's unsigned state says.
    """

    __tablename__ = "statements"
    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    counter: Mapped[Big]
    digest: Mapped[str] = mapped_column(String(64))
    at: Mapped[float]
    challenge_age_s: Mapped[float | None]
    assignment: Mapped[int]
    serving: Mapped[list[Any]]
    time_attested: Mapped[bool]
    attack: Mapped[str]
    agent_version: Mapped[str] = mapped_column(String(64))
    authorities: Mapped[list[Any]]
    certificate: Mapped[str] = mapped_column(String(64))
    differs: Mapped[bool]
    received_at: Mapped[float]
