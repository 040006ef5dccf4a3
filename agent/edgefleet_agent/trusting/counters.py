"""The device's own memory of the assignments that it has accepted, apart from TUF's files.

Every assignment has a sequence inside its signed part. Rules:

1. For each key that signed an accepted assignment, the highest sequence that it signed is kept.
2. The floor in force is the highest sequence that the present keys of the director could have
   signed: of the floors of the keys that the root names now, the one that as many keys reach as the
   threshold asks for. Below it, nothing is accepted.
3. So the floor never goes back while the director keeps its keys. When a root replaces keys, what
   they signed can neither be replayed any more nor does it bind: a thief of an online key who has
   raised the sequence beyond all measure does not lock the device out for good.
4. A key that a root names again brings its floor back: old roots cannot be used to reset anything.
5. The file has two generations, and is fsynced before an assignment is acted on. If both are lost,
   no assignment is accepted: an old one could not be told from a new one.
"""

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec import Struct, field

from edgefleet_agent import files

log = logging.getLogger(__name__)

COUNTERS = "counters.json"
# A director has one to three keys, and replaces them in years.
MAX_KEYS = 64


class Counters(Struct, frozen=True):
    """What is kept.

    Attributes:
        sequence: of the newest accepted assignment, 0 for none.
        floors: keyid → highest accepted sequence that it signed.
    """

    sequence: int
    floors: dict[str, int] = field(default_factory=dict)
    format: int = 2


def floor_of(counters: Counters, keyids: Collection[str], threshold: int) -> int:
    """Return the lowest sequence that may be accepted (rule 2).

    Args:
        counters: as kept.
        keyids: that the director's root names for its targets role.
        threshold: of that role.
    """
    if counters.sequence and not counters.floors:
        return counters.sequence  # kept by an agent that did not know keys apart
    reached = sorted((counters.floors.get(keyid, 0) for keyid in set(keyids)), reverse=True)
    return reached[threshold - 1] if 0 < threshold <= len(reached) else 0


def accepted(counters: Counters, sequence: int, signers: Collection[str]) -> Counters:
    """Return the counters after an assignment was accepted (rule 1)."""
    floors = dict(counters.floors)
    for keyid in signers:
        floors[keyid] = max(floors.get(keyid, 0), sequence)
    others = sorted(set(floors) - set(signers), key=floors.__getitem__, reverse=True)
    while len(floors) > MAX_KEYS and others:
        del floors[others.pop()]
    return Counters(sequence, floors)


class CounterFile:
    """The counters on disk.

    Args:
        folder: of the trust state.
        expected: whether assignments were accepted before, so that a file must be there.

    Attributes:
        counters: as on disk.
        lost: why they are not known any more; empty if they are.
    """

    def __init__(self, folder: Path, *, expected: bool) -> None:
        self._path = folder / COUNTERS
        kept, complaint = files.read_kept(self._path, _decode)
        self.counters = kept or Counters(0)
        self.lost = ""
        if kept is not None:
            if complaint:
                log.error("trust state: %s; the generation before is used", complaint)
            return
        if not complaint and expected:
            complaint = f"{COUNTERS} is gone"
        if complaint:
            log.critical("trust state: %s; no assignment is accepted", complaint)
            self.lost = complaint
            return
        # Written before any assignment can be, so that "none yet" is never taken for "lost".
        with contextlib.suppress(OSError):
            self._write(self.counters)

    def accept(self, sequence: int, signers: Collection[str]) -> None:
        """Keep that an assignment is accepted; durable when this returns.

        Raises:
            OSError: if it cannot be written.
        """
        after = accepted(self.counters, sequence, signers)
        if after != self.counters:
            self._write(after)
            self.counters = after

    def _write(self, counters: Counters) -> None:
        files.write_kept(self._path, msgspec.json.encode(counters))


def _decode(data: bytes) -> Counters:
    return msgspec.json.decode(data, type=Counters)
