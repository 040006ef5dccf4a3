"""Releases that wait for their owner's signature: rollouts, challenges, and the way back."""

import time
from pathlib import Path

import pytest

from edgefleet_cloud.database.models import DirectorRecord, Release, RolloutState
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.fleet import assignments
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.registry import signatures
from edgefleet_cloud.rollouts import challenges
from edgefleet_cloud.rollouts import service as rollouts
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.storage import Store
from edgefleet_cloud.testing import Fleet as Devices
from edgefleet_cloud.trust.repositories.images import ImageEntry
from edgefleet_cloud.trust.repositories.testing import founded, signer
from edgefleet_protocol import codec
from edgefleet_protocol.messages import Assignment
from edgefleet_protocol.trust import ImageTarget, target_path
from tests.trust.ceremony import DIGEST, Fleet


class World:
    """A fleet of devices whose model has an owner, and the rounds of its hub."""

    def __init__(self, tmp_path: Path, database: Database, store: Store) -> None:
        self.now = time.time()
        self.database, self.store = database, store
        self.settings = Settings(home=tmp_path)
        self.trust = Fleet.of(founded(tmp_path / "hub", lambda: self.now), database)
        self.trust.founded.signers["ann"] = signer("ann")
        self.devices = Devices(database, store, lambda: self.now)
        self.ids = self.devices.add_devices(3)

    def own(self) -> None:
        key = self.trust.founded.signers["ann"].public_key
        self.trust.ceremonies.delegate("vision", ["digits"], [key], 1)
        self.trust.sign("targets-1", "targets-2", "ann")
        self.round()

    def round(self) -> None:
        """Do what the scheduler does about releases, orders and signatures."""
        self.now += 1.0
        with self.database.write() as session:
            rollouts.advance(session, self.now)
        images = self.trust.founded.images
        with self.database.read() as session:
            entries = {}
            for row in session.query(Release).all():
                for variant in registry.variants(session, row.version_id):
                    target = ImageTarget(row.model, "1", variant.name, row.number, "onnxruntime")
                    path = target_path(row.model, row.number, variant.name)
                    entries[path] = ImageEntry(100, DIGEST, target)
        images.sync(entries)
        with self.database.write() as session:
            assignments.order_signed(session, signatures.settle(session, images))
        director = self.trust.founded.director
        assignments.sign_due(self.database, self.store, director, self.settings, self.now)

    def roll_out(self, version: str) -> int:
        with self.database.write() as session:
            made = rollouts.create(session, "digits", version, "all", "direct", self.now)
            return made.id

    def rollout(self, rollout_id: int) -> tuple[str, str, dict[str, int]]:
        with self.database.read() as session:
            row = rollouts.get(session, rollout_id)
            return row.state, row.reason, rollouts.summary(session, row)["states"]


@pytest.fixture
def world(tmp_path: Path, database: Database, store: Store) -> World:
    made = World(tmp_path, database, store)
    made.devices.add_version("1")
    return made


def complete(world: World, rollout_id: int) -> None:
    """Let every device confirm what it was ordered, until the rollout is done."""
    for _ in range(4):
        world.round()
        world.devices.follow_orders()
    assert world.rollout(rollout_id)[0] == RolloutState.COMPLETED


@pytest.fixture
def owned(world: World) -> World:
    """Version 1 is on every device; from here on an owner signs."""
    complete(world, world.roll_out("1"))
    world.own()
    return world


def test_a_model_without_owner_waits_for_nobody(world):
    complete(world, world.roll_out("1"))
    assert set(world.devices.running().values()) == {"1"}


def test_what_ran_before_there_was_an_owner_goes_on_and_is_refreshed(owned):
    assert set(owned.devices.running().values()) == {"1"}
    owned.now += owned.settings.assignment_ttl_s
    owned.round()
    with owned.database.read() as session:
        assert all(row.expires_at > owned.now for row in session.query(DirectorRecord))


def test_a_rollout_says_whose_signature_it_waits_for_and_goes_on_by_itself(owned):
    owned.devices.add_version("2")
    rollout = owned.roll_out("2")
    for _ in range(3):
        owned.round()
    state, reason, states = owned.rollout(rollout)
    assert (state, reason) == ("running", "waits for the signature of owner-vision")
    assert states == {"waiting": 3}
    assert owned.devices.follow_orders() == []

    owned.trust.sign("ann")
    complete(owned, rollout)
    assert set(owned.devices.running().values()) == {"2"}


