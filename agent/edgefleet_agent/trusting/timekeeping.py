"""What time it is, for a device whose own clock may be wrong by years (docs/adr/0010).

Rules:

1. The hub attests the time in answer to a random nonce (`protocol.attesting`). From then on, time
   is what was attested plus what the monotonic clock has counted since, and what the machine has
   slept: the system clock has no say, and may be set by whom it likes.
2. Until then, in each process, it is the system clock, but never before the floor.
3. The floor is the latest time ever attested to this device, on disk, and never before the day on
   which this agent was made. It does not go back, but for one reason: an attestation by a key that
   the director's root names replaces a floor that came from a key that it names no more. So whoever
   stole that key and attested a time far ahead has not locked the device out for good.
4. Only one answer to the newest question is looked at, right or wrong, and only within `ANSWER_S`:
   held back longer, it would tell a time that has passed. Each look is a process, so whoever forges
   answers is held to the pace of the questions.
5. The dates of certificates are checked by the system clock: TLS has no other. They are left out
   where it is known to be wrong, before the floor or more than `CLOCK_ERROR_S` away from the
   attested time. That costs what expiry protects: a certificate of the hub that was stolen long ago
   is taken until the clock is right. What is signed does not depend on TLS. Before the time is
   attested, a clock that is years ahead cannot be told from a right one: then dates are tried, and
   where they fail the time is asked, on a connection for nothing else (`link`, rule 6).
"""

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from edgefleet_agent import files
from edgefleet_agent.trusting import refresh
from edgefleet_protocol import attesting
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.messages import TimeAttestation, TimeRequest

log = logging.getLogger(__name__)

# 2026-06-01, before which no agent of this version was built.
BUILT_AT = 1_780_272_000.0
ASK_EVERY_S = 3600.0
# Between two questions while none is answered.
ASK_AGAIN_S, LAST_ASK_AGAIN_S = 30.0, 600.0
ANSWER_S = 60.0
# How far the system clock may be off before the dates of certificates are left out.
CLOCK_ERROR_S = 86_400.0
FILE = "time.json"
# OpenSSL's words for a certificate that is not valid yet, and not any more.
_X509_V_ERR_DATES = (9, 10)
# OpenSSL's flag for a verification without dates; `ssl` has no name for it.
_X509_V_FLAG_NO_CHECK_TIME = 0x200000


Dates = Literal["check", "try", "skip"]


class Instant(Struct, frozen=True):
    """A time to judge by.

    Attributes:
        at: Unix seconds.
        attested: whether the hub has attested it to this process.
    """

    at: float
    attested: bool


class _Floor(Struct, frozen=True):
    at: float = 0.0
    keyid: str = ""
    format: int = 1


