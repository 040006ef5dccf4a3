"""Models on local MQTT topics, on a real broker that has nothing to do with the hub's."""

import json
import queue
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgefleet_agent import agent as agent_module
from edgefleet_agent.agent import build_engine
from edgefleet_agent.config import LocalBroker, LocalTopic
from edgefleet_agent.updating.trial import Verdict
from edgefleet_cloud.broker.embedded import binary
from tests.system.local_agent import LocalAgent, colours, words

DEADLINE_S = 60.0
USER, PASSWORD = "sensor", "correct horse"
TOPICS = [
    LocalTopic("colours", "line/1/colour", "line/1/answer"),
    LocalTopic("words", "line/2/word", "line/2/answer"),
]


class Broker:
    """A NATS server that speaks MQTT with a password, as somebody's own broker would."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._config = folder / "nats.conf"
        self._config.write_text(
            f"""
server_name: local
listen: "127.0.0.1:-1"
jetstream {{ store_dir: {json.dumps(str(folder / "jetstream"))} }}
mqtt {{ listen: "127.0.0.1:{self.port}" }}
authorization {{ users: [ {{ user: {USER}, password: {json.dumps(PASSWORD)} }} ] }}
"""
        )
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(binary()), "-c", str(self._config)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the broker did not start"
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Sensor:
    """A client of the broker that sends rows and hears what is answered."""

    def __init__(self, port: int) -> None:
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        ready: queue.Queue[None] = queue.Queue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.username_pw_set(USER, PASSWORD)
        self._client.on_connect = lambda client, *_: client.subscribe("line/+/answer/#")
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.on_message = lambda _client, _data, message: self._heard.put(
            (message.topic, json.loads(message.payload))
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        ready.get(timeout=DEADLINE_S)

    def send(self, topic: str, body: object, *, retain: bool = False) -> None:
        self._client.publish(topic, json.dumps(body), retain=retain).wait_for_publish(DEADLINE_S)

    def hear(self) -> tuple[str, Any]:
        return self._heard.get(timeout=DEADLINE_S)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def sensor(broker: Broker) -> Iterator[Sensor]:
    made = Sensor(broker.port)
    yield made
    made.stop()


@pytest.fixture
def device(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAgent]:
    """An agent on the broker; everything is real but the trial's child process."""
    quick = partial(build_engine, surroundings={"try_candidate": lambda *_: Verdict([])})
    monkeypatch.setattr(agent_module, "build_engine", quick)
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    config = LocalBroker(
        port=broker.port, username=USER, password_file=str(password), topics=TOPICS
    )
    made = LocalAgent(tmp_path, broker=config)
    made.start()
    made.order(colours("classifier.onnx"), 1)
    made.order(words(), 1)
    made.until_confirmed("colours", 1)
    made.until_confirmed("words", 1)
    until_connected(made)
    yield made
    made.stop()


def until_connected(device: LocalAgent) -> None:
    pipeline = device.agent.pipeline
    assert pipeline
    device.until(lambda: pipeline.is_connected)


def test_rows_are_answered_on_the_models_own_topics(device: LocalAgent, sensor: Sensor) -> None:
    sensor.send("line/1/colour", [1, 0, 0, 0])
    topic, answer = sensor.hear()
    assert topic == "line/1/answer"
    assert (answer["label"], answer["model"], answer["release"]) == ("red", "colours", 1)
    assert abs(answer["at"] - time.time()) < DEADLINE_S
    assert device.agent.model("colours").feedback(answer["prediction_id"], "red")
    sensor.send("line/2/word", {"word": "dog"})
    assert sensor.hear()[1]["score"] == 1.0
    sensor.send("line/1/colour", {"rows": [[1, 0, 0, 0], {"a": 0, "b": 0, "c": 1, "d": 0}]})
    assert [one["label"] for one in sensor.hear()[1]["answers"]] == ["red", "blue"]
    sensor.send("line/1/colour", [1, 0])
    topic, problem = sensor.hear()
    assert (topic, problem["error"]) == ("line/1/answer/error", "row of shape (2,): expected (4,)")


def test_every_row_is_answered_while_versions_are_switched(
    device: LocalAgent, sensor: Sensor
) -> None:
    seen: list[int] = []
    bundles = [colours(name, version=name) for name in ("classifier.onnx", "classifier.tflite")]
    for release in range(2, 12):
        device.order(bundles[release % 2], release, confirm_rows=1)
        while not seen or seen[-1] != release:
            sensor.send("line/1/colour", [1, 0, 0, 0])
            topic, answer = sensor.hear()
            assert (topic, answer.get("label")) == ("line/1/answer", "red")
            seen.append(answer["release"])
            device.hub.answer(device.link)
        device.until_confirmed("colours", release)
    assert seen == sorted(seen)


def test_a_broker_that_comes_back_is_found_and_nothing_retained_is_answered(
    device: LocalAgent, sensor: Sensor, broker: Broker
) -> None:
    sensor.send("line/1/colour", [1, 0, 0, 0], retain=True)
    assert sensor.hear()[1]["label"] == "red"  # to a subscriber it is a message as any other
    pipeline = device.agent.pipeline
    assert pipeline
    sensor.stop()
    broker.stop()
    device.until(lambda: not pipeline.is_connected)
    broker.start()
    until_connected(device)
    again = Sensor(broker.port)
    again.send("line/1/colour", [0, 0, 1, 0])
    assert again.hear()[1]["label"] == "blue"  # and not the retained red one
    again.stop()


def test_a_broker_that_refuses_the_password_costs_nothing_else(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LocalBroker(port=broker.port, topics=TOPICS)
    made = LocalAgent(tmp_path, broker=config)
    made.start()
    made.until(lambda: "the local broker refused the agent: Not authorized" in caplog.text)
    made.order(colours("classifier.onnx"), 1)
    made.until_confirmed("colours", 1)
    assert made.agent.model("colours").predict([1, 0, 0, 0]).label == "red"
    made.stop()
