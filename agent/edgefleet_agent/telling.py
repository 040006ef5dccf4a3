"""What the hub is told of this device: its state, and what it refused. On the engine's thread.

Rules:

1. State is a full snapshot, sent on connect, on change and every heartbeat. Bytes that have come
   in are no change by themselves: of those it is told every `PROGRESS_S`.
2. Each snapshot that was sent has a sequence of its own, by which the hub drops an older one.
3. The same refusal is told once in `REFUSAL_QUIET_S`, and only so many different ones in that
   time: whoever sends nonsense does not get to fill the outbox.
"""

import logging
from collections.abc import Callable

from msgspec import structs

from edgefleet_agent import __version__
from edgefleet_agent.errors import StoreError
from edgefleet_agent.link import Link
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.trusting.custody import Custody
from edgefleet_agent.trusting.trust import Trust
from edgefleet_agent.updating.attempts import Attempts
from edgefleet_protocol import codec, topics
from edgefleet_protocol.messages import Refusal, Slot, State
from edgefleet_protocol.profiles import DeviceProfile

log = logging.getLogger(__name__)

# An identical refusal is told once in this time.
REFUSAL_QUIET_S = 60.0
_MAX_REFUSALS_REMEMBERED = 256
_MAX_TEXT = 2000
PROGRESS_S = 2.0


class States:
    """The state of one device, told to the hub when it has something new to hear.

    Attributes:
        told: the newest one that was sent on this connection; None if none was.
    """

    def __init__(
        self,
        device: str,
        profile: DeviceProfile,
        trust: Trust,
        attempts: Attempts,
        link: Link,
        *,
        boot: int,
        heartbeat_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Begin with nothing told.

        Args:
            device: this device's id.
            profile: its board, runtimes and memory.
            trust: which assignment it believes.
            attempts: what serves, and what is being done about it.
            link: to the hub.
            boot: number of this start of the agent.
            heartbeat_s: the hub hears it at least so often.
            clock: Unix seconds.
        """
        self._device = device
        self._profile = profile
        self._trust = trust
        self._attempts = attempts
        self._link = link
        self._boot = boot
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._sequence = 0
        self._told_at = 0.0
        self.told: State | None = None

    def connected(self) -> None:
        """Have the hub hear the state anew."""
        self.told = None

    def current(self) -> State:
        """Return the state as it would be told now."""
        attempts = self._attempts
        journals = [journal for _, journal in sorted(attempts.journals.items())]
        standing = {"primary": list[Slot](), "challenger": list[Slot]()}
        for journal in journals:
            slot = attempts.slot(journal)
            if slot:
                standing[journal.lane].append(slot)
        return State(
            device=self._device,
            boot=self._boot,
            sequence=self._sequence,
            at=self._clock(),
            agent_version=__version__,
            board=self._profile.board,
            runtimes=self._profile.runtimes,
            memory_bytes=self._profile.memory_bytes,
            assignment=self._trust.sequence,
            serving=standing["primary"],
            previous=[j.kept.slot for j in journals if j.kept and j.lane == "primary"],
            attempts=attempts.summaries(),
            challengers=standing["challenger"],
        )

    def tell(self, now: float) -> None:
        """Send the state if it is due (rule 1).

        Args:
            now: monotonic seconds.
        """
        fresh = self.current()
        old = self.told
        heartbeat = now - self._told_at >= self._heartbeat_s
        if old is not None and not heartbeat:
            same = structs.replace(fresh, sequence=old.sequence, at=old.at)
            if same == old:
                return
            if _only_progressed(old, same) and now - self._told_at < PROGRESS_S:
                return
        self._sequence += 1
        fresh = structs.replace(fresh, sequence=self._sequence)
        if self._link.publish(topics.up(self._device, "state"), codec.encode(fresh)):
            self.told, self._told_at = fresh, now

    def next_at(self) -> float:
        """Return when the state is due though nothing has changed, monotonic seconds."""
        wait_s = self._heartbeat_s
        if self._attempts.downloads.wanted_blobs:
            wait_s = min(wait_s, PROGRESS_S)
        return self._told_at + wait_s


class Refusals:
    """What was refused, told to the hub and noted for the device's next statement."""

    def __init__(
        self,
        outbox: Outbox,
        custody: Custody,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Begin with nothing refused.

        Args:
            outbox: takes what is told.
            custody: swears to it.
            clock: Unix seconds.
            monotonic: seconds that never go back.
        """
        self._outbox = outbox
        self._custody = custody
        self._clock = clock
        self._monotonic = monotonic
        # What, reason and digest of a refusal → when it was told, monotonic seconds.
        self._told: dict[tuple[str, str, str], float] = {}

    def tell(self, refusal: Refusal) -> None:
        """Report a refusal, unless the same one was reported a moment ago (rule 3)."""
        now = self._monotonic()
        key = (refusal.what, refusal.reason, refusal.digest)
        for old in [k for k, at in self._told.items() if now - at >= REFUSAL_QUIET_S]:
            del self._told[old]
        if key in self._told or len(self._told) >= _MAX_REFUSALS_REMEMBERED:
            return
        self._told[key] = now
        log.warning("refused %s (%s): %s", refusal.what, refusal.reason, refusal.text)
        self._custody.refused(refusal.what, refusal.reason)
        short = structs.replace(refusal, text=refusal.text[:_MAX_TEXT])
        try:
            self._outbox.put(short, self._clock())
        except StoreError as error:
            # What was refused stays refused, whether or not the hub hears of it.
            log.error("%s", error)


def _only_progressed(old: State, new: State) -> bool:
    """Tell whether nothing but received bytes differs."""
    still, moved = (
        [structs.replace(attempt, received_bytes=0, total_bytes=0) for attempt in state.attempts]
        for state in (old, new)
    )
    return still == moved and structs.replace(old, attempts=[]) == structs.replace(new, attempts=[])
