"""One device that floods, among others that do not."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.broker import quota
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.broker.quota import (
    BYTES_AT_ONCE,
    BYTES_PER_S,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_S,
    TELL_AGAIN_S,
    Quotas,
)
from edgefleet_cloud.broker.testing import Site
from edgefleet_cloud.database.models import Incident
from edgefleet_cloud.fleet.testing import until
from edgefleet_protocol import codec, topics
from edgefleet_protocol.messages import State

BURST = int(MESSAGES_AT_ONCE)


def taken(quotas: Quotas, count: int, size: int = 0, now: float = 0.0, device: str = "a") -> int:
    return sum(quotas.take(device, size, now) for _ in range(count))


def test_a_burst_is_taken_and_the_first_message_beyond_it_is_not():
    quotas = Quotas()
    assert taken(quotas, BURST) == BURST
    assert not quotas.take("a", 0, 0.0)


def test_after_a_burst_messages_are_taken_at_the_steady_rate():
    quotas = Quotas()
    taken(quotas, BURST)
    assert taken(quotas, 1000, now=1.0) == MESSAGES_PER_S
    assert taken(quotas, 1, now=1.0 + 0.9 / MESSAGES_PER_S) == 0
    assert taken(quotas, 1, now=1.0 + 1.1 / MESSAGES_PER_S) == 1


def test_bytes_have_a_bucket_of_their_own():
    quotas = Quotas()
    half = int(BYTES_AT_ONCE / 2)
    assert taken(quotas, 3, size=half) == 2
    assert quotas.take("a", 0, 0.0)
    assert not quotas.take("a", 1, 0.0)
    assert quotas.take("a", int(BYTES_PER_S), 1.0)


def test_one_device_over_its_quota_costs_another_nothing():
    quotas = Quotas()
    taken(quotas, 2 * BURST, device="flooder")
    assert taken(quotas, BURST, device="honest") == BURST


def test_a_flood_is_told_once_a_minute_with_its_size():
    quotas = Quotas()
    taken(quotas, BURST + 5)
    assert quotas.to_tell("a", 0.0) == 5
    taken(quotas, 7, now=0.0)
    assert quotas.to_tell("a", TELL_AGAIN_S - 0.001) == 0
    assert quotas.to_tell("a", TELL_AGAIN_S) == 7


def test_full_buckets_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(quota, "MAX_BUCKETS", 3)
    quotas = Quotas()
    for device in ("a", "b", "c"):
        taken(quotas, BURST + 1, device=device)
    refill_s = MESSAGES_AT_ONCE / MESSAGES_PER_S
    taken(quotas, BURST, device="c", now=refill_s)
    quotas.take("d", 0, refill_s)
    assert set(quotas._buckets) == {"c", "d"}


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 20)), max_size=50))
def test_what_is_taken_never_exceeds_burst_and_rate(messages):
    quotas, now, size_bytes = Quotas(), 0.0, 0
    for wait_s, size in messages:
        now += wait_s
        size_bytes += size if quotas.take("a", size, now) else 0
    assert size_bytes <= BYTES_AT_ONCE + now * BYTES_PER_S + 1


@pytest.fixture
def site(tmp_path: Path, migrated: Path) -> Iterator[Site]:
    site = Site(tmp_path, "embedded", migrated)
    link = Link(site.services)
    site.link = link
    try:
        site.start("flooder", "honest")
        link.start()
        assert link.await_connected(10)
        yield site
    finally:
        link.stop()
        site.stop()


def state(device: str, sequence: int) -> bytes:
    message = State(device, 1, sequence, time.time(), "0", "b", {}, 0, 0, [], [], [])
    return codec.encode(message)


@pytest.mark.system
def test_a_flooding_device_is_cut_back_reported_once_and_the_others_are_heard(site):
    link: Link = site.link
    flooder, honest = site.connect("flooder"), site.connect("honest")
    count = 2 * BURST
    for _ in range(count):
        flooder.send("report", b"x" * 100, qos=0)
    until(lambda: link.counters["received"] == count, "the flood has come")
    honest.send("state", state("honest", 1))
    until(lambda: link.counters["states"] == 1, "the honest device is heard")
    assert link.counters["flooded"] > 0
    assert link.counters["flooded"] + link.counters["malformed"] == count

    def incidents() -> list[Incident]:
        with site.services.database.read() as session:
            return session.query(Incident).filter(Incident.kind == "device-flood").all()

    until(incidents, "the incident")
    assert [incident.devices for incident in incidents()] == [["flooder"]]


@pytest.mark.system
def test_what_was_retained_on_an_up_topic_and_what_is_too_large_is_passed_over(site):
    link: Link = site.link
    device = site.connect("honest")
    info = device.client.publish(topics.up("honest", "state"), state("honest", 9), 1, True)
    info.wait_for_publish(10)
    until(lambda: link.counters["states"] == 1, "heard while it is said")
    device.send("report", bytes(codec.MAX_MESSAGE_BYTES + 1), qos=0)
    until(lambda: link.counters["malformed"] == 1, "too large")
    link.stop()
    later = Link(site.services)
    later.start()
    try:
        assert later.await_connected(10)
        until(lambda: later.counters["malformed"] == 1, "the retained message")
        assert later.counters["states"] == 0
    finally:
        later.stop()
