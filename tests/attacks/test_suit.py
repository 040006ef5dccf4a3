"""The threats of SUIT's information model (RFC 9124, section 4.2), on a whole device."""

import contextlib
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edgefleet_agent.downloading import fetching, slots
from edgefleet_agent.errors import EnrolmentError, StoreError
from edgefleet_agent.link import Connected, Inbound, MqttLink
from edgefleet_agent.testing import Bundle, padded_onnx
from edgefleet_agent.trusting import enrolment, identity, tufclient
from edgefleet_agent.trusting.timekeeping import Instant, Timekeeper
from edgefleet_agent.updating import verification
from edgefleet_cloud.database.models import Model
from edgefleet_cloud.errors import DamagedError
from edgefleet_cloud.fleet.testing import until
from edgefleet_cloud.registry import service as registry
from edgefleet_cloud.services import Services
from edgefleet_cloud.testing import Fleet
from edgefleet_cloud.trust.people import approvals
from edgefleet_cloud.trust.repositories import founding, keyfiles
from edgefleet_protocol import blocks, codec, manifest, topics
from edgefleet_protocol.messages import Block, BlockRequest
from edgefleet_protocol.trust import target_path
from tests.attacks.brokers import Ours, Unruled
from tests.attacks.conftest import Brokers
from tests.attacks.hubs import MACHINE, claim_of, leading_to, save_identity, serving
from tests.attacks.register import Source, attack
from tests.attacks.world import (
    MODELS,
    ROW,
    World,
    changed,
    good,
    limited_to,
    no_cross_check,
    no_expiry,
    no_file_checks,
    no_golden_vectors,
    no_signatures,
    replaced,
    steered,
    unsigned,
)

Worlds = Callable[..., World]
BLOCKS_A = topics.down("a", "blocks")


@attack(
    "expired",
    Source.SUIT,
    stopped_by="expiry inside the signed part: an assignment lives for a day",
    without="the check of expiry",
)
def test_an_order_of_yesterday_is_given(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is newer than what the device has, and yet no longer what the hub wants."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        where.hear(where.hub.image_messages())
        where.hub.director.life = timedelta(seconds=-1)
        where.hear([where.ordering(where.hub.assignment(target))])

    with monkeypatch.context() as patch:
        no_expiry(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "expired")]


@attack(
    "incompatible image",
    Source.SUIT,
    stopped_by="the boards that the image repository vouches for, and once more those of the "
    "manifest",
    without="the comparison of the board",
)
def test_a_bundle_for_another_board_is_ordered(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may drive another board's outputs, or never fit into this one's memory."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        limited_to(where, target_path(target.model, 2, target.variant), ["rpi4"])
        where.order(target)

    with monkeypatch.context() as patch:
        no_cross_check(patch, image=lambda said: replaced(said["image"], boards=[]))
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "incompatible-board")]


@attack(
    "format",
    Source.SUIT,
    stopped_by="the runtime, and with it the file's format, is said by both repositories and by "
    "the manifest; the trial loads the file with that runtime and no other",
    without="the comparison of the runtime (the order is believed; the manifest's word is a second "
    "wall)",
)
def test_a_file_is_to_be_read_as_another_format(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the director's key, an ONNX file is ordered as one for LiteRT."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        where.order(replaced(target, runtime="litert"))

    with monkeypatch.context() as patch:
        no_cross_check(
            patch, director=lambda said: replaced(said["director"], runtime=said["image"].runtime)
        )
        unchecked = world()
        attempt(unchecked)
        assert unchecked.refused == [("bundle", "mix-and-match")]
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "mix-and-match")]


