"""The log of decisions, its signed checkpoints, and where released bundles came from.

`audit_entries` and `audit_checkpoints` only ever grow: triggers in the database refuse every
other change (`trust.audit.triggers`).
"""

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base, Big


class AuditEntry(Base):
    """One decision; the form of its line and the chain are in `trust.audit.chain`.

    Attributes:
        number: 1, 2, 3, … without gaps.
        actor, kind, action, subject: as in the line, to search by.
        line: the entry as JSON text; these very bytes are what the chain vouches for.
        digest: the chain's, up to and with this entry.
    """

    __tablename__ = "audit_entries"
    number: Mapped[Big] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(200), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(String(200), index=True)
    line: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))


class AuditCheckpoint(Base):
    """A signature under the chain's digest at one entry.

    Attributes:
        number: of the last entry that it vouches for.
        digest: the chain's at that entry.
        at: when it was signed, whole Unix seconds.
        keyid: of the audit key.
        signature: Ed25519, hexadecimal.
    """

    __tablename__ = "audit_checkpoints"
    number: Mapped[Big] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    at: Mapped[Big]
    keyid: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))


class Provenance(Base):
    """Where a variant came from: a signed statement in the store (`trust.audit.provenance`).

    Attributes:
        digest: of the DSSE envelope in the store.
        keyid: of the builder key that signed it.
    """

    __tablename__ = "provenance"
    variant_id: Mapped[int] = mapped_column(ForeignKey("variants.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    keyid: Mapped[str] = mapped_column(String(64))
