"""Answering messages with rows: what a message means, what is answered, what waits and gives way.

No socket here: `pipeline` brings the messages and takes the answers away. Rules:

1. A message is one row, a JSON object (column → value) or array (values in the model's order), or
   several, `{"rows": [row, …]}`. It is answered by one message: the answer, or
   `{"answers": [answer, …]}`. `null` is a missing value.
2. What cannot be answered is told at `{output}/error`, once for each message.
3. The newest rows count: when they come faster than the model answers, the oldest waiting ones are
   dropped and counted. Memory is bounded by `MAX_WAITING` messages and `MAX_WAITING_BYTES`.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from edgefleet_agent.config import LocalTopic
from edgefleet_agent.errors import AgentError
from edgefleet_agent.inference.prediction import Cell, Prediction
from edgefleet_agent.inference.serving import Model
from edgefleet_protocol.errors import MalformedError, ProtocolError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_WAITING = 1024
MAX_WAITING_BYTES = 8 * 1024 * 1024
MAX_ROWS = 10_000
MAX_ERROR_CHARACTERS = 500
# A fault of a sensor repeats with each of its messages; one line in this time says it.
_COMPLAIN_S = 30.0

Row = Sequence[float] | Mapping[str, Cell]
Models = Callable[[str], Model]


class Answer(Struct, frozen=True):
    """What the model says to one row.

    Attributes:
        prediction_id: for feedback.
        label: predicted class, null if the model has no classes.
        score: probability of that class, or the value.
        scores: of all classes, in the model's order.
        version: of the model, as its maker calls it.
        release: its number in the fleet.
        at: Unix seconds.
    """

    prediction_id: int
    label: str | None
    score: float
    scores: list[float]
    model: str
    version: str
    release: int
    at: float


class _Answers(Struct, frozen=True):
    answers: list[Answer]


class Problem(Struct, frozen=True):
    """Why a message was not answered."""

    error: str
    model: str
    at: float


class _Rows(Struct, frozen=True, forbid_unknown_fields=True):
    rows: list[list[float | None] | dict[str, Cell]]


_row_decoder = msgspec.json.Decoder(list[float | None] | dict[str, Any])
_cells_decoder = msgspec.json.Decoder(dict[str, Cell])
_rows_decoder = msgspec.json.Decoder(_Rows)


class Message(Struct, frozen=True):
    """One message as it came."""

    topic: str
    payload: bytes


def read_rows(payload: bytes) -> tuple[list[Row], bool]:
    """Return the rows of a message, and whether it is one row alone.

    Raises:
        MalformedError: if it holds no rows, or too many.
    """
    try:
        found = _row_decoder.decode(payload)
        if isinstance(found, list):
            return [_numbers(found)], True
        if not (list(found) == ["rows"] and isinstance(found["rows"], list)):
            return [_cells_decoder.decode(payload)], True
        rows = _rows_decoder.decode(payload).rows
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the message is no row of JSON: {error}") from error
    if not 1 <= len(rows) <= MAX_ROWS:
        raise MalformedError(f"{len(rows)} rows in a message; expected 1 to {MAX_ROWS}")
    return [_numbers(row) if isinstance(row, list) else row for row in rows], False


def _numbers(row: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in row]


def answer(model: Model, payload: bytes, at: float) -> bytes:
    """Return the message that answers `payload`.

    Raises:
        ProtocolError: if it holds no rows of the model.
        AgentError: if the model does not answer.
    """
    rows, alone = read_rows(payload)
    answers = [_answer(model.predict(row), at) for row in rows]
    return msgspec.json.encode(answers[0] if alone else _Answers(answers))


def _answer(prediction: Prediction, at: float) -> Answer:
    return Answer(
        prediction.id,
        prediction.label,
        prediction.score,
        prediction.scores,
        prediction.model,
        prediction.version,
        prediction.release,
        at,
    )


class Waiting:
    """Messages that wait for their model, bounded: the oldest go first.

    Attributes:
        dropped: messages that were not answered because newer ones came.
    """

    def __init__(self, max_messages: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self.dropped = 0
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        """Add a message; drop the oldest ones that it leaves no room for."""
        with self._changed:
            self._messages.append(message)
            self._bytes += len(message.payload)
            while len(self._messages) > self._max_messages or self._bytes > self._max_bytes:
                self._bytes -= len(self._messages.popleft().payload)
                self.dropped += 1
            self._changed.notify()

    def get(self) -> Message | None:
        """Wait for the oldest message; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._messages)
            if self._closed:
                return None
            message = self._messages.popleft()
            self._bytes -= len(message.payload)
            return message

    def close(self) -> None:
        """Let `get` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Publish(Protocol):
    """How an answer leaves."""

    def __call__(self, topic: str, payload: bytes) -> None:
        """Send if connected."""


class Answerer:
    """Answers waiting messages, one after another.

    Args:
        topics: which model answers which topic.
        models: model by name.
        publish: sends an answer.
        clock: Unix seconds.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        topics: Sequence[LocalTopic],
        models: Models,
        publish: Publish,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = {topic.input: (topic, models(topic.model)) for topic in topics}
        self._publish = publish
        self._clock = clock
        self._monotonic = monotonic
        self._complained_at: dict[str, float] = {}
        self._dropped = 0

    def run(self, waiting: Waiting) -> None:
        """Answer until `waiting` is closed."""
        while (message := waiting.get()) is not None:
            if waiting.dropped != self._dropped and self._may_complain("dropped"):
                log.warning("%d messages came too fast so far and were dropped", waiting.dropped)
                self._dropped = waiting.dropped
            self.handle(message)

    def handle(self, message: Message) -> None:
        """Answer one message, or tell why not."""
        topic, model = self._places[message.topic]
        try:
            if len(message.payload) > MAX_MESSAGE_BYTES:
                raise MalformedError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
            self._publish(topic.output, answer(model, message.payload, self._clock()))
        except (AgentError, ProtocolError) as error:
            self._tell(topic, str(error))
        except Exception:
            # A defect must cost this message only, never the thread that answers all of them.
            log.exception("a message at %s was not answered because of a defect", topic.input)
            self._tell(topic, "the agent failed; its log says why")

    def _tell(self, topic: LocalTopic, text: str) -> None:
        problem = Problem(text[:MAX_ERROR_CHARACTERS], topic.model, self._clock())
        self._publish(topic.error, msgspec.json.encode(problem))
        if self._may_complain(topic.input):
            log.error("a message at %s was not answered: %s", topic.input, problem.error)

    def _may_complain(self, about: str) -> bool:
        now = self._monotonic()
        if now - self._complained_at.get(about, -_COMPLAIN_S) < _COMPLAIN_S:
            return False
        self._complained_at[about] = now
        return True
