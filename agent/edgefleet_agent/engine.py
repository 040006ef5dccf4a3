"""The engine: one thread that owns all state on disk and decides about everything that arrives.

Link, models, trials and timers only put news into its inbox. Rules:

1. A message is untrusted until `trust` or a signed digest has vouched for it; what is refused is
   reported, the same thing at most once a minute, and the hub is asked to say it again.
2. State is a full snapshot, sent on connect, on change and every heartbeat.
3. Nothing that arrives, and no full disk, ends the thread; what cannot be done now is done at the
   next tick.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_agent import __version__, files
from edgefleet_agent.attempts import Attempts, Done, Surroundings
from edgefleet_agent.config import Config
from edgefleet_agent.errors import AgentError, StoreError
from edgefleet_agent.health import HealthMeter
from edgefleet_agent.inbox import Inbox
from edgefleet_agent.link import Connected, Disconnected, Inbound, Link, Message, Oversized
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.serving import Model
from edgefleet_agent.sketching import ClosedWindow
from edgefleet_agent.slots import Slots
from edgefleet_agent.trust import ASSIGNMENT, IMAGE_METADATA, MetadataRefusedError, Trust, Waiting
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import ProtocolError, RefusedError
from edgefleet_protocol.messages import (
    Ack,
    Block,
    BlockAnswer,
    Refusal,
    Request,
    Result,
    Slot,
    State,
    SyncRequest,
)
from edgefleet_protocol.profiles import DeviceProfile

log = logging.getLogger(__name__)

# An identical refusal is told once in this time.
REFUSAL_QUIET_S = 60.0
_MAX_REFUSALS_REMEMBERED = 256
# How long to wait for the rest of a publication before asking, and between two questions.
ASK_AFTER_S = 3.0
ASK_AGAIN_S = 10.0
LAST_ASK_AGAIN_S = 600.0
# Between two looks at metadata that is not complete yet.
JUDGE_AGAIN_S = 1.0
PROGRESS_S = 2.0
MAX_WAIT_S = 5.0
_INCOMPLETE = "waiting for the rest of the metadata"


class Fault(Struct, frozen=True):
    """A candidate failed while it served."""

    slot: Slot
    reason: str


class Proven(Struct, frozen=True):
    """A candidate has served enough rows."""

    slot: Slot


class Stop(Struct, frozen=True):
    """End the thread."""


class _Boots(Struct, frozen=True):
    count: int
    format: int = 1


News = Inbound | Done | ClosedWindow | Fault | Proven | Stop


class Engine:
    """The decisions of one agent; see `agent.Agent` for the public face."""

    def __init__(
        self,
        config: Config,
        *,
        device: str,
        profile: DeviceProfile,
        link: Link,
        slots: Slots,
        outbox: Outbox,
        trust: Trust,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        surroundings: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the parts together; nothing runs yet.

        Args:
            config: of the agent.
            device: this device's id.
            profile: its board, runtimes and memory.
            link: to the hub.
            slots: on disk.
            outbox: on disk.
            trust: on disk.
            clock: Unix seconds.
            monotonic: seconds that never go back.
            surroundings: fields of `attempts.Surroundings` to replace, for tests.
        """
        self._config = config
        self._device = device
        self._profile = profile
        self._link = link
        self._slots = slots
        self._outbox = outbox
        self._trust = trust
        self._clock = clock
        self._monotonic = monotonic
        self._health = HealthMeter(config.folder)
        self._inbox: Inbox[News] = Inbox()
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()
        self._refused: dict[tuple[str, str, str], float] = {}
        self._listening: set[str] = set()
        self._connected = False
        self._boot = _next_boot(config.folder)
        self._sequence = 0
        self._state: State | None = None
        self._state_at = 0.0
        self._judge_at: float | None = None
        self._wanting = ""
        self._ask_at = 0.0
        self._ask_again_s = ASK_AGAIN_S
        around = Surroundings(
            device=profile,
            clock=clock,
            report=self._report,
            deliver=self._inbox.put,
            on_window=self._inbox.put,
            on_proven=lambda slot: self._inbox.put(Proven(slot)),
            start=_on_a_thread,
        )
        around = msgspec.structs.replace(around, **(surroundings or {}))
        self.attempts = Attempts(config, slots, self.model, around)

    def model(self, name: str) -> Model:
        """Return the place of a model, made on first use. Safe from any thread."""
        with self._models_lock:
            place = self._models.get(name)
            if place is None:
                place = Model(name, lambda slot, why: self._inbox.put(Fault(slot, why)))
                self._models[name] = place
            return place

    def deliver(self, news: Inbound) -> None:
        """Take news from the link. Safe from any thread."""
        self._inbox.put(news, len(news.payload) if isinstance(news, Message) else 0)

    def open(self) -> None:
        """Read what is on disk and serve it."""
        if self._outbox.damaged:
            self._report(Refusal("outbox", "damaged", self._outbox.damaged))
        self.attempts.open(self._monotonic())

    def run(self) -> None:
        """Work until `stop`."""
        while self.step(self._wait_s()):
            pass
        self._finish()

    def step(self, wait_s: float) -> bool:
        """Handle one piece of news if one comes, and everything that is due.

        Returns:
            False when it was told to stop.
        """
        news = self._inbox.get(wait_s)
        if isinstance(news, Stop):
            return False
        try:
            if news is not None:
                self._handle(news)
            self._tick()
        except StoreError as error:
            log.error("%s", error)
        except OSError as error:
            log.error("store %s: %s", self._config.folder, error)
        except Exception:
            # A defect in the handling of one piece of news must not end the agent.
            log.exception("could not handle %s", type(news).__name__)
        return True

    @property
    def has_news(self) -> bool:
        """Whether something waits to be handled."""
        return bool(self._inbox)

    def stop(self) -> None:
        """End `run`. Safe from any thread."""
        self._inbox.put(Stop())

    # -- news ------------------------------------------------------------------------------------

    def _handle(self, news: News) -> None:
        now = self._monotonic()
        match news:
            case Connected():
                self._connected = True
                self._listening.clear()
                self._outbox.reconnected()
                self.attempts.connected(now)
                self._state = None  # the hub hears the state anew
                self._ask_at = now + ASK_AFTER_S  # retained messages come by themselves
            case Disconnected():
                self._connected = False
                self.attempts.disconnected()
            case Message():
                self._take(news, now)
            case Oversized():
                text = f"a message of {news.size_bytes} bytes on {news.topic[:200]} was not read"
                self._refuse(_subject(news.topic), "too-large", text)
            case Done():
                self.attempts.take_done(news, now)
            case Fault():
                self.attempts.take_fault(news.slot, news.reason, now)
            case Proven():
                self.attempts.take_proven(news.slot, now)
            case ClosedWindow():
                self._store_window(news)

    def _take(self, message: Message, now: float) -> None:
        """Handle one message of the hub; the topic says what it must be."""
        topic, payload = message.topic, message.payload
        try:
            if topic == topics.down(self._device, "assignment"):
                # An empty message is how a retained one is taken away; nothing signed says so.
                if payload:
                    self._trust.take_assignment(payload)
                    self._judge(now)
            elif topic.startswith(_META):
                self._trust.take_image_role(topic.removeprefix(_META), payload)
                self._judge(now)
            elif topic == topics.down(self._device, "ack"):
                ack = codec.decode(payload, Ack)
                self._outbox.acknowledge(ack.store, ack.numbers)
            elif topic == topics.down(self._device, "blocks") or topic.startswith(_BLOB):
                answer: BlockAnswer = codec.decode(payload, BlockAnswer)  # type: ignore[arg-type]  # a union is a type form
                if isinstance(answer, Block):
                    self.attempts.take_block(answer, now)
                else:
                    self.attempts.take_unavailable(answer, now)
        except MetadataRefusedError as refusing:
            self._refuse_metadata(refusing, now)
        except ProtocolError as error:
            self._refuse(_subject(topic), "malformed", str(error))

    def _judge(self, now: float) -> None:
        floors = {model: journal.floor for model, journal in self.attempts.journals.items()}
        self._judge_at = None
        verdict = self._trust.judge(now, floors)
        if verdict is None:
            if self._wanting == _INCOMPLETE:
                self._wanting = ""
            return
        if isinstance(verdict, Waiting):
            log.debug("waiting: %s", verdict.reason)
            self._judge_at = now + JUDGE_AGAIN_S
            self._want(_INCOMPLETE, now + ASK_AFTER_S)
            return
        try:
            self.attempts.check(verdict.targets)
        except RefusedError as error:
            self._refuse_metadata(
                MetadataRefusedError(ASSIGNMENT, error.reason, str(error), ""), now
            )
            return
        self._wanting, self._ask_again_s = "", ASK_AGAIN_S
        self.attempts.apply(verdict.targets, now)

    def _refuse_metadata(self, refusing: MetadataRefusedError, now: float) -> None:
        self._refuse(refusing.what, refusing.reason, str(refusing), refusing.digest)
        self._want(f"{refusing.what} refused: {refusing.reason}", now)

    def _want(self, reason: str, at: float) -> None:
        """Ask for assignment and image metadata at that time, until an assignment is accepted."""
        if not self._wanting:
            self._ask_at = max(self._ask_at, at)
        self._wanting = reason

    def _store_window(self, window: ClosedWindow) -> None:
        at = self._clock()
        self._outbox.put(window.pack(self._health.read()), at)
        for samples in window.samples:
            self._outbox.put(samples, at)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._monotonic()
        self.attempts.tick(now)
        self._settle_trust(now)
        if not self._connected:
            return
        self._listen()
        for request in self.attempts.requests(now):
            self._request(request)
        for report in self._outbox.due(now):
            self._link.publish(topics.up(self._device, "report"), codec.encode(report))
        self._publish_state(now)

    def _settle_trust(self, now: float) -> None:
        if self._judge_at is not None and now >= self._judge_at:
            try:
                self._judge(now)
            except MetadataRefusedError as refusing:
                self._refuse_metadata(refusing, now)
        if self._wanting and self._connected and now >= self._ask_at:
            self._request(SyncRequest(self._wanting))
            self._ask_at = now + self._ask_again_s
            self._ask_again_s = min(self._ask_again_s * 2, LAST_ASK_AGAIN_S)

    def _wait_s(self) -> float:
        now = self._monotonic()
        times = [now + MAX_WAIT_S, self.attempts.next_at()]
        times.append(self._judge_at)
        if self._connected:
            times.append(self._ask_at if self._wanting else None)
            times.append(self._outbox.next_at())
            times.append(self._state_at + self._config.heartbeat_s)
            if self.attempts.wanted_blobs:
                times.append(self._state_at + PROGRESS_S)
        return max(min(at for at in times if at is not None) - now, 0.0)

    def _publish_state(self, now: float) -> None:
        fresh = self.state()
        old = self._state
        heartbeat = now - self._state_at >= self._config.heartbeat_s
        if old is not None and not heartbeat:
            same = msgspec.structs.replace(fresh, sequence=old.sequence, at=old.at)
            if same == old:
                return
            if _only_progressed(old, same) and now - self._state_at < PROGRESS_S:
                return
        self._sequence += 1
        fresh = msgspec.structs.replace(fresh, sequence=self._sequence)
        if self._link.publish(topics.up(self._device, "state"), codec.encode(fresh)):
            self._state, self._state_at = fresh, now

    def state(self) -> State:
        """Return the state as it would be reported now. For the engine's own thread."""
        journals = sorted(self.attempts.journals.values(), key=lambda journal: journal.model)
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
            serving=[slot for slot in (self.model(j.model).slot for j in journals) if slot],
            previous=[j.kept.slot for j in journals if j.kept],
            attempts=self.attempts.summaries(),
        )

    # -- to the hub ------------------------------------------------------------------------------

    def _report(self, body: Result | Refusal) -> None:
        if isinstance(body, Refusal):
            self._refuse(body.what, body.reason, body.text, body.digest)
        else:
            self._outbox.put(body, self._clock())

    def _refuse(self, what: str, reason: str, text: str, digest: str = "") -> None:
        """Report a refusal, unless the same one was reported a moment ago."""
        now = self._monotonic()
        key = (what, reason, digest)
        for old in [k for k, at in self._refused.items() if now - at >= REFUSAL_QUIET_S]:
            del self._refused[old]
        if key in self._refused or len(self._refused) >= _MAX_REFUSALS_REMEMBERED:
            return
        self._refused[key] = now
        log.warning("refused %s (%s): %s", what, reason, text)
        self._outbox.put(Refusal(what, reason, text[:2000], digest), self._clock())

    def _request(self, request: Request) -> None:
        self._link.publish(topics.up(self._device, "request"), codec.encode(request))

    def _listen(self) -> None:
        wanted = {topics.fleet_blob(digest) for digest in self.attempts.wanted_blobs}
        for topic in wanted - self._listening:
            self._link.listen(topic)
        for topic in self._listening - wanted:
            self._link.unlisten(topic)
        self._listening = wanted

    def _finish(self) -> None:
        """Close the open windows and store them; then let go of everything."""
        for model in self._models.values():
            model.finish()
        while (news := self._inbox.get(0)) is not None:
            if isinstance(news, ClosedWindow):
                try:
                    self._store_window(news)
                except AgentError as error:
                    log.error("%s", error)
        self.attempts.close()
        self._outbox.close()


