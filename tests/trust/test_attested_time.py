"""The time as the hub attests it, from its key to the device that asked, through a real broker."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgefleet_agent.trusting import refresh, tufclient
from edgefleet_agent.trusting.timekeeping import Instant, Timekeeper
from edgefleet_cloud.broker import timing
from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.broker.timing import TimeDesk
from edgefleet_cloud.fleet.testing import TestDevice, enrol, open_services, until
from edgefleet_cloud.services import Services
from edgefleet_protocol import codec, topics
from edgefleet_protocol.attesting import TimeStatement, signed_time
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import TimeAttestation, TimeRequest

DEVICE = "cam-1"
AHEAD_S = 5 * 365 * 86_400.0


@pytest.fixture
def services(tmp_path: Path, migrated: Path) -> Iterator[Services]:
    (tmp_path / "hub").mkdir()
    opened = open_services(tmp_path / "hub", migrated=migrated)
    yield opened
    opened.database.close()


@pytest.fixture
def hub(services: Services) -> Iterator[Services]:
    """A hub whose broker and link run."""
    broker = EmbeddedBroker(
        services.settings,
        services.authority,
        services.settings.home / "broker",
        services.database,
    )
    link = Link(services)
    try:
        broker.start()
        link.start()
        assert link.await_connected(20)
        yield services
    finally:
        link.stop()
        broker.stop()


def keeper_of(
    services: Services, folder: Path, check: refresh.CheckTime, clock: Callable[[], float]
) -> Timekeeper:
    folder.mkdir(exist_ok=True)
    return Timekeeper(
        folder,
        DEVICE,
        services.director.root_1,
        clock=clock,
        monotonic=lambda: 1.0,
        nonce=os.urandom,
        check=check,
    )


def test_a_device_hears_the_time_that_it_asks_for_and_believes_it(
    hub: Services, tmp_path: Path
) -> None:
    enrol(hub, DEVICE, tmp_path / "devices")
    device = TestDevice(hub, tmp_path / "devices", DEVICE).connect().listen()
    keeper = keeper_of(hub, tmp_path / "trust", refresh.time_in_child, lambda: AHEAD_S)
    before = hub.clock()
    try:
        question = keeper.question()
        assert question is not None
        device.send("request", codec.encode(question))
        topic = topics.down(DEVICE, "time")
        until(lambda: device.payloads(topic), "the attested time")
        answer = codec.decode(device.payloads(topic)[0], TimeAttestation)
    finally:
        device.close()
    keeper.take(answer, [])
    assert before <= keeper.instant().at <= hub.clock()
    age_s = hub.authority.freshness.age_s("statement", DEVICE, keeper.challenge, hub.clock())
    assert age_s is not None
    assert age_s < 60
    assert hub.authority.freshness.age_s("statement", "cam-2", keeper.challenge, 0.0) is None


class Heard:
    """What a desk publishes."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, TimeStatement]] = []
        self.signing = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def publish(self, topic: str, payload: bytes) -> None:
        answer = codec.decode(payload, TimeAttestation)
        statement = msgspec.msgpack.decode(answer.statement, type=TimeStatement)
        self.answers.append((topic, statement))
        self.signing.set()
        self.go_on.wait(20)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def desk(services: Services, heard: Heard) -> Iterator[TimeDesk]:
    made = TimeDesk(services.director, services.authority, lambda: 5.0, heard.publish)
    yield made
    heard.go_on.set()
    made.stop()


def test_of_several_questions_of_one_device_the_newest_is_answered(
    desk: TimeDesk, heard: Heard
) -> None:
    heard.go_on.clear()
    desk.start()
    assert desk.ask("cam-9", TimeRequest(bytes(16)))
    assert heard.signing.wait(20)  # and all that follows has to wait
    for number in range(5):
        assert desk.ask(DEVICE, TimeRequest(bytes([number]) * 16))
    heard.go_on.set()
    until(lambda: len(heard.answers) == 2, "two answers")
    topic, statement = heard.answers[1]
    assert topic == topics.down(DEVICE, "time")
    assert (statement.device, statement.nonce, statement.at) == (DEVICE, bytes([4]) * 16, 5.0)


def test_a_desk_that_is_full_says_so_but_replaces_a_question_that_waits(
    desk: TimeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "MAX_WAITING", 1)
    assert desk.ask("cam-1", TimeRequest(bytes(16)))
    assert not desk.ask("cam-2", TimeRequest(bytes(16)))
    assert desk.ask("cam-1", TimeRequest(bytes(16)))


def test_a_key_that_cannot_sign_now_does_not_end_the_answering(
    desk: TimeDesk, services: Services, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = services.authority.issue_challenge, threading.Event()

    def once(device: str, now: float) -> bytes:
        if not failed.is_set():
            failed.set()
            raise OSError("the HSM does not answer")
        return real(device, now)

    monkeypatch.setattr(services.authority, "issue_challenge", once)
    desk.start()
    assert desk.ask("cam-9", TimeRequest(bytes(16)))
    assert failed.wait(20)
    assert desk.ask(DEVICE, TimeRequest(bytes(16)))
    until(lambda: heard.answers, "an answer")
    assert heard.answers[0][1].device == DEVICE


@pytest.mark.parametrize(
    ("role", "good"), [("snapshot", False), ("targets", False), ("timestamp", True)]
)
def test_only_the_director_s_timestamp_key_attests_the_time(
    services: Services, tmp_path: Path, role: str, good: bool
) -> None:
    keeper = keeper_of(services, tmp_path / "trust", tufclient.check_time, lambda: 0.0)
    question = keeper.question()
    assert question is not None
    now = services.clock()
    statement = msgspec.msgpack.encode(TimeStatement(DEVICE, question.nonce, now, bytes(16)))
    signature = services.director.sign_bytes(role, signed_time(statement))
    answer = TimeAttestation(statement, signature.keyid, bytes.fromhex(signature.signature))
    if good:
        keeper.take(answer, [])
        assert keeper.instant() == Instant(now, attested=True)
    else:
        with pytest.raises(RefusedError, match="a key that the director's root does not name"):
            keeper.take(answer, [])
