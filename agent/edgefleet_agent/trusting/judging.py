"""When signed messages are judged, and what the hub is asked for; part of the engine's thread.

`Trust` says which assignment to believe and `Timekeeper` what time it is; this calls them when
there is something to judge, acts on what they believe, and asks for what they lack. Rules:

1. What arrives is judged at once. What waits for the rest is judged again each `JUDGE_AGAIN_S`, and
   at once when the time has been attested; what could not be written, each `STORE_AGAIN_S`.
2. Of what was refused or is incomplete the hub is asked to say it all again, until an assignment is
   accepted: less and less often, and never all devices in one moment. After a connection it is
   given `ASK_AFTER_S` first, for retained messages come by themselves.
3. An assignment that was believed is acted on until all of it is on disk.
4. A connection for the time only (`link`, rule 6) is given up when the time has come, or after
   `ASKING_S`; the link then makes a whole one.
"""

import logging
from collections.abc import Callable

from edgefleet_agent.errors import EnrolmentError
from edgefleet_agent.trusting.custody import Custody
from edgefleet_agent.trusting.timekeeping import Timekeeper
from edgefleet_agent.trusting.trust import (
    ASSIGNMENT,
    IMAGE_METADATA,
    MetadataRefusedError,
    Trust,
    Waiting,
)
from edgefleet_agent.updating.attempts import Attempts
from edgefleet_agent.updating.journal import Assigned
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import Refusal, Request, SyncRequest, TimeAttestation

log = logging.getLogger(__name__)

ATTESTED_TIME = "attested time"
# How long to wait for the rest of a publication before asking, and between two questions.
ASK_AFTER_S = 3.0
ASK_AGAIN_S = 10.0
LAST_ASK_AGAIN_S = 600.0
# How long a connection for asking the time waits for the answer.
ASKING_S = 30.0
# Between two looks at metadata that is not complete yet.
JUDGE_AGAIN_S = 1.0
# Between two tries to act on an assignment, or to judge it, on a store that cannot be written.
STORE_AGAIN_S = 10.0
# Questions to the hub are spread by this share of their interval, to either side.
_SPREAD = 0.25
_INCOMPLETE = "waiting for the rest of the metadata"


