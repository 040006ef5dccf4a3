"""The hub's link to its devices: one MQTT connection (docs/adr/0002, 0004).

In: states and reports go through a bounded queue to one worker, which takes them in by batches and
acknowledges after the commit; requests for blocks go to `serving.BlockServer`, those for the time
to `timing.TimeDesk`. Out: acknowledgements, assignments and image metadata. Rules:

1. Nothing depends on the broker keeping or delivering anything. A full queue drops the newest
   message: devices send reports again until they are acknowledged, and states at every heartbeat.
2. An assignment counts as published when the broker has acknowledged it, and only if it is still
   the newest. What was under way when the connection broke is published again on the next one.
3. One device cannot keep the hub from hearing the others: what is over its `quota`, larger than any
   message, or retained (no agent retains) is dropped at once; a flood opens an incident.
4. Every connection is a new client without a session, so that nothing old is sent again by itself.
"""

import contextlib
import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edgefleet_cloud.broker import identities, policy
from edgefleet_cloud.broker.connection import ClosingSocket
from edgefleet_cloud.broker.quota import Quotas
from edgefleet_cloud.broker.serving import BlockServer
from edgefleet_cloud.broker.timing import TimeDesk
from edgefleet_cloud.fleet import assignments, refusals
from edgefleet_cloud.fleet.catalog import BlobCatalog
from edgefleet_cloud.fleet.ingest import Inbound, IngestOutcome, ingest
from edgefleet_cloud.services import Services
from edgefleet_protocol import codec, topics
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Ack, BlockRequest, Request, SyncRequest, TimeRequest

BATCH_MESSAGES = 256
BATCH_WAIT_S = 0.02
# No message waits that is larger than `codec.MAX_MESSAGE_BYTES`; at a usual 10 kB, 100 MB at most.
QUEUE_MESSAGES = 10_000
KEEPALIVE_S = 30
RECONNECT_S, RECONNECT_MAX_S = 0.1, 5.0
# A fleet that asks for image metadata again gets it at most so often: it goes to everyone.
METADATA_PAUSE_S = 5.0
# How long a full batch of assignments is waited for before the next one.
PUBACK_WAIT_S = 1.0
# Publishes that paho may have under way at the broker.
IN_FLIGHT = 1000

# Compared with, never bound to.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # see above

