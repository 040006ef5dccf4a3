"""The other end of `fetchers.MqttFiles`: fetches files for devices and sends them in blocks.

Only from HTTP servers of this machine, and only so much: it stands between a test's server and a
test's client. Used as a context; works on a thread of its own.
"""

import http.client
import logging
import threading
from collections import OrderedDict
from types import TracebackType

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tuf.api.exceptions import DownloadError, DownloadHTTPError

from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Block, BlockRequest, BlocksUnavailable
from tests.conformance.fetchers import OK, HttpFiles
from tests.conformance.wire import Answer, Asked, FileAnswer, FileRequest

HERE = "http://127.0.0.1:"
MAX_FILE_BYTES = 16_000_000
# Files that are held for their blocks to be asked for.
HELD_FILES = 32
CONNECT_TIMEOUT_S = 10.0
NONE = "0" * 64

log = logging.getLogger(__name__)


class Relay:
    """Answers `FileRequest` and `BlockRequest` of every device on a broker.

    Args:
        host: of the broker.
        port: of the broker.

    Attributes:
        answered: how many files were asked for.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "relay", protocol=mqtt.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe(topics.ALL_UP, qos=0)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self.answered = 0

    def __enter__(self) -> "Relay":
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self._ready.wait(CONNECT_TIMEOUT_S):
            raise TimeoutError(f"the broker at {self._address} does not let the relay listen")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            device, _ = topics.parse_up(message.topic)
            asked: Asked = codec.decode(message.payload, Asked)  # type: ignore[arg-type]  # a union is a type form
            if isinstance(asked, FileRequest):
                self._say(device, self._fetch(asked.url))
            else:
                self._send(device, asked)
        except ProtocolError as error:
            log.warning("request on %s refused: %s", message.topic, error)

    def _fetch(self, url: str) -> FileAnswer:
        self.answered += 1
        if not url.startswith(HERE):
            return FileAnswer(url, http.client.FORBIDDEN, NONE, 0)
        try:
            data = HttpFiles().download_bytes(url, MAX_FILE_BYTES)
        except DownloadHTTPError as error:
            return FileAnswer(url, error.status_code, NONE, 0)
        except DownloadError as error:
            log.warning("%s", error)
            return FileAnswer(url, 0, NONE, 0)
        digest = digest_of(data)
        self._held[digest] = data
        self._held.move_to_end(digest)
        if len(self._held) > HELD_FILES:
            self._held.popitem(last=False)
        return FileAnswer(url, OK, digest, len(data))

    def _send(self, device: str, asked: BlockRequest) -> None:
        data = self._held.get(asked.digest)
        if data is None:
            self._say(device, BlocksUnavailable(asked.digest, "the relay does not hold it"))
            return
        for index in blocks.indices_of(asked.bitmap, blocks.block_count(len(data))):
            start = index * blocks.BLOCK_BYTES
            payload = data[start : start + blocks.BLOCK_BYTES]
            self._say(device, Block(asked.digest, index, payload))

    def _say(self, device: str, answer: Answer) -> None:
        self._client.publish(topics.down(device, "blocks"), codec.encode(answer, compress=False))
