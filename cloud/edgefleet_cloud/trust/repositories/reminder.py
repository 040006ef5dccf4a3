"""Reminding people of what only they can do: renew what they signed, take their keys away.

What ends soon is an open incident (kind `trust`) until it is renewed. Keys that lie with the hub
are said in the log at each start: many a fleet is tried out for a day.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgefleet_cloud.database.models import Incident
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.repositories import status
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.images import ImageRepository

KIND = "trust"
PAUSE_S = 3600.0
logger = logging.getLogger(__name__)


class Reminder:
    """Looks once an hour."""

    def __init__(
        self,
        images: ImageRepository,
        director: Director,
        database: Database,
        home: Path,
        clock: Callable[[], float],
    ) -> None:
        self._images = images
        self._director = director
        self._database = database
        self._clock = clock
        self._home = home
        self._due_at: float | None = None

    def tick(self) -> None:
        """Look, if it is time."""
        now = self._clock()
        if self._due_at is None:
            for warning in status.offline_keys_here(self._home):
                logger.warning("%s", warning)
        elif now < self._due_at:
            return
        self._due_at = now + PAUSE_S
        due = status.due(self._images, self._director, now)
        with self._database.write() as session:
            remind(session, due, now)


def remind(session: Session, due: list[str], now: float) -> None:
    """Keep one incident open while anything is due, saying what; close it afterwards."""
    query = select(Incident).where(Incident.kind == KIND, Incident.closed_at.is_(None))
    held = session.scalar(query)
    if not due:
        if held is not None:
            held.closed_at = now
        return
    text = "; ".join(due)
    if held is None:
        held = Incident(kind=KIND, scope="fleet", devices=[], text=text, opened_at=now)
        session.add(held)
    if held.text != text or held.id is None:
        logger.warning("%s", text)
    held.text = text
    session.flush()