_log = logging.getLogger(__name__)


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Link:
    """The connection and its threads; started and stopped once.

    Args:
        services: of the hub.
        usable: tells whether the broker may be used; the link leaves it when it may not.

    Attributes:
        counters: what has happened since the start, by name: `received`, `dropped` (queue full),
            `flooded` (over a device's quota), `malformed`, `reports`, `states`, `failures` (batches
            that could not be taken in).
    """

    def __init__(self, services: Services, usable: Callable[[], bool] = lambda: True) -> None:
        self._services = services
        self._usable = usable
        self._inbound: queue.Queue[Inbound | None] = queue.Queue(QUEUE_MESSAGES)
        self._stopping = threading.Event()
        self._gone = threading.Event()
        self._connected = threading.Event()
        self._client: mqtt.Client | None = None
        self._publishing = threading.Lock()
        self._awaiting: dict[str, tuple[mqtt.MQTTMessageInfo, bytes]] = {}
        self._metadata_sent: dict[str, str] = {}
        self._metadata_wanted = False
        self._metadata_at = 0.0
        self._sync: set[str] = set()
        self._quotas = Quotas()
        self._floods: set[str] = set()
        self.counters = dict.fromkeys(
            ("received", "dropped", "flooded", "malformed", "reports", "states", "failures"), 0
        )
        catalog = BlobCatalog(services.database, services.store)
        self._blocks = BlockServer(catalog, services.store, self._publish)
        self._time = TimeDesk(services.director, services.authority, services.clock, self._publish)
        self._threads = [
            threading.Thread(target=self._keep_connected, name="link", daemon=True),
            threading.Thread(target=self._work, name="link-ingest", daemon=True),
        ]

    def start(self) -> None:
        """Start connecting; returns at once."""
        self._blocks.start()
        self._time.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take in what has arrived, disconnect and end all threads."""
        self._stopping.set()
        self._gone.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._blocks.stop()
        self._time.stop()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscription."""
        return self._connected.is_set()

    def await_connected(self, timeout_s: float) -> bool:
        """Wait until connected; return whether that was within `timeout_s`."""
        return self._connected.wait(timeout_s)

    def publish_pending(self) -> None:
        """Publish image metadata and assignments that the broker does not have yet."""
        with self._publishing:
            usable = self._usable()
            if not usable:
                self._gone.set()
            if not usable or not self._connected.is_set():
                return
            self._publish_metadata()
            self._settle()
            self._take_syncs()
            while self._publish_assignments():
                pass

    # --- the connection -----------------------------------------------------------------------

    def _keep_connected(self) -> None:
        pause_s = RECONNECT_S
        while not self._stopping.is_set():
            self._gone.clear()
            if not self._usable():
                self._stopping.wait(RECONNECT_S)
                continue
            client = self._new_client()
            try:
                client.connect(self._host, self._services.settings.mqtt_port, KEEPALIVE_S)
            except OSError as error:
                _log.warning("the broker cannot be reached: %s", error)
            else:
                client.loop_start()
                self._gone.wait()
                if self._connected.is_set():
                    pause_s = RECONNECT_S
                self._disconnected()
                client.disconnect()
                client.loop_stop()
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_MAX_S)

    @property
    def _host(self) -> str:
        """Where to connect on this machine; a broker on all interfaces is reached on loopback."""
        return _LOOPBACK.get(self._services.settings.mqtt_host, self._services.settings.mqtt_host)

    def _new_client(self) -> mqtt.Client:
        pair = identities.link(self._services.authority, self._services.settings.home / "broker")
        context = ssl.create_default_context(cadata=self._services.authority.ca_pem.decode())
        context.load_cert_chain(pair.certificate, pair.key)
        context.sslsocket_class = ClosingSocket
        context.sslsocket_class = _TidySocket
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=policy.HUB,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.tls_set_context(context)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _props: object
    ) -> None:
        if code.is_failure:
            _log.error("the broker refused the hub's link: %s", code)
            self._gone.set()
            return
        client.subscribe(topics.ALL_UP, qos=0)

    def _on_subscribe(
        self, client: mqtt.Client, _data: object, _mid: int, codes: list[ReasonCode], _props: object
    ) -> None:
        if any(code.is_failure for code in codes):
            _log.error("the broker refused the hub's subscription to %s", topics.ALL_UP)
            self._gone.set()
            return
        self._blocks.reconnected()
        self._client = client
        self._connected.set()
        _log.info("connected to the broker")
        self._nudge()

    def _on_disconnect(
        self, _client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _props: object
    ) -> None:
        if not self._stopping.is_set():
            _log.warning("the connection to the broker is lost: %s", code)
        self._gone.set()

    def _disconnected(self) -> None:
        self._connected.clear()
        with self._publishing:
            self._client = None
            self._awaiting.clear()
            self._metadata_sent.clear()

    # --- in -----------------------------------------------------------------------------------

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self.counters["received"] += 1
        size_bytes = len(message.payload)
        # Retained: said at some earlier time, perhaps to another hub.
        if message.retain or size_bytes > codec.MAX_MESSAGE_BYTES:
            self.counters["malformed"] += 1
        elif not self._is_within_quota(message.topic, size_bytes):
            self.counters["flooded"] += 1
        elif not self._take(Inbound(message.topic, bytes(message.payload))):
            self.counters["dropped"] += 1

    def _is_within_quota(self, topic: str, size_bytes: int) -> bool:
        # The broker has bound the topic to the device's certificate; no device, no other quota.
        device = topic.split("/")[3] if topic.count("/") == 5 else ""
        now = time.monotonic()
        if self._quotas.take(device, size_bytes, now):
            return True
        refused = self._quotas.to_tell(device, now)
        if refused:
            _log.warning(
                "device %r sends more than its quota; dropped %d messages", device[:64], refused
            )
            self._floods.add(device)
            self._nudge()
        return False

    def _take(self, inbound: Inbound) -> bool:
        if inbound.topic.endswith("/up/request"):
            return self._take_request(inbound)
        return self._offer(inbound)

    def _take_request(self, inbound: Inbound) -> bool:
        try:
            device, _ = topics.parse_up(inbound.topic)
            # `Request` is a union, which the decoder takes like a type.
            request: Request = codec.decode(inbound.payload, Request)  # type: ignore[arg-type]
        except ProtocolError as error:
            _log.warning("message on %s refused: %s", inbound.topic[:120], error)
            self.counters["malformed"] += 1
            return True
        if isinstance(request, BlockRequest):
            return self._blocks.ask(device, request)
        if isinstance(request, TimeRequest):
            return self._time.ask(device, request)
        if isinstance(request, SyncRequest):
            _log.info("device %r asks for its assignment again: %s", device, request.reason)
            self._sync.add(device)
            self._metadata_wanted = True
            self._nudge()
        return True

    def _offer(self, item: Inbound | None) -> bool:
        try:
            self._inbound.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _nudge(self) -> None:
        """Have the worker publish what is pending now; a full queue leaves it to the scheduler."""
        self._offer(None)

    def _work(self) -> None:
        while not (self._stopping.is_set() and self._inbound.empty()):
            batch, nudged = self._gather()
            try:
                if batch:
                    nudged |= self._take_in(batch)
                if nudged:
                    self._report_floods()
                    self.publish_pending()
            except Exception:
                # The batch is lost here and not acknowledged, so devices send it again.
                _log.exception("a batch of %d messages could not be taken in", len(batch))
                self.counters["failures"] += 1
                self._stopping.wait(RECONNECT_S)

    def _gather(self) -> tuple[list[Inbound], bool]:
        batch: list[Inbound] = []
        nudged = False
        with contextlib.suppress(queue.Empty):
            item = self._inbound.get(timeout=0.2)
            until = time.monotonic() + BATCH_WAIT_S
            while True:
                if item is None:
                    nudged = True
                else:
                    batch.append(item)
                if len(batch) == BATCH_MESSAGES:
                    break
                item = self._inbound.get(timeout=max(until - time.monotonic(), 0.0))
        return batch, nudged

    def _take_in(self, batch: list[Inbound]) -> bool:
        services = self._services
        now = services.clock()
        outcome = ingest(
            services.database,
            services.store,
            batch,
            now,
            challenge_age=lambda device, challenge: services.authority.freshness.age_s(
                "statement", device, challenge, now
            ),
        )
        self._count(outcome)
        for (device, store), numbers in outcome.acks.items():
            self._publish(
                topics.down(device, "ack"), codec.encode(Ack(store, numbers, services.clock()))
            )
        self._sync.update(outcome.publish_again)
        self._metadata_wanted |= outcome.metadata_refused
        if outcome.results:
            # A rollout may go on; all else can wait for the next round.
            services.wake()
        return outcome.metadata_refused or bool(outcome.publish_again)

    def _report_floods(self) -> None:
        """Open an incident for each device that was over its quota."""
        floods = []
        # One by one: the connection's thread may add to it meanwhile.
        while self._floods:
            floods.append(self._floods.pop())
        if not floods:
            return
        with self._services.database.write() as session:
            for device in floods:
                text = (
                    f"device {device!r} sends more than its quota; the rest is dropped. It is"
                    " broken or in other hands: look at it, or revoke it"
                )
                refusals.alarm(
                    session, "device-flood", device, "quota", text, self._services.clock()
                )

    def _count(self, outcome: IngestOutcome) -> None:
        self.counters["states"] += outcome.states
        self.counters["reports"] += outcome.reports
        self.counters["malformed"] += len(outcome.malformed)

    # --- out ----------------------------------------------------------------------------------

    def _publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False
    ) -> mqtt.MQTTMessageInfo | None:
        client = self._client
        return None if client is None else client.publish(topic, payload, qos, retain)

    def _publish_metadata(self) -> None:
        """Publish the roles that have changed, or all of them if they were asked for."""
        now = time.monotonic()
        if self._metadata_wanted and now - self._metadata_at >= METADATA_PAUSE_S:
            self._metadata_wanted = False
            self._metadata_sent.clear()
        for role, payload in self._services.images.metadata().items():
            digest = digest_of(payload)
            if self._metadata_sent.get(role) != digest:
                self._publish(topics.fleet_meta(role), payload, 1, True)
                self._metadata_sent[role] = digest
                self._metadata_at = now

    def _take_syncs(self) -> None:
        """Have assignments that were asked for published again, the ones under way included."""
        devices = []
        # One by one: other threads may add to it meanwhile.
        while self._sync:
            devices.append(self._sync.pop())
            self._awaiting.pop(devices[-1], None)
        if devices:
            with self._services.database.write() as session:
                assignments.publish_again(session, devices)

    def _publish_assignments(self) -> bool:
        """Publish one batch; return whether there may be more to publish at once."""
        with self._services.database.read() as session:
            pending = assignments.unpublished(session)
        new = [(device, payload) for device, payload in pending if not self._waits(device, payload)]
        for device, payload in new:
            info = self._publish(topics.down(device, "assignment"), payload, 1, True)
            if info is not None:
                self._awaiting[device] = (info, payload)
        if len(pending) < assignments.PUBLISH_AT_ONCE or not new:
            return False
        deadline = time.monotonic() + PUBACK_WAIT_S
        for info, _ in list(self._awaiting.values()):
            with contextlib.suppress(RuntimeError, ValueError):  # told apart in `_settle`
                info.wait_for_publish(max(deadline - time.monotonic(), 0.0))
        self._settle()
        return self._connected.is_set()

    def _waits(self, device: str, payload: bytes) -> bool:
        held = self._awaiting.get(device)
        return held is not None and held[1] == payload

    def _settle(self) -> None:
        """Note what the broker has acknowledged; forget what could not be sent."""
        done: list[tuple[str, bytes]] = []
        for device, (info, payload) in list(self._awaiting.items()):
            if info.rc > 0:
                del self._awaiting[device]
            elif info.is_published():
                del self._awaiting[device]
                done.append((device, payload))
        if done:
            with self._services.database.write() as session:
                for device, payload in done:
                    assignments.mark_published(session, device, payload)
