"""Choosing devices by a group query.

`all`, `device:a,b`, `label:site=north`, `board:rpi4`. Only enrolled devices are ever chosen. A
device that is named but not enrolled is an error: leaving it out in silence would look like done.
"""

import sqlalchemy
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Device, DeviceState
from edgefleet_cloud.errors import InvalidError

FORMS = "all, device:ID[,ID…], label:KEY=VALUE or board:NAME"


def devices_in(session: Session, query: str) -> list[Device]:
    """Return the enrolled devices that `query` names, sorted by id.

    Raises:
        InvalidError: if the query has none of the known forms, or names a device that is not
            enrolled.
    """
    kind, _, rest = query.strip().partition(":")
    statement = (
        sqlalchemy.select(Device).where(Device.state == DeviceState.ENROLLED).order_by(Device.id)
    )
    if kind == "all" and not rest:
        return list(session.scalars(statement))
    if kind == "device" and rest:
        wanted = [part.strip() for part in rest.split(",")]
        found = list(session.scalars(statement.where(Device.id.in_(wanted))))
        missing = sorted(set(wanted) - {device.id for device in found})
        if missing:
            raise InvalidError(f"no enrolled device is called {', '.join(map(repr, missing))}")
        return found
    if kind == "board" and rest:
        return list(session.scalars(statement.where(Device.board == rest.strip())))
    key, equals, value = (part.strip() for part in rest.partition("="))
    if kind == "label" and key and equals:
        # Labels are free JSON, whose query functions differ between databases; ids and labels of
        # a whole fleet are small.
        return [device for device in session.scalars(statement) if device.labels.get(key) == value]
    raise InvalidError(f"{query[:120]!r} is no group of devices: expected {FORMS}")


def select(session: Session, query: str) -> list[str]:
    """Return the ids of `devices_in`."""
    return [device.id for device in devices_in(session, query)]