_META = topics.FLEET_META_ALL.removesuffix("+")
_BLOB = f"{topics.PREFIX}/fleet/blob/"


def _subject(topic: str) -> str:
    """Return what a message on `topic` would have been."""
    if topic.startswith(_META):
        return IMAGE_METADATA
    if topic.endswith("/down/assignment"):
        return ASSIGNMENT
    if topic.endswith("/down/blocks") or topic.startswith(_BLOB):
        return "artifact block"
    return "message"


def _only_progressed(old: State, new: State) -> bool:
    """Tell whether nothing but received bytes differs."""
    still = [
        msgspec.structs.replace(attempt, received_bytes=0, total_bytes=0)
        for attempt in old.attempts
    ]
    moved = [
        msgspec.structs.replace(attempt, received_bytes=0, total_bytes=0)
        for attempt in new.attempts
    ]
    return still == moved and msgspec.structs.replace(old, attempts=[]) == msgspec.structs.replace(
        new, attempts=[]
    )


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="work", daemon=True).start()


def _next_boot(folder: Path) -> int:
    """Count this opening of the store, durably."""
    path = folder / "boots.json"
    count = 0
    if path.exists():
        try:
            count = msgspec.json.decode(path.read_bytes(), type=_Boots).count
        except msgspec.DecodeError as error:
            raise StoreError(f"{path} is damaged ({error}); delete it to go on") from error
    files.replace(path, msgspec.json.encode(_Boots(count + 1)))
    return count + 1
