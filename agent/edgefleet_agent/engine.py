"""The engine: one thread that owns all state on disk and decides about everything that arrives.

Link, models, trials and timers only put news into its inbox. Rules:

1. A message is untrusted until `trust` or a signed digest has vouched for it (`trusting.judging`
   says when that is looked at); what is refused is reported (`telling`).
2. Nothing that arrives, and no store that cannot be written, ends the thread; what cannot be done
   now is done at a later tick.
3. No slow work here: what hashes, loads or waits runs beside (`work`). The judging of signed
   metadata is the exception: it waits for its child, some tenths of a second, and never longer than
   the watchdog allows (`trusting.refresh`).
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_agent.config import Config
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import AgentError, EnrolmentError, StoreError
from edgefleet_agent.inbox import Inbox
from edgefleet_agent.inference.samples import DailyQuota, SampleDesk, load_redaction
from edgefleet_agent.inference.serving import Model
from edgefleet_agent.inference.sketching import ClosedWindow
from edgefleet_agent.link import (
    CertificateRefused,
    Connected,
    Disconnected,
    Inbound,
    Link,
    Message,
    Oversized,
)
from edgefleet_agent.operating.health import HealthMeter
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.telling import Refusals, States
from edgefleet_agent.trusting.custody import Custody, Kept
from edgefleet_agent.trusting.identity import Identity
from edgefleet_agent.trusting.judging import ATTESTED_TIME, Judging
from edgefleet_agent.trusting.renewal import Ask, in_child
from edgefleet_agent.trusting.timekeeping import Timekeeper
from edgefleet_agent.trusting.trust import ASSIGNMENT, IMAGE_METADATA, Trust
from edgefleet_agent.updating import byhand
from edgefleet_agent.updating.attempts import Attempts
from edgefleet_agent.updating.starts import GOOD_S, Starts
from edgefleet_agent.updating.surroundings import Surroundings
from edgefleet_agent.updating.update import MAX_STARTS
from edgefleet_agent.updating.work import Done
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.messages import (
    Ack,
    Block,
    BlockAnswer,
    Refusal,
    Request,
    Result,
    Samples,
    Slot,
    State,
    TimeAttestation,
)
from edgefleet_protocol.profiles import DeviceProfile

log = logging.getLogger(__name__)

MAX_WAIT_S = 5.0
# At the end, for the owner's redaction of the last samples.
LAST_SAMPLES_S = 2.0


class Fault(Struct, frozen=True):
    """A candidate failed while it served."""

    slot: Slot
    reason: str


class Proven(Struct, frozen=True):
    """The candidate of a lane has served enough rows."""

    key: str
    slot: Slot


class Stop(Struct, frozen=True):
    """End the thread."""


News = Inbound | Done | Kept | ClosedWindow | Samples | Fault | Proven | Stop


class Engine:
    """The decisions of one agent; see `agent.Agent` for the public face."""

    def __init__(
        self,
        config: Config,
        *,
        known: Identity,
        profile: DeviceProfile,
        link: Link,
        slots: Slots,
        outbox: Outbox,
        trust: Trust,
        timekeeper: Timekeeper,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        surroundings: Mapping[str, Any] | None = None,
        alive: Callable[[], None] = lambda: None,
        ask_keyholder: Ask = in_child,
    ) -> None:
        """Put the parts together; nothing runs yet.

        Args:
            config: of the agent.
            known: identity of this device.
            profile: its board, runtimes and memory.
            link: to the hub.
            slots: on disk.
            outbox: on disk.
            trust: on disk.
            timekeeper: what time it is, by the hub.
            clock: Unix seconds.
            monotonic: seconds that never go back.
            surroundings: fields of `surroundings.Surroundings` to replace, for tests.
            alive: called in each turn, for a watchdog.
            ask_keyholder: runs the program that holds the device's keys.
        """
        self._config = config
        self._device = known.hub.device
        self._link = link
        self._outbox = outbox
        self.timekeeper = timekeeper
        self._clock = clock
        self._monotonic = monotonic
        self._health = HealthMeter(config.folder, clock)
        self._inbox: Inbox[News] = Inbox()
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()
        self._listening: set[str] = set()
        self._connected = False
        self._alive = alive
        self._starts = Starts(config.folder, clock)
        self._opened_at = monotonic()
        self._dropped = 0
        around = Surroundings(
            device=profile,
            clock=clock,
            monotonic=monotonic,
            report=self._report,
            deliver=self._inbox.put,
            on_window=self._inbox.put,
            on_proven=lambda key, slot: self._inbox.put(Proven(key, slot)),
            start=_on_a_thread,
        )
        around = msgspec.structs.replace(around, **(surroundings or {}))
        self.custody = Custody(
            config.folder,
            known,
            timekeeper,
            monotonic=monotonic,
            chance=around.chance,
            start=around.start,
            deliver=self._inbox.put,
            reconnect=link.reconnect,
            ask=ask_keyholder,
        )
        self._refusals = Refusals(outbox, self.custody, clock=clock, monotonic=monotonic)
        self._desk = SampleDesk(
            DailyQuota(config.folder, clock),
            load_redaction(config.samples.redact),
            start=around.start,
            deliver=self._inbox.put,
        )
        self.attempts = Attempts(config, slots, self.model, around)
        self._judging = Judging(
            trust,
            timekeeper,
            self.custody,
            self.attempts,
            report=self._refusals.tell,
            request=self._request,
            reconnect=link.reconnect,
            hub_time=self._health.hub_time,
            chance=around.chance,
        )
        self._states = States(
            self._device,
            profile,
            trust,
            self.attempts,
            link,
            boot=self._starts.number,
            heartbeat_s=config.heartbeat_s,
            clock=clock,
        )

    def model(self, name: str) -> Model:
        """Return the place of a model, made on first use. Safe from any thread."""
        with self._models_lock:
            place = self._models.get(name)
            if place is None:
                place = Model(name, lambda slot, why: self._inbox.put(Fault(slot, why)))
                self._models[name] = place
            return place

    def models(self) -> list[str]:
        """Return the names of the models that have a serving release. Safe from any thread."""
        with self._models_lock:
            return sorted(name for name, place in self._models.items() if place.slot is not None)

    def deliver(self, news: Inbound) -> None:
        """Take news from the link. Safe from any thread."""
        self._inbox.put(news, len(news.payload) if isinstance(news, Message) else 0)

    def open(self, wait_s: float = 0.0) -> None:
        """Read what is on disk and serve it.

        Args:
            wait_s: how long to wait for each release that is being loaded. What takes longer
                serves when it is there; nothing else waits for it.
        """
        if self._outbox.damaged:
            self._report(Refusal("outbox", "damaged", self._outbox.damaged))
        if self._starts.damaged:
            self._report(Refusal("store", "damaged", self._starts.damaged))
        self._opened_at = self._monotonic()
        crash_loop = self._starts.in_vain >= MAX_STARTS
        if self.attempts.open(self._opened_at, crash_loop=crash_loop):
            self._starts.forgive()
        while self.attempts.restoring and (news := self._inbox.get(wait_s)) is not None:
            self._guarded(self._handle, news)

    def run(self) -> None:
        """Work until `stop`."""
        going_on = True
        while going_on:
            try:
                wait_s = self._wait_s()
            except Exception:
                log.exception("could not tell what is due next")  # a defect; see `_guarded`
                wait_s = MAX_WAIT_S
            going_on = self.step(wait_s)
        self._finish()

    def step(self, wait_s: float) -> bool:
        """Handle one piece of news if one comes, and everything that is due.

        Returns:
            False when it was told to stop.
        """
        news = self._inbox.get(wait_s)
        self._alive()
        if isinstance(news, Stop):
            return False
        if news is not None:
            self._guarded(self._handle, news)
        self._guarded(self._act_again)
        self._guarded(self._heed_person)
        self._guarded(self._tick)
        return True

    def _guarded(self, act: Callable[..., None], *news: News) -> None:
        """Do something; whatever comes of it, the thread goes on (rule 2)."""
        what = type(news[0]).__name__ if news else "what is due"
        try:
            act(*news)
        except StoreError as error:
            log.error("%s", error)
        except OSError as error:
            log.error("store %s: %s", self._config.folder, error)
        except Exception:
            # A defect in the handling of one piece of news must not end the agent.
            log.exception("could not handle %s", what)

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
            case Connected(asking=True):
                self._judging.connected_for_time(now)
            case Connected():
                self._connected = True
                self._listening.clear()
                self._outbox.reconnected()
                self._judging.connected(now)
                self.attempts.connected(now)
                self._states.connected()
                self.custody.connected(renewed=news.renewed)
            case Disconnected():
                self._connected = False
                self._judging.disconnected()
                self.attempts.disconnected(now)
            case CertificateRefused():
                self.custody.certificate_refused(now)
            case Message():
                self._take(news, now)
            case Oversized():
                text = f"a message of {news.size_bytes} bytes on {news.topic[:200]} was not read"
                self._refuse(_subject(news.topic), "too-large", text)
            case Done():
                self.attempts.take_done(news, now)
            case Kept():
                self._take_kept(news, now)
            case Fault():
                self.attempts.take_fault(news.slot, news.reason, now)
            case Proven():
                self.attempts.take_proven(news.key, news.slot, now)
            case ClosedWindow():
                self._store_window(news)
            case Samples():
                self._outbox.put(news, self._clock())

    def _take(self, message: Message, now: float) -> None:
        """Handle one message of the hub; the topic says what it must be."""
        topic, payload = message.topic, message.payload
        try:
            if topic == topics.down(self._device, "assignment"):
                # An empty message is how a retained one is taken away; nothing signed says so.
                if payload:
                    self._judging.take_assignment(payload, now)
            elif topic.startswith(_META):
                self._judging.take_image_role(topic.removeprefix(_META), payload, now)
            elif topic == topics.down(self._device, "ack"):
                ack = codec.decode(payload, Ack)
                self._outbox.acknowledge(ack.store, ack.numbers)
                if ack.at:
                    self._health.hub_time(ack.at)
            elif topic == topics.down(self._device, "time"):
                self._judging.take_time(codec.decode(payload, TimeAttestation), now)
            elif topic == topics.down(self._device, "blocks") or topic.startswith(_BLOB):
                answer: BlockAnswer = codec.decode(payload, BlockAnswer)  # type: ignore[arg-type]  # a union is a type form
                if isinstance(answer, Block):
                    self.attempts.take_block(answer, now)
                else:
                    self.attempts.take_unavailable(answer, now)
        except ProtocolError as error:
            self._refuse(_subject(topic), "malformed", str(error))

    def _take_kept(self, kept: Kept, now: float) -> None:
        try:
            statement = self.custody.take(kept, now)
        except EnrolmentError as error:
            self._refuse("certificate", "not-renewed", str(error))
            return
        if statement:
            self._outbox.put(statement, self._clock())

    def _heed_person(self) -> None:
        byhand.heed(self._config.folder, self.attempts, self._monotonic())

    def _act_again(self) -> None:
        self._judging.act_again(self._monotonic())

    def _store_window(self, window: ClosedWindow) -> None:
        at = self._clock()
        self._outbox.put(window.pack(self._health.read(self._outbox.dropped)), at)
        if window.chosen:
            self._desk.take(window.slot, window.profile.features, window.chosen)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._monotonic()
        self.attempts.tick(now)
        self._judging.tick(now)
        self._tell_dropped()
        if now - self._opened_at >= GOOD_S:
            self._starts.went_well()
        if not self._connected:
            self.custody.tick(now, None)
            return
        self._listen()
        for request in self.attempts.downloads.requests(now):
            self._request(request)
        for report in self._outbox.due(now):
            self._link.publish(topics.up(self._device, "report"), codec.encode(report))
        self._states.tell(now)
        self.custody.tick(now, self._states.told)

    def _wait_s(self) -> float:
        now = self._monotonic()
        times = [
            now + MAX_WAIT_S,
            self.attempts.next_at(),
            self._judging.next_at(),
            self.custody.next_at(now, swearing=self._states.told is not None),
        ]
        if self._connected:
            times += [self._outbox.next_at(), self._states.next_at()]
        return max(min(at for at in times if at is not None) - now, 0.0)

    def state(self) -> State:
        """Return the state as it would be reported now. For the engine's own thread."""
        return self._states.current()

    # -- to the hub ------------------------------------------------------------------------------

    def _report(self, body: Result | Refusal) -> None:
        if isinstance(body, Refusal):
            self._refusals.tell(body)
        else:
            self._outbox.put(body, self._clock())
            self.custody.swear()

    def _refuse(self, what: str, reason: str, text: str) -> None:
        self._refusals.tell(Refusal(what, reason, text))

    def _request(self, request: Request) -> None:
        self._link.publish(topics.up(self._device, "request"), codec.encode(request))

    def _listen(self) -> None:
        wanted = {topics.fleet_blob(digest) for digest in self.attempts.downloads.wanted_blobs}
        for topic in wanted - self._listening:
            self._link.listen(topic)
        for topic in self._listening - wanted:
            self._link.unlisten(topic)
        self._listening = wanted

    def _tell_dropped(self) -> None:
        dropped = self._inbox.dropped
        if dropped > self._dropped:
            self._dropped = dropped
            text = f"{dropped} messages of the network came faster than they could be read"
            self._refuse("message", "dropped", text)

    def _finish(self) -> None:
        """Close the open windows and store them; then let go of everything."""
        self._starts.went_well()
        for model in self._models.values():
            model.finish()
        self._store_rest()
        if not self._desk.wait(LAST_SAMPLES_S):
            log.warning("redaction of the last samples does not end; they are not sent")
        self._store_rest()
        self.attempts.close()
        self._outbox.close()

    def _store_rest(self) -> None:
        """Store the reports that are still in the inbox; all else in it is over."""
        while (news := self._inbox.get(0)) is not None:
            if isinstance(news, ClosedWindow | Samples):
                try:
                    self._handle(news)
                except AgentError as error:
                    log.error("%s", error)


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
    if topic.endswith("/down/time"):
        return ATTESTED_TIME
    return "message"


def _on_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="work", daemon=True).start()
