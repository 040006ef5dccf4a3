"""What all tables share."""

from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, LargeBinary
from sqlalchemy.orm import DeclarativeBase, mapped_column

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