class Judging:
    """From signed messages to orders for the attempts. Used by one thread; all `now` monotonic."""

    def __init__(
        self,
        trust: Trust,
        timekeeper: Timekeeper,
        custody: Custody,
        attempts: Attempts,
        *,
        report: Callable[[Refusal], None],
        request: Callable[[Request], None],
        reconnect: Callable[[], None],
        hub_time: Callable[[float], None],
        chance: Callable[[], float],
    ) -> None:
        """Put the parts together; nothing is asked yet.

        Args:
            trust: on disk.
            timekeeper: what time it is, by the hub.
            custody: takes the hub's authorities from verified metadata.
            attempts: what a believed assignment is for.
            report: tells the hub of a refusal.
            request: asks the hub, if it is connected.
            reconnect: has the link connect anew.
            hub_time: hears each attested time, Unix seconds.
            chance: a random number in [0, 1).
        """
        self._trust = trust
        self._timekeeper = timekeeper
        self._custody = custody
        self._attempts = attempts
        self._report = report
        self._request = request
        self._reconnect = reconnect
        self._hub_time = hub_time
        self._chance = chance
        self._connected = False
        # While connected for asking the time only.
        self._asking_until: float | None = None
        self._judge_at: float | None = None
        # Why the hub is to be asked; empty if it is not.
        self._wanting = ""
        self._ask_at = 0.0
        self._ask_again_s = ASK_AGAIN_S
        # What was believed and could not be acted on as a whole yet.
        self._unapplied: list[Assigned] | None = None
        self._apply_at = 0.0

    def connected(self, now: float) -> None:
        """Note that the hub can be heard and asked."""
        self._connected = True
        self._trust.resumed()
        self._timekeeper.connected()
        self._ask_at = now + ASK_AFTER_S

    def connected_for_time(self, now: float) -> None:
        """Note that the hub can be asked what time it is, and nothing else (rule 4)."""
        self._timekeeper.connected()
        self._asking_until = now + ASKING_S

    def disconnected(self) -> None:
        """Note that nothing can arrive."""
        self._connected = False
        self._asking_until = None
        self._trust.interrupted()

    def take_assignment(self, payload: bytes, now: float) -> None:
        """Take an assignment message, and judge.

        Raises:
            StoreError: if the trust state, or what the assignment asks for, cannot be written; it
                is tried again.
        """
        self._take(lambda: self._trust.take_assignment(payload), now)

    def take_image_role(self, role: str, payload: bytes, now: float) -> None:
        """Take one file of the image repository, and judge.

        Raises:
            StoreError: as for `take_assignment`.
        """
        self._take(lambda: self._trust.take_image_role(role, payload), now)

    def take_time(self, attestation: TimeAttestation, now: float) -> None:
        """Believe an attested time; what was waited for because of the clock is judged again.

        Raises:
            MalformedError: if it cannot be read.
            StoreError: if it could not be verified.
        """
        try:
            self._timekeeper.take(attestation, self._trust.director_roots)
        except RefusedError as error:
            self._report(Refusal(ATTESTED_TIME, error.reason, str(error)))
            return
        self._hub_time(self._timekeeper.instant().at)
        if self._judge_at is not None:
            self._judge_at = now
        if self._asking_until is not None:
            self._reconnect()

    def act_again(self, now: float) -> None:
        """Act on what was believed and could not be acted on, when that is due (rule 3).

        Raises:
            StoreError: if it still cannot be written.
        """
        if self._unapplied is not None and now >= self._apply_at:
            self._act(self._unapplied, now)

    def tick(self, now: float) -> None:
        """Judge again and ask, as far as each is due.

        Raises:
            StoreError: as for `take_assignment`.
        """
        if self._judge_at is not None and now >= self._judge_at:
            self._judge(now)
        if self._wanting and self._connected and now >= self._ask_at:
            self._request(SyncRequest(self._wanting))
            # A fleet that lost its hub at one moment must not ask it at one moment.
            self._ask_at = now + self._ask_again_s * (1 + _SPREAD * (2 * self._chance() - 1))
            self._ask_again_s = min(self._ask_again_s * 2, LAST_ASK_AGAIN_S)
        if self._connected or self._asking_until is not None:
            self._ask_time(now)

    def next_at(self) -> float | None:
        """Return when something is due, monotonic seconds."""
        times = [self._judge_at, self._asking_until]
        if self._unapplied is not None:
            times.append(self._apply_at)
        if self._connected:
            times.append(self._ask_at if self._wanting else None)
            times.append(self._timekeeper.next_at())
        return min((at for at in times if at is not None), default=None)

    def _take(self, keep: Callable[[], None], now: float) -> None:
        try:
            keep()
        except MetadataRefusedError as refusing:
            self._refuse(refusing, now)
        else:
            self._judge(now)

    def _judge(self, now: float) -> None:
        floors = {key: journal.floor for key, journal in self._attempts.journals.items()}
        # If the trust state cannot be written, this says so by an error, and is tried again.
        self._judge_at = now + STORE_AGAIN_S
        try:
            verdict = self._trust.judge(now, floors)
        except MetadataRefusedError as refusing:
            self._refuse(refusing, now)
            return
        self._judge_at = None
        self._adopt_authorities()
        if verdict is None:
            if self._wanting == _INCOMPLETE:
                self._wanting = ""
        elif isinstance(verdict, Waiting):
            log.debug("waiting: %s", verdict.reason)
            self._judge_at = now + JUDGE_AGAIN_S
            self._want(_INCOMPLETE, now + ASK_AFTER_S)
        else:
            self._accept(verdict.targets, now)

    def _accept(self, targets: list[Assigned], now: float) -> None:
        try:
            self._attempts.check(targets)
        except RefusedError as error:
            self._refuse(MetadataRefusedError(ASSIGNMENT, error.reason, str(error), ""), now)
            return
        self._wanting, self._ask_again_s = "", ASK_AGAIN_S
        self._act(targets, now)

    def _act(self, targets: list[Assigned], now: float) -> None:
        self._unapplied, self._apply_at = targets, now + STORE_AGAIN_S
        self._attempts.apply(targets, now)
        self._unapplied = None

    def _adopt_authorities(self) -> None:
        """Trust the hub's authorities as the image metadata lists them."""
        try:
            self._custody.adopt(self._trust.authorities)
        except EnrolmentError as error:
            self._report(Refusal(IMAGE_METADATA, "authorities", str(error)))

    def _refuse(self, refusing: MetadataRefusedError, now: float) -> None:
        self._report(Refusal(refusing.what, refusing.reason, str(refusing), refusing.digest))
        if refusing.reason == "expired":
            self._timekeeper.doubted()
        self._want(f"{refusing.what} refused: {refusing.reason}", now)

    def _want(self, reason: str, at: float) -> None:
        """Ask for assignment and image metadata at that time, until an assignment is accepted."""
        if not self._wanting:
            self._ask_at = max(self._ask_at, at)
        self._wanting = reason

    def _ask_time(self, now: float) -> None:
        """Ask what time it is when that is due; give up a connection that is for nothing else."""
        question = self._timekeeper.question()
        if question:
            self._request(question)
        if self._asking_until is not None and now >= self._asking_until:
            self._asking_until = None
            self._reconnect()
