"""Background work."""

from enum import StrEnum

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base
from edgefleet_cloud.values import Json


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
