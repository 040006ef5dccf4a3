"""The attacks that Uptane's standard names, on a whole device."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from edgefleet_agent import inbox
from edgefleet_agent.downloading import fetching
from edgefleet_agent.testing import Bundle, padded_onnx
from edgefleet_agent.updating import update
from edgefleet_agent.updating.attempts import Attempts
from edgefleet_agent.updating.journal import Assigned
from edgefleet_cloud.fleet.testing import until
from edgefleet_protocol import blocks, codec, topics
from edgefleet_protocol.errors import RefusedError
from edgefleet_protocol.messages import Assignment, Block, BlockRequest
from tests.attacks.brokers import Ours
from tests.attacks.conftest import Brokers
from tests.attacks.register import Source, attack
from tests.attacks.world import (
    MODELS,
    World,
    changed,
    evil,
    good,
    no_cross_check,
    no_expiry,
    no_signatures,
    no_versions,
    real_children,
    replaced,
    steered,
    stranger,
)

Worlds = Callable[..., World]
TOPIC = topics.down("a", "blocks")


@functools.cache
def large() -> Bundle:
    """Return a bundle whose model takes 25 blocks that do not compress, which takes a second."""
    model = (MODELS / "classifier.onnx").read_bytes()
    return good("v2", data=padded_onnx(model, 25 * blocks.BLOCK_BYTES - 1000))


@attack(
    "eavesdrop",
    Source.UPTANE,
    stopped_by="mutual TLS (1.2 at least) to the broker and to the hub; a plain connection is not "
    "offered",
    without="TLS at the broker",
)
def test_somebody_listens_on_the_line(brokers: Brokers) -> None:
    """A recorder stands between device and broker; what it records is searched for the content."""
    secret = b"the weights of the model" * 100

    def attempt(broker: Ours) -> bytes:
        with broker.tapped() as line:
            device = broker.connect("a", port=line.port).listen()
            broker.publish(TOPIC, secret)
            until(lambda: device.payloads(TOPIC) == [secret], "the message")
            return line.heard

    assert secret in attempt(brokers.plain)
    heard = attempt(brokers.ours)
    assert len(heard) > len(secret)
    assert secret[:24] not in heard


@attack(
    "drop-request",
    Source.UPTANE,
    stopped_by="nothing stops a network from dropping; the device asks again, ever more slowly, "
    "until it is answered, and serves on meanwhile",
    without="asking again",
)
def test_requests_and_answers_are_dropped(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker drops the first three requests for the model, then grows tired of it."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        dropped: list[BlockRequest] = []

        def serve(real: Callable[..., None], link: Any, request: BlockRequest) -> None:
            if len(dropped) < 3:
                dropped.append(request)
            else:
                real(link, request)

        steered(where, serve)
        where.order(where.hub.release(good("v2"), 2))
        assert where.serves() == "v1"
        for seconds in (5.0, 10.0, 20.0):  # as the device waits between two questions
            where.wait(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "FIRST_RETRY_S", 1e9)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v1"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"


@attack(
    "slow retrieval",
    Source.UPTANE,
    stopped_by="deadlines: no new block for 10 minutes of connection, or 7 days in all, ends the "
    "attempt; metadata that is not whole after 10 minutes is refused. The hub is told",
    without="the deadlines",
)
def test_a_download_is_held_up_for_ever(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker lets one block of 25 pass and then nothing: neither an answer nor an error."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        bundle = large()
        model = bundle.manifest.file("model").transfer.digest

        def serve(real: Callable[..., None], link: Any, request: BlockRequest) -> None:
            if request.digest != model:
                real(link, request)
            elif request.bitmap[0] & 1:
                real(link, replaced(request, bitmap=b"\x01"))

        steered(where, serve)
        where.order(where.hub.release(bundle, 2))
        where.wait(630.0)

    with monkeypatch.context() as patch:
        patch.setattr(update, "DEADLINES", {})
        unchecked = world()
        attempt(unchecked)
        unchecked.wait(86_400.0, step_s=3600.0)
        assert unchecked.device.steps() == {"colours": "fetching"}
        assert unchecked.outcomes == [(1, "confirmed")]
    ours = world()
    attempt(ours)
    assert ours.outcomes == [(1, "confirmed"), (2, "failed")]
    assert ours.reasons[-1].endswith("no new block within 600 s")
    assert ours.serves() == "v1"


@attack(
    "freeze",
    Source.UPTANE,
    stopped_by="expiry: image metadata lives for a week, assignments for a day; the device reports "
    "it and the hub publishes anew",
    without="the check of expiry",
)
def test_a_device_is_kept_on_what_was_newest_once(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image metadata that was right and has since expired is all that the device ever gets."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        where.hub.image.life = timedelta(seconds=-1)
        where.hear(where.hub.image_messages())
        where.wait(120.0)

    with monkeypatch.context() as patch:
        no_expiry(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.refused == []
    ours = world()
    attempt(ours)
    assert ours.refused == [("image metadata", "expired")]
    assert ours.serves() == "v1"  # expiry stops updates, never a model


@attack(
    "partial bundle installation",
    Source.UPTANE,
    stopped_by="an assignment is taken as a whole or not at all",
    without="that rule (what is refused is left out, and the rest is done)",
)
def test_a_part_of_an_assignment_is_made_impossible(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models that belong together: one new, one order that the device is past already."""

    def attempt(where: World) -> None:
        eye = where.hub.release(good("v1", model="eye"), 1)
        hand = where.hub.release(good("v1", model="hand"), 2)
        where.order(eye, hand)
        where.order(eye, replaced(hand, attempt=4))
        where.order(replaced(where.hub.release(good("v2", model="eye"), 5)), hand)

    with monkeypatch.context() as patch:
        patch.setattr(Attempts, "check", _takes_what_it_can)
        unchecked = world()
        attempt(unchecked)
        assert (unchecked.serves("eye"), unchecked.serves("hand")) == ("v2", "")
    ours = world()
    attempt(ours)
    assert (ours.serves("eye"), ours.serves("hand")) == ("v1", "v1")
    assert ours.refused == [("assignment", "rollback")]