@attack(
    "wrong location",
    Source.SUIT,
    stopped_by="the model's name is part of the path, of both signed fields and of the manifest",
    without="the comparison of the name in those places",
)
def test_a_bundle_is_to_be_put_where_another_model_belongs(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the director's key, the model that reads colours is ordered as the one for doors."""

    def attempt(where: World) -> str:
        target = where.hub.release(good(), 1)
        listed.append(where.hub._listed[target_path(target.model, 1, target.variant)])
        where.hear(where.hub.image_messages())
        moved = replaced(target, model="doors")
        path = target_path("doors", 1, target.variant)
        where.hear([where.ordering(where.hub.assignment(moved, files={path: listed[-1]}))])
        where.wait(90.0)
        return where.serves("doors")

    listed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(tufclient.Client, "find", lambda *_: listed[-1])
        no_cross_check(patch)
        patch.setattr(verification, "check_manifest", lambda *_, **__: None)
        assert attempt(world()) == "v1"
    ours = world()
    assert attempt(ours) == ""
    assert ours.refused == [("assignment", "mix-and-match")]


@attack(
    "replaced image",
    Source.SUIT,
    stopped_by="every file is hashed again when the agent starts, before it is loaded; what "
    "differs is dropped, told and fetched anew",
    without="the hashing at the start",
)
def test_a_file_is_replaced_after_it_was_verified(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with the device's card in hand puts another model under the right one's name."""

    def attempt(where: World) -> None:
        bundle = good()
        where.install(bundle, 1)
        path = where.store / "files" / bundle.manifest.file("model").digest
        path.write_bytes((MODELS / "inverted.onnx").read_bytes())
        where.restart()
        where.device.settle()

    with monkeypatch.context() as patch:
        patch.setattr(slots.Slots, "_damaged", lambda *_: iter(()))
        unchecked = world()
        attempt(unchecked)
        assert unchecked.answers_the_opposite()
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert not ours.answers_the_opposite()
    assert ours.refused == [("bundle", "damaged")]


@attack(
    "not authenticated",
    Source.SUIT,
    stopped_by="nothing without the signatures of both repositories is believed",
    without="the check of signatures",
)
def test_an_order_bears_no_signature(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simplest of forgeries: no key, no signature."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        where.hear(where.hub.image_messages())
        bare = changed(where.hub.assignment(target), lambda _, data: unsigned(data))
        where.hear([where.ordering(bare)])

    with monkeypatch.context() as patch:
        no_signatures(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "bad-signature")]


@attack(
    "extra image",
    Source.SUIT,
    stopped_by="a blob has the blocks that its signed length gives it, and no others",
    without="the lengths and digests of blocks and files",
)
def test_more_is_sent_than_was_signed(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more block is put behind the last, for whoever reads the file to its end."""
    tail = b"what nobody has signed"
    length = 2 * blocks.BLOCK_BYTES
    right = (MODELS / "classifier.onnx").read_bytes()
    bundle = good("v2", data=padded_onnx(right, length))
    model = bundle.manifest.file("model")

    def attempt(where: World) -> bytes:
        def serve(real: Callable[..., None], link: Any, request: BlockRequest) -> None:
            if request.digest == model.transfer.digest:
                extra = Block(request.digest, blocks.block_count(model.size_bytes), tail)
                link.send(topics.down(where.hub.device, "blocks"), codec.encode(extra))
            real(link, request)

        steered(where, serve)
        # A block that is not missing is left out even by a device that checks nothing.
        where.order(where.hub.release(bundle, 2))
        return (where.store / "files" / model.digest).read_bytes()

    with monkeypatch.context() as patch:
        no_file_checks(patch)
        patch.setattr(fetching.Fetch, "receive", _takes_any_block)
        assert attempt(world()).endswith(tail)
    ours = world()
    assert len(attempt(ours)) == model.size_bytes
    assert ours.serves() == "v2"


def _takes_any_block(fetch: Any, block: Block, now: float) -> None:
    """Take a block whether or not it is one of those that are missing."""
    if fetch._blob is None or block.digest != fetch.digest:
        return
    fetch._asked.pop(block.index, None)
    fetch._blob.write(block.index, block.payload)
    if not fetch._blob.missing:
        fetch._end_blob()


@attack(
    "disclosure",
    Source.SUIT,
    stopped_by="blocks go to the device that asked, on its own topic, under TLS, and only files of "
    "released bundles are served; a broadcast to a stage is read by every enrolled device",
    without="the permissions of a connection",
)
def test_a_device_reads_the_model_that_is_sent_to_another(brokers: Brokers) -> None:
    """Whoever owns one device wants the models of all."""

    def attempt(broker: Ours) -> list[bytes]:
        receiver, spy = broker.connect("a").listen(), broker.connect("b")
        for topic in (BLOCKS_A, "ef/1/d/+/down/blocks", "ef/1/#"):
            spy.subscribe(topic)
        spy.subscribe(topics.down_all("b"))
        broker.publish(BLOCKS_A, b"a block of the model")
        broker.publish(topics.down("b", "ack"), b"last")
        until(lambda: receiver.payloads(BLOCKS_A), "the block")
        until(lambda: b"last" in [payload for _, payload, _ in spy.received], "its own message")
        return spy.payloads(BLOCKS_A)

    assert b"a block of the model" in attempt(brokers.unruled)
    assert attempt(brokers.ours) == []


@attack(
    "wrong precursor",
    Source.SUIT,
    stopped_by="updates carry whole files, no differences; a file that is here already counts only "
    "after it was hashed again",
    without="the hashing of files that are here already, and the golden vectors, which find it too",
)
def test_what_a_release_builds_upon_is_not_what_it_seems(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second release shares the first one's model file, which has been altered meanwhile."""

    def attempt(where: World) -> None:
        first, second = good("v1"), good("v2", rows=65)
        model = first.manifest.file("model").digest
        assert second.manifest.file("model").digest == model
        where.install(first, 1)
        (where.store / "files" / model).write_bytes((MODELS / "inverted.onnx").read_bytes())
        where.order(where.hub.release(second, 2))

    with monkeypatch.context() as patch:
        patch.setattr(slots.Slots, "_damaged", lambda *_: iter(()))
        no_golden_vectors(patch)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
        assert unchecked.answers_the_opposite()
    ours = world()
    attempt(ours)
    assert ours.serves() == "v2"
    assert not ours.answers_the_opposite()


@attack(
    "manifest override",
    Source.SUIT,
    stopped_by="what both repositories say of a bundle must be equal, and what its manifest says "
    "too",
    without="both comparisons",
)
def test_the_director_says_otherwise_what_the_owner_said(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the director's key, the second version is passed off as another one."""

    def attempt(where: World) -> None:
        where.install(good(), 1)
        where.order(replaced(where.hub.release(good("v2"), 2), version="v9"))

    with monkeypatch.context() as patch:
        no_cross_check(patch)
        patch.setattr(verification, "check_manifest", lambda *_, **__: None)
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v9"
    ours = world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "mix-and-match")]


def with_classes_turned(bundle: Bundle) -> bytes:
    """Return the manifest, as long as before, with the names of its classes the other way round."""
    turned = replaced(bundle.manifest.signature, classes=bundle.manifest.signature.classes[::-1])
    return manifest.encode(replaced(bundle.manifest, signature=turned))


def manifest_unchecked(patch: pytest.MonkeyPatch) -> None:
    """Have the device read manifests without hashing them."""

    def read(held: Any, digest: str) -> manifest.Manifest:
        try:
            return manifest.decode(held.path(digest).read_bytes())
        except OSError as error:
            raise StoreError(str(error)) from error

    patch.setattr(slots.Slots, "manifest", read)


def label(where: World) -> str | None:
    """Return the class that the device answers."""
    return where.device.engine.model("colours").predict(ROW).label


@attack(
    "manifest modification",
    Source.SUIT,
    stopped_by="the manifest is a target itself: its length and digest are in the signed metadata",
    without="the digest of the manifest",
)
def test_a_manifest_is_changed_on_its_way(world: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red is called blue, and blue red."""
    bundle = good("v2")

    def attempt(where: World) -> None:
        target = where.hub.release(bundle, 1)
        where.hub.blobs[bundle.digest] = with_classes_turned(bundle)
        where.order(target)

    honest = world()
    honest.install(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "digest_of", lambda _: bundle.digest)
        manifest_unchecked(patch)
        unchecked = world()
        attempt(unchecked)
        assert {label(unchecked), label(honest)} == {"red", "blue"}
    ours = world()
    attempt(ours)
    assert ours.serves() == ""
    assert ours.outcomes == [(1, "rejected")]
    assert ("artifact block", "hash-mismatch") in ours.refused


@attack(
    "manifest time-of-check to time-of-use",
    Source.SUIT,
    stopped_by="a manifest is hashed whenever it is read, never trusted for having been checked "
    "once",
    without="the hashing at each reading",
)
def test_a_manifest_is_changed_between_check_and_use(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was verified, tried and confirmed; then it is changed on the disk."""
    bundle = good()

    def attempt(where: World) -> None:
        where.install(bundle)
        (where.store / "files" / bundle.digest).write_bytes(with_classes_turned(bundle))
        where.restart()
        where.device.settle()

    honest = world()
    honest.install(bundle)
    with monkeypatch.context() as patch:
        manifest_unchecked(patch)
        unchecked = world()
        attempt(unchecked)
        assert {label(unchecked), label(honest)} == {"red", "blue"}
    ours = world()
    attempt(ours)
    assert label(ours) == label(honest)
    assert ours.refused == [("bundle", "damaged")]


@attack(
    "expired while offline",
    Source.SUIT,
    stopped_by="attested time: nothing is judged before the hub has signed its time over the "
    "device's own random question, and metadata expires by that time alone",
    without="attested time (the device believes its own clock)",
)
def test_a_device_comes_back_after_months_and_is_given_what_was_right_then(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's clock stopped with it; to that clock, the order has ten days to live.

    The replay comes before any answer of the hub can, and once more from an attacker who lets no
    answer pass.
    """

    def attempt(where: World, *, answered: bool = True) -> None:
        then = time.time() - 130 * 86_400.0
        where.hub.clock = lambda: then
        where.install(good(), 1)
        target = where.hub.release(good("v2"), 2)
        where.hub.director.life = timedelta(days=-120)
        old = [*where.hub.image_messages(), where.ordering(where.hub.assignment(target))]
        where.hub.clock, where.hub.attests = time.time, answered
        where.restart(now=then)
        where.hear(old)
        where.wait(90.0)

    with monkeypatch.context() as patch:
        patch.setattr(Timekeeper, "instant", lambda keeper: Instant(keeper._clock(), attested=True))
        unchecked = world()
        attempt(unchecked)
        assert unchecked.serves() == "v2"
    ours, cut_off = world(), world()
    attempt(ours)
    assert ours.serves() == "v1"
    assert ours.refused == [("assignment", "expired")]
    attempt(cut_off, answered=False)
    assert cut_off.serves() == "v1"
    assert cut_off.refused == [("assignment", "time-not-attested")]


@attack(
    "unapproved",
    Source.SUIT,
    stopped_by="only an approved version is released, and one of a high-risk model only after two "
    "people who did not make it have said yes; a device runs nothing that was not ordered for it",
    without="the wait for two people",
)
def test_a_version_is_released_that_nobody_has_approved(
    hubs: Callable[[str], Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may release wants to do it alone."""

    def attempt(services: Services) -> int:
        fleet = Fleet(services.database, services.store, services.clock, "doors")
        fleet.add_version("v1")
        with services.database.write() as session:
            session.get_one(Model, "doors").risk = approvals.HIGH
            made = registry.release(session, "doors", "v1", "in a hurry", services.clock())
            return made.number

    with monkeypatch.context() as patch:
        patch.setattr(approvals, "require", lambda *_: None)
        assert attempt(hubs("unchecked")) == 1
    with pytest.raises(approvals.AwaitsApprovalError, match="not approved by 2 people"):
        attempt(hubs("ours"))


@attack(
    "redirect",
    Source.SUIT,
    stopped_by="a device knows its hub by the fingerprint in its claim, not by a name; no redirect "
    "is followed",
    without="the comparison of the fingerprint",
)
def test_a_device_is_led_to_another_hub(
    tmp_path: Path, hubs: Callable[[str], Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a false name server, and by an answer that says where else to go."""
    true, false = hubs("true"), hubs("false")
    claim = replaced(claim_of(false, "cam-1"), fingerprint=true.authority.fingerprint)

    def attempt(url: str, store: Path) -> str:
        with contextlib.suppress(EnrolmentError):
            return enrolment.enrol(store, url, claim, MACHINE).device
        assert not identity.is_enrolled(store)
        return ""

    with serving(false) as url:
        with monkeypatch.context() as patch:
            patch.setattr(enrolment, "_pinned_ca", lambda *_: false.authority.ca_pem.decode())
            assert attempt(url, tmp_path / "unchecked") == "cam-1"
        assert attempt(url, tmp_path / "ours") == ""
        with leading_to(url, true) as lead:
            assert attempt(lead, tmp_path / "led") == ""


@attack(
    "on-path",
    Source.SUIT,
    stopped_by="TLS whose server certificate must be of an authority of this fleet, in both "
    "directions; what is signed does not depend on it",
    without="the verification of the broker's certificate",
)
def test_somebody_stands_between_device_and_broker(
    tmp_path: Path,
    brokers: Brokers,
    hubs: Callable[[str], Services],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent's real link meets a broker whose certificate is of another authority."""
    foreign = hubs("foreign").authority
    between = Unruled(brokers.ours.site, tmp_path / "between", tls=True, foreign=foreign)

    def attempt(store: Path) -> bool:
        save_identity(brokers.ours, store, between.port)
        events: list[Inbound] = []
        link = MqttLink(identity.load(store))
        link.start(events.append)
        try:
            until(lambda: events or link._tls_refusal, "a verdict on the broker")
            return any(isinstance(event, Connected) for event in events)
        finally:
            link.stop()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(ssl, "create_default_context", _believing_everybody)
            assert attempt(tmp_path / "unchecked") is True
        assert attempt(tmp_path / "ours") is False
    finally:
        between.stop()


def _believing_everybody(**_: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@attack(
    "manifest exposure",
    Source.SUIT,
    stopped_by="a manifest travels like a model: under TLS, to devices with a certificate of this "
    "fleet. Names, versions and digests of bundles are no secret: the signed metadata is public",
    without="TLS with certificates at the broker",
)
def test_a_stranger_reads_manifests_and_metadata(brokers: Brokers) -> None:
    """A client without any certificate asks the broker for everything."""
    topic = topics.fleet_meta("targets")

    def attempt(broker: Ours) -> list[bytes]:
        broker.publish(topic, b"what exists", retain=True)
        stranger = broker.join(broker.stranger())
        if stranger.accepted is not True:
            return []
        stranger.subscribe("#")
        until(lambda: stranger.payloads(topic), "the metadata")
        return stranger.payloads(topic)

    assert attempt(brokers.plain) == [b"what exists"]
    assert attempt(brokers.ours) == []


@attack(
    "key exposure",
    Source.SUIT,
    stopped_by="keys that can change what is trusted are offline and encrypted, each for another "
    "person; the hub's machine holds none of them once their folder was moved away",
    without="moving the folder away (as it is right after the first start)",
)
def test_everything_on_the_hubs_machine_is_copied(tmp_path: Path) -> None:
    """The thief tries every private key there is, with every passphrase that lies about."""
    home = tmp_path / "hub"
    home.mkdir()
    folder = founding.by_hub(home, {}, time.time())

    def could_sign() -> set[str]:
        words = [path.read_bytes().strip() for path in home.rglob("PASSPHRASE")]
        stolen = {
            signer.public_key.keyid
            for path in home.rglob("*.pem")
            for signer in [_opened(path, words)]
            if signer
        }
        roots = {
            name: Metadata[Root].from_bytes((home / name / "1.root.json").read_bytes()).signed
            for name in ("images", "director")
        }
        return {
            f"{name} {role}"
            for name, root in roots.items()
            for role, said in root.roles.items()
            if len(stolen & set(said.keyids)) >= said.threshold
        }

    offline = {"images root", "images targets", "director root"}
    assert offline < could_sign()
    folder.rename(tmp_path / "a stick in a safe")
    assert could_sign() == {
        "images snapshot",
        "images timestamp",
        "director targets",
        "director snapshot",
        "director timestamp",
    }


def _opened(path: Path, passphrases: list[bytes]) -> CryptoSigner | None:
    if not keyfiles.is_encrypted(path):
        return keyfiles.read(path, None)
    for passphrase in passphrases:
        with contextlib.suppress(DamagedError):
            return keyfiles.read(path, passphrase)
    return None
