"""Answers devices that ask for the time.

A fleet that comes back asks at one moment, and a key may be in an HSM or at a cloud's door. Rules:

1. Signing happens on a thread of its own, one question after the other.
2. A device has one question waiting at most: a newer one replaces it. So the queue is bounded by
   the fleet, and no device can fill it for others.
3. The time is read when the answer is signed, not when the question came.
"""

import logging
import threading
from collections.abc import Callable

from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_cloud.trust.repositories.attesting import attest
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_protocol import codec, topics
from edgefleet_protocol.messages import TimeRequest

MAX_WAITING = 100_000

_log = logging.getLogger(__name__)


class TimeDesk:
    """The thread that attests the time; started and stopped once.

    Args:
        director: its timestamp key signs.
        authority: gives the challenges.
        clock: Unix seconds.
        publish: sends a payload on a topic.
    """

    def __init__(
        self,
        director: Director,
        authority: Authority,
        clock: Callable[[], float],
        publish: Callable[[str, bytes], object],
    ) -> None:
        self._director = director
        self._authority = authority
        self._clock = clock
        self._publish = publish
        self._waiting: dict[str, TimeRequest] = {}
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="time", daemon=True)

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; questions that wait are asked again by their devices."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()

    def ask(self, device: str, request: TimeRequest) -> bool:
        """Take a question; return whether there was room for it."""
        with self._news:
            if device not in self._waiting and len(self._waiting) >= MAX_WAITING:
                return False
            self._waiting[device] = request
            self._news.notify()
        return True

    def _run(self) -> None:
        while (question := self._next()) is not None:
            try:
                self._answer(*question)
            except Exception:
                # A key that cannot sign now must not end the thread; the device asks again.
                _log.exception("the time could not be attested to device %r", question[0])

    def _next(self) -> tuple[str, TimeRequest] | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            device = next(iter(self._waiting))
            return device, self._waiting.pop(device)

    def _answer(self, device: str, request: TimeRequest) -> None:
        now = self._clock()
        challenge = self._authority.issue_challenge(device, now)
        answer = attest(self._director, device, request.nonce, challenge, now)
        self._publish(topics.down(device, "time"), codec.encode(answer))
