"""The device's certificate kept current, and its statements sworn; part of the engine's thread.

What takes time or a key is asked of `renewal.in_child` beside the engine's thread, one thing at a
time, and comes back as `Kept`. Rules:

1. A certificate is renewed when `renewal` says that it is due, or when the broker does not take it
   (its authority may have been retired): renewal goes over HTTPS and asks for no certificate, so
   one that has expired is renewed in the same way.
2. A renewed certificate takes the place of the one before when the hub has granted a connection
   with it, and not earlier (`identity`).
3. Authorities of the hub are trusted only as the verified image metadata lists them.
4. A statement is sworn after each update that has ended, after a refusal, after enrolment and
   renewal, when the authorities have changed, and once a day; and only on a state that has been
   published, so that the hub can compare the two.
5. The counter is on disk before a statement is signed: no two statements ever have the same one.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_agent import files
from edgefleet_agent.errors import AgentError, EnrolmentError, StoreError
from edgefleet_agent.trusting import identity, renewal
from edgefleet_agent.trusting.renewal import Answer, Ask, Facts, Look, Renew, Sign
from edgefleet_agent.trusting.timekeeping import Timekeeper
from edgefleet_protocol import statements
from edgefleet_protocol.messages import Attested, State
from edgefleet_protocol.statements import DeviceStatement

log = logging.getLogger(__name__)

SWEAR_EVERY_S = 86_400.0
# Refusals can be brought about from outside; statements of them do not follow each other faster.
REFUSAL_PAUSE_S = 60.0
# Between two tries after a failure that is not the hub's.
AGAIN_S = 300.0
MAX_ATTACK_TEXT = 2000
COUNTER = "statement.json"


class Kept(Struct, frozen=True):
    """The child has ended: what it was asked, and its answer."""

    request: renewal.Request
    answer: Answer


class _Counter(Struct, frozen=True):
    counter: int = 0
    format: int = 1


class Custody:
    """What an agent does with its own identity while it runs. Used by one thread."""

    def __init__(
        self,
        store: Path,
        known: identity.Identity,
        timekeeper: Timekeeper,
        *,
        monotonic: Callable[[], float],
        chance: Callable[[], float],
        start: Callable[[Callable[[], None]], None],
        deliver: Callable[[Kept], None],
        reconnect: Callable[[], None],
        ask: Ask = renewal.in_child,
    ) -> None:
        """Read the counter; nothing is asked yet.

        Args:
            store: of the agent.
            known: identity of the device.
            timekeeper: what time it is, and the hub's newest challenge.
            monotonic: seconds that never go back.
            chance: a random number in [0, 1).
            start: runs a piece of work beside this thread.
            deliver: queues a `Kept` for this thread.
            reconnect: has the link connect anew.
            ask: runs the program that holds the keys.
        """
        self._known = known
        self._counter_path = store / "trust" / COUNTER
        self._timekeeper = timekeeper
        self._monotonic = monotonic
        self._chance = chance
        self._start = start
        self._deliver = deliver
        self._reconnect = reconnect
        self._ask = ask
        counter, complaint = files.read_kept(self._counter_path, _decode)
        if complaint:
            log.error("counter of statements: %s", complaint)
        self._counter = counter or _Counter()
        self._facts: Facts | None = None
        self._busy = False
        self._stale, self._look_at = True, 0.0  # whether `_facts` has to be read anew
        self._renew_at: float | None = None  # Unix seconds, by the certificate
        self._try_at = 0.0
        self._failures = 0
        self._refusals = 0  # of the certificate by the broker, since it was granted a connection
        self._swear_at: float | None = 0.0
        self._sworn_at: float | None = None
        self._attacks: dict[str, None] = {}

    def connected(self, *, renewed: bool) -> None:
        """Note that the hub has granted a connection.

        Args:
            renewed: with the certificate that is to take the place of the one before.

        Raises:
            StoreError: if the files cannot be moved; both certificates are still there then.
        """
        self._refusals = 0
        if renewed:
            identity.promote(self._known.folder)
            log.info("the hub has taken the renewed certificate; the one before is no longer used")
            self.swear()

    def certificate_refused(self, now: float) -> None:
        """Note that the broker does not take the certificate: renew it, if nothing else helps.

        Args:
            now: monotonic seconds.
        """
        if self._busy or self._is_renewal_due():
            return
        self._refusals += 1
        if self._refusals > 1:
            wait_s = renewal.pause_s(self._refusals - 1, refused=True, chance=self._chance())
            self._try_at = max(self._try_at, now + wait_s)
        self._renew_at = 0.0

    def swear(self) -> None:
        """Have a statement sworn on the next state that is published."""
        self._swear_at = self._monotonic()

    def refused(self, what: str, reason: str) -> None:
        """Note something that was refused, for the next statement."""
        self._attacks[f"{what}: {reason}"] = None
        soon = self._monotonic()
        if self._sworn_at is not None:
            soon = max(soon, self._sworn_at + REFUSAL_PAUSE_S)
        self._swear_at = soon if self._swear_at is None else min(self._swear_at, soon)

    def adopt(self, authorities: list[str]) -> None:
        """Trust the hub's authorities as verified image metadata lists them.

        Raises:
            EnrolmentError: if the list cannot be used; the ones before are kept.
            StoreError: if it cannot be written.
        """
        if identity.adopt(self._known.folder, authorities):
            log.info("the hub's authorities have changed; %d are trusted now", len(authorities))
            self._stale = True
            self.swear()

    def tick(self, now: float, state: State | None) -> None:
        """Begin what is due, if nothing is under way.

        Args:
            now: monotonic seconds.
            state: as it was published last; None while the hub has none of this connection.

        Raises:
            StoreError: if the counter cannot be written.
        """
        if self._busy:
            return
        if self._stale:
            if now >= self._look_at:
                self._stale = False
                self._do(Look(str(self._known.folder)))
        elif self._is_renewal_due() and now >= self._try_at:
            hub, without = self._known.hub, not self._timekeeper.dates_checkable()
            self._do(Renew(str(self._known.folder), hub.api_url, hub.device, without))
        elif self._facts and state and self._swear_at is not None and now >= self._swear_at:
            self._swear_at = now + AGAIN_S  # should the counter not be written
            statement = self._statement(self._facts, state)
            # What is wanted or refused from now on is for the next one.
            self._swear_at, self._attacks = None, {}
            self._do(Sign(str(self._known.folder), statements.signed_statement(statement)))

    def take(self, kept: Kept, now: float) -> Attested | None:
        """Take what the child has answered; return a statement that is to be reported.

        Raises:
            EnrolmentError: the hub refuses to renew the certificate.
        """
        self._busy = False
        answer = kept.answer
        match kept.request:
            case Look():
                self._took_look(answer, now)
            case Renew():
                self._took_renewal(answer, now)
            case Sign():
                self._sworn_at = now
                again_s = AGAIN_S if answer.failure else SWEAR_EVERY_S
                self._swear_at = now + again_s if self._swear_at is None else self._swear_at
                if not answer.failure:
                    data = kept.request.data.removeprefix(statements.signed_statement(b""))
                    return Attested(data, answer.signature)
                # Nothing was said with this counter, and a gap would be taken for a lost statement.
                self._counter = _Counter(self._counter.counter - 1)
                log.error("no statement could be signed: %s", answer.text)
        return None

    def next_at(self, now: float, *, swearing: bool) -> float | None:
        """Return when something may be due, monotonic seconds; None while the child runs.

        Args:
            now: monotonic seconds.
            swearing: whether there is a published state to swear on.
        """
        if self._busy:
            return None
        if self._stale:
            return self._look_at
        times = [self._swear_at] if swearing and self._swear_at is not None else []
        if self._renew_at is not None:
            left_s = max(self._renew_at - self._timekeeper.instant().at, 0.0)
            times.append(max(now + left_s, self._try_at))
        return min(times, default=None)

    def _do(self, request: renewal.Request) -> None:
        def work() -> None:
            try:
                answer = self._ask(request)
            except AgentError as error:
                answer = Answer("store", str(error))
            self._deliver(Kept(request, answer))

        self._busy = True
        self._start(work)

    def _is_renewal_due(self) -> bool:
        return self._renew_at is not None and self._timekeeper.instant().at >= self._renew_at

    def _took_look(self, answer: Answer, now: float) -> None:
        if answer.facts is None:
            log.error("the device's identity cannot be used: %s", answer.text)
            self._stale, self._look_at = True, now + AGAIN_S
            return
        self._note(answer.facts)

    def _note(self, facts: Facts) -> None:
        self._facts = facts
        self._renew_at = renewal.due_at(facts, self._chance())

    def _took_renewal(self, answer: Answer, now: float) -> None:
        if answer.facts is not None:
            self._failures = 0
            self._note(answer.facts)
            log.info("the certificate has been renewed; connecting with the new one")
            self._reconnect()
            return
        self._failures += 1
        refused = answer.failure == "refused"
        wait_s = renewal.pause_s(self._failures, refused=refused, chance=self._chance())
        self._try_at = now + wait_s
        log.warning("certificate not renewed, again in %.0f s: %s", wait_s, answer.text)
        if refused:
            raise EnrolmentError(answer.text)

    def _statement(self, facts: Facts, state: State) -> bytes:
        counter = _Counter(self._counter.counter + 1)
        try:
            files.write_kept(self._counter_path, msgspec.json.encode(counter))
        except OSError as error:
            raise StoreError(f"counter of statements cannot be written: {error}") from error
        self._counter = counter
        now = self._timekeeper.instant()
        fields: dict[str, Any] = {
            name: getattr(state, name)
            for name in ("device", "assignment", "serving", "previous", "boot", "sequence")
        }
        return msgspec.msgpack.encode(
            DeviceStatement(
                counter=counter.counter,
                at=now.at,
                challenge=self._timekeeper.challenge,
                time_attested=now.attested,
                attack="; ".join(self._attacks)[:MAX_ATTACK_TEXT],
                agent_version=state.agent_version,
                authorities=facts.authorities,
                certificate=facts.serial,
                **fields,
            )
        )


def _decode(data: bytes) -> _Counter:
    return msgspec.json.decode(data, type=_Counter)
