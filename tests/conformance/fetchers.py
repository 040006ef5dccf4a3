"""Files for the trust client, over HTTP or over MQTT, bounded in time.

Both wait for the next bytes for `STALL_S` at most, and for a whole file for `WHOLE_S`: a server
that drips is as good as none. The length of a file is bounded by who reads it.
"""

import http.client
import secrets
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_agent.trusting.bounds import Patience
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.messages import Block, BlockRequest
from tests.conformance.wire import Answer, FileAnswer, FileRequest

STALL_S = 10.0
WHOLE_S = 60.0
CHUNK_BYTES = 64 * 1024
# Blocks asked for at once; the device is the one that paces.
WINDOW_BLOCKS = 8
OK, NOT_FOUND = 200, 404


class HttpFiles(FetcherInterface):
    """Files of an HTTP server, by exactly the URL that is given.

    Args:
        stall_s: to wait for the next bytes.
        whole_s: to wait for a whole file.
    """

    def __init__(self, stall_s: float = STALL_S, whole_s: float = WHOLE_S) -> None:
        self._stall_s = stall_s
        self._whole_s = whole_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=self._stall_s
        )
        # What follows the host, to the byte: role names are quoted in it.
        path = url.partition("://")[2].partition("/")[2]
        try:
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise DownloadError(f"{url}: {error}") from error
        if response.status != OK:
            connection.close()
            raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
        return self._chunks(url, connection, response)

    def _chunks(
        self, url: str, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> Iterator[bytes]:
        patience = Patience(self._stall_s, self._whole_s)
        patience.waits(time.monotonic())
        try:
            while data := response.read1(CHUNK_BYTES):
                yield data
                if patience.overdue(time.monotonic()):
                    raise DownloadError(f"{url}: not whole within {self._whole_s:.0f} s")
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"{url}: {error}") from error
        finally:
            connection.close()


class MqttFiles(FetcherInterface):
    """Files that a relay fetches, over a broker; used as a context.

    Args:
        host: of the broker.
        port: of the broker.
        stall_s: to wait for the next message.
        whole_s: to wait for a whole file.
    """

    def __init__(
        self, host: str, port: int, stall_s: float = STALL_S, whole_s: float = WHOLE_S
    ) -> None:
        self._address = (host, port)
        self._stall_s = stall_s
        self._whole_s = whole_s
        self._device = f"conformance-{secrets.token_hex(8)}"
        self._answers: deque[Answer] = deque()
        self._listening = False
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, self._device, protocol=mqtt.MQTTv311
        )
        self._client.on_connect = lambda client, *_: client.subscribe(
            topics.down_all(self._device), qos=0
        )
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def __enter__(self) -> "MqttFiles":
        self._client.connect(*self._address)
        patience = self._patience()
        while not self._listening:
            self._turn(patience, "the broker's grant")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()

    def _fetch(self, url: str) -> Iterator[bytes]:
        patience = self._patience()
        self._ask(FileRequest(url))
        head = self._next(patience, url)
        while not (isinstance(head, FileAnswer) and head.url == url):
            head = self._next(patience, url)
        if head.status == 0:
            raise DownloadError(f"{url}: the relay's server did not answer")
        if head.status != OK:
            raise DownloadHTTPError(f"{url}: status {head.status}", head.status)
        return self._blocks(head, patience)

    def _blocks(self, head: FileAnswer, patience: Patience) -> Iterator[bytes]:
        count = blocks.block_count(head.size_bytes)
        for first in range(0, count, WINDOW_BLOCKS):
            wanted = range(first, min(first + WINDOW_BLOCKS, count))
            self._ask(BlockRequest(head.digest, blocks.bitmap_of(wanted)))
            got: dict[int, bytes] = {}
            while len(got) < len(wanted):
                answer = self._next(patience, head.url)
                fits = (
                    isinstance(answer, Block)
                    and answer.digest == head.digest
                    and answer.index in wanted
                    and len(answer.payload) == blocks.block_length(head.size_bytes, answer.index)
                )
                if not fits:
                    raise DownloadError(f"{head.url}: got {type(answer).__name__}, not the block")
                got[answer.index] = answer.payload
            yield from (got[index] for index in wanted)

    def _ask(self, message: FileRequest | BlockRequest) -> None:
        self._client.publish(topics.up(self._device, "request"), codec.encode(message))

    def _next(self, patience: Patience, what: str) -> Answer:
        while not self._answers:
            self._turn(patience, what)
        patience.progressed()
        return self._answers.popleft()

    def _patience(self) -> Patience:
        return Patience(self._stall_s, self._whole_s)

    def _turn(self, patience: Patience, what: str) -> None:
        """Let the network work a little.

        Raises:
            DownloadError: if what is waited for takes too long, or the connection is lost.
        """
        now = time.monotonic()
        patience.waits(now)
        if patience.stalled(now):
            raise DownloadError(f"{what}: nothing came in time")
        code = self._client.loop(timeout=min(self._stall_s, 0.5))
        if code != mqtt.MQTT_ERR_SUCCESS:
            raise DownloadError(f"{what}: the connection to the broker is lost ({code})")

    def _on_subscribe(self, *_: object) -> None:
        self._listening = True

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            answer: Answer = codec.decode(message.payload, Answer)  # type: ignore[arg-type]  # a union is a type form
        except ProtocolError as error:
            raise DownloadError(f"an answer of the relay cannot be read: {error}") from error
        self._answers.append(answer)
