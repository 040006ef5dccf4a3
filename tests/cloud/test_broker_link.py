"""The way between hub and devices through a real broker with mutual TLS."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.link import Link
from edgefleet_cloud.database.models import Device, DirectorRecord, Incident
from edgefleet_cloud.fleet import assignments, devices
from edgefleet_cloud.fleet.testing import (
    Bundle,
    TestDevice,
    enrol,
    open_services,
    release_bundle,
    until,
)
from edgefleet_cloud.services import Services
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.messages import (
    Ack,
    Assignment,
    Block,
    BlockAnswer,
    BlockRequest,
    BlocksUnavailable,
    Refusal,
    Report,
    State,
    SyncRequest,
)

# Four blocks that no compression makes smaller.
CONTENT = os.urandom(3 * blocks.BLOCK_BYTES + 1000)


class Hub:
    def __init__(self, home: Path, migrated: Path) -> None:
        self.home = home
        self.services: Services = open_services(home, migrated=migrated)
        self.broker = EmbeddedBroker(
            self.services.settings,
            self.services.authority,
            home / "broker",
            self.services.database,
        )
        self.link = Link(self.services)
        self.devices: list[TestDevice] = []

    def start(self) -> None:
        self.broker.start()
        self.link.start()
        assert self.link.await_connected(10)

    def stop(self) -> None:
        for device in self.devices:
            with contextlib.suppress(OSError):
                device.close()
        self.link.stop()
        self.broker.stop()
        self.services.database.close()

    def device(self, device_id: str, identity: str | None = None) -> TestDevice:
        device = TestDevice(self.services, self.home / "devices", device_id, identity)
        self.devices.append(device)
        return device.connect()

    def tick(self) -> None:
        services = self.services
        assignments.sign_due(
            services.database,
            services.store,
            services.director,
            services.settings,
            services.clock(),
        )
        self.link.publish_pending()
        self.broker.supervise()

    def enrol(self, *device_ids: str) -> None:
        for device_id in device_ids:
            enrol(self.services, device_id, self.home / "devices")

    def release(self, release: int = 1) -> Bundle:
        with self.services.database.write() as session:
            return release_bundle(
                session, self.services.store, "digits", str(release), release, CONTENT
            )


@pytest.fixture
def hub(tmp_path: Path, migrated: Path) -> Iterator[Hub]:
    running = Hub(tmp_path, migrated)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def state(device: str, sequence: int = 1, assignment: int = 0) -> State:
    return State(
        device=device,
        boot=1,
        sequence=sequence,
        at=1.0,
        agent_version="0.1.0",
        board="generic-x86_64",
        runtimes={},
        memory_bytes=1 << 30,
        assignment=assignment,
        serving=[],
    )


def assignments_of(device: TestDevice) -> list[bytes]:
    return device.payloads(topics.down(device.id, "assignment"))


def test_a_device_reads_its_assignment_and_the_image_metadata_as_retained_messages(hub: Hub):
    hub.enrol("cam-1")
    hub.tick()
    device = hub.device("cam-1").listen()
    until(lambda: assignments_of(device), "assignment")
    until(lambda: len(device.received) >= 6, "image metadata")
    codec.decode(assignments_of(device)[0], Assignment)
    names = {topic.rsplit("/", 1)[1] for topic, _, _ in device.received}
    assert names == {"assignment", "root-1", "releases", "targets", "snapshot", "timestamp"}


def test_an_assignment_counts_as_published_only_after_the_broker_has_it(hub: Hub):
    hub.enrol("cam-1")
    hub.tick()
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "published")
    with hub.services.database.read() as session:
        assert assignments.unpublished(session) == []


def test_a_report_is_acknowledged_after_its_commit_and_again_when_it_is_sent_again(hub: Hub):
    hub.enrol("cam-1")
    device = hub.device("cam-1").listen()
    report = Report("cam-1", "store", 7, 1.0, Refusal("bundle", "oversized", "too big"))
    acks = topics.down("cam-1", "ack")
    for count in (1, 2):
        device.send("report", codec.encode(report))
        until(lambda count=count: len(device.payloads(acks)) == count, "ack")
    ack = codec.decode(device.payloads(acks)[0], Ack)
    assert (ack.store, ack.numbers) == ("store", [7])
    assert abs(ack.at - hub.services.clock()) < 60
    with hub.services.database.read() as session:
        assert len(devices.refusals(session)) == 1


def test_a_hostile_payload_is_counted_and_the_next_message_is_taken_in(hub: Hub):
    hub.enrol("cam-1")
    device = hub.device("cam-1").listen()
    for payload in (b"", b"\x07x", b"\x00\xc1", b"\x01not zstd", os.urandom(2000)):
        device.send("state", payload)
        device.send("request", payload)
    device.send("state", codec.encode(state("cam-1")))
    until(lambda: hub.link.counters["states"] == 1, "the good state")
    assert hub.link.counters["malformed"] == 10


def test_blocks_of_a_released_bundle_are_served_and_other_files_are_not(hub: Hub):
    hub.enrol("cam-1")
    bundle = hub.release()
    secret = hub.services.store.put(b"training data")
    device = hub.device("cam-1").listen()
    topic = topics.down("cam-1", "blocks")
    device.send("request", codec.encode(BlockRequest(secret, blocks.bitmap_of([0]))), qos=0)
    until(lambda: device.payloads(topic), "refusal")
    answer = codec.decode(device.payloads(topic)[0], BlockAnswer)  # type: ignore[arg-type]
    assert isinstance(answer, BlocksUnavailable)
    assert "not part of any released bundle" in answer.reason
    for digest, blob in bundle.blobs.items():
        assert _fetch(device, digest, len(blob)) == blob
    manifest = _fetch(device, bundle.manifest, bundle.entry.length)
    assert manifest == hub.services.store.read(bundle.manifest)


def test_a_bitmap_past_the_end_of_the_file_is_answered_with_a_reason(hub: Hub):
    hub.enrol("cam-1")
    bundle = hub.release()
    device = hub.device("cam-1").listen()
    request = BlockRequest(bundle.manifest, blocks.bitmap_of([9]))
    device.send("request", codec.encode(request), qos=0)
    topic = topics.down("cam-1", "blocks")
    until(lambda: device.payloads(topic), "refusal")
    answer = codec.decode(device.payloads(topic)[0], BlocksUnavailable)
    assert answer.reason == "bitmap asks for block 9 of 1"


def test_devices_that_ask_for_the_same_file_together_share_one_broadcast(hub: Hub, monkeypatch):
    monkeypatch.setattr("edgefleet_cloud.fleet.blocks.COALESCE_S", 0.5)
    monkeypatch.setattr("edgefleet_cloud.fleet.blocks.DEMAND_S", 60.0)
    names = [f"cam-{index}" for index in range(4)]
    hub.enrol(*names)
    bundle = hub.release()
    digest = next(iter(bundle.blobs))
    connected = [hub.device(name).listen() for name in names]
    topic = topics.fleet_blob(digest)
    assert all(device.subscribe(topic) for device in connected)
    for wanted in ([0], [1, 2, 3]):
        request = codec.encode(BlockRequest(digest, blocks.bitmap_of(wanted)))
        for device in connected:
            device.send("request", request, qos=0)
        for device in connected:
            until(lambda d=device, w=set(wanted): _blocks(d, digest).keys() >= w, "blocks")
    for device in connected:
        assert b"".join(_blocks(device, digest)[i] for i in range(4)) == bundle.blobs[digest]
        broadcast = [codec.decode(payload, Block).index for payload in device.payloads(topic)]
        assert broadcast[-3:] == [1, 2, 3]


def test_a_device_whose_state_is_behind_is_sent_its_assignment_again(hub: Hub):
    hub.enrol("cam-1")
    device = hub.device("cam-1").listen()
    hub.tick()
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "published")
    assert len(assignments_of(device)) == 1
    device.send("state", codec.encode(state("cam-1", assignment=0)))
    until(lambda: len(assignments_of(device)) == 2, "assignment again")
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "published")
    device.send("state", codec.encode(state("cam-1", sequence=2, assignment=1)))
    until(lambda: hub.link.counters["states"] == 2, "state")
    hub.tick()
    assert _record(hub, "cam-1").published
    assert assignments_of(device)[0] == assignments_of(device)[1]


def test_a_sync_request_brings_assignment_and_metadata_again(hub: Hub, monkeypatch):
    monkeypatch.setattr("edgefleet_cloud.broker.link.METADATA_PAUSE_S", 0.0)
    hub.enrol("cam-1")
    hub.tick()
    device = hub.device("cam-1").listen()
    until(lambda: len(device.received) == 6, "retained messages")
    device.send("request", codec.encode(SyncRequest("lost them")))
    until(lambda: len(device.received) == 12, "all of them again")


def test_a_refused_assignment_opens_one_incident_and_is_published_again(hub: Hub):
    hub.enrol("cam-1")
    hub.tick()
    device = hub.device("cam-1").listen()
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "published")
    until(lambda: len(assignments_of(device)) == 1, "assignment")
    for number in (1, 2):
        refusal = Refusal("assignment", "rollback", "older than accepted")
        device.send("report", codec.encode(Report("cam-1", "s", number, 1.0, refusal)))
    until(lambda: len(assignments_of(device)) == 2, "assignment again")
    until(lambda: hub.link.counters["reports"] == 2, "both reports")
    with hub.services.database.read() as session:
        incident = session.query(Incident).one()
    assert (incident.kind, incident.devices) == ("refused-assignment", ["cam-1"])


def test_after_kill_9_of_the_broker_everything_is_there_again(hub: Hub):
    hub.enrol("cam-1")
    hub.tick()
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "published")
    process = hub.broker._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: (hub.tick(), hub.broker._process is not process)[1], "a new broker")
    device = hub.device("cam-1").listen()
    until(lambda: assignments_of(device), "retained assignment")
    until(lambda: hub.link.connected, "the link is back")
    device.send("state", codec.encode(state("cam-1")))
    until(lambda: hub.link.counters["states"] == 1, "state over the new connection")


def test_a_revoked_device_is_thrown_out_and_its_retained_assignment_is_taken_away(hub: Hub):
    hub.enrol("cam-1")
    hub.tick()
    device = hub.device("cam-1").listen()
    until(lambda: assignments_of(device), "assignment")
    with hub.services.database.write() as session:
        devices.revoke(session, "cam-1", hub.services.clock())
    hub.tick()
    until(device.closed.is_set, "the connection is closed")
    assert hub.device("cam-1").accepted is not True
    until(lambda: (hub.tick(), _record(hub, "cam-1").published)[1], "taken away")
    hub.enrol("cam-1")
    again = hub.device("cam-1").listen()
    until(lambda: len(again.received) == 5, "image metadata")
    assert assignments_of(again) == []


def test_a_full_queue_drops_the_newest_and_the_device_sends_it_again(hub: Hub, monkeypatch):
    hub.enrol("cam-1")
    device = hub.device("cam-1").listen()
    release = threading.Event()
    taken = hub.link._take_in
    monkeypatch.setattr(hub.link, "_take_in", lambda batch: release.wait(20) and taken(batch))
    monkeypatch.setattr(hub.link._inbound, "maxsize", 2)
    reports = [
        codec.encode(Report("cam-1", "s", number, 1.0, Refusal("bundle", "r", "t")))
        for number in range(600)
    ]
    for report in reports:
        device.send("report", report, qos=0)
    until(lambda: hub.link.counters["received"] == 600, "all received")
    assert hub.link.counters["dropped"] > 0
    release.set()
    acks = topics.down("cam-1", "ack")

    def acknowledged() -> set[int]:
        return {n for ack in device.payloads(acks) for n in codec.decode(ack, Ack).numbers}

    def resend() -> bool:
        for number in sorted(set(range(600)) - acknowledged()):
            device.send("report", reports[number], qos=0)
        return acknowledged() == set(range(600))

    until(resend, "every report is acknowledged")
    with hub.services.database.read() as session:
        assert len(devices.refusals(session, limit=1000)) == 600


def _record(hub: Hub, device_id: str) -> DirectorRecord:
    with hub.services.database.read() as session:
        assert session.get(Device, device_id) is not None
        return session.get_one(DirectorRecord, device_id)


def _blocks(device: TestDevice, digest: str) -> dict[int, bytes]:
    found = {}
    for topic in (topics.down(device.id, "blocks"), topics.fleet_blob(digest)):
        for payload in device.payloads(topic):
            block = codec.decode(payload, Block)
            if block.digest == digest:
                found[block.index] = block.payload
    return found


def _fetch(device: TestDevice, digest: str, size: int) -> bytes:
    wanted = range(blocks.block_count(size))
    device.received.clear()
    request = BlockRequest(digest, blocks.bitmap_of(wanted))
    device.send("request", codec.encode(request), qos=0)
    until(lambda: len(_blocks(device, digest)) == len(wanted), "blocks")
    held = _blocks(device, digest)
    return b"".join(held[index] for index in wanted)
