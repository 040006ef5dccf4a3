"""A challenger beside the release that answers: as a shadow, or for a share of the calls.

Rules:

1. A challenger never delays and never breaks a call. A shadow runs after the answer is given, on
   one thread of low priority behind a bounded queue: what does not fit is dropped and counted.
2. Of each hundred calls a split takes exactly its share, in a shuffled order, so that a caller with
   a rhythm of its own does not always meet the same release.
3. Labels come by the id of the answer that was given. A shadow's own row is found by that id, and
   its labels stand in the same queue as its rows, so that none comes before its row.
4. A shadow's latency is not judged: at low priority it says nothing about the model.
"""

import logging
import os
import queue
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from edgefleet_agent.inference.prediction import Inference, Prediction
from edgefleet_agent.inference.served import RowsFailedError, Served
from edgefleet_agent.inference.watch import Watch
from edgefleet_protocol.errors import MalformedError

log = logging.getLogger(__name__)

Answer = Prediction | Inference | list[Prediction]
Ask = Callable[[Served, Watch | None], Answer]

# Calls and labels that wait for the shadow.
QUEUE_CALLS = 256
# Answers whose label still finds the shadow's row.
REMEMBERED_IDS = 4096
# Of 19: what is left over, without standing still on a busy board.
_NICENESS = 10


class Challenger(Struct, frozen=True):
    """What is to run beside the primary.

    Attributes:
        served: the release.
        role: `shadow` answers nobody, `split` answers `share_percent` of the calls.
        watch: of an unconfirmed release.
    """

    served: Served
    role: Literal["shadow", "split"]
    share_percent: int = 50
    watch: Watch | None = None


class Split:
    """A challenger that answers its share of the calls."""

    def __init__(self, challenger: Challenger, rng: random.Random) -> None:
        self.served, self.watch = challenger.served, challenger.watch
        self._share = challenger.share_percent
        self._rng = rng
        self._block: list[bool] = []
        self._lock = threading.Lock()

    def takes_call(self) -> bool:
        """Return whether the next call is the challenger's."""
        with self._lock:
            if not self._block:
                self._block = [True] * self._share + [False] * (100 - self._share)
                self._rng.shuffle(self._block)
            return self._block.pop()

    def offer(self, ask: Ask, answer: Answer) -> None:
        """Take no notice of calls that the primary has answered."""

    def label(self, prediction: int, label: str) -> bool:
        """Take the true label of one of its answers; return whether it was one."""
        return self.served.recorder.label(prediction, label)

    def stop(self) -> None:
        """Nothing runs beside the calls."""


class Shadow:
    """A challenger that runs on the same rows after the answer is given."""

    def __init__(self, challenger: Challenger, on_failed: Callable[[str], None]) -> None:
        """Start its thread.

        Args:
            challenger: what runs.
            on_failed: told why, once, when it failed; it runs no more then.
        """
        self.served, self.watch = challenger.served, challenger.watch
        if self.watch:
            self.watch.forgive_latency()
        self.dropped = 0
        self._on_failed = on_failed
        self._ids: OrderedDict[int, int] = OrderedDict()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopped = False
        slot = self.served.slot
        name = f"shadow-{slot.model}-{slot.release}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def takes_call(self) -> bool:
        """Return False: a shadow answers nobody."""
        return False

    def offer(self, ask: Ask, answer: Answer) -> None:
        """Run the same call later, if there is room in the queue."""
        self._put(lambda: self._run(ask, _ids_of(answer)))

    def label(self, prediction: int, label: str) -> bool:
        """Take the true label of the answer that the primary gave."""
        return self._put(lambda: self._label(prediction, label))

    def stop(self) -> None:
        """End the thread after the call that it is at; does not wait for it."""
        self._stopped = True
        self._queue.put(None)
        if self.dropped:
            slot = self.served.slot
            log.warning("shadow %s release %d missed %d", slot.model, slot.release, self.dropped)

    def _put(self, work: Callable[[], None]) -> bool:
        if self._stopped or self._queue.qsize() >= QUEUE_CALLS:
            self.dropped += 1
            return False
        self._queue.put(work)
        return True

    def _work(self) -> None:
        _lower_priority()
        while (work := self._queue.get()) is not None and not self._stopped:
            try:
                work()
            except RowsFailedError as failure:
                if failure.at_fault:
                    self._on_failed(str(failure))
            except MalformedError as error:
                self._on_failed(f"does not take the rows of the primary: {error}")
            except Exception as error:
                # Whatever it is, it must be seen, and must not happen in silence again.
                log.exception("shadow %s failed", self.served.slot.model)
                self._on_failed(f"internal error: {error!r}")

    def _run(self, ask: Ask, given: list[int]) -> None:
        own = _ids_of(ask(self.served, self.watch))
        self._ids.update(zip(given, own, strict=True))
        while len(self._ids) > REMEMBERED_IDS:
            self._ids.popitem(last=False)

    def _label(self, prediction: int, label: str) -> None:
        own = self._ids.get(prediction)
        if own is not None:
            self.served.recorder.label(own, label)


def _ids_of(answer: Answer) -> list[int]:
    if isinstance(answer, Prediction):
        return [answer.id]
    if isinstance(answer, Inference):
        return answer.ids
    return [prediction.id for prediction in answer]


def _lower_priority() -> None:
    """Let this thread have what others leave; on Linux niceness is a thread's own."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    except OSError as error:
        log.info("the shadow runs at normal priority: %s", error)
