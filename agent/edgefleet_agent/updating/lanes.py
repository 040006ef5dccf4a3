"""Which loaded release stands where: the one place where lanes differ.

A primary answers, with the release before it as its fallback until it is confirmed. A challenger
stands beside it and never in its place; when it goes, nothing comes instead.
"""

import functools
import logging
from collections.abc import Callable
from typing import Literal

from edgefleet_agent.inference.serving import Challenger, Model, Served, Watch
from edgefleet_agent.updating.journal import Installed, Journal
from edgefleet_protocol.messages import Slot

log = logging.getLogger(__name__)


class Lanes:
    """The places of all models of one agent.

    Args:
        models: gives the place of a model.
        on_proven: told the lane and the release when a candidate has served enough rows.
    """

    def __init__(
        self, models: Callable[[str], Model], on_proven: Callable[[str, Slot], None]
    ) -> None:
        self._model = models
        self._on_proven = on_proven
        self._watches: dict[str, Watch] = {}

    def slot(self, journal: Journal) -> Slot | None:
        """Return the release that stands in a lane now."""
        place = self._model(journal.model)
        return place.slot if journal.lane == "primary" else place.challenger_slot

    def loaded(self, journal: Journal, slot: Slot) -> Served | None:
        """Return a release of the lane if it is loaded."""
        return self._model(journal.model).loaded(slot)

    def put_confirmed(self, journal: Journal, installed: Installed, served: Served) -> None:
        """Let a confirmed release stand in its lane."""
        place = self._model(journal.model)
        if journal.lane == "primary":
            place.serve(served)
        else:
            place.challenge(_challenger(installed, served, None))
        self._watches.pop(journal.key, None)

    def put_candidate(
        self, journal: Journal, candidate: Installed, served: Served, max_latency_us: int
    ) -> None:
        """Let an unconfirmed release stand in its lane, under watch."""
        place = self._model(journal.model)
        watch = Watch(
            candidate.order.confirm_rows,
            functools.partial(self._on_proven, journal.key),
            max_latency_us=max_latency_us,
        )
        self._watches[journal.key] = watch
        if journal.lane == "primary":
            current = journal.current
            place.serve(served, place.loaded(current.slot) if current else None, watch)
        else:
            place.challenge(_challenger(candidate, served, watch))
        log.info("%s: release %d stands, unconfirmed", journal.key, served.slot.release)

    def reorder(self, journal: Journal, installed: Installed) -> None:
        """Let a challenger that stands do so under new orders; its watch goes on."""
        place = self._model(journal.model)
        if journal.lane == "challenger" and place.challenger_slot == installed.slot:
            served = place.loaded(installed.slot)
            if served:
                watch = self._watches.get(journal.key)
                place.challenge(_challenger(installed, served, watch))

    def clear(self, journal: Journal) -> None:
        """Leave a lane empty."""
        place = self._model(journal.model)
        if journal.lane == "primary":
            place.serve(None)
        else:
            place.challenge(None)
        self._watches.pop(journal.key, None)


def _challenger(installed: Installed, served: Served, watch: Watch | None) -> Challenger:
    order = installed.order
    role: Literal["shadow", "split"] = "split" if order.role == "split" else "shadow"
    return Challenger(served, role, order.share_percent, watch)
