"""The engine: one thread that owns all state on disk and decides about everything that arrives.

Link, models, trials and timers only put news into its inbox. Rules:

1. A message is untrusted until `trust` or a signed digest has vouched for it; what is refused is
   reported, the same thing at most once a minute, and the hub is asked to say it again.
2. State is a full snapshot, sent on connect, on change and every heartbeat.
3. Nothing that arrives, and no store that cannot be written, ends the thread; what cannot be done
   now is done at a later tick.
4. An assignment that was believed is acted on until all of it is on disk.
5. No slow work here: what hashes, loads or waits runs beside (`work`). The judging of signed
   metadata is the exception: it waits for its child, some tenths of a second, and never longer than
   the watchdog allows (`trusting.refresh`).
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edgefleet_agent import __version__
from edgefleet_agent.config import Config
from edgefleet_agent.downloading.slots import Slots
from edgefleet_agent.errors import AgentError, EnrolmentError, StoreError, TransitionError
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
from edgefleet_agent.trusting.custody import Custody, Kept
from edgefleet_agent.trusting.identity import Identity
from edgefleet_agent.trusting.renewal import Ask, in_child
from edgefleet_agent.trusting.timekeeping import Timekeeper
from edgefleet_agent.trusting.trust import (
    ASSIGNMENT,
    IMAGE_METADATA,
    MetadataRefusedError,
    Trust,
    Waiting,
)
from edgefleet_agent.updating import byhand
from edgefleet_agent.updating.attempts import Attempts
from edgefleet_agent.updating.journal import Assigned
from edgefleet_agent.updating.starts import GOOD_S, Starts
from edgefleet_agent.updating.surroundings import Surroundings
from edgefleet_agent.updating.update import MAX_STARTS
from edgefleet_agent.updating.work import Done
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import ProtocolError, RefusedError
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
    SyncRequest,
    TimeAttestation,
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
# How long a connection for asking the time waits for the answer.
ASKING_S = 30.0
# Between two looks at metadata that is not complete yet.
JUDGE_AGAIN_S = 1.0
PROGRESS_S = 2.0
MAX_WAIT_S = 5.0
# At the end, for the owner's redaction of the last samples.
LAST_SAMPLES_S = 2.0
# Between two tries to act on an assignment, or to judge it, on a store that cannot be written.
STORE_AGAIN_S = 10.0
# Questions to the hub are spread by this share of their interval, to either side.
_SPREAD = 0.25
_INCOMPLETE = "waiting for the rest of the metadata"


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
        self._profile = profile
        self._link = link
        self._slots = slots
        self._outbox = outbox
        self._trust = trust
        self.timekeeper = timekeeper
        self._clock = clock
        self._monotonic = monotonic
        self._health = HealthMeter(config.folder, clock)
        self._inbox: Inbox[News] = Inbox()
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()
        self._refused: dict[tuple[str, str, str], float] = {}
        self._listening: set[str] = set()
        self._connected = False
        # While connected for asking the time only; see rule 6 of `link`.
        self._asking_until: float | None = None
        self._alive = alive
        self._starts = Starts(config.folder, clock)
        self._opened_at = monotonic()
        self._dropped = 0
        # What was believed and could not be acted on as a whole yet.
        self._unapplied: list[Assigned] | None = None
        self._apply_at = 0.0
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
            monotonic=monotonic,
            report=self._report,
            deliver=self._inbox.put,
            on_window=self._inbox.put,
            on_proven=lambda key, slot: self._inbox.put(Proven(key, slot)),
            start=_on_a_thread,
        )
        around = msgspec.structs.replace(around, **(surroundings or {}))
        self._chance = around.chance
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
        self._desk = SampleDesk(
            DailyQuota(config.folder, clock),
            load_redaction(config.samples.redact),
            start=around.start,
            deliver=self._inbox.put,
        )
        self.attempts = Attempts(config, slots, self.model, around)

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
        self._guarded(self._apply_again)
        self._guarded(self._heed_person)
        self._guarded(self._tick)
        return True

    def _guarded(self, act: Callable[..., None], *news: News) -> None:
        """Do something; whatever comes of it, the thread goes on (rule 3)."""
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
                self.timekeeper.connected()
                self._asking_until = now + ASKING_S
            case Connected():
                self._connected = True
                self._listening.clear()
                self._outbox.reconnected()
                self._trust.resumed()
                self.timekeeper.connected()
                self.attempts.connected(now)
                self._state = None  # the hub hears the state anew
                self._ask_at = now + ASK_AFTER_S  # retained messages come by themselves
                self.custody.connected(renewed=news.renewed)
            case Disconnected():
                self._connected = False
                self._asking_until = None
                self._trust.interrupted()
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
                    self._trust.take_assignment(payload)
                    self._judge(now)
            elif topic.startswith(_META):
                self._trust.take_image_role(topic.removeprefix(_META), payload)
                self._judge(now)
            elif topic == topics.down(self._device, "ack"):
                ack = codec.decode(payload, Ack)
                self._outbox.acknowledge(ack.store, ack.numbers)
                if ack.at:
                    self._health.hub_time(ack.at)
            elif topic == topics.down(self._device, "time"):
                self._take_time(codec.decode(payload, TimeAttestation), now)
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

    def _take_time(self, attestation: TimeAttestation, now: float) -> None:
        """Believe an attested time; what was waited for because of the clock is judged again."""
        try:
            self.timekeeper.take(attestation, self._trust.director_roots)
        except RefusedError as error:
            self._refuse("attested time", error.reason, str(error))
            return
        self._health.hub_time(self.timekeeper.instant().at)
        if self._judge_at is not None:
            self._judge_at = now
        if self._asking_until is not None:
            self._link.reconnect()

    def _take_kept(self, kept: Kept, now: float) -> None:
        try:
            statement = self.custody.take(kept, now)
        except EnrolmentError as error:
            self._refuse("certificate", "not-renewed", str(error))
            return
        if statement:
            self._outbox.put(statement, self._clock())

    def _adopt_authorities(self) -> None:
        """Trust the hub's authorities as the image metadata lists them."""
        try:
            self.custody.adopt(self._trust.authorities)
        except EnrolmentError as error:
            self._refuse(IMAGE_METADATA, "authorities", str(error))

    def _judge(self, now: float) -> None:
        floors = {key: journal.floor for key, journal in self.attempts.journals.items()}
        # If the trust state cannot be written, this says so by an error, and is tried again.
        self._judge_at = now + STORE_AGAIN_S
        verdict = self._trust.judge(now, floors)
        self._judge_at = None
        self._adopt_authorities()
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
        self._apply(verdict.targets, now)

    def _heed_person(self) -> None:
        """Go back to the previous release where a person at the device asks for it."""
        for path, request in byhand.pending(self._config.folder):
            journal = self.attempts.journals.get(request.model)
            serving = journal.serving if journal else None
            try:
                if serving and serving.slot.release == request.release:
                    self.attempts.go_back(request.model, request.reason, self._monotonic())
            except TransitionError as error:
                log.warning("not rolled back by hand: %s", error)
            path.unlink()

    def _apply_again(self) -> None:
        now = self._monotonic()
        if self._unapplied is not None and now >= self._apply_at:
            self._apply(self._unapplied, now)

    def _apply(self, targets: list[Assigned], now: float) -> None:
        self._unapplied, self._apply_at = targets, now + STORE_AGAIN_S
        self.attempts.apply(targets, now)
        self._unapplied = None

    def _refuse_metadata(self, refusing: MetadataRefusedError, now: float) -> None:
        self._refuse(refusing.what, refusing.reason, str(refusing), refusing.digest)
        if refusing.reason == "expired":
            self.timekeeper.doubted()
        self._want(f"{refusing.what} refused: {refusing.reason}", now)

    def _want(self, reason: str, at: float) -> None:
        """Ask for assignment and image metadata at that time, until an assignment is accepted."""
        if not self._wanting:
            self._ask_at = max(self._ask_at, at)
        self._wanting = reason

    def _store_window(self, window: ClosedWindow) -> None:
        at = self._clock()
        self._outbox.put(window.pack(self._health.read(self._outbox.dropped)), at)
        if window.chosen:
            self._desk.take(window.slot, window.profile.features, window.chosen)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._monotonic()
        self.attempts.tick(now)
        self._settle_trust(now)
        self._tell_dropped()
        if now - self._opened_at >= GOOD_S:
            self._starts.went_well()
        self._ask_time(now)
        if not self._connected:
            self.custody.tick(now, None)
            return
        self._listen()
        for request in self.attempts.downloads.requests(now):
            self._request(request)
        for report in self._outbox.due(now):
            self._link.publish(topics.up(self._device, "report"), codec.encode(report))
        self._publish_state(now)
        self.custody.tick(now, self._state)

    def _ask_time(self, now: float) -> None:
        """Ask what time it is when that is due; give up a connection that is for nothing else."""
        if not self._connected and self._asking_until is None:
            return
        question = self.timekeeper.question()
        if question:
            self._request(question)
        if self._asking_until is not None and now >= self._asking_until:
            self._asking_until = None
            self._link.reconnect()

    def _settle_trust(self, now: float) -> None:
        if self._judge_at is not None and now >= self._judge_at:
            try:
                self._judge(now)
            except MetadataRefusedError as refusing:
                self._refuse_metadata(refusing, now)
        if self._wanting and self._connected and now >= self._ask_at:
            self._request(SyncRequest(self._wanting))
            # A fleet that lost its hub at one moment must not ask it at one moment.
            self._ask_at = now + self._ask_again_s * (1 + _SPREAD * (2 * self._chance() - 1))
            self._ask_again_s = min(self._ask_again_s * 2, LAST_ASK_AGAIN_S)

    def _wait_s(self) -> float:
        now = self._monotonic()
        times = [now + MAX_WAIT_S, self.attempts.next_at(), self._judge_at, self._asking_until]
        times.append(self.custody.next_at(now, swearing=self._state is not None))
        if self._unapplied is not None:
            times.append(self._apply_at)
        if self._connected:
            times.append(self._ask_at if self._wanting else None)
            times.append(self._outbox.next_at())
            times.append(self.timekeeper.next_at())
            times.append(self._state_at + self._config.heartbeat_s)
            if self.attempts.downloads.wanted_blobs:
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
        attempts = self.attempts
        journals = [journal for _, journal in sorted(attempts.journals.items())]
        standing = {"primary": list[Slot](), "challenger": list[Slot]()}
        for journal in journals:
            slot = attempts.slot(journal)
            if slot:
                standing[journal.lane].append(slot)
        return State(
            device=self._device,
            boot=self._starts.number,
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

    # -- to the hub ------------------------------------------------------------------------------

    def _report(self, body: Result | Refusal) -> None:
        if isinstance(body, Refusal):
            self._refuse(body.what, body.reason, body.text, body.digest)
        else:
            self._outbox.put(body, self._clock())
            self.custody.swear()

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
        self.custody.refused(what, reason)
        try:
            self._outbox.put(Refusal(what, reason, text[:2000], digest), self._clock())
        except StoreError as error:
            # What was refused stays refused, whether or not the hub hears of it.
            log.error("%s", error)

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
        return "attested time"
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
