"""Local MQTT topics without a broker: what a message means, what is answered, what is dropped."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.answering import (
    MAX_ERROR_CHARACTERS,
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    Answerer,
    Message,
    Waiting,
    read_rows,
)
from edgefleet_agent.config import LocalBroker, LocalTopic
from edgefleet_agent.errors import ConfigError
from edgefleet_agent.inference.serving import Model
from edgefleet_agent.pipeline import Pipeline
from edgefleet_agent.testing import Bundle, Clock, HubDouble, Rig
from edgefleet_protocol.errors import MalformedError

TOPIC = LocalTopic("colours", "sensors/colour", "answers/colour")
Published = list[tuple[str, Any]]


@pytest.mark.parametrize(
    ("payload", "rows", "alone"),
    [
        (b"[1, 2.5]", [[1.0, 2.5]], True),
        (b'{"a": 1, "b": "x", "c": null}', [{"a": 1, "b": "x", "c": None}], True),
        (b'{"rows": [[1], {"a": 2}]}', [[1.0], {"a": 2}], False),
        (b'{"rows": 3}', [{"rows": 3}], True),  # a column of that name
    ],
)
def test_a_message_is_a_row_or_rows(payload: bytes, rows: list[Any], alone: bool) -> None:
    assert read_rows(payload) == (rows, alone)


def test_null_in_an_array_is_a_missing_value() -> None:
    ((row,), _) = read_rows(b"[1, null]")
    np.testing.assert_array_equal(row, [1.0, np.nan])


@pytest.mark.parametrize(
    "payload",
    [b"", b"7", b'"a"', b"[[1]]", b'["a"]', b'{"a": [1]}', b'{"rows": [7]}', b"\xff", b"[" * 9999],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError, match="the message is no row of JSON"):
        read_rows(payload)


@pytest.mark.parametrize("count", [0, MAX_ROWS + 1])
def test_a_message_has_one_row_at_least_and_not_too_many(count: int) -> None:
    with pytest.raises(MalformedError, match=f"{count} rows in a message; expected 1 to 10000"):
        read_rows(json.dumps({"rows": [[1]] * count}).encode())


@given(st.binary(max_size=100))
def test_no_bytes_make_the_reader_fail(payload: bytes) -> None:
    try:
        rows, _ = read_rows(payload)
    except MalformedError:
        return
    assert rows


@pytest.fixture
def colours(rig: Callable[..., Rig], hub: HubDouble, bundle: Callable[..., Bundle]) -> Model:
    """A real model that serves."""
    device = rig()
    hub.send_all(device.link, hub.release(bundle(), 1))
    device.settle()
    return device.engine.model("colours")


@pytest.fixture
def answering(colours: Model) -> tuple[Answerer, Published, Clock]:
    published: Published = []
    monotonic = Clock(1000.0)

    def publish(topic: str, payload: bytes) -> None:
        published.append((topic, json.loads(payload)))

    answerer = Answerer(
        [TOPIC], lambda name: colours, publish, clock=Clock(77.0), monotonic=monotonic
    )
    return answerer, published, monotonic


def test_a_row_is_answered_with_everything_an_application_needs(
    answering: tuple[Answerer, Published, Clock], colours: Model
) -> None:
    answerer, published, _ = answering
    answerer.handle(Message(TOPIC.input, b'{"a": 1, "b": 0, "c": 0, "d": 0}'))
    ((topic, answer),) = published
    assert topic == "answers/colour"
    assert (answer["label"], answer["model"], answer["version"], answer["release"]) == (
        "red",
        "colours",
        "v1",
        1,
    )
    assert (answer["at"], answer["score"]) == (77.0, max(answer["scores"]))
    assert colours.feedback(answer["prediction_id"], "red")


def test_several_rows_are_answered_by_one_message(
    answering: tuple[Answerer, Published, Clock],
) -> None:
    answerer, published, _ = answering
    answerer.handle(Message(TOPIC.input, b'{"rows": [[1, 0, 0, 0], [0, 0, 1, 0]]}'))
    ((_, answer),) = published
    assert [one["label"] for one in answer["answers"]] == ["red", "blue"]


def test_a_message_that_cannot_be_answered_is_told_once_and_logged_seldom(
    answering: tuple[Answerer, Published, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    answerer, published, monotonic = answering
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            answerer.handle(Message(TOPIC.input, b"[1, 2]"))
        assert len(caplog.records) == 1
        monotonic.now += 30.0
        answerer.handle(Message(TOPIC.input, b"{" * 10))
        assert len(caplog.records) == 2
    assert [topic for topic, _ in published] == ["answers/colour/error"] * 4
    assert published[0][1] == {
        "error": "row of shape (2,): expected (4,)",
        "model": "colours",
        "at": 77.0,
    }
    answerer.handle(Message(TOPIC.input, b"[1, 0, 0, 0]"))
    assert published[-1][0] == "answers/colour"


def test_the_text_of_an_error_is_bounded(answering: tuple[Answerer, Published, Clock]) -> None:
    answerer, published, _ = answering
    answerer.handle(Message(TOPIC.input, json.dumps({"x" * 4000: 1}).encode()))
    answerer.handle(Message(TOPIC.input, b" " * (MAX_MESSAGE_BYTES + 1)))
    assert len(published[0][1]["error"]) == MAX_ERROR_CHARACTERS
    assert published[1][1]["error"] == "a message of more than 1048576 bytes"


def test_a_defect_costs_one_message(
    answering: tuple[Answerer, Published, Clock],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answerer, published, _ = answering
    with monkeypatch.context() as patched:
        patched.setattr("edgefleet_agent.answering.answer", lambda *_: 1 / 0)
        answerer.handle(Message(TOPIC.input, b"[1, 0, 0, 0]"))
    assert published[0][1]["error"] == "the agent failed; its log says why"
    assert "ZeroDivisionError" in caplog.text
    answerer.handle(Message(TOPIC.input, b"[1, 0, 0, 0]"))
    assert published[-1][0] == "answers/colour"


def test_the_oldest_messages_give_way() -> None:
    waiting = Waiting(max_messages=2, max_bytes=10)
    for payload in (b"1", b"2", b"3"):
        waiting.put(Message("t", payload))
    assert waiting.dropped == 1
    waiting.put(Message("t", b"x" * 9))
    assert waiting.dropped == 2
    found = [waiting.get(), waiting.get()]
    assert [message.payload for message in found if message] == [b"3", b"x" * 9]
    waiting.put(Message("t", b"y" * 11))  # larger than all the room there is
    waiting.put(Message("t", b"4"))
    assert (waiting.get(), waiting.dropped) == (Message("t", b"4"), 3)


def test_dropped_messages_are_told_in_the_log(
    colours: Model, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = Waiting(max_messages=1)
    for number in range(3):
        waiting.put(Message(TOPIC.input, json.dumps([number, 0, 0, 0]).encode()))
    answerer = Answerer([TOPIC], lambda name: colours, lambda topic, payload: waiting.close())
    answerer.run(waiting)
    assert "2 messages came too fast so far and were dropped" in caplog.text


def test_the_password_comes_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"broker\.password_file cannot be read"):
        Pipeline(
            LocalBroker(username="a", password_file=str(tmp_path / "none"), topics=[TOPIC]),
            lambda name: Model(name, lambda *_: None),
        )
