"""Sending blocks: requests in, blocks out, at the pace at which the broker takes them.

A thread of its own, so that a download never holds up reports. What is sent, and to whom, is
planned in `fleet.blocks`; which files may be sent is known to `fleet.catalog`.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from paho.mqtt.client import MQTTMessageInfo

from edgefleet_cloud.errors import HubError
from edgefleet_cloud.fleet.blocks import BlockPlanner, Send
from edgefleet_cloud.fleet.catalog import BlobCatalog
from edgefleet_cloud.storage import Store
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.errors import MalformedError
from edgefleet_protocol.messages import Block, BlockRequest, BlocksUnavailable

QUEUE_REQUESTS = 10_000
# Requests looked at before blocks are sent again.
REQUESTS_AT_ONCE = 256
# Blocks handed to paho that have not left for the broker: 4 MiB.
UNSENT_BLOCKS = 32
# Pause between two looks at whether the connection is still the same.
LOOK_S = 0.05

# Publishes (topic, payload) at QoS 0; None while there is no connection.
Publish = Callable[[str, bytes], MQTTMessageInfo | None]

_log = logging.getLogger(__name__)


class BlockServer:
    """Serves blocks until it is stopped.

    Args:
        catalog: knows which files may be served.
        store: holds them.
        publish: see `Publish`.
    """

    def __init__(self, catalog: BlobCatalog, store: Store, publish: Publish) -> None:
        self._catalog = catalog
        self._store = store
        self._publish = publish
        self._requests: queue.Queue[tuple[str, BlockRequest]] = queue.Queue(QUEUE_REQUESTS)
        self._planner = BlockPlanner()
        self._unsent: deque[MQTTMessageInfo] = deque()
        self._connection = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="block-server", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is still asked for is asked for again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def reconnected(self) -> None:
        """Forget what the old connection had not sent; devices ask for it again."""
        self._connection += 1

    def ask(self, device: str, request: BlockRequest) -> bool:
        """Take a request; return False if too many wait (the device asks again)."""
        try:
            self._requests.put_nowait((device, request))
        except queue.Full:
            return False
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._round()
            except Exception:
                # Whatever one request brought about must not end the downloads of all others.
                _log.exception("serving blocks failed")

    def _round(self) -> None:
        next_due = self._planner.next_due()
        wait_s = 0.2 if next_due is None else min(max(next_due - time.monotonic(), 0.0), 0.2)
        for device, request in self._take(wait_s):
            self._plan(device, request)
        for send in self._planner.due(time.monotonic()):
            self._send(send)

    def _take(self, wait_s: float) -> list[tuple[str, BlockRequest]]:
        taken = []
        try:
            taken.append(self._requests.get(timeout=wait_s) if wait_s else self._next())
            while len(taken) < REQUESTS_AT_ONCE:
                taken.append(self._next())
        except queue.Empty:
            pass
        return taken

    def _next(self) -> tuple[str, BlockRequest]:
        return self._requests.get_nowait()

    def _plan(self, device: str, request: BlockRequest) -> None:
        size = self._catalog.size(request.digest)
        if size is None:
            self._unavailable(
                device, request.digest, "this file is not part of any released bundle"
            )
            return
        try:
            indices = blocks.indices_of(request.bitmap, blocks.block_count(size))
            self._planner.ask(device, request.digest, indices, time.monotonic())
        except MalformedError as error:
            self._unavailable(device, request.digest, str(error))

    def _send(self, send: Send) -> None:
        if send.device is None:
            topic = topics.fleet_blob(send.digest)
        else:
            topic = topics.down(send.device, "blocks")
        for index in send.indices:
            try:
                data = self._store.read_range(
                    send.digest, index * blocks.BLOCK_BYTES, blocks.BLOCK_BYTES
                )
            except (HubError, OSError) as error:
                _log.exception("file %s of a released bundle cannot be read", send.digest)
                unavailable = BlocksUnavailable(send.digest, f"the hub cannot read it: {error}")
                self._out(topic, codec.encode(unavailable))
                return
            self._out(topic, codec.encode(Block(send.digest, index, data), compress=False))

    def _unavailable(self, device: str, digest: str, reason: str) -> None:
        _log.warning("blocks of %s refused to device %r: %s", digest, device, reason)
        answer = codec.encode(BlocksUnavailable(digest, reason))
        self._out(topics.down(device, "blocks"), answer)

    def _out(self, topic: str, payload: bytes) -> None:
        """Publish, and wait while too much has not left for the broker."""
        connection = self._connection
        info = self._publish(topic, payload)
        if info is None:
            return
        self._unsent.append(info)
        while len(self._unsent) > UNSENT_BLOCKS and not self._stopping.is_set():
            if connection != self._connection:
                self._unsent.clear()
                return
            oldest = self._unsent[0]
            if oldest.rc > 0 or oldest.is_published():
                self._unsent.popleft()
            else:
                oldest.wait_for_publish(LOOK_S)
