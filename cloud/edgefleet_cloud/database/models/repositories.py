"""Whose signature a release waits for."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from edgefleet_cloud.database.models.base import Base


class OwnedModel(Base):
    """A model whose bundles an owner signs, as the image repository in force says it.

    Attributes:
        model: name; need not exist yet.
        role: of the owner, as `owner-vision`.
    """

    __tablename__ = "owned_models"
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(64))