def test_no_device_is_ordered_what_its_owner_has_not_signed(owned):
    owned.devices.add_version("2")
    owned.roll_out("2")
    with (
        owned.database.write() as session,
        pytest.raises(ConflictError, match="digits r2 waits for the signature of owner-vision"),
    ):
        assignments.order(session, "cam-00", "digits", 2, "onnx-int8", {}, None, owned.now)


def test_the_time_that_devices_have_begins_with_the_signature(owned):
    owned.devices.add_version("2")
    rollout = owned.roll_out("2")
    owned.round()
    owned.now += 30 * 86_400.0  # a month of waiting makes no device silent
    owned.round()
    assert owned.rollout(rollout)[2] == {"waiting": 3}
    owned.trust.sign("ann")
    complete(owned, rollout)


def test_going_back_needs_no_signature_because_it_was_signed_with_the_release(owned):
    owned.devices.add_version("2")
    rollout = owned.roll_out("2")
    owned.round()
    owned.trust.sign("ann")
    complete(owned, rollout)
    with owned.database.write() as session:
        rollouts.roll_back(session, rollout, "it fails", owned.now)
    for _ in range(4):
        owned.round()
        owned.devices.follow_orders()
    assert owned.rollout(rollout)[0] == RolloutState.ROLLED_BACK
    assert set(owned.devices.running().values()) == {"1"}


def test_the_way_back_is_no_champion_until_it_is_taken(owned):
    owned.devices.add_version("2")
    owned.roll_out("2")
    with owned.database.read() as session:
        assert registry.champion(session, "digits").version == "2"
        numbers = [(row.number, row.challenge) for row in registry.releases(session, "digits")]
    assert numbers == [(3, True), (2, False), (1, False)]


def test_a_way_back_that_nobody_has_signed_waits_and_says_so(owned):
    owned.devices.add_version("2")
    rollout = owned.roll_out("2")
    owned.round()
    owned.trust.sign("ann")
    complete(owned, rollout)
    with owned.database.write() as session:
        session.get_one(Release, ("digits", 3)).version_id = registry.get_version(
            session, "digits", "2"
        ).id
        rollouts.roll_back(session, rollout, "it fails", owned.now)
    owned.round()
    state, reason, _ = owned.rollout(rollout)
    assert state == "rolling_back"
    assert reason == "it fails (the way back waits for the signature of owner-vision)"
    owned.now += 30 * 86_400.0
    owned.round()
    assert owned.rollout(rollout)[0] == "rolling_back"
    owned.trust.sign("ann")
    for _ in range(4):
        owned.round()
        owned.devices.follow_orders()
    assert owned.rollout(rollout)[0] == RolloutState.ROLLED_BACK
    assert set(owned.devices.running().values()) == {"1"}


def test_a_challenger_is_put_on_the_devices_once_it_is_signed(owned):
    owned.devices.add_version("2")
    with owned.database.write() as session:
        challenges.start(session, "digits", "2", "all", "shadow", owned.now)
    owned.round()
    with owned.database.read() as session:
        before = {row.device_id: row.signed_sequence for row in session.query(DirectorRecord)}
        payloads = [row.payload for row in session.query(DirectorRecord)]
    assert not any(b"digits/r2/" in codec.decode(data, Assignment).targets for data in payloads)
    owned.trust.sign("ann")
    owned.round()
    with owned.database.read() as session:
        rows = session.query(DirectorRecord).all()
        assert all(row.signed_sequence > before[row.device_id] for row in rows)
        payloads = [row.payload for row in rows]
    assert all(b"digits/r2/" in codec.decode(data, Assignment).targets for data in payloads)


def test_every_assignment_is_signed_again_under_a_new_root(owned):
    owned.trust.ceremonies.rotate("director.online")
    owned.trust.sign("root-1", "root-2")
    owned.round()
    with owned.database.read() as session:
        rows = session.query(DirectorRecord).all()
        assert {row.root_version for row in rows} == {2}
        assert all(len(codec.decode(row.payload, Assignment).roots) == 2 for row in rows)


def test_an_owner_that_goes_leaves_nothing_waiting(owned):
    owned.devices.add_version("2")
    rollout = owned.roll_out("2")
    owned.round()
    owned.trust.ceremonies.undelegate("vision")
    owned.trust.sign("targets-1", "targets-2")
    complete(owned, rollout)
