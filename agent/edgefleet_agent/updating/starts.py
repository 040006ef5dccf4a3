"""How often the agent has started on this store, and how often in vain.

    boots.json   number of starts, and how many in a row ended before the agent had worked well

The number orders the states that a device reports, so it never falls; where it is lost, it goes on
from the clock. A start was in vain if neither a stop nor `GOOD_S` of work followed: a model, or
something else, brought the process down. Rule: a store that cannot be written stops nothing.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edgefleet_agent import files

log = logging.getLogger(__name__)

NAME = "boots.json"
# What crashes later than this is not brought down by its start; the board still answers meanwhile.
GOOD_S = 300.0


class _Boots(Struct, frozen=True):
    count: int
    in_vain: int = 0
    format: int = 1


class Starts:
    """The starts of one store; making it counts one.

    Attributes:
        number: of this start.
        in_vain: starts in a row before this one that were.
        damaged: why the count was lost; empty if it was not.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        """Count this start.

        Args:
            folder: of the store.
            clock: Unix seconds.
        """
        self._path = folder / NAME
        kept, complaint = files.read_kept(self._path, _decode)
        self.damaged = complaint if kept is None else ""
        if kept is None:
            # Larger than any count that this store can have had, unless the clock is wrong too.
            kept = _Boots(max(int(clock()), 0) if complaint else 0)
        self.number = kept.count + 1
        self.in_vain = kept.in_vain
        self._kept = _Boots(self.number, kept.in_vain + 1)
        self._write()

    def forgive(self) -> None:
        """Count anew: what is likely to have brought the agent down was given up."""
        self.in_vain = 0
        self._kept = _Boots(self.number, 1)
        self._write()

    def went_well(self) -> None:
        """Hear that the agent works, or was stopped by somebody."""
        if self._kept.in_vain:
            self._kept = _Boots(self.number, 0)
            self._write()

    def _write(self) -> None:
        try:
            files.write_kept(self._path, msgspec.json.encode(self._kept))
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error)


def _decode(data: bytes) -> _Boots:
    return msgspec.json.decode(data, type=_Boots)