def _takes_what_it_can(attempts: Attempts, targets: list[Assigned]) -> None:
    """Leave out what is refused, and go on with the rest."""
    for target in list(targets):
        try:
            update.decide(attempts.journals.get(target.key), target)
        except RefusedError:
            targets.remove(target)


@attack(
    "denial of service",
    Source.UPTANE,
    stopped_by="what the network sends waits in a bounded queue (32 MiB) and is dropped beyond it; "
    "refusals are told once a minute; a model answers from memory whatever happens",
    without="the bound of the queue",
)
def test_a_device_is_flooded(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 messages as long as any may be come faster than the device can read them."""
    junk = bytes(codec.MAX_MESSAGE_BYTES)

    def attempt(where: World) -> int:
        where.install(good(), 1)
        for _ in range(200):
            where.device.link.send(topics.down(where.hub.device, "blocks"), junk)
        waiting = where.device.engine._inbox._network_bytes
        assert where.serves() == "v1"
        where.device.settle()
        return waiting

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "MAX_NETWORK_BYTES", 1 << 62)
        assert attempt(world()) == 200 * len(junk)
    ours = world()
    assert attempt(ours) <= inbox.MAX_NETWORK_BYTES
    assert ours.refused == [("artifact block", "malformed"), ("message", "dropped")]


@attack(
    "rollback",
    Source.UPTANE,
    stopped_by="the device's own fsynced release floor: nothing below the highest release that it "
    "has confirmed of a model",
    without="the release floor",
)
def test_a_release_with_known_faults_comes_back(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the director's key the old release, still listed, is ordered under a new number."""

    def attempt(where: World) -> None:
        old = where.install(good("v1"), 1)
        where.install(good("v2"), 2)
        where.order(replaced(old, attempt=3))

    with monkeypatch.context() as patch:
        no_cross_check(patch, release_floor=lambda _: 0)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v1"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"
    assert ours.refused == [("assignment", "rollback")]


@attack(
    "endless data",
    Source.UPTANE,
    stopped_by="every length is known from signed metadata: at most twice a bundle's bytes and one "
    "window are taken for an attempt, over restarts too",
    without="the bound of an attempt's bytes",
)
def test_blocks_come_without_end(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker answers with right blocks that the device has already, again and again."""

    def attempt(where: World) -> int:
        bundle = large()
        model = bundle.manifest.file("model").transfer.digest
        taken = 0

        def serve(real: Callable[..., None], link: Any, request: BlockRequest) -> None:
            nonlocal taken
            if request.digest != model:
                real(link, request)
                return
            block = Block(model, 0, where.hub.block(model, 0))
            for _ in range(100):
                link.send(
                    topics.down(where.hub.device, "blocks"), codec.encode(block, compress=False)
                )
                taken += len(block.payload)

        steered(where, serve)
        where.order(where.hub.release(bundle, 1))
        where.wait(60.0)
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "WINDOW", 1 << 40)  # of which the bound is made
        unchecked = world()
        assert attempt(unchecked) > 4 * large().manifest.transfer_bytes
        assert unchecked.outcomes == []
    ours = world()
    attempt(ours)
    assert ours.outcomes == [(1, "rejected")]
    assert ours.reasons[-1].startswith("too-many-bytes: received ")


@attack(
    "mix-and-match",
    Source.UPTANE,
    stopped_by="versions, lengths and hashes of each role stand in the one above; and both "
    "repositories must name the same content",
    without="the versions that snapshot and timestamp name",
)
def test_roles_of_two_publications_are_mixed(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest timestamp and snapshot come with the targets of the assignment before."""

    def attempt(where: World) -> None:
        target = where.install(good(), 1)
        withdrawn = where.hub.release(good("recalled", model="doors"), 2)
        where.hear(where.hub.image_messages())
        old = codec.decode(where.hub.assignment(target, withdrawn), Assignment)
        new = where.hub.assignment(target)
        mixed = changed(new, lambda role, data: old.targets if role == "targets" else data)
        where.hear([where.ordering(mixed)])

    with monkeypatch.context() as patch:
        no_versions(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves("doors") == "recalled"
    ours = world()
    attempt(ours)
    assert ours.serves("doors") == ""
    assert ours.refused == [("assignment", "mix-and-match")]


@attack(
    "arbitrary software",
    Source.UPTANE,
    stopped_by="signatures of both repositories, whose first roots the device got when it was "
    "enrolled",
    without="the check of signatures",
)
def test_whoever_holds_the_broker_sends_a_model_of_its_own(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image metadata, assignment and bundle are whole and right, and signed by the attacker."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        attacker = stranger(where.hub)
        target = attacker.release(evil(), 2)
        messages = [part for part in attacker.image_messages() if "root" not in part[0]]
        where.hub.blobs = attacker.blobs
        where.hear([*messages, where.ordering(attacker.assignment(target))])
        where.wait(90.0)  # a new root could still come, by which these keys are right

    with monkeypatch.context() as patch:
        no_signatures(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "evil"
        assert unchecked.answers_the_opposite()
    with monkeypatch.context() as patch:
        real_children(patch)
        ours = world()
        attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("image metadata", "bad-signature"), ("assignment", "bad-signature")]