class Timekeeper:
    """The time of one device. Used by one thread, but for `dates`."""

    def __init__(
        self,
        folder: Path,
        device: str,
        director_root: bytes,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        nonce: Callable[[int], bytes],
        slept: Callable[[], float] = lambda: 0.0,
        check: refresh.CheckTime = refresh.time_in_child,
    ) -> None:
        """Read the floor.

        Args:
            folder: `trust` in the store.
            device: this device's id.
            director_root: version 1 of the director's root, from enrolment.
            clock: the system's, Unix seconds.
            monotonic: seconds that never go back.
            nonce: gives so many random bytes.
            slept: seconds that the machine was suspended for, which `monotonic` does not count.
            check: verifies the signature of an attestation.
        """
        self._path = folder / FILE
        self._director = folder / "director"
        self._device = device
        self._director_root = director_root
        self._clock = clock
        self._monotonic = monotonic
        self._nonce = nonce
        self._slept = slept
        self._check = check
        kept, complaint = files.read_kept(self._path, _decode)
        if complaint:
            log.error("time floor: %s", complaint)
        self._floor = kept or _Floor()
        # The time, and what had passed when it came.
        self._attested: tuple[float, float] | None = None
        self._asked: tuple[bytes, float] | None = None
        self._asked_at: float | None = None
        self._ask_at = 0.0
        self._again_s = ASK_AGAIN_S
        self.challenge = b""

    def instant(self) -> Instant:
        """Return the time (rules 1 to 3)."""
        if self._attested:
            at, since = self._attested
            return Instant(at + self._passed() - since, attested=True)
        return Instant(max(self._clock(), self._floor.at, BUILT_AT), attested=False)

    def dates(self) -> Dates:
        """Tell whether dates of certificates are to be checked (rule 5). Safe from any thread."""
        now, attested = self._clock(), self._attested
        if attested:
            error_s = now - (attested[0] + self._passed() - attested[1])
            return "check" if abs(error_s) <= CLOCK_ERROR_S else "skip"
        return "try" if now >= max(self._floor.at, BUILT_AT) - CLOCK_ERROR_S else "skip"

    def dates_checkable(self) -> bool:
        """Tell whether dates are checked, if only to see whether they fit. Safe from any thread."""
        return self.dates() != "skip"

    def connected(self) -> None:
        """Ask at once, if the last attestation is not fresh."""
        self._again_s = ASK_AGAIN_S
        if self._attested is None:
            self._ask_at = self._monotonic()

    def doubted(self) -> None:
        """Ask soon: something has expired that came just now, so the time may be wrong."""
        asked_at = self._asked_at if self._asked_at is not None else -ASK_AGAIN_S
        self._ask_at = min(self._ask_at, max(self._monotonic(), asked_at + ASK_AGAIN_S))

    def next_at(self) -> float:
        """Return the monotonic time of the next question."""
        return self._ask_at

    def question(self) -> TimeRequest | None:
        """Return the next question to send, None if none is due."""
        now = self._monotonic()
        if now < self._ask_at:
            return None
        nonce = self._nonce(attesting.NONCE_BYTES)
        self._asked, self._asked_at = (nonce, now), now
        self._ask_at = now + self._again_s
        self._again_s = min(self._again_s * 2, LAST_ASK_AGAIN_S)
        return TimeRequest(nonce)

    def take(self, answer: TimeAttestation, roots: list[bytes]) -> None:
        """Believe an attested time, if its signature and all else is right.

        Args:
            answer: as it arrived.
            roots: of the director, as the newest assignment brought them.

        Raises:
            RefusedError: `replay`, `wrong-device`, `bad-signature` or `expired`.
            MalformedError: if it cannot be read.
            StoreError: if it could not be verified.
        """
        now = self._monotonic()
        if self._asked is None or now - self._asked[1] > ANSWER_S:
            raise RefusedError("replay", "an attested time came that nobody asked for")
        # Cheap checks first; the nonce is a secret of this device and the broker.
        statement = attesting.read_time(answer.statement, self._device, self._asked[0])
        self._asked = None
        verdict = self._check(
            refresh.TimeCheck(
                str(self._director),
                self._director_root,
                roots,
                answer.statement,
                answer.keyid,
                answer.signature,
            )
        )
        if verdict.fault in ("unsigned", "expired"):
            reason = "bad-signature" if verdict.fault == "unsigned" else "expired"
            raise RefusedError(reason, f"attested time refused: {verdict.text}")
        if verdict.fault:
            raise MalformedError(f"attested time: {verdict.text}")
        self._believe(statement, answer.keyid, verdict.keyids, now)

    def _passed(self) -> float:
        return self._monotonic() + self._slept()

    def _believe(
        self, statement: attesting.TimeStatement, keyid: str, keyids: list[str], now: float
    ) -> None:
        at = statement.at
        if self._floor.keyid in keyids:
            at = max(at, self._floor.at)
        floor = _Floor(at, keyid if at == statement.at else self._floor.keyid)
        first = self._attested is None
        self._floor, self._attested = floor, (max(at, BUILT_AT), self._passed())
        self.challenge = statement.challenge
        self._ask_at, self._again_s = now + ASK_EVERY_S, ASK_AGAIN_S
        error_s = self._clock() - at
        if abs(error_s) > CLOCK_ERROR_S:
            log.warning("this device's clock is wrong by %.1f days; set it", error_s / 86_400)
        elif first:
            log.info("the hub attests the time; this device's clock is off by %.1f s", error_s)
        try:
            files.write_kept(self._path, msgspec.json.encode(floor))
        except OSError as error:
            # The time counts now all the same: the floor is for the start after this one.
            log.error("time floor cannot be written: %s", error)


def slept_s() -> float:
    """Return how long this machine has been suspended since it started, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def relax_dates(context: ssl.SSLContext) -> None:
    """Have a TLS context leave out the dates of certificates, and nothing else (rule 5)."""
    context.verify_flags |= ssl.VerifyFlags(_X509_V_FLAG_NO_CHECK_TIME)


def is_of_dates(error: ssl.SSLError) -> bool:
    """Tell whether a handshake failed for the dates of the other side's certificate."""
    return isinstance(error, ssl.SSLCertVerificationError) and (
        error.verify_code in _X509_V_ERR_DATES
    )


def _decode(data: bytes) -> _Floor:
    return msgspec.json.decode(data, type=_Floor)
